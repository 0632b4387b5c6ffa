"""Checkpoints that are whole or not there, and rotation that never leaves less than one.

A checkpoint is written to a hidden folder beside its place, brought to the disk, and moved there in one step; only then
are older ones removed. A run that is killed at any moment, or that fills the disk, finds its last good one as it was.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

_WHOLE = re.compile(r"checkpoint-(\d+)")


class RunCheckpointError(OSError):
    """A checkpoint that could not be written or read; the message says why and which one is good."""


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, the oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _WHOLE.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint."""
    whole = whole_checkpoints(folder)
    return whole[-1] if whole else None


def step_of(checkpoint: Path | None) -> int:
    """Steps that had been made; 0 without a checkpoint."""
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def kept(folder: Path) -> str:
    """What a message says on checkpoints that are left."""
    last = last_checkpoint(folder)
    return f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."


def write_checkpoint(folder: Path, step: int, write: Callable[[Path], None], *, keep: int, is_first_rank: bool) -> None:
    """Write a checkpoint, all ranks together, and remove old ones.

    Args:
        folder: Of the run.
        step: Steps made.
        write: Writes this rank's files into a folder.
        keep: How many of the newest stay.
        is_first_rank: Whether this rank makes and moves the folder.

    Raises:
        RunCheckpointError: on every rank if any of them could not write; the older checkpoints are as they were.
    """
    place = folder / f"checkpoint-{step}"
    partial = folder / f".{place.name}.partial"
    if is_first_rank:
        clean(folder)
        partial.mkdir(parents=True)
    _barrier()
    # Two stages: before all have written, another rank's files may be temporary ones that vanish under this one.
    for stage in (write, _all_to_disk):
        problem: Exception | None = None
        try:
            stage(partial)
        except Exception as error:  # safetensors and torch.save have errors of their own for a full disk
            problem = error
        failed = _messages(problem)
        if failed:
            if is_first_rank:
                shutil.rmtree(partial, ignore_errors=True)
            raise RunCheckpointError(
                f"the checkpoint of step {step} could not be written ({'; '.join(failed)}); make room, then --resume. "
                f"{kept(folder)}"
            ) from problem
    if is_first_rank:
        if place.exists():  # of a run that was resumed from an earlier one
            _remove(place)
        partial.rename(place)
        _to_disk(folder)
        for old in whole_checkpoints(folder)[:-keep]:
            _remove(old)
    _barrier()


def clean(folder: Path) -> None:
    """Remove what killed runs left half written or half removed."""
    for path in (*folder.glob(".checkpoint-*.partial"), *folder.glob(".checkpoint-*.old")):
        shutil.rmtree(path, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")  # in one step it is no checkpoint any more
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _all_to_disk(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _to_disk(path)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _messages(problem: Exception | None) -> list[str]:
    """What went wrong on the ranks, the same list on each."""
    own = None if problem is None else " ".join(str(problem).split()) or type(problem).__name__
    if not dist.is_initialized():
        return [own] if own else []
    everyone: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return [f"rank {rank}: {text}" for rank, text in enumerate(everyone) if text]


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
