"""What a simulation keeps on its way: saved states, observed quantities, and checkpoints of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from riemannian_ode.arrays import like, namespace, to_numpy
from riemannian_ode.coefficients import COEFFICIENTS, TimeDependent
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.integrators import PhaseState

Observer: TypeAlias = Callable[[float, Array, Array], Array]


class CheckpointError(ValueError):
    """A checkpoint of another run, or a file that is none; the message names the difference."""


class Recorder:
    """Saved states and observed values of a run, in order.

    Args:
        t0: Start time.
        start: State at ``t0``.
        observers: Name to ``(t, w, m)`` ↦ array of a fixed shape.
        keep_states: Whether every save keeps the state; else only the start and the last state are held.
    """

    def __init__(self, t0: float, start: PhaseState, *, observers: Mapping[str, Observer], keep_states: bool) -> None:
        self.observers, self.keep_states = observers, keep_states
        self.times: list[float] = []
        self.states: list[PhaseState] = []
        self.observed_times: list[float] = []
        self.observed: dict[str, list[np.ndarray]] = {name: [] for name in observers}
        self.save(t0, start)

    def save(self, t: float, state: PhaseState) -> None:
        """Keep the state (or replace the last one) and observe it."""
        if not self.keep_states and len(self.states) == 2:
            self.times.pop()
            self.states.pop()
        self.times.append(t)
        self.states.append(state)
        if self.observers:
            self.observed_times.append(t)
            for name, observe in self.observers.items():
                self.observed[name].append(np.array(to_numpy(observe(t, state.w, state.m))))

    @property
    def last_time(self) -> float:
        """Time of the last save."""
        return self.times[-1]

    def stacked(self) -> tuple[np.ndarray, Array, Array, np.ndarray, dict[str, np.ndarray]]:
        """Times, w, m, observed times and observed values as arrays."""
        stack = namespace(self.states[0].w).stack
        return (
            np.array(self.times),
            stack([state.w for state in self.states]),
            stack([state.m for state in self.states]),
            np.array(self.observed_times),
            {name: np.stack(values) for name, values in self.observed.items()},
        )

    def write(self, path: Path, *, step: int, state: PhaseState, failed_at: np.ndarray, run: Mapping[str, Any]) -> None:
        """Write a checkpoint atomically: the file is whole or as it was.

        Args:
            path: Where.
            step: Steps done.
            state: State after them.
            failed_at: Times at which members were lost.
            run: What identifies the run, see :func:`fingerprint`.
        """
        times, w, m, observed_times, observed = self.stacked()
        data: dict[str, Any] = {
            "run": json.dumps(run),
            "step": step,
            "state_w": to_numpy(state.w),
            "state_m": to_numpy(state.m),
            "times": times,
            "w": to_numpy(w),
            "m": to_numpy(m),
            "failed_at": failed_at,
            "observed_times": observed_times,
            **{f"observed_{name}": values for name, values in observed.items()},
        }
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as stream:
            np.savez(stream, **data)
        partial.replace(path)

    def read(self, path: Path, *, run: Mapping[str, Any], reference: Array) -> tuple[int, PhaseState, np.ndarray]:
        """Take a checkpoint's records over, and return its step, state and lost members.

        Args:
            path: A file that :meth:`write` made.
            run: What identifies this run.
            reference: Array whose kind, dtype and device the states get.

        Raises:
            CheckpointError: if the file is of another run, naming the difference, or no checkpoint.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                saved = {name: archive[name] for name in archive.files}
            there = json.loads(str(saved["run"]))
        except (OSError, ValueError, KeyError) as problem:
            raise CheckpointError(f"{path} is no checkpoint of a simulation ({problem}); remove it to start.") from None
        differing = [
            f"{key} is {there.get(key)!r} there, {value!r} here"
            for key, value in run.items()
            if there.get(key) != value
        ]
        if differing:
            raise CheckpointError(f"{path} is of another run: {'; '.join(differing)}. Remove it, or give another path.")
        states = zip(like(saved["w"], reference), like(saved["m"], reference), strict=True)
        self.times, self.states = saved["times"].tolist(), [PhaseState(w, m) for w, m in states]
        self.observed_times = saved["observed_times"].tolist()
        self.observed = {name: list(saved[f"observed_{name}"]) for name in self.observers}
        state = PhaseState(like(saved["state_w"], reference), like(saved["state_m"], reference))
        return int(saved["step"]), state, saved["failed_at"]


def fingerprint(system: RISHD, start: PhaseState, recorder: Recorder, **settings: Any) -> dict[str, Any]:
    """What tells a run from another: settings, kinds of objective and metric, coefficients, and the start.

    Functions (time-dependent coefficients, user metrics, observers) are known by name only.
    """

    def digest(*arrays: Array) -> str:
        parts = (np.ascontiguousarray(to_numpy(x)).tobytes() for x in arrays)
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    coefficients = {
        name: "varies in time" if isinstance(value := getattr(system, name), TimeDependent) else digest(value)
        for name in COEFFICIENTS
    }
    return {
        **settings,
        "objective": type(system.objective).__name__,
        "metric": type(system.metric).__name__,
        **coefficients,
        "start": digest(*start),
        "shape": list(start.w.shape),
        "observers": sorted(recorder.observers),
        "keep_states": recorder.keep_states,
    }
