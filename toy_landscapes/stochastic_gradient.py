"""Noisy gradients: Gaussian noise of a given covariance, and mini-batches."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, cast

import numpy as np

from riemannian_ode.arrays import is_torch, like, matvec, namespace
from riemannian_ode.flow import Array
from riemannian_ode.noise import Calculus, GradientNoise, covariance_root
from toy_landscapes.arguments import check_coordinates
from toy_landscapes.finite_sum import FiniteSum, as_indices
from toy_landscapes.landscape import Landscape

Generator: TypeAlias = Any  # numpy.random.Generator, or torch.Generator for torch arrays


class NoiseSource(Protocol):
    """A source of gradient noise."""

    def check(self, landscape: Landscape) -> None:
        """Refuse a landscape that does not fit this noise."""
        ...

    def __call__(self, landscape: Landscape, w: Array, generator: Generator) -> Array:
        """A noisy gradient at w, independent for every member, shape ``(*ensemble, p)``."""
        ...


class GaussianNoise:
    r""":math:`\nabla f(w) + \xi` with :math:`\xi \sim N(0, \Sigma)`, the same Σ everywhere.

    Args:
        covariance: Σ, in squared units of the gradient: a number σ² for σ²I, the diagonal of shape ``(p,)``, or a
            symmetric positive semidefinite matrix of shape ``(p, p)``.

    Raises:
        ValueError: for a covariance that is not finite, not symmetric, or not positive semidefinite.
    """

    def __init__(self, covariance: float | Array) -> None:
        self.root = covariance_root(covariance)

    def check(self, landscape: Landscape) -> None:
        """Refuse a landscape of another dimension."""
        if self.root.ndim and len(self.root) != landscape.dimension:
            raise ValueError(
                f"covariance has shape {self.root.shape}; the landscape has {landscape.dimension} coordinates."
            )

    def __call__(self, landscape: Landscape, w: Array, generator: Generator) -> Array:
        """∇f(w) + ξ."""
        white, root = _standard_normal(w, generator), like(self.root, w)
        return landscape.gradient(w) + (matvec(root, white) if self.root.ndim == 2 else root * white)


class MiniBatches:
    r"""The gradient over b samples of a :class:`FiniteSum`, drawn independently for every member.

    With C the covariance of one sample's gradient (:meth:`FiniteSum.gradient_covariance`), the noise has covariance C/b
    with replacement and :math:`\frac Cb\cdot\frac{N-b}{N-1}` without.

    Args:
        batch_size: b ≥ 1; at most N without replacement.
        replacement: Whether a sample may be drawn twice in a batch.

    Raises:
        ValueError: for a batch size below 1.
    """

    def __init__(self, batch_size: int, *, replacement: bool = False) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size!r} must be at least 1.")
        self.batch_size, self.replacement = batch_size, replacement

    def check(self, landscape: Landscape) -> None:
        """Refuse a landscape that is not an average over enough samples."""
        if not isinstance(landscape, FiniteSum):
            raise ValueError(
                f"{type(landscape).__name__} has no samples to draw batches from; take a FiniteSum, such as "
                "LinearRegression, or Gaussian noise (GaussianNoise for update rules, GradientNoise for flows)."
            )
        if not self.replacement and self.batch_size > landscape.samples:
            raise ValueError(
                f"batch_size = {self.batch_size} exceeds the {landscape.samples} samples; set replacement=True or take "
                "a smaller batch."
            )

    def flow_noise(self, landscape: Landscape, *, seed: int = 0, calculus: Calculus = "ito") -> GradientNoise:
        r"""Gaussian noise for ``simulate`` with the w-dependent covariance of these batches.

        Its factor holds the deviations of the samples' gradients: p × N, with :math:`\sigma\sigma^\top` = C/b times the
        factor for draws without replacement.

        Args:
            landscape: A :class:`FiniteSum`.
            seed: Seed of the Brownian motion.
            calculus: See :class:`riemannian_ode.GradientNoise`.

        Raises:
            ValueError: for a landscape that is not an average over enough samples.
        """
        self.check(landscape)
        data = cast(FiniteSum, landscape)
        share = 1.0 if self.replacement else (data.samples - self.batch_size) / max(1, data.samples - 1)
        scale = (share / (self.batch_size * data.samples)) ** 0.5

        def factor(t: float, w: Array) -> Array:
            deviations = data.sample_gradients(w) - data.gradient(w)[..., None, :]
            return scale * namespace(w).matrix_transpose(deviations)

        return GradientNoise(factor=factor, seed=seed, calculus=calculus)

    def __call__(self, landscape: Landscape, w: Array, generator: Generator) -> Array:
        """The gradient over one batch per member."""
        data = cast(FiniteSum, landscape)  # check() has refused other landscapes
        return data.batch_gradient(w, _batches(data.samples, self.batch_size, self.replacement, w, generator))


class StochasticGradient(Landscape):
    """A landscape with a noisy gradient, for update rules and schemes that use one gradient per step.

    Every call of :meth:`gradient` draws new noise, so two calls at the same point differ, as for an optimizer. It is
    not a right-hand side for an ODE solver, whose stages and error estimates assume a function. Use it with
    ``lite_step``, an optimizer, or ``simulate`` with ``"semi-implicit-euler"``. ``value``, ``hvp``, ``hessian`` and the
    splits are those of the landscape, without noise.

    Members of an ensemble get independent noise. With the same seed, the same shape of w and the same sequence of
    calls, the draws repeat exactly. (``simulate`` makes one extra call at the start to check shapes; a resumed run
    continues with the generator's current state.)

    Args:
        landscape: f.
        noise: :class:`GaussianNoise` or :class:`MiniBatches`.
        generator: Seeded ``numpy.random.Generator``, or ``torch.Generator`` on the device of torch arrays.

    Raises:
        ValueError: for noise that does not fit the landscape, or a wrong generator.
    """

    is_random = True  # ``simulate`` does not compare an ensemble's gradients with its members'

    def __init__(self, landscape: Landscape, noise: NoiseSource, *, generator: Generator) -> None:
        if type(generator).__name__ != "Generator":  # numpy's and torch's; the check does not import torch
            raise ValueError(
                f"generator is a {type(generator).__name__}; give np.random.default_rng(seed) or a torch.Generator."
            )
        noise.check(landscape)
        self.landscape, self.noise, self.generator = landscape, noise, generator
        self.dimension, self.sharp_rank = landscape.dimension, landscape.sharp_rank

    def gradient(self, w: Array) -> Array:
        """A noisy gradient, new at every call, shape ``(*ensemble, p)``."""
        check_coordinates(w, self.dimension)
        return self.noise(self.landscape, w, self.generator)

    def value(self, w: Array) -> Array:
        return self.landscape.value(w)

    def hvp(self, w: Array, v: Array) -> Array:
        return self.landscape.hvp(w, v)

    def hessian(self, w: Array) -> Array:
        return self.landscape.hessian(w)

    def sharp_basis(self, w: Array) -> Array:
        return self.landscape.sharp_basis(w)


def _draws_in_torch(w: Array, generator: Generator) -> bool:
    """Whether the generator is torch's.

    Raises:
        ValueError: for torch's generator with a numpy array.
    """
    if isinstance(generator, np.random.Generator):
        return False
    if not is_torch(w):
        raise ValueError("generator is a torch.Generator, but w is a numpy array; give np.random.default_rng(seed).")
    return True


def _standard_normal(w: Array, generator: Generator) -> Array:
    """Independent N(0, 1) numbers in an array like ``w``."""
    if _draws_in_torch(w, generator):
        import torch

        return torch.randn(w.shape, generator=generator, dtype=w.dtype, device=w.device)
    return like(generator.standard_normal(tuple(w.shape)), w)


def _batches(samples: int, size: int, replacement: bool, w: Array, generator: Generator) -> Array:
    """Indices of one batch per member, integers in an array like ``w``, shape ``(*ensemble, b)``."""
    ensemble = tuple(w.shape[:-1])
    if _draws_in_torch(w, generator):
        import torch

        if replacement:
            return torch.randint(samples, (*ensemble, size), generator=generator, device=w.device)
        return torch.rand((*ensemble, samples), generator=generator, device=w.device).argsort(-1)[..., :size]
    if replacement:
        indices = generator.integers(samples, size=(*ensemble, size))
    else:  # the order of uniform keys is a uniform permutation
        indices = generator.random((*ensemble, samples)).argsort(-1)[..., :size]
    return as_indices(indices, w)
