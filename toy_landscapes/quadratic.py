"""Quadratics with any spectrum in a random basis: the landscape on which most claims are exact."""

from __future__ import annotations

import numpy as np
from scipy.stats import ortho_group

from riemannian_ode.arrays import inner, like, matvec, to_numpy
from riemannian_ode.checks import require_positive
from riemannian_ode.flow import Array
from toy_landscapes.arguments import check_coordinates, checked_sharp_rank, finite_array
from toy_landscapes.landscape import Landscape


class Quadratic(Landscape):
    r""":math:`f(w) = \tfrac12 (w - w_*)^\top H (w - w_*)`, :math:`H = U\,\mathrm{diag}(\lambda)\,U^\top`.

    Args:
        eigenvalues: λ in any order, shape ``(p,)``; negative ones make saddles.
        basis: U, orthogonal, shape ``(p, p)``; the identity by default.
        minimizer: w_*, shape ``(p,)``; the origin by default (the critical point if H is indefinite).
        sharp_rank: d_s, number of the largest eigenvalues that count as sharp; a tenth of p by default, at least 1
            (LITE's published sharp fraction).

    Raises:
        ValueError: for non-finite eigenvalues, a basis that is not orthogonal, or a rank outside 0 … p.
    """

    def __init__(
        self,
        eigenvalues: Array,
        *,
        basis: Array | None = None,
        minimizer: Array | None = None,
        sharp_rank: int | None = None,
    ) -> None:
        values = finite_array("eigenvalues", eigenvalues, (None,))
        self.dimension = values.size
        self.sharp_rank = checked_sharp_rank(sharp_rank, self.dimension)
        vectors = np.eye(values.size) if basis is None else np.asarray(to_numpy(basis), dtype=np.float64)
        if vectors.shape != (values.size,) * 2 or not np.allclose(vectors.T @ vectors, np.eye(values.size), atol=1e-8):
            raise ValueError(
                f"basis has shape {vectors.shape}; give an orthogonal matrix of shape {(values.size,) * 2}."
            )
        self.minimizer = (
            np.zeros(values.size) if minimizer is None else finite_array("minimizer", minimizer, values.shape)
        )
        order = np.argsort(-values, kind="stable")
        self.eigenvalues, self.basis = values[order], vectors[:, order]
        self.matrix = (self.basis * self.eigenvalues) @ self.basis.T
        self.matrix = 0.5 * (self.matrix + self.matrix.T)

    @classmethod
    def random(
        cls,
        eigenvalues: Array,
        *,
        seed: int | np.random.Generator,
        minimizer: Array | None = None,
        sharp_rank: int | None = None,
    ) -> Quadratic:
        """A quadratic whose eigenbasis is uniform on the orthogonal group (Haar).

        Args:
            eigenvalues: λ, shape ``(p,)``.
            seed: Random seed or generator.
            minimizer: w_*, the origin by default.
            sharp_rank: d_s, see the class.
        """
        p = len(eigenvalues)
        basis = ortho_group.rvs(p, random_state=np.random.default_rng(seed)) if p > 1 else np.eye(1)
        return cls(eigenvalues, basis=basis, minimizer=minimizer, sharp_rank=sharp_rank)

    def value(self, w: Array) -> Array:
        offset = self._offset(w)
        return 0.5 * inner(offset, matvec(like(self.matrix, w), offset))

    def gradient(self, w: Array) -> Array:
        return matvec(like(self.matrix, w), self._offset(w))

    def _offset(self, w: Array) -> Array:
        check_coordinates(w, self.dimension)
        return w - like(self.minimizer, w)

    def hessian(self, w: Array) -> Array:
        matrix = like(self.matrix, w)
        return matrix + 0.0 * w[..., None]  # one copy per member, on the right device

    def hvp(self, w: Array, v: Array) -> Array:
        return matvec(like(self.matrix, w), v)

    def sharp_basis(self, w: Array) -> Array:
        """Top-d_s eigenvectors, shape ``(p, d_s)``: the same for every member."""
        return like(self.basis[:, : self.sharp_rank], w)


def power_law_spectrum(p: int, *, exponent: float = 1.0, largest: float = 1.0) -> np.ndarray:
    """λ_i = largest · i^(−exponent), i = 1 … p: the bulk of a neural network's Hessian.

    Args:
        p: Dimension.
        exponent: Decay, 0 is isotropic.
        largest: λ_1.

    Raises:
        ValueError: if p < 1 or ``largest`` is not positive.
    """
    _check_dimension(p)
    require_positive("largest", largest)
    return largest * np.arange(1, p + 1, dtype=np.float64) ** -exponent


def spiked_spectrum(p: int, *, spikes: int, sharp: float, flat: float) -> np.ndarray:
    """A few large eigenvalues over a flat bulk.

    Args:
        p: Dimension.
        spikes: Number of eigenvalues equal to ``sharp``.
        sharp: Their value.
        flat: The value of the other p − spikes.

    Raises:
        ValueError: if ``spikes`` is outside 0 … p.
    """
    _check_dimension(p)
    if not 0 <= spikes <= p:
        raise ValueError(f"spikes = {spikes!r} must lie between 0 and p = {p}.")
    return np.where(np.arange(p) < spikes, float(sharp), float(flat))


def indefinite_spectrum(p: int, *, negative: int, largest: float = 1.0, depth: float = 0.1) -> np.ndarray:
    """A power-law spectrum whose last eigenvalues are negative: a strict saddle.

    Args:
        p: Dimension.
        negative: Number of negative eigenvalues.
        largest: λ_1 of the positive part, which falls as 1/i.
        depth: Size of the most negative eigenvalue; the others are spread evenly towards 0.

    Raises:
        ValueError: if ``negative`` is outside 0 … p.
    """
    _check_dimension(p)
    if not 0 <= negative <= p:
        raise ValueError(f"negative = {negative!r} must lie between 0 and p = {p}.")
    require_positive("depth", depth)
    positive = power_law_spectrum(p, largest=largest)[: p - negative]
    return np.concatenate([positive, -depth * np.arange(1, negative + 1) / max(negative, 1)])


def _check_dimension(p: int) -> None:
    if p < 1:
        raise ValueError(f"p = {p!r} must be at least 1.")
