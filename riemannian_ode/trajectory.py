"""Trajectories: what a simulation leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.flow import Array

Status = Literal["finished", "event", "non-finite", "integrator-failed", "interrupted"]


@dataclass(frozen=True)
class EventRecord:
    """An event that happened.

    Args:
        name: Of the event.
        member: Ensemble index, ``()`` for a single trajectory.
        time: When.
        w: Position of the member then, shape ``(p,)``.
        m: Momentum of the member then, shape ``(p,)``.
        terminal: Whether the event was a terminal one.
    """

    name: str
    member: tuple[int, ...]
    time: float
    w: np.ndarray
    m: np.ndarray
    terminal: bool


@dataclass(frozen=True)
class Trajectory:
    """Saved states of one trajectory or of an ensemble, whole or partial.

    Args:
        times: Save times, shape ``(saves,)``, numpy float64.
        w: Positions, shape ``(saves, *ensemble, p)``.
        m: Momenta, the same shape.
        status: ``"finished"``, or why it stopped early.
        message: The reason in words, with time and member; empty when finished.
        failed_at: First time at which each member was seen non-finite, NaN for sound members; shape ``(*ensemble,)``.
        observed_times: Times of the observed values, shape ``(observations,)``.
        observed: Name of an observer to its values, each of shape ``(observations, …)``.
        events: Located events, in order of time.
    """

    times: np.ndarray
    w: Array
    m: Array
    status: Status
    message: str
    failed_at: np.ndarray
    observed_times: np.ndarray = field(default_factory=lambda: np.empty(0))
    observed: Mapping[str, np.ndarray] = field(default_factory=dict)
    events: tuple[EventRecord, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it reached its end, or a terminal event, with every member finite."""
        return self.status in ("finished", "event") and bool(np.isnan(self.failed_at).all())

    def checked(self) -> Trajectory:
        """The trajectory itself, if it is whole and finite.

        Raises:
            KeyboardInterrupt: if Ctrl-C cut it short.
            RuntimeError: if anything else did, with its message.
        """
        if self.status == "interrupted":
            raise KeyboardInterrupt
        if not self.ok:
            raise RuntimeError(f"the trajectory is not whole ({self.status}): {self.message}")
        return self

    def to_numpy(self) -> Trajectory:
        """The same trajectory with numpy arrays."""
        return replace(self, w=to_numpy(self.w), m=to_numpy(self.m))

    def save(self, path: str | Path) -> None:
        """Write it as ``.npz``, atomically: the file is whole or absent; located events are not written."""
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        data: dict[str, Any] = {
            "times": self.times,
            "w": to_numpy(self.w),
            "m": to_numpy(self.m),
            "status": self.status,
            "message": self.message,
            "failed_at": self.failed_at,
            "observed_times": self.observed_times,
            **{f"observed_{name}": values for name, values in self.observed.items()},
        }
        with partial.open("wb") as stream:
            np.savez(stream, **data)
        partial.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what :meth:`save` wrote, as numpy arrays.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a saved trajectory.
        """
        try:
            opened = np.load(Path(path), allow_pickle=False)
        except (ValueError, EOFError):
            raise ValueError(f"{path} is no saved trajectory: it is no .npz file.") from None
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError(f"{path} is no saved trajectory: it is a single array.")
        with opened as archive:
            missing = {"times", "w", "m", "status", "message", "failed_at", "observed_times"} - set(archive.files)
            if missing:
                raise ValueError(f"{path} is no saved trajectory: it lacks {', '.join(sorted(missing))}.")
            status = str(archive["status"])
            return cls(
                archive["times"],
                archive["w"],
                archive["m"],
                status,  # type: ignore[arg-type]  # written by save() from a Status
                str(archive["message"]),
                archive["failed_at"],
                archive["observed_times"],
                {
                    name.removeprefix("observed_"): archive[name]
                    for name in archive.files
                    if name.startswith("observed_") and name != "observed_times"
                },
            )
