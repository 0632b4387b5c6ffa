"""Trajectories: the results of simulations."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from riemannian_ode.archive import write_arrays
from riemannian_ode.arrays import namespace, to_numpy
from riemannian_ode.flow import Array
from riemannian_ode.interpolation import hermite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from riemannian_ode.dynamics import RISHD
    from riemannian_ode.memory import RememberedMetric
    from riemannian_ode.plane import Plane

Status = Literal["finished", "event", "non-finite", "step-limit", "integrator-failed", "invalid-system", "interrupted"]


@dataclass(frozen=True)
class EventRecord:
    """One occurrence of an event.

    Args:
        name: Name of the event.
        member: Ensemble index, ``()`` for a single trajectory.
        time: Time of the event.
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


def pack_events(events: Sequence[EventRecord]) -> dict[str, np.ndarray]:
    """Event records as arrays for a file."""
    return {
        "event_names": np.array([event.name for event in events], dtype=np.str_),
        "event_members": np.array([event.member for event in events], dtype=np.int64),
        "event_times": np.array([event.time for event in events]),
        "event_w": np.array([event.w for event in events]),
        "event_m": np.array([event.m for event in events]),
        "event_terminal": np.array([event.terminal for event in events], dtype=bool),
    }


def unpack_events(packed: Mapping[str, np.ndarray]) -> list[EventRecord]:
    """The inverse of :func:`pack_events`."""
    names, times, terminal = (packed[f"event_{key}"].tolist() for key in ("names", "times", "terminal"))
    members = [tuple(member) for member in packed["event_members"].tolist()]
    columns = zip(names, members, times, packed["event_w"], packed["event_m"], terminal, strict=True)
    return [EventRecord(*row) for row in columns]


@dataclass(frozen=True)
class Trajectory:
    """Saved states of one trajectory or of an ensemble, complete or partial.

    States have the dtype of the start. An adaptive scheme's default tolerances depend on it: relative 1e−10 (1e−8 for
    ``ensemble-rk45``) in float64, 7.6e−6 in float32.

    Args:
        times: Save times, shape ``(saves,)``, numpy float64.
        w: Positions, shape ``(saves, *ensemble, p)``.
        m: Momenta, the same shape.
        status: ``"finished"``, or why the run stopped early.
        message: The reason as text, with time and member; empty if finished.
        failed_at: First time at which each member was seen non-finite, NaN for sound members; shape ``(*ensemble,)``.
        causes: Why each member was lost: ``"non-finite"``, ``"step-limit"`` or ``"integrator-failed"``; empty for sound
            members. Shape ``(*ensemble,)``.
        observed_times: Times of the observed values, shape ``(observations,)``.
        observed: Name of an observer to its values, each of shape ``(observations, …)``.
        events: Located events, in order of time.
        memory: A preconditioner's memory by key, each of shape ``(saves, *ensemble, …)``.
    """

    times: np.ndarray
    w: Array
    m: Array
    status: Status
    message: str
    failed_at: np.ndarray
    causes: np.ndarray
    observed_times: np.ndarray = field(default_factory=lambda: np.empty(0))
    observed: Mapping[str, np.ndarray] = field(default_factory=dict)
    events: tuple[EventRecord, ...] = ()
    memory: Mapping[str, Array] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the run reached its end or a terminal event with every member finite."""
        return self.status in ("finished", "event") and bool(np.isnan(self.failed_at).all())

    def checked(self) -> Trajectory:
        """Return the trajectory if it is complete and finite, else raise.

        Raises:
            KeyboardInterrupt: if Ctrl-C cut it short.
            RuntimeError: if anything else stopped it, with its message.
        """
        if self.status == "interrupted":
            raise KeyboardInterrupt
        if not self.ok:
            raise RuntimeError(f"the trajectory is not whole ({self.status}): {self.message}")
        return self

    def interpolate(self, times: float | Sequence[float] | Array, system: RISHD) -> tuple[Array, Array]:
        r"""States between the saved ones, from the cubic through both neighbours and their rates.

        The interpolation error is :math:`O(\Delta^4)` in the spacing Δ of the saves, in addition to the error of the
        saved states. The rates are the system's, so for large steps of an optimizer the cubic is not the path of the
        scheme; use ``save_at`` of ``simulate`` there.

        Args:
            times: Times between the first and the last save; a number, or shape ``(n,)``.
            system: The dynamics that produced the trajectory.

        Returns:
            w and m, each of shape ``(n, *ensemble, p)``; without the first axis if ``times`` is a number.

        Raises:
            ValueError: for times outside the saved ones.
        """
        wanted = np.asarray(to_numpy(times), dtype=np.float64)
        if not ((wanted >= self.times[0]) & (wanted <= self.times[-1])).all():
            raise ValueError(
                f"times = {times!r} must lie between the first and the last save, {self.times[0]:g} … "
                f"{self.times[-1]:g}."
            )
        if system.memory is not None:
            raise ValueError("a flow with memory is not interpolated; ask simulate for save_at at those times.")
        system = system.for_arrays(self.w[0])
        places = np.clip(np.searchsorted(self.times, wanted.reshape(-1), side="right") - 1, 0, len(self.times) - 2)
        rates = {
            i: system.rates(float(self.times[i]), self.w[i], self.m[i])
            for i in {int(j) for place in places for j in (place, place + 1)}
        }
        states = []
        for i, t in zip(places.tolist(), wanted.reshape(-1).tolist(), strict=True):
            h = float(self.times[i + 1] - self.times[i])
            ends = (self.w[i], self.m[i]), (self.w[i + 1], self.m[i + 1])
            states.append(hermite(*ends, (rates[i], rates[i + 1]), h, (t - float(self.times[i])) / h))
        if wanted.ndim == 0:
            w, m = states[0]
            return w, m
        stack = namespace(self.w).stack
        return stack([w for w, _ in states]), stack([m for _, m in states])

    def plot(self, ax: Axes | None = None, *, plane: Plane | tuple[int, int] | None = None, **options: Any) -> Axes:
        """Plot the trajectory in a plane; see :func:`riemannian_ode.plotting.plot_path`.

        Args:
            ax: matplotlib axes; by default those of a new figure, ``ax.figure``.
            plane: Plane, or two coordinate indices; the first two by default.
            options: ``members``, ``label``, and arguments of matplotlib's ``plot``.
        """
        from riemannian_ode.plotting import plot_path

        return plot_path(self, ax, plane=plane, **options)

    def plot_energy(self, system: RISHD, ax: Axes | None = None) -> Axes:
        """Plot energy, value and dissipation over time; see :func:`riemannian_ode.plotting.plot_energy`.

        Args:
            system: The dynamics that produced the trajectory.
            ax: matplotlib axes; by default those of a new figure, ``ax.figure``.
        """
        from riemannian_ode.plotting import plot_energy

        return plot_energy(self, system, ax)

    def to_numpy(self) -> Trajectory:
        """The same trajectory with numpy arrays."""
        memory = {key: to_numpy(value) for key, value in self.memory.items()}
        return replace(self, w=to_numpy(self.w), m=to_numpy(self.m), memory=memory)

    def save(self, path: str | Path) -> None:
        """Write the trajectory as an ``.npz`` file, atomically: a failure leaves no partial file."""
        data: dict[str, Any] = {
            "times": self.times,
            "w": to_numpy(self.w),
            "m": to_numpy(self.m),
            "status": self.status,
            "message": self.message,
            "failed_at": self.failed_at,
            "causes": self.causes,
            "observed_times": self.observed_times,
            **{f"observed_{name}": values for name, values in self.observed.items()},
            **{f"memory_{key}": to_numpy(value) for key, value in self.memory.items()},
            **pack_events(self.events),
        }
        write_arrays(Path(path), data)

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read a file written by :meth:`save`, as numpy arrays.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if the file is not a saved trajectory.
        """
        try:
            opened = np.load(Path(path), allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile):
            raise ValueError(f"{path} is not a saved trajectory: it is not an .npz file.") from None
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError(f"{path} is not a saved trajectory: it is a single array.")
        with opened as archive:
            needed = {"times", "w", "m", "status", "message", "failed_at", "causes", "observed_times", *pack_events(())}
            missing = needed - set(archive.files)
            if missing:
                raise ValueError(f"{path} is not a saved trajectory: it has no {', '.join(sorted(missing))}.")
            status = str(archive["status"])
            return cls(
                archive["times"],
                archive["w"],
                archive["m"],
                status,  # type: ignore[arg-type]  # written by save() from a Status
                str(archive["message"]),
                archive["failed_at"],
                archive["causes"],
                archive["observed_times"],
                {
                    name.removeprefix("observed_"): archive[name]
                    for name in archive.files
                    if name.startswith("observed_") and name != "observed_times"
                },
                tuple(unpack_events(archive)),
                {name.removeprefix("memory_"): archive[name] for name in archive.files if name.startswith("memory_")},
            )


def unpacked(trajectory: Trajectory, metric: RememberedMetric) -> Trajectory:
    """Separate momentum and memory in a trajectory whose ``m`` holds both; momentum leaves the frame.

    Args:
        trajectory: As the integrators see it.
        metric: Metric of the flow.
    """
    w, z = trajectory.w, trajectory.m
    events = tuple(replace(event, m=metric.momentum(event.w, event.m)) for event in trajectory.events)
    return replace(trajectory, m=metric.momentum(w, z), memory=metric.memory(w, z), events=events)
