"""An adaptive Runge–Kutta scheme that gives every ensemble member its own step size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from riemannian_ode.arrays import like, namespace, to_numpy
from riemannian_ode.coefficients import COEFFICIENTS, TimeDependent
from riemannian_ode.dynamics import RISHD
from riemannian_ode.integrators.base import (
    INTEGRATORS,
    Integrator,
    Losses,
    MemberStates,
    PhaseState,
    StepLimitError,
    is_tracked,
    with_stand_ins,
    without_lost_members,
)
from riemannian_ode.integrators.runge_kutta import ButcherTableau, advance
from riemannian_ode.integrators.step_control import (
    MAX_STEPS,
    Tolerances,
    check_step_control,
    step_limit_message,
    tolerances,
)

# Dormand and Prince's pair 5(4) (Hairer, Nørsett, Wanner, Solving ODEs I, table II.5.2). The last row is the
# fifth-order solution itself, so its slope is the next step's first.
DORMAND_PRINCE = ButcherTableau(
    stages=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    weights=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
)
# Weights of order five minus those of order four.
ERROR_WEIGHTS = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0  # step-size controller (Solving ODEs I, II.4)
_EXPONENT = -1 / 5
_DEFAULT = Tolerances(1e-8, 1e-10)


@INTEGRATORS.register(place=120)
class EnsembleDormandPrince(Integrator):
    """Dormand–Prince 5(4) with one step size per member, so that stiff members do not slow down the others.

    A member whose step underflows, whose state is not finite or whose steps are used up becomes NaN and is reported by
    ``simulate``; the others continue. Functions of time-dependent coefficients must accept an array of times, one per
    member.

    Args:
        rtol: Relative tolerance of a step; by default 1e-8 in float64, and 64 units of rounding (7.6e−6) in float32.
        atol: Absolute tolerance of a step; by default a hundredth of that.
        max_step: Longest step, in units of time.
        max_steps: Most steps tried per member between two outputs; see :class:`SciPyAdaptive`.

    Raises:
        ValueError: for a tolerance or a limit that is not positive, and (from ``simulate``) for an ``rtol`` that the
            state's dtype does not resolve.

    Source: Dormand and Prince (1980); Hairer, Nørsett, Wanner, *Solving ODEs I*, II.5.
    """

    name = "ensemble-rk45"
    order = 5
    adaptive = True
    handles_memory = True

    def __init__(
        self,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        max_step: float = float("inf"),
        max_steps: int = MAX_STEPS,
    ) -> None:
        check_step_control(rtol, atol, max_step, max_steps)
        self.rtol, self.atol, self.max_step, self.max_steps = rtol, atol, max_step, max_steps

    def states(
        self, system: RISHD, state: PhaseState, *, t0: float, h: float, steps: int, first: int = 0
    ) -> Iterator[PhaseState]:
        return _Members(self, system, state, t0=t0, h=h, steps=steps, first=first)


class _Members(MemberStates):
    """The run of an ensemble, from output to output."""

    def __init__(
        self,
        scheme: EnsembleDormandPrince,
        system: RISHD,
        state: PhaseState,
        *,
        t0: float,
        h: float,
        steps: int,
        first: int,
    ) -> None:
        self.scheme, self.system, self.state = scheme, system, state
        self.tolerances = tolerances(scheme.rtol, scheme.atol, state.w, default=_DEFAULT)
        self.t0, self.h, self.steps, self.k = t0, h, steps, first
        ensemble = tuple(state.w.shape[:-1])
        _check_times(system, ensemble, t0, h)
        self.time = np.full(ensemble, t0 + first * h)
        self.size = np.full(ensemble, min(h / 10, scheme.max_step))
        self.slope = self._rates(state)
        if is_tracked(self.slope):
            self.slope = without_lost_members(self._rates, state, self.slope)
        self.alive = np.isfinite(to_numpy(state.w)).all(-1) & np.isfinite(to_numpy(state.m)).all(-1)
        self.losses = Losses(ensemble)
        self.underflow = 1e-14 * max(abs(t0), h * steps)

    def __next__(self) -> PhaseState:
        if self.k == self.steps:
            raise StopIteration
        self.k += 1
        target = self.t0 + self.k * self.h
        taken = 0  # counted alike for all unfinished members: each of them tries a step every time
        while (active := self.alive & (self.time < target)).any():
            if taken == self.scheme.max_steps:
                self._give_up(active, target)
                break
            taken += 1
            self._try_step(active, target)
        self.time = np.full_like(self.time, target)
        return self.state

    def _try_step(self, active: np.ndarray, target: float) -> None:
        """Try one step of every active member; keep it where the error is within the tolerance."""
        step = np.where(active, np.minimum(self.size, target - self.time), 0.0)
        new, slope, error = self._attempt(step)
        accepted = active & (error <= 1.0)
        if is_tracked(new) and not accepted.all():
            # Rejected attempts may have overflowed: their zero gradients times ∞ would be NaN.
            new, slope, _ = self._attempt(np.where(accepted, step, 0.0), sheltered=True)
        # A non-finite attempt may just mean that the step was too long: shrink it until it underflows.
        dead = active & ~accepted & (step < self.underflow)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            factor = np.clip(_SAFETY * np.where(error > 0, error, 1e-12) ** _EXPONENT, _SHRINK, _GROW)
        factor = np.where(np.isfinite(error), factor, _SHRINK)
        # A step cut short by the output time says little about the next one: never shrink the step size for it.
        grown = np.where(accepted, np.maximum(self.size, step * factor), step * np.minimum(factor, 1.0))
        grown = np.where(accepted & (factor < 1.0), step * factor, grown)
        self.size = np.where(active, np.minimum(grown, self.scheme.max_step), self.size)
        # Land exactly on the output time: rounding must not leave a tiny step.
        reached = accepted & (step >= target - self.time)
        self.time = np.where(reached, target, self.time + np.where(accepted, step, 0.0))
        self.state = _where(accepted, new, self.state)
        self.slope = _where(accepted, slope, self.slope)
        self._lose(dead)

    def _attempt(self, step: np.ndarray, *, sheltered: bool = False) -> tuple[PhaseState, PhaseState, np.ndarray]:
        """New state, its slope, and each member's error relative to the tolerance.

        Args:
            step: Length of each member's step.
            sheltered: Whether lost members use a sound member's numbers.
        """
        length = like(step[..., None], self.state.w)
        state, slope = self.state, self.slope
        if sheltered:
            xp = namespace(state.w)
            sound = sum(xp.isfinite(x).all(-1) for x in (*state, *slope)) == 4
            if bool(sound.any()):
                state, slope = with_stand_ins(state, sound), with_stand_ins(slope, sound)
        slopes, new = [slope], state
        for row, node in zip(DORMAND_PRINCE.stages[1:], DORMAND_PRINCE.nodes[1:], strict=True):
            new = advance(state, slopes, row, length)
            slopes.append(PhaseState(*self.system.rates(_times(self.system, self.time + node * step), *new)))
        zero = PhaseState(0.0 * length, 0.0 * length)
        errors = []
        for old, ahead, miss in zip(state, new, advance(zero, slopes, ERROR_WEIGHTS, length), strict=True):
            xp = namespace(old)
            scale = self.tolerances.atol + self.tolerances.rtol * xp.maximum(xp.abs(old), xp.abs(ahead))
            errors.append(((miss / scale) ** 2).mean(-1))
        return new, slopes[-1], np.sqrt(to_numpy(0.5 * (errors[0] + errors[1])))

    def _rates(self, state: PhaseState) -> PhaseState:
        return PhaseState(*self.system.rates(_times(self.system, self.time), *state))

    def _give_up(self, members: np.ndarray, target: float) -> None:
        """End members whose steps are used up; raise an error if no other member is left.

        Raises:
            StepLimitError: if no other member is left.
        """
        at = float(self.time[members].min())
        message = step_limit_message(self.scheme.name, self.scheme.max_steps, target=target, at=at)
        if not (self.alive & ~members).any():
            raise StepLimitError(message)
        self.losses.add(members, "step-limit", message)
        self._lose(members)

    def _lose(self, members: np.ndarray) -> None:
        if members.any():
            self.alive = self.alive & ~members
            self.state = _where(members, PhaseState(self.state.w + np.nan, self.state.m + np.nan), self.state)


def _where(members: np.ndarray, yes: PhaseState, no: PhaseState) -> PhaseState:
    xp = namespace(no.w)
    mask = members[..., None]
    condition = mask if isinstance(no.w, np.ndarray) else like(mask, no.w) > 0
    return PhaseState(xp.where(condition, yes.w, no.w), xp.where(condition, yes.m, no.m))


def _times(system: RISHD, time: np.ndarray) -> Any:
    """The members' times if a coefficient varies in time, else one number, on which nothing depends."""
    if time.ndim and any(isinstance(getattr(system, name), TimeDependent) for name in COEFFICIENTS):
        return time
    return float(time.flat[0])


def _check_times(system: RISHD, ensemble: tuple[int, ...], t0: float, h: float) -> None:
    """Refuse coefficients that do not accept an array of times, or that mix up its entries.

    Raises:
        ValueError: naming the coefficient.
    """
    coefficients = {name: getattr(system, name) for name in COEFFICIENTS}
    varying = {name: c for name, c in coefficients.items() if isinstance(c, TimeDependent)}
    times = t0 + h * (1.0 + np.arange(int(np.prod(ensemble)))).reshape(ensemble)
    last = tuple(n - 1 for n in ensemble)
    for name, coefficient in varying.items() if ensemble else ():
        wanted = np.broadcast_to(to_numpy(coefficient(float(times[last]))), (*ensemble, 1))[last]
        try:
            at_times: Any = coefficient
            found = np.broadcast_to(to_numpy(at_times(times)), (*ensemble, 1))[last]
        except Exception as problem:
            raise ValueError(
                f"{name} does not take an array of times, one per member ({problem}); write it in numpy, e.g. np.where "
                "for a step, or with torch.as_tensor(t) if it requires gradients; or take another integrator."
            ) from None
        if not np.allclose(found, wanted, rtol=1e-6, atol=0.0, equal_nan=True):
            raise ValueError(
                f"{name} at an array of times gives the last member {float(found[0]):.6g}, and at its time alone "
                f"{float(wanted[0]):.6g}; write it elementwise in t."
            )
