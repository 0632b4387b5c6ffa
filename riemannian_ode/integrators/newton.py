"""Newton's method for the equations of implicit steps, for all ensemble members at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse.linalg

from riemannian_ode.arrays import is_torch, like, matvec, to_numpy
from riemannian_ode.integrators.base import IntegratorError, Losses, PhaseState
from riemannian_ode.integrators.linearisation import difference_step

_DIRECT_SIZE = 48  # unknowns per member up to which the Jacobian is built column by column and factorised
_EXACT_SIZE, _ENTRIES = 512, 2**22  # the same for a known derivative, and most entries of all members' Jacobians
_ROUNDING = 8.0  # units of rounding always allowed in a correction, whatever the requested accuracy
_POOREST = 1e-3  # largest relative error that rounding may leave
_LARGEST_ITERATION_COUNT = 30
_LEAST_PROGRESS = 0.9  # unfinished GMRES is accepted below this relative residual
_HALVINGS = 8  # most halvings of a Newton step that overshoots


class Equations(NamedTuple):
    """Equations of an implicit step.

    Args:
        residual: State ↦ residual, both of shape ``(*ensemble, p)`` twice.
        derivative: State ↦ (δ ↦ derivative of the residual along δ); ``None`` uses forward differences.
        terms: State ↦ absolute size of terms that cancel in the residual beyond those of Jy; ``None`` if there are
            none.
    """

    residual: Callable[[PhaseState], PhaseState]
    derivative: Callable[[PhaseState], Callable[[PhaseState], PhaseState]] | None = None
    terms: Callable[[PhaseState], PhaseState] | None = None


def solve(
    equations: Equations, guess: PhaseState, *, tolerance: float, where: str, losses: Losses | None = None
) -> PhaseState:
    r"""Find the state at which a residual vanishes, member by member.

    The Jacobian J is built once at the guess, kept while it works (simplified Newton), and then rebuilt. Up to 48
    unknowns per member it is factorised, and a member's iterates do not depend on the other members. Beyond that, each
    correction is one GMRES solve for all members. A known derivative is factorised up to 512 unknowns per member, as
    long as all Jacobians together have at most 4 million entries. Members that are not finite at the guess stay
    unchanged.

    A correction within the rounding error of its equations is accepted, whatever the tolerance (not with GMRES):

    .. math:: |\delta y| \le 8\varepsilon\,|J^{-1}|\left(|J||y| + |y_0| + |\mathrm{terms}|\right)

    Args:
        equations: Equations to solve.
        guess: y₀, the start.
        tolerance: Largest error accepted, as predicted from the decay of the corrections, relative to 1 + the largest
            entry of the member's state; at least eight units of the state's rounding (10⁻⁶ in float32).
        where: Scheme and time, for the error.
        losses: Receives the members that do not converge; their states become NaN.

    Returns:
        The state. If torch records gradients, it is differentiable with respect to everything that the residual depends
            on.

    Raises:
        IntegratorError: if a member does not converge and ``losses`` is ``None``, naming the worst member and its
            correction.

    Source: Hairer and Wanner, *Solving ODEs II*, IV.8; Higham, *Accuracy and Stability of Numerical Algorithms*, 7.2.
    """
    if not is_torch(guess.w):
        return _iterate(equations, guess, tolerance=tolerance, where=where, losses=losses)
    import torch

    with torch.no_grad():
        solution = _iterate(equations, guess, tolerance=tolerance, where=where, losses=losses)
    if not torch.is_grad_enabled():
        return solution
    from riemannian_ode.integrators._implicit_function import attached

    return attached(equations.residual, solution)


def _iterate(
    equations: Equations, guess: PhaseState, *, tolerance: float, where: str, losses: Losses | None
) -> PhaseState:
    packed = _Packed(equations, guess)
    y, members = packed.pack(guess), packed.members
    tolerance = max(tolerance, _ROUNDING * float(np.finfo(y.dtype).eps))
    value = packed.evaluate(y)
    active = np.isfinite(y).all(axis=1)
    size_limit = _DIRECT_SIZE
    if equations.derivative is not None and members * y.shape[1] ** 2 <= _ENTRIES:
        size_limit = _EXACT_SIZE
    corrector = (_Factorised if y.shape[1] <= size_limit else _Krylov)(packed, y)
    failed = np.zeros(members, dtype=bool)
    last = np.zeros(members)  # so that every Jacobian is built in the first iteration
    for _ in range(_LARGEST_ITERATION_COUNT):
        # A kept Jacobian that no longer converges well is rebuilt.
        correction = np.where(active[:, None], corrector.correct(y, value, renew=active & (last == 0.0)), 0.0)
        size = _relative(correction, y)
        slow = active & (last > 0.0) & (size > 0.3 * last) & ~corrector.is_rounding(correction, y)
        if slow.any():
            renewed = corrector.correct(y, value, renew=slow)
            correction = np.where(slow[:, None], renewed, correction)
            size = _relative(correction, y)
        # Error left after this correction if corrections keep shrinking at this rate (Solving ODEs II, IV.8).
        shrink = np.where(last > 0.0, np.minimum(size / np.where(last > 0.0, last, 1.0), 0.5), 0.5)
        last = np.where(active, size, last)
        hopeless = active & ~np.isfinite(size)
        settled = (size * shrink / (1.0 - shrink) <= tolerance) | corrector.is_rounding(correction, y)
        failed, active = failed | hopeless, active & ~(hopeless | settled)
        correction = np.where(hopeless[:, None], 0.0, correction)
        if not active.any():
            y = y - correction
            break
        y, value = _descend(packed.evaluate, y, value, correction, careful=active)
    failed |= active
    if failed.any():
        message = _complaint(where, np.where(failed, last, 0.0).reshape(packed.shape[:-1]), tolerance)
        if losses is None:
            raise IntegratorError(message)
        losses.add(failed.reshape(packed.shape[:-1]), "integrator-failed", message)
        y[failed] = np.nan
    return packed.unpack(y)


class _Packed:
    """Equations with one numpy row per member, w followed by m."""

    def __init__(self, equations: Equations, guess: PhaseState) -> None:
        self.equations, self.like, self.shape = equations, guess, tuple(guess.w.shape)
        self.members, self.p = int(np.prod(self.shape[:-1])), self.shape[-1]

    def pack(self, state: PhaseState) -> np.ndarray:
        return np.concatenate([to_numpy(part).reshape(self.members, self.p) for part in state], axis=1)

    def unpack(self, y: np.ndarray) -> PhaseState:
        halves = zip((y[:, : self.p], y[:, self.p :]), self.like, strict=True)
        return PhaseState(*(like(half.reshape(self.shape), part) for half, part in halves))

    def evaluate(self, y: np.ndarray) -> np.ndarray:
        return self.pack(self.equations.residual(self.unpack(y)))

    def product(self, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
        """x ↦ J(y)x, or ``None`` if the derivative is not known."""
        if self.equations.derivative is None:
            return None
        along = self.equations.derivative(self.unpack(y))
        return lambda x: self.pack(along(self.unpack(x)))

    def terms(self, y: np.ndarray) -> np.ndarray | float:
        return 0.0 if self.equations.terms is None else self.pack(self.equations.terms(self.unpack(y)))


def _complaint(where: str, corrections: np.ndarray, tolerance: float) -> str:
    """Message that Newton's method did not converge, with the worst member and its last correction."""
    member = tuple(int(i) for i in np.unravel_index(int(corrections.argmax()), corrections.shape))
    return (
        f"{where}: Newton's method did not converge{f' for member {member}' if member else ''} (last correction "
        f"{corrections.max():.3g} > {tolerance:g}); take a smaller step"
    )


def _relative(correction: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Largest entry of each member's correction, relative to 1 + that of its state; infinite if not finite."""
    size = np.abs(correction).max(axis=1) / (1.0 + np.abs(y).max(axis=1))
    return np.asarray(np.where(np.isfinite(size), size, np.inf))


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
    """J⁻¹ × residual with each member's most recently built Jacobian."""

    def __init__(self, packed: _Packed, start: np.ndarray) -> None:
        self.packed, self.start = packed, np.abs(start)
        self.jacobian = np.zeros((*start.shape, start.shape[1]), dtype=start.dtype)
        self.inverse = np.zeros_like(self.jacobian)

    def correct(self, y: np.ndarray, value: np.ndarray, *, renew: np.ndarray) -> np.ndarray:
        if renew.any():
            self.jacobian[renew] = _jacobian(self.packed, y, value)[renew]
            self.inverse[renew] = _inverted(self.jacobian[renew])
        return np.asarray(matvec(self.inverse, value))

    def is_rounding(self, correction: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether a member's correction is within the rounding error of its equations."""
        terms = matvec(np.abs(self.jacobian), np.abs(y)) + self.start + self.packed.terms(y)
        noise = _ROUNDING * np.finfo(y.dtype).eps * matvec(np.abs(self.inverse), terms)
        largest = _POOREST * (1.0 + np.abs(y).max(axis=1, keepdims=True))
        return np.asarray((np.abs(correction) <= np.minimum(noise, largest)).all(axis=1))


class _Krylov:
    """J⁻¹ × residual by GMRES, all members in one system."""

    def __init__(self, packed: _Packed, start: np.ndarray) -> None:
        self.packed = packed
        self.at, self.there = np.empty(0), np.empty(0)  # state of the Jacobian, and the residual there

    def correct(self, y: np.ndarray, value: np.ndarray, *, renew: np.ndarray) -> np.ndarray:
        if not self.at.size or renew.any():
            self.at, self.there = y, value
            self.slope = self.packed.product(y) or self._differenced
        # Every member's equations are scaled to a right-hand side of length 1, so that no member dominates. Members
        # with non-finite numbers or a zero residual are left out.
        norm = np.linalg.norm(value, axis=1, keepdims=True)
        sound = np.isfinite(norm) & (norm > 0.0) & np.isfinite(np.abs(self.at).max(axis=1, keepdims=True))

        def product(x: np.ndarray) -> np.ndarray:
            direction = x.reshape(y.shape)
            return np.where(sound, np.nan_to_num(self.slope(direction)), direction).ravel()

        operator = scipy.sparse.linalg.LinearOperator((y.size, y.size), matvec=product, dtype=np.float64)
        right = np.where(sound, value / np.where(sound, norm, 1.0), 0.0)
        solution, unfinished = scipy.sparse.linalg.gmres(operator, right.ravel(), rtol=1e-4, restart=40, maxiter=5)
        is_solved = np.isfinite(norm)
        if unfinished:  # without progress the correction is small, too: check the residual
            left = right - operator.matvec(solution).reshape(y.shape)
            is_solved &= np.linalg.norm(left, axis=1, keepdims=True) < _LEAST_PROGRESS
        return np.asarray(np.where(is_solved, solution.reshape(y.shape) * norm, np.nan), dtype=y.dtype)

    def _differenced(self, direction: np.ndarray) -> np.ndarray:
        step = difference_step(_difference(self.at), (self.at, direction))
        return np.asarray((self.packed.evaluate(self.at + step * direction) - self.there) / step)

    def is_rounding(self, correction: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Always false, since no bound on the inverse is known."""
        return np.zeros(len(y), dtype=bool)


def _difference(y: np.ndarray) -> float:
    """Relative step of forward differences: half the digits of the state's type."""
    return float(np.sqrt(np.finfo(y.dtype).eps))


def _inverted(matrices: np.ndarray) -> np.ndarray:
    """Inverses; NaN for singular matrices."""
    try:
        return np.asarray(np.linalg.inv(matrices))
    except np.linalg.LinAlgError:
        if len(matrices) == 1:
            return np.full_like(matrices, np.nan)
        return np.concatenate([_inverted(matrix[None]) for matrix in matrices])


def _jacobian(packed: _Packed, y: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Jacobians, shape ``(members, size, size)``, column by column; forward differences if no derivative is known."""
    size, product = y.shape[1], packed.product(y)
    jacobian = np.empty((len(y), size, size))
    steps = _difference(y) * (1.0 + np.abs(y))
    for j in range(size):
        if product is not None:
            unit = np.zeros_like(y)
            unit[:, j] = 1.0
            jacobian[:, :, j] = product(unit)
            continue
        moved = y.copy()
        moved[:, j] += steps[:, j]
        jacobian[:, :, j] = (packed.evaluate(moved) - value) / (moved[:, j] - y[:, j])[:, None]
    return jacobian
