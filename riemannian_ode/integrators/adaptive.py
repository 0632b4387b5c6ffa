"""SciPy's adaptive integrators as schemes of this package, for reference solutions and high accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import scipy.integrate

from riemannian_ode.arrays import like, to_numpy, tracks
from riemannian_ode.dynamics import RISHD
from riemannian_ode.integrators.base import (
    INTEGRATORS,
    Integrator,
    IntegratorError,
    Losses,
    MemberStates,
    PhaseState,
    StepLimitError,
)
from riemannian_ode.integrators.step_control import (
    MAX_STEPS,
    Tolerances,
    check_step_control,
    step_limit_message,
    tolerances,
)

_DEFAULT = Tolerances(1e-10, 1e-12)


class SciPyAdaptive(Integrator):
    """An adaptive SciPy solver behind the integrator protocol; the whole ensemble shares its steps.

    If the solver cannot continue with an ensemble, the member whose state changes fastest becomes NaN, ``simulate``
    reports it, and the solver restarts with the others.

    Args:
        rtol: Relative tolerance of a step; by default 1e-10 in float64, and 64 units of rounding (7.6e−6) in float32.
        atol: Absolute tolerance of a step; by default a hundredth of that.
        max_step: Longest step, in units of time.
        max_steps: Most steps between two outputs. A flow that is stiff for the scheme ends there with status
            ``"step-limit"`` instead of hanging.

    Raises:
        ValueError: for a tolerance or a limit that is not positive, and (from ``simulate``) for an ``rtol`` that the
            state's dtype does not resolve.

    Source: ``scipy.integrate``.
    """

    structure = frozenset({"shared-steps"})
    adaptive = True
    differentiable = False
    handles_memory = True
    solver: ClassVar[type[scipy.integrate.OdeSolver]]

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
        return _SharedSteps(self, system, state, t0=t0, h=h, steps=steps, first=first)


class _SharedSteps(MemberStates):
    """The run of an ensemble, from output to output."""

    def __init__(
        self,
        scheme: SciPyAdaptive,
        system: RISHD,
        state: PhaseState,
        *,
        t0: float,
        h: float,
        steps: int,
        first: int,
    ) -> None:
        self.scheme, self.system, self.start = scheme, system, state
        self.tolerances = tolerances(scheme.rtol, scheme.atol, state.w, default=_DEFAULT)
        self.t0, self.h, self.steps, self.given = t0, h, steps, first
        self.shape = tuple(state.w.shape)
        self.losses = Losses(self.shape[:-1])
        self.members = int(np.prod(self.shape[:-1]))
        y = self._joined(state).astype(np.float64)
        self.alive = np.all([np.isfinite(rows).all(axis=1) for rows in self._rows(y)], axis=0)
        self.dense: Any = None
        self._start_solver(t0 + first * h, np.nan_to_num(y))

    def __next__(self) -> PhaseState:
        if self.given == self.steps:
            raise StopIteration
        target, taken = self.t0 + (self.given + 1) * self.h, 0
        while self.solver.status == "running" and self.solver.t < target:
            if taken == self.scheme.max_steps:
                message = step_limit_message(self.scheme.name, taken, target=target, at=self.solver.t)
                raise StepLimitError(message)
            taken += 1
            self._step()
        self.given += 1
        if self.given == self.steps:
            return self._split(self.solver.y, lost=np.nan)
        self.dense = self.dense or self.solver.dense_output()
        return self._split(self.dense(target), lost=np.nan)

    def _start_solver(self, t: float, y: np.ndarray) -> None:
        scheme, end = self.scheme, self.t0 + self.h * self.steps
        start: Any = scheme.solver  # SciPy annotates OdeSolver itself; subclasses extend its signature
        limits = {**self.tolerances._asdict(), "max_step": scheme.max_step}
        self.solver = start(self._rates, t, y, t_bound=end, **limits)

    def _step(self) -> None:
        """One step of the solver; if it fails, the fastest member is given up."""
        solver, t, y = self.solver, self.solver.t, self.solver.y.copy()
        self.dense = None
        problem = solver.step()
        if solver.status != "failed" and np.isfinite(solver.y).all():
            return
        reason = problem or "the state is not finite"
        message = f"{self.scheme.name} stopped at t = {t:.6g}: {reason}"
        if np.count_nonzero(self.alive) < 2:
            raise IntegratorError(message)
        scale = self.tolerances.atol + self.tolerances.rtol * np.abs(y)
        speed = np.max([rows.max(axis=1) for rows in self._rows(np.abs(self._rates(t, y) / scale))], axis=0)
        speed = np.where(self.alive, np.nan_to_num(speed, nan=np.inf), -1.0)
        fastest = np.arange(speed.size) == int(speed.argmax())
        self.alive = self.alive & ~fastest
        self.losses.add(fastest.reshape(self.shape[:-1]), "integrator-failed", message)
        self._start_solver(t, y)

    def _rates(self, t: float, y: np.ndarray) -> np.ndarray:
        rates = self.system.rates(t, *self._split(y))
        if any(map(tracks, rates)):  # checked here, because nothing required gradients at the start
            raise ValueError(
                f"from t = {t:g} on the flow requires gradients, but {self.scheme.name!r} has none: it is SciPy's; "
                "take another integrator, or call simulate under torch.no_grad()."
            )
        y_dot = self._joined(rates)
        if not self.alive.all():
            for rows in self._rows(y_dot):
                rows[~self.alive] = 0.0  # lost members stay where they were
        return y_dot

    def _joined(self, parts: Sequence[Any]) -> np.ndarray:
        """Positions of all members, then their momenta."""
        return np.concatenate([to_numpy(x).ravel() for x in parts])

    def _rows(self, y: np.ndarray) -> list[np.ndarray]:
        """Views of positions and momenta, each of shape ``(members, …)``."""
        positions = self.members * self.shape[-1]
        return [y[:positions].reshape(self.members, -1), y[positions:].reshape(self.members, -1)]

    def _split(self, y: np.ndarray, *, lost: float | None = None) -> PhaseState:
        w, m = self._rows(np.array(y))
        if lost is not None:
            w[~self.alive], m[~self.alive] = lost, lost
        ensemble = self.shape[:-1]
        return PhaseState(*(like(rows.reshape(*ensemble, rows.shape[1]), self.start.w) for rows in (w, m)))


@INTEGRATORS.register(place=140)
class DOP853(SciPyAdaptive):
    """Dormand–Prince 8(5,3) with 7th-order dense output (Hairer, Nørsett, Wanner, *Solving ODEs I*, II.5)."""

    name = "dop853"
    order = 8
    solver = scipy.integrate.DOP853


@INTEGRATORS.register(place=130)
class RK45(SciPyAdaptive):
    """Dormand–Prince 5(4) (Dormand and Prince 1980)."""

    name = "rk45"
    order = 5
    solver = scipy.integrate.RK45


@INTEGRATORS.register(place=150)
class Radau(SciPyAdaptive):
    """Implicit Radau IIA of order 5, for stiff flows (Hairer and Wanner, *Solving ODEs II*, IV.8)."""

    name = "radau"
    order = 5
    implicit = True
    solver = scipy.integrate.Radau


@INTEGRATORS.register(place=160)
class LSODA(SciPyAdaptive):
    """Adams/BDF with automatic stiffness switching (Petzold 1983); its order varies up to 12, 1 is guaranteed."""

    name = "lsoda"
    order = 1
    structure = frozenset({"shared-steps", "variable-order"})
    implicit = True
    solver = scipy.integrate.LSODA
