"""Checkpoints of a simulation: its position and all its records, in one file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from riemannian_ode.archive import write_arrays
from riemannian_ode.arrays import like, to_numpy
from riemannian_ode.flow import Array
from riemannian_ode.integrators import PhaseState
from riemannian_ode.lost_members import LostMembers
from riemannian_ode.recording import Recorder, Save
from riemannian_ode.trajectory import EventRecord, pack_events, unpack_events


class CheckpointError(ValueError):
    """A checkpoint of another run, or a file that is not a checkpoint; the message names the difference."""


class Position(NamedTuple):
    """Position of a run: steps done, the state after them, and the number of events so far."""

    step: int
    state: PhaseState
    events: int


def write_checkpoint(
    path: Path,
    *,
    run: Mapping[str, Any],
    position: Position,
    recorder: Recorder,
    lost: LostMembers,
    events: Sequence[EventRecord],
) -> None:
    """Write a checkpoint atomically: on failure the old file is unchanged.

    Args:
        path: File to write.
        run: Fingerprint of the run, see :func:`riemannian_ode.fingerprint.fingerprint`.
        position: Position of the run.
        recorder: Holds its saves.
        lost: Its lost members.
        events: Its events; those up to the position are written.
    """
    times, w, m, observed_times, observed = recorder.stacked()
    data: dict[str, Any] = {
        "run": json.dumps(run),
        "step": position.step,
        "state_w": to_numpy(position.state.w),
        "state_m": to_numpy(position.state.m),
        "times": times,
        "w": to_numpy(w),
        "m": to_numpy(m),
        "failed_at": lost.failed_at,
        "causes": lost.causes,
        "causes_messages": json.dumps(lost.messages),
        "observed_times": observed_times,
        **{f"observed_{name}": values for name, values in observed.items()},
        **pack_events(events[: position.events]),
    }
    write_arrays(path, data)


def check_place(path: Path) -> None:
    """Refuse a path that cannot hold a checkpoint, before anything is computed.

    Raises:
        CheckpointError: if the folder does not exist, or the path is a folder.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"checkpoint = {str(path)!r}: there is no folder {str(path.parent)!r}; create it first.")
    if path.is_dir():
        raise CheckpointError(f"checkpoint = {str(path)!r} is a folder; give a file in it, such as run.npz.")


def read_checkpoint(
    path: Path, *, run: Mapping[str, Any], reference: Array, recorder: Recorder, lost: LostMembers
) -> tuple[Position, list[EventRecord]]:
    """Restore saves and lost members from a checkpoint, and return its position and events.

    Args:
        path: A file that :func:`write_checkpoint` made.
        run: Fingerprint of this run.
        reference: Array that sets the kind, dtype and device of the states.
        recorder: Receives the saves.
        lost: Receives the lost members.

    Raises:
        CheckpointError: if the file belongs to another run (the message names the difference) or is not a checkpoint.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            saved = {name: archive[name] for name in archive.files}
        there = json.loads(str(saved["run"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
        raise CheckpointError(f"{path} is not a checkpoint of a simulation ({problem}); remove it to start.") from None
    differing = [
        f"{key} is {there.get(key)!r} there, {value!r} here" for key, value in run.items() if there.get(key) != value
    ]
    if differing:
        raise CheckpointError(f"{path} is of another run: {'; '.join(differing)}. Remove it, or give another path.")

    kept = zip(saved["times"].tolist(), like(saved["w"], reference), like(saved["m"], reference), strict=True)
    states = {time: PhaseState(w, m) for time, w, m in kept}
    rows = saved["observed_times"].tolist() if recorder.observers else list(states)
    recorder.saves = [
        Save(time, states.get(time), {name: saved[f"observed_{name}"][i] for name in recorder.observers})
        for i, time in enumerate(rows)
    ]
    lost.restore(saved["failed_at"], saved["causes"], json.loads(str(saved["causes_messages"])))
    state = PhaseState(like(saved["state_w"], reference), like(saved["state_m"], reference))
    events = unpack_events(saved)
    return Position(int(saved["step"]), state, len(events)), events
