"""Newton's method for the equations of implicit steps, for all ensemble members at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse.linalg

from riemannian_ode.arrays import like, to_numpy
from riemannian_ode.integrators.base import IntegratorError, PhaseState

Residual = Callable[[PhaseState], PhaseState]
_DIRECT_SIZE = 48  # unknowns of a member up to which the Jacobian is built column by column and factorised
_DIFFERENCE = float(np.sqrt(np.finfo(np.float64).eps))  # relative step of forward differences
_LARGEST_ITERATION_COUNT = 30
_HALVINGS = 8  # of a Newton step that overshoots, at most


def solve(residual: Residual, guess: PhaseState, *, tolerance: float, where: str) -> PhaseState:
    """Find the state at which a residual vanishes, member by member.

    The Jacobian is differenced once at the guess and kept while it works (simplified Newton), then renewed; members do
    not couple. Up to 48 unknowns a member it is factorised, beyond that each correction is a GMRES solve.

    Args:
        residual: State ↦ residual, both of shape ``(*ensemble, p)`` twice.
        guess: Where to start.
        tolerance: Largest residual accepted, relative to 1 + the largest entry of the member's state.
        where: Scheme and time, for the error.

    Returns:
        The state.

    Raises:
        IntegratorError: if some member does not converge, naming the worst one and its residual.
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

    def misses(y: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Residual of each member, relative to 1 + its largest entry; infinite where it is not finite."""
        miss = np.abs(value).max(axis=1) / (1.0 + np.abs(y).max(axis=1))
        return np.asarray(np.where(np.isfinite(miss), miss, np.inf))

    y = pack(guess)
    value = evaluate(y)
    miss = misses(y, value)
    correct: Callable[[np.ndarray], np.ndarray] | None = None
    last = np.inf
    for _ in range(_LARGEST_ITERATION_COUNT):
        worst = float(miss.max())
        if worst <= tolerance or not np.isfinite(worst):
            break
        if correct is None or worst > 0.3 * last:  # a kept Jacobian that stops paying is renewed
            correct = _corrector(evaluate, y, value)
        last = worst
        y, value, miss = _descend(evaluate, misses, y, value, miss, correct(value))
    if float(miss.max()) <= tolerance:
        return unpack(y)
    # At the limit of rounding the last digits never settle: a residual this small is as good as it gets.
    if float(miss.max()) <= 100 * np.finfo(np.float64).eps:
        return unpack(y)
    member = tuple(int(i) for i in np.unravel_index(int(miss.argmax()), shape[:-1])) if shape[:-1] else ()
    raise IntegratorError(
        f"{where}: Newton's method did not converge{f' for member {member}' if member else ''} (residual "
        f"{miss.max():.3g} > {tolerance:g}); take a smaller step"
    )


def _descend(
    evaluate: Callable[[np.ndarray], np.ndarray],
    misses: Callable[[np.ndarray, np.ndarray], np.ndarray],
    y: np.ndarray,
    value: np.ndarray,
    miss: np.ndarray,
    correction: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y − s·correction, its residual and its size, with s halved for each member whose residual would grow."""
    share = np.ones((len(y), 1))
    for _ in range(_HALVINGS):
        new = y - share * correction
        new_value = evaluate(new)
        new_miss = misses(new, new_value)
        grew = new_miss > miss
        if not grew.any():
            break
        share[grew] *= 0.5
    return new, new_value, new_miss


def _corrector(
    evaluate: Callable[[np.ndarray], np.ndarray], y: np.ndarray, value: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """residual ↦ J⁻¹ residual with the Jacobian at ``y``."""
    members, size = y.shape
    if size <= _DIRECT_SIZE:
        inverse = np.linalg.inv(_jacobian(evaluate, y, value))
        return lambda r: np.einsum("nij,nj->ni", inverse, r)

    length = 1.0 + np.abs(y).max(axis=1, keepdims=True)

    def product(x: np.ndarray) -> np.ndarray:
        direction = x.reshape(members, size)
        norm = np.abs(direction).max(axis=1, keepdims=True)
        step = _DIFFERENCE * length / np.where(norm > 0, norm, 1.0)
        return np.asarray((evaluate(y + step * direction) - value) / step).ravel()

    operator = scipy.sparse.linalg.LinearOperator((y.size, y.size), matvec=product, dtype=np.float64)

    def solve_by_gmres(r: np.ndarray) -> np.ndarray:
        solution, _ = scipy.sparse.linalg.gmres(operator, r.ravel(), rtol=1e-4, restart=40, maxiter=5)
        return np.asarray(solution).reshape(members, size)

    return solve_by_gmres


def _jacobian(evaluate: Callable[[np.ndarray], np.ndarray], y: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Forward differences, shape ``(members, size, size)``; one evaluation a column for all members."""
    size = y.shape[1]
    jacobian = np.empty((len(y), size, size))
    steps = _DIFFERENCE * (1.0 + np.abs(y))
    for j in range(size):
        moved = y.copy()
        moved[:, j] += steps[:, j]
        jacobian[:, :, j] = (evaluate(moved) - value) / (moved[:, j] - y[:, j])[:, None]
    return jacobian
