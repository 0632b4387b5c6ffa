r"""Gradient noise: the flow of a gradient g + σ dB/dt.

.. math::
    \mathrm dw = -\eta A(m + \beta g)\,\mathrm dt - \eta A\beta\sigma\,\mathrm dB, \qquad
    \mathrm dm = (-\alpha m + c\,g)\,\mathrm dt + c\,\sigma\,\mathrm dB

with the same Brownian motion B in both. σ is in units of the gradient: over a step h the dynamics see the gradient
:math:`g + \sigma\xi/\sqrt h` with standard normal ξ. With h = 1 this is an optimizer whose gradients have the
covariance σσᵀ.

Source: docs/theory, claim C20.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from riemannian_ode.arrays import eigh, is_torch, like, matvec, namespace, to_numpy
from riemannian_ode.checks import require_choice, shown
from riemannian_ode.coefficients import TimeDependent
from riemannian_ode.errors import InvalidSystemError
from riemannian_ode.flow import Array
from riemannian_ode.normals import standard_normals
from riemannian_ode.objective import Objective

Factor: TypeAlias = float | Array | TimeDependent | Callable[[float, Array], Array]
Calculus: TypeAlias = Literal["ito", "stratonovich"]
_ASYMMETRY = 1e-5  # relative to the largest entry of a state's covariance: above rounding, even in float32
_NEGATIVE = 1e-10  # relative to the largest eigenvalue: above the rounding of a covariance of rank below p


@dataclass(frozen=True, eq=False, kw_only=True)
class GradientNoise:
    r"""White noise in the gradient, with covariance σσᵀ per unit of time.

    Args:
        factor: σ, in units of the gradient: a number; the diagonal, shape ``(p,)``; a matrix of shape ``(p, r)``, of
            low rank if r < p; a :class:`TimeDependent` with such values; or a function (t, w) ↦ σ of the state, for w
            of shape ``(*ensemble, p)``, which returns diagonals of shape ``(*ensemble, p)`` or ``(*ensemble, 1)``, or
            matrices of shape ``(*ensemble, p, r)``.
        seed: Seed of the Brownian motion, from 0 to 2¹²⁸ − 1. Members of an ensemble have independent motions.
        calculus: Itô or Stratonovich, for a σ that varies with the state. It makes a difference only if noise enters
            the position (β ≠ 0). Optimizers draw the noise at the current point, which is Itô's calculus.
        first_member: Number of the first member. Member k of an ensemble gets the same noise as the first member of a
            run with ``first_member=k``.

    Raises:
        ValueError: for a factor of the wrong kind, with non-finite values or with more than two axes, or a seed out of
            range.
    """

    factor: Factor
    seed: int = 0
    calculus: Calculus = "ito"
    first_member: int = 0

    def __post_init__(self) -> None:
        for name, value, bits in (("seed", self.seed, 128), ("first_member", self.first_member, 63)):
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not whole or not 0 <= value < 2**bits:
                raise ValueError(f"{name} = {shown(value)} must be a whole number from 0 to 2**{bits} - 1.")
            object.__setattr__(self, name, int(value))  # a counter with more bits than numpy's integers
        require_choice("calculus", self.calculus, ("ito", "stratonovich"))
        if not callable(self.factor):
            object.__setattr__(self, "factor", _constant("factor", self.factor))

    @classmethod
    def from_covariance(
        cls,
        covariance: float | Array | Callable[[float, Array], Array],
        *,
        seed: int = 0,
        calculus: Calculus = "ito",
        first_member: int = 0,
    ) -> GradientNoise:
        r"""Noise of a given covariance Σ = σσᵀ per unit of time.

        Args:
            covariance: Σ, in squared units of the gradient: a number σ² for σ²I; variances, shape ``(p,)``; a symmetric
                positive semidefinite matrix of shape ``(p, p)``; or a function (t, w) ↦ Σ that returns variances of
                shape ``(*ensemble, p)`` or matrices of shape ``(*ensemble, p, p)``.
            seed: See :class:`GradientNoise`.
            calculus: See :class:`GradientNoise`.
            first_member: See :class:`GradientNoise`.

        Raises:
            ValueError: for a covariance that is not finite, not symmetric, or not positive semidefinite, or a
                :class:`TimeDependent` one.
        """
        if isinstance(covariance, TimeDependent):
            raise ValueError("covariance is TimeDependent; give GradientNoise(factor=TimeDependent(t ↦ σ)), Σ = σσᵀ.")
        factor: Factor = _RootOf(covariance) if callable(covariance) else covariance_root(covariance)
        return cls(factor=factor, seed=seed, calculus=calculus, first_member=first_member)

    @property
    def depends_on_state(self) -> bool:
        """Whether σ is a function of (t, w)."""
        return callable(self.factor) and not isinstance(self.factor, TimeDependent)

    def for_arrays(self, reference: Array) -> GradientNoise:
        """The same noise with constants of the kind, dtype and device of ``reference``."""
        if callable(self.factor):
            return self
        return replace(self, factor=like(self.factor, reference))

    def factor_at(self, t: float, w: Array) -> Array:
        """σ at time t and points w of shape ``(*ensemble, p)``."""
        if isinstance(self.factor, TimeDependent):
            name = f"factor({t:.12g})"
            try:
                factor = like(_constant(name, self.factor(t)), w)
            except ValueError as problem:
                raise InvalidSystemError(str(problem)) from None
            _check_constant_shape(name, factor, w)
            return factor
        return self.factor(t, w) if callable(self.factor) else self.factor

    def columns(self, t: float, w: Array) -> int:
        """r, the number of independent Brownian motions of a member.

        Raises:
            ValueError: for a factor that does not fit ``w``.
        """
        p, factor = w.shape[-1], self.factor_at(t, w)
        name = f"factor({t:g}, w0)" if callable(self.factor) else "factor"
        if self.depends_on_state:
            ensemble = tuple(w.shape[:-1])
            _check_kind(name, factor, w)
            shape = tuple(factor.shape)
            fits = shape[: len(ensemble)] == ensemble and shape[len(ensemble) :][:1] in ((p,), (1,))
            if not fits or factor.ndim > w.ndim + 1 or (factor.ndim > w.ndim and shape[-2] != p):
                raise ValueError(
                    f"{name} has shape {shape} for w of shape {tuple(w.shape)}; return diagonals of shape "
                    "(*ensemble, p) or matrices of shape (*ensemble, p, r)."
                )
            if not bool(namespace(factor).isfinite(factor).all()):
                raise ValueError(f"{name} holds a non-finite number; it is the standard deviation of the noise.")
            return int(shape[-1]) if factor.ndim > w.ndim else p
        _check_constant_shape(name, factor, w)
        shape = tuple(np.shape(factor))
        return int(shape[1]) if len(shape) == 2 else p

    def of_white(self, t: float, w: Array, white: Array) -> Array:
        """σ(t, w)ξ for white ξ of shape ``(*ensemble, r)``: shape ``(*ensemble, p)``."""
        factor = self.factor_at(t, w)
        is_matrix = factor.ndim == (white.ndim + 1 if self.depends_on_state else 2)
        if is_matrix and factor.shape[-1] != white.shape[-1]:
            raise InvalidSystemError(
                f"factor({t:.12g}, w) has {factor.shape[-1]} columns and had {white.shape[-1]} at the start: their "
                "number must stay constant; pad with columns of zeros."
            )
        return matvec(factor, white) if is_matrix else factor * white

    def normals(self, step: int, w: Array, count: int) -> Array:
        """Standard normal numbers for one step, arrays like ``w`` of shape ``(*ensemble, count)``."""
        members = int(np.prod(w.shape[:-1]))
        numbers = standard_normals(int(self.seed), step, members, count, first=int(self.first_member))
        return like(numbers.reshape(*w.shape[:-1], count), w)

    def at_step(self, step: int, w: Array, *, t: float | None = None) -> Array:
        """The noise added to the gradient in step ``step`` of semi-implicit Euler with h = 1.

        An optimizer that gets ∇f(w) plus this noise takes the same steps as :func:`riemannian_ode.simulate`.

        Args:
            step: Number of the step, from 0.
            w: Position at the start of the step, shape ``(*ensemble, p)``.
            t: Time at the start of the step; ``step`` by default.
        """
        noise, time = self.for_arrays(w), float(step) if t is None else t
        return noise.of_white(time, w, noise.normals(step, w, noise.columns(time, w)))


class NoisyGradient:
    """The objective during one step of a scheme: its gradient is g + σΔB/h throughout the step.

    Args:
        objective: f.
        noise: σ.
        t: Time at which σ is evaluated.
        white: ΔB/h, shape ``(*ensemble, r)``.
    """

    is_random = True

    def __init__(self, objective: Objective, noise: GradientNoise, t: float, white: Array) -> None:
        self.objective, self.noise, self.t, self.white = objective, noise, t, white

    def value(self, w: Array) -> Array:
        """f(w), without noise."""
        return self.objective.value(w)

    def gradient(self, w: Array) -> Array:
        """∇f(w) + σ(t, w)ΔB/h."""
        return self.objective.gradient(w) + self.noise.of_white(self.t, w, self.white)


@dataclass(frozen=True)
class _RootOf:
    """A factor σ of a covariance that is a function of (t, w)."""

    covariance: Callable[[float, Array], Array]

    def __call__(self, t: float, w: Array) -> Array:
        name, covariance = f"covariance({t:.6g}, w)", self.covariance(t, w)
        _check_kind(name, covariance, w)
        if covariance.ndim == w.ndim:
            _check_eigenvalues(name, covariance)
            return namespace(covariance).clip(covariance, 0.0, None) ** 0.5
        shape = tuple(covariance.shape)
        if shape != (*w.shape, w.shape[-1]):
            raise ValueError(
                f"{name} has shape {shape} for w of shape {tuple(w.shape)}; return variances of shape (*ensemble, p) "
                "or matrices of shape (*ensemble, p, p)."
            )
        xp = namespace(covariance)
        limit = _ASYMMETRY * xp.amax(abs(covariance), (-2, -1))[..., None, None]
        if bool((abs(covariance - xp.swapaxes(covariance, -1, -2)) > limit).any()):  # NaN of a lost member passes
            raise InvalidSystemError(f"{name} is not symmetric; symmetrise it with (A + Aᵀ)/2.")
        values, vectors = eigh(covariance)
        _check_eigenvalues(name, values)
        return vectors * namespace(values).clip(values, 0.0, None)[..., None, :] ** 0.5


def covariance_root(covariance: float | Array) -> np.ndarray:
    r"""σ with σσᵀ = Σ, numpy float64: a number, a diagonal of shape ``(p,)``, or a matrix of shape ``(p, p)``.

    Args:
        covariance: Σ: a variance, variances of shape ``(p,)``, or a symmetric matrix of shape ``(p, p)``.

    Raises:
        ValueError: for numbers that are not finite, a matrix that is not symmetric, or negative eigenvalues.
    """
    array = to_numpy(_constant("covariance", covariance)).astype(np.float64)
    if array.ndim < 2:
        _check_eigenvalues("covariance", array)
        return np.asarray(np.sqrt(np.maximum(array, 0.0)))
    if array.shape[0] != array.shape[1] or not np.allclose(array, array.T, rtol=0, atol=1e-10 * np.abs(array).max()):
        raise ValueError(f"covariance with shape {array.shape} is not symmetric; symmetrise it with (A + Aᵀ)/2.")
    values, vectors = np.linalg.eigh(0.5 * (array + array.T))
    _check_eigenvalues("covariance", values)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _check_eigenvalues(name: str, values: Array) -> None:
    numbers = to_numpy(values)
    slack = 0.0 if numbers.ndim == 0 else _NEGATIVE * np.nanmax(np.abs(numbers), axis=-1, initial=0.0)
    if bool((np.nanmin(numbers, axis=-1, initial=np.inf) < -slack).any() if numbers.ndim else numbers < 0):
        raise InvalidSystemError(
            f"{name} has the eigenvalue {float(np.nanmin(numbers)):.6g}, but a covariance is positive semidefinite; "
            "clip its spectrum at 0."
        )


def _check_kind(name: str, value: Any, w: Array) -> None:
    """Refuse a result of a function of (t, w) that is not an array of floats like w."""
    if is_torch(value) != is_torch(w) or not hasattr(value, "ndim"):
        raise ValueError(f"{name} is of type {type(value).__name__}; return an array of the kind of w.")
    if value.ndim == 0 or to_numpy(value[..., :0]).dtype.kind not in "fiu":
        raise ValueError(f"{name} has dtype {value.dtype} and {value.ndim} axes; return real numbers like w.")


def _check_constant_shape(name: str, factor: Array, w: Array) -> None:
    """Refuse a σ without a row for every coordinate."""
    shape, p = tuple(np.shape(factor)), w.shape[-1]
    if shape and shape[0] != p:
        raise InvalidSystemError(
            f"{name} has shape {shape}, but w0 has {p} coordinates; give a number, shape ({p},) or ({p}, r)."
        )


def _constant(name: str, value: Any) -> Array:
    """A constant of at most two axes, a torch tensor or a numpy array of floats.

    Raises:
        ValueError: for anything else.
    """
    try:
        array = value if is_torch(value) else np.asarray(value)
        kind = to_numpy(array).dtype.kind
    except (TypeError, ValueError):
        kind = "O"
    if kind not in "fiu":
        raise ValueError(
            f"{name} = {shown(value)} must be a real number, an array, TimeDependent, or a function (t, w) ↦ σ."
        )
    if kind != "f" and not is_torch(array):
        array = array.astype(np.float64)
    if array.ndim > 2 or 0 in tuple(array.shape):
        raise ValueError(f"{name} has shape {tuple(array.shape)}; give a number or at most two axes, none of length 0.")
    if not bool(np.isfinite(to_numpy(array)).all()):
        raise ValueError(f"{name} = {shown(value)} must be finite.")
    return array
