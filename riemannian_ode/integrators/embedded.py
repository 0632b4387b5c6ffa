"""An adaptive Runge–Kutta scheme that gives every ensemble member a step size of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from riemannian_ode.arrays import like, namespace, to_numpy
from riemannian_ode.coefficients import COEFFICIENTS, TimeDependent
from riemannian_ode.dynamics import RISHD
from riemannian_ode.errors import require_positive
from riemannian_ode.flow import Array
from riemannian_ode.integrators.base import Integrator, PhaseState

# Dormand and Prince's pair 5(4): rows a_ij, and the difference of both orders' weights (Hairer, Nørsett, Wanner,
# Solving ODEs I, table II.5.2). The last row is the fifth-order solution: its slope is the next step's first.
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ERROR = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0  # step-size controller (Solving ODEs I, II.4)
_EXPONENT = -1 / 5


class EnsembleDormandPrince(Integrator):
    """Dormand–Prince 5(4) with a step size per member: stiff members do not slow the error control of the others.

    A member whose step underflows or whose state is not finite becomes NaN and is named by ``simulate``; the others go
    on. With time-dependent coefficients of an ensemble, their functions must take an array of times, one a member.

    Args:
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.

    Raises:
        ValueError: for a tolerance that is not positive.

    Source: Dormand and Prince (1980); Hairer, Nørsett, Wanner, *Solving ODEs I*, II.5.
    """

    name = "ensemble-rk45"
    order = 5
    adaptive = True

    def __init__(self, *, rtol: float = 1e-8, atol: float = 1e-10) -> None:
        require_positive("rtol", rtol)
        require_positive("atol", atol)
        self.rtol, self.atol = rtol, atol

    def states(
        self, system: RISHD, state: PhaseState, *, t0: float, h: float, steps: int, first: int = 0
    ) -> Iterator[PhaseState]:
        ensemble = tuple(state.w.shape[:-1])
        time = np.full(ensemble, t0 + first * h)
        size = np.full(ensemble, h / 10)
        underflow = 1e-14 * max(abs(t0), h * steps)
        slope = PhaseState(*system.rates(_times(system, time), *state))
        for k in range(first + 1, steps + 1):
            target = t0 + k * h
            while (active := time < target).any():
                step = np.where(active, np.minimum(size, target - time), 0.0)
                new, new_slope, error = self._attempt(system, time, state, slope, step)
                lost = active & (~np.isfinite(error) | (step < underflow)) & ~(error <= 1.0)
                # A first non-finite attempt may only mean that the step was too long: shrink it until it underflows.
                dead = lost & (step < underflow)
                accepted = active & (error <= 1.0)
                with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                    factor = np.clip(_SAFETY * np.where(error > 0, error, 1e-12) ** _EXPONENT, _SHRINK, _GROW)
                factor = np.where(np.isfinite(error), factor, _SHRINK)
                # A step cut short by the output time says little about the next one: never shrink the size for it.
                grown = np.where(accepted, np.maximum(size, step * factor), step * np.minimum(factor, 1.0))
                grown = np.where(accepted & (factor < 1.0), step * factor, grown)
                size = np.where(active, grown, size)
                keep = accepted[..., None]
                state = _where(keep, new, state)
                slope = _where(keep, new_slope, slope)
                # Land exactly on the output time: rounding must not leave a sliver of a step.
                reached = accepted & (step >= target - time)
                time = np.where(reached | dead, target, time + np.where(accepted, step, 0.0))
                if dead.any():
                    nan = PhaseState(state.w + np.nan, state.m + np.nan)
                    state = _where(dead[..., None], nan, state)
                    size = np.where(dead, h, size)
            yield state

    def _attempt(
        self, system: RISHD, time: np.ndarray, state: PhaseState, first: PhaseState, step: np.ndarray
    ) -> tuple[PhaseState, PhaseState, np.ndarray]:
        """New state, its slope, and the error over the tolerance, one per member."""
        length = like(step[..., None], state.w)
        slopes = [first]
        new = state
        for row, node in zip(_STAGES[1:], _NODES[1:], strict=True):
            new = PhaseState(*(part + length * _combine(row, [s[i] for s in slopes]) for i, part in enumerate(state)))
            slopes.append(PhaseState(*system.rates(_times(system, time + node * step), *new)))
        errors = []
        for i, (old, ahead) in enumerate(zip(state, new, strict=True)):
            xp = namespace(old)
            scale = self.atol + self.rtol * xp.maximum(xp.abs(old), xp.abs(ahead))
            errors.append(((length * _combine(_ERROR, [s[i] for s in slopes]) / scale) ** 2).mean(-1))
        return new, slopes[-1], np.sqrt(to_numpy(0.5 * (errors[0] + errors[1])))


def _combine(coefficients: tuple[float, ...], slopes: list[Array]) -> Array:
    total: Array = coefficients[0] * slopes[0]
    for coefficient, slope in zip(coefficients[1:], slopes[1:], strict=True):
        if coefficient:
            total = total + coefficient * slope
    return total


def _where(mask: np.ndarray, yes: PhaseState, no: PhaseState) -> PhaseState:
    xp = namespace(no.w)
    if isinstance(no.w, np.ndarray):
        return PhaseState(xp.where(mask, yes.w, no.w), xp.where(mask, yes.m, no.m))
    condition = like(mask, no.w) > 0
    return PhaseState(xp.where(condition, yes.w, no.w), xp.where(condition, yes.m, no.m))


def _times(system: RISHD, time: np.ndarray) -> Any:
    """The members' times where a coefficient varies in time, else one number: nothing depends on it."""
    if time.ndim and any(isinstance(getattr(system, name), TimeDependent) for name in COEFFICIENTS):
        return time
    return float(time.flat[0])
