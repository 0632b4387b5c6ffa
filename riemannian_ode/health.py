"""What can go wrong on the way of a simulation, and how it is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.coefficients import COEFFICIENTS, TimeDependent
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.integrators import Losses, PhaseState
from riemannian_ode.trajectory import Status

# Below a bound by this much is rounding: a schedule that falls to 0 reaches it only to the last digits.
_ROUNDING = 1e-12


class InvalidSystemError(ValueError):
    """A coefficient or the metric is not what the theory asks for; the message names it, its value and the time."""


class SystemCheck:
    """Checks, as a run goes on, what was checked of constants when the system was built.

    Args:
        system: The dynamics.
    """

    def __init__(self, system: RISHD) -> None:
        self.metric = system.metric if system.metric.variation == "state" else None
        coefficients = {name: getattr(system, name) for name in COEFFICIENTS}
        self.varying = {name: c for name, c in coefficients.items() if isinstance(c, TimeDependent)}
        self.downhill = system if system.downhill and self.varying.keys() - {"eta", "chi"} else None

    def coefficients(self, t: float) -> None:
        """Refuse time-dependent coefficients that are out of range or not finite at time t, or with which γ < 0.

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

    def symmetry(self, t: float, w: Array) -> None:
        """Refuse a metric that is not symmetric at ``w``.

        Raises:
            InvalidSystemError: naming the asymmetry and the time.
        """
        if self.metric is None:
            return
        try:
            self.metric.check_symmetry(w)
        except ValueError as problem:
            raise InvalidSystemError(f"at t = {t:.12g}: {problem}") from None


_TOLD: dict[str, tuple[str, str]] = {  # by cause: what happened, and the remedy
    "non-finite": ("became non-finite", "take a smaller learning rate or step"),
    "step-limit": ("reached the step limit", "raise max_steps, or take a scheme for stiff flows"),
    "integrator-failed": ("could not be integrated further", ""),
}


class Health:
    """First time at which each member was lost, and why.

    Attributes:
        failed_at: First time at which each member was non-finite, NaN for sound members; shape ``(*ensemble,)``.
        causes: Why, ``"non-finite"``, ``"step-limit"`` or ``"integrator-failed"``; empty for sound members. Same shape.
        messages: What the scheme said of the first one, by cause.
    """

    def __init__(self, ensemble: tuple[int, ...]) -> None:
        self.failed_at = np.full(ensemble, np.nan)
        self.causes = Losses(ensemble).causes
        self.messages: dict[str, str] = {}
        self.any_lost = False

    def restore(self, failed_at: np.ndarray, causes: np.ndarray, messages: dict[str, str]) -> None:
        """Take over what a checkpoint knew."""
        self.failed_at, self.causes, self.messages = failed_at, causes, messages
        self.any_lost = not bool(np.isnan(failed_at).all())

    def lost_all(self, state: PhaseState, t: float, losses: Losses | None = None) -> bool:
        """Whether no member is left.

        Args:
            state: State at t.
            t: Time.
            losses: Which members the scheme gave up, and why; ``None`` if it never does.
        """
        # A sum is finite only if every number is: one cheap reduction while all is well.
        if not self.any_lost and math.isfinite(float(to_numpy(state.w.sum() + state.m.sum()))):
            return False
        finite = np.isfinite(to_numpy(state.w)).all(-1) & np.isfinite(to_numpy(state.m)).all(-1)
        if not self.any_lost and finite.all():
            return False  # the sum overflowed, no member did
        self.any_lost = True
        new = ~finite & np.isnan(self.failed_at)
        self.failed_at = np.where(new, t, self.failed_at)
        self.causes = np.where(new, "non-finite", self.causes)
        if losses is not None:
            self.causes = np.where(new & (losses.causes != ""), losses.causes, self.causes)
            self.messages = losses.messages | self.messages
        return not finite.any()

    def verdict(self, status: Status, message: str) -> tuple[Status, str]:
        """Status and message of a run that ended with those given, with its lost members named."""
        if not self.any_lost:
            return status, message
        if status in ("finished", "non-finite"):
            causes: tuple[Status, ...] = ("integrator-failed", "step-limit", "non-finite")
            status = next(cause for cause in causes if (self.causes == cause).any())
        return status, "; ".join(filter(None, [*map(self._describe, _TOLD), message]))

    def _describe(self, cause: str) -> str:
        members, (what, remedy) = self.causes == cause, _TOLD[cause]
        if not members.any():
            return ""
        times = np.where(members, self.failed_at, np.inf)
        first = float(times.min())
        remedy = remedy or self.messages.get(cause, "")
        if not times.shape:
            return f"the state {what} at t = {first:.6g}; {remedy}"
        member = tuple(int(i) for i in np.unravel_index(int(times.argmin()), times.shape))
        return (
            f"{int(members.sum())} of {members.size} members {what}, the first (member {member}) at t = {first:.6g}; "
            f"{remedy}"
        )
