"""Records of ensemble members that a run has lost: when, why, and the message about them."""

from __future__ import annotations

import math

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.integrators import Losses, PhaseState
from riemannian_ode.trajectory import Status

_TOLD: dict[str, tuple[str, str]] = {  # by cause: what happened, and the remedy
    "non-finite": ("became non-finite", "take a smaller learning rate or step"),
    "step-limit": ("reached the step limit", ""),
    "integrator-failed": ("could not be integrated further", ""),
}


class LostMembers:
    """First time at which each member was lost, and why.

    Attributes:
        failed_at: First time at which each member was non-finite, NaN for sound members; shape ``(*ensemble,)``.
        causes: Why, ``"non-finite"``, ``"step-limit"`` or ``"integrator-failed"``; empty for sound members. Same shape.
        messages: The scheme's message about the first lost member, by cause.
    """

    def __init__(self, ensemble: tuple[int, ...]) -> None:
        self.failed_at = np.full(ensemble, np.nan)
        self.causes = Losses(ensemble).causes
        self.messages: dict[str, str] = {}
        self.any_lost = False

    def restore(self, failed_at: np.ndarray, causes: np.ndarray, messages: dict[str, str]) -> None:
        """Restore the records from a checkpoint."""
        self.failed_at, self.causes, self.messages = failed_at, causes, messages
        self.any_lost = not bool(np.isnan(failed_at).all())

    def lost_all(self, state: PhaseState, t: float, losses: Losses | None = None) -> bool:
        """Whether no member is left.

        Args:
            state: State at t.
            t: Time.
            losses: Members that the scheme gave up, and why; ``None`` if it never gives up members.
        """
        # A sum is finite only if every number is, so one cheap reduction suffices while all is well.
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
        """Final status and message of a run, with its lost members added."""
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
