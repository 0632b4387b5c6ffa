"""Checks of a system during a run: coefficients in range, a symmetric metric, a split that fits it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.coefficients import COEFFICIENTS, TimeDependent
from riemannian_ode.dynamics import RISHD
from riemannian_ode.errors import InvalidSystemError
from riemannian_ode.integrators import PhaseState
from riemannian_ode.metric import Euclidean
from riemannian_ode.split import ConstantSplit, PhasePoint, check_self_adjoint

# Violations of a bound up to this size are rounding: a schedule that falls to 0 reaches it only approximately.
_ROUNDING = 1e-12
_STEPS_BETWEEN = 64  # steps between checks of a split: one check costs about as much as three steps


class SystemCheck:
    """Checks during a run what the constructors check for constants.

    Args:
        system: The dynamics.
    """

    def __init__(self, system: RISHD) -> None:
        self.metric = system.metric if system.metric.variation == "state" else None
        still = system.metric.variation == "constant" and isinstance(system.flat, ConstantSplit)
        fixed = still or isinstance(system.metric, Euclidean) or system.metric.variation == "history"
        self.split = system if system.flat is not None and system.check_split and not fixed else None
        self.next_split = 0
        coefficients = {name: getattr(system, name) for name in (*COEFFICIENTS, "decay")}
        self.varying = {name: c for name, c in coefficients.items() if isinstance(c, TimeDependent)}
        self.downhill = system if system.downhill and self.varying.keys() - {"eta", "chi"} else None

    def coefficients(self, t: float) -> None:
        """Refuse time-dependent coefficients that are out of range or not finite at time t, or that make γ < 0.

        Raises:
            InvalidSystemError: naming the coefficient, the time and the value.
        """
        for name, coefficient in self.varying.items():
            value: Any = coefficient(t)
            if not isinstance(value, float):
                value = to_numpy(value)
                finite = bool(np.isfinite(value).all())
                value = float(value.min()) if finite else float(value[~np.isfinite(value)][0])
            if not coefficient.lower - _ROUNDING <= value < math.inf:
                wanted = "finite" if not math.isfinite(value) else f"at least {coefficient.lower:g}"
                raise InvalidSystemError(
                    f"{name}({t:.12g}) = {value!r} must be {wanted}; change its function of time, or end before."
                )
        if self.downhill is not None:
            self._check_downhill(self.downhill, t)

    @staticmethod
    def _check_downhill(system: RISHD, t: float) -> None:
        for name, ratio in system.gamma_over_eta(t).items():
            smallest = float(np.min(to_numpy(ratio)))
            if not smallest >= -_ROUNDING:
                raise InvalidSystemError(
                    f"{name}({t:.12g}) makes γ/η = c + αβ + dβ/dt = {smallest:.6g} negative, so the flow would climb "
                    f"the gradient; keep {name} above −c/α and let it fall slowly, or end before."
                )
        gap = float(np.min(to_numpy(system.at("beta_flat", t) - system.at("beta_sharp", t))))
        if system.is_split and not gap >= -_ROUNDING:
            raise InvalidSystemError(
                f"beta_flat({t:.12g}) is below beta by {-gap:.6g}; LITE damps flat directions at least as much."
            )

    def geometry(self, k: int, t: float, state: PhaseState, *, last: bool = False) -> None:
        """Refuse a metric that is not symmetric, or a split that no longer fits it.

        A moving split is costly to check, so it is checked at saves at least 64 steps apart, and at the last save.

        Args:
            k: Steps done.
            t: Time.
            state: State at t.
            last: Whether it is the last state.

        Raises:
            InvalidSystemError: naming what is wrong and the time.
        """
        try:
            if self.metric is not None:
                self.metric.check_symmetry(state.w)
            if self.split is not None and (k >= self.next_split or last):
                self.next_split = k + _STEPS_BETWEEN
                self._check_split(self.split, t, state)
        except ValueError as problem:
            raise InvalidSystemError(f"at t = {t:.12g}: {problem}") from None

    @staticmethod
    def _check_split(system: RISHD, t: float, state: PhaseState) -> None:
        assert system.flat is not None
        w, m = state
        point = PhasePoint(w, m, system.metric.raise_index(w, m))
        check_self_adjoint(system.flat(point), system.metric, w)
