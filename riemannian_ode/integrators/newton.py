"""Newton's method for the equations of implicit steps, for all ensemble members at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse.linalg

from riemannian_ode.arrays import like, to_numpy
from riemannian_ode.integrators.base import IntegratorError, Losses, PhaseState

Residual = Callable[[PhaseState], PhaseState]
_DIRECT_SIZE = 48  # unknowns of a member up to which the Jacobian is built column by column and factorised
_ROUNDING = 8.0  # units of rounding that a correction may have, whatever accuracy was asked for
_LARGEST_ITERATION_COUNT = 30
_HALVINGS = 8  # of a Newton step that overshoots, at most


def solve(
    residual: Residual, guess: PhaseState, *, tolerance: float, where: str, losses: Losses | None = None
) -> PhaseState:
    """Find the state at which a residual vanishes, member by member.

    The Jacobian is differenced once at the guess and kept while it works (simplified Newton), then renewed. Up to 48
    unknowns a member it is factorised, and a member's iterates are those that it has alone; beyond that each correction
    is one GMRES solve for all members. Members that are not finite at the guess stay as they are.

    Args:
        residual: State ↦ residual, both of shape ``(*ensemble, p)`` twice.
        guess: Where to start.
        tolerance: Largest error accepted, as the corrections' decay foretells it, relative to 1 + the largest entry of
            the member's state; at least eight units of the state's rounding (10⁻⁶ in float32).
        where: Scheme and time, for the error.
        losses: Gets the members that do not converge; their states become NaN.

    Returns:
        The state.

    Raises:
        IntegratorError: if some member does not converge and there is no ``losses``, naming the worst one and its
            correction.
    """
    shape = tuple(guess.w.shape)
    members, p = int(np.prod(shape[:-1])), shape[-1]

    def pack(state: PhaseState) -> np.ndarray:
        parts = [to_numpy(part).reshape(members, p) for part in state]
        return np.concatenate(parts, axis=1)

    def unpack(y: np.ndarray) -> PhaseState:
        return PhaseState(like(y[:, :p].reshape(shape), guess.w), like(y[:, p:].reshape(shape), guess.m))

    def evaluate(y: np.ndarray) -> np.ndarray:
        return pack(residual(unpack(y)))

    y = pack(guess)
    tolerance = max(tolerance, _ROUNDING * float(np.finfo(y.dtype).eps))
    value = evaluate(y)
    active = np.isfinite(y).all(axis=1)
    corrector = (_Factorised if y.shape[1] <= _DIRECT_SIZE else _Krylov)(evaluate)
    failed = np.zeros(members, dtype=bool)
    last = np.zeros(members)  # so that every Jacobian is built at first
    for _ in range(_LARGEST_ITERATION_COUNT):
        # A kept Jacobian that stops paying is renewed.
        correction = np.where(active[:, None], corrector.correct(y, value, renew=active & (last == 0.0)), 0.0)
        size = _relative(correction, y)
        slow = active & (last > 0.0) & (size > 0.3 * last)
        if slow.any():
            renewed = corrector.correct(y, value, renew=slow)
            correction = np.where(slow[:, None], renewed, correction)
            size = _relative(correction, y)
        # What remains after this correction, if corrections go on to shrink as they did (Solving ODEs II, IV.8).
        shrink = np.where(last > 0.0, np.minimum(size / np.where(last > 0.0, last, 1.0), 0.5), 0.5)
        last = np.where(active, size, last)
        hopeless = active & ~np.isfinite(size)
        failed, active = failed | hopeless, active & ~(hopeless | (size * shrink / (1.0 - shrink) <= tolerance))
        correction = np.where(hopeless[:, None], 0.0, correction)
        if not active.any():
            y = y - correction
            break
        y, value = _descend(evaluate, y, value, correction, careful=active)
    failed |= active
    if failed.any():
        message = _complaint(where, np.where(failed, last, 0.0).reshape(shape[:-1]), tolerance)
        if losses is None:
            raise IntegratorError(message)
        losses.add(failed.reshape(shape[:-1]), "integrator-failed", message)
        y[failed] = np.nan
    return unpack(y)


def _complaint(where: str, corrections: np.ndarray, tolerance: float) -> str:
    """That Newton's method did not converge, with the worst member and its last correction."""
    member = tuple(int(i) for i in np.unravel_index(int(corrections.argmax()), corrections.shape))
    return (
        f"{where}: Newton's method did not converge{f' for member {member}' if member else ''} (last correction "
        f"{corrections.max():.3g} > {tolerance:g}); take a smaller step"
    )


def _relative(correction: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Largest entry of each member's correction over 1 + that of the member; infinite where it is not finite."""
    size = np.abs(correction).max(axis=1) / (1.0 + np.abs(y).max(axis=1))
    return np.asarray(np.where(np.isnan(y).any(axis=1), 0.0, np.where(np.isfinite(size), size, np.inf)))


def _descend(
    evaluate: Callable[[np.ndarray], np.ndarray],
    y: np.ndarray,
    value: np.ndarray,
    correction: np.ndarray,
    *,
    careful: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """y − s·correction and its residual, with s halved for each ``careful`` member whose residual would grow."""
    share = np.ones((len(y), 1), dtype=y.dtype)
    before = _relative(value, y)
    for _ in range(_HALVINGS):
        new = y - share * correction
        new_value = evaluate(new)
        grew = careful & (_relative(new_value, new) > before)
        if not grew.any():
            break
        share[grew] *= 0.5
    return new, new_value


class _Factorised:
    """J⁻¹ × residual with the Jacobian of each member as it was when it was last renewed."""

    def __init__(self, evaluate: Callable[[np.ndarray], np.ndarray]) -> None:
        self.evaluate = evaluate
        self.inverse = np.empty(0)

    def correct(self, y: np.ndarray, value: np.ndarray, *, renew: np.ndarray) -> np.ndarray:
        if not self.inverse.size:
            self.inverse = np.zeros((*y.shape, y.shape[1]), dtype=y.dtype)
        if renew.any():
            self.inverse[renew] = _inverted(_jacobian(self.evaluate, y, value)[renew])
        return np.asarray(np.einsum("nij,nj->ni", self.inverse, value))


class _Krylov:
    """J⁻¹ × residual by GMRES with differences for products, all members in one system."""

    def __init__(self, evaluate: Callable[[np.ndarray], np.ndarray]) -> None:
        self.evaluate = evaluate
        self.at, self.there = np.empty(0), np.empty(0)  # state of the Jacobian, and the residual there

    def correct(self, y: np.ndarray, value: np.ndarray, *, renew: np.ndarray) -> np.ndarray:
        if not self.at.size or renew.any():
            self.at, self.there = y, value
        length = 1.0 + np.abs(self.at).max(axis=1, keepdims=True)
        # Every member's equations are scaled to a right-hand side of length 1, so that none drowns the others'; those
        # without finite numbers, or without a residual, are left out.
        norm = np.linalg.norm(value, axis=1, keepdims=True)
        sound = np.isfinite(norm) & (norm > 0.0) & np.isfinite(length)

        def product(x: np.ndarray) -> np.ndarray:
            direction = x.reshape(y.shape)
            largest = np.abs(direction).max(axis=1, keepdims=True)
            step = _difference(y) * length / np.where(largest > 0, largest, 1.0)
            slope = (self.evaluate(self.at + step * direction) - self.there) / step
            return np.where(sound, np.nan_to_num(slope), direction).ravel()

        operator = scipy.sparse.linalg.LinearOperator((y.size, y.size), matvec=product, dtype=np.float64)
        right = np.where(sound, value / np.where(sound, norm, 1.0), 0.0)
        solution, _ = scipy.sparse.linalg.gmres(operator, right.ravel(), rtol=1e-4, restart=40, maxiter=5)
        return np.asarray(np.where(np.isfinite(norm), solution.reshape(y.shape) * norm, np.nan), dtype=y.dtype)


def _difference(y: np.ndarray) -> float:
    """Relative step of forward differences: half the digits of the state's type."""
    return float(np.sqrt(np.finfo(y.dtype).eps))


def _inverted(matrices: np.ndarray) -> np.ndarray:
    """Inverses, NaN where there is none."""
    try:
        return np.asarray(np.linalg.inv(matrices))
    except np.linalg.LinAlgError:
        if len(matrices) == 1:
            return np.full_like(matrices, np.nan)
        return np.concatenate([_inverted(matrix[None]) for matrix in matrices])


def _jacobian(evaluate: Callable[[np.ndarray], np.ndarray], y: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Forward differences, shape ``(members, size, size)``; one evaluation a column for all members."""
    size = y.shape[1]
    jacobian = np.empty((len(y), size, size), dtype=y.dtype)
    steps = _difference(y) * (1.0 + np.abs(y))
    for j in range(size):
        moved = y.copy()
        moved[:, j] += steps[:, j]
        jacobian[:, :, j] = (evaluate(moved) - value) / (moved[:, j] - y[:, j])[:, None]
    return jacobian
