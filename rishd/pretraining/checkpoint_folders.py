"""Checkpoints that are whole or not there, and rotation that never leaves less than one.

A checkpoint is written to a hidden folder beside its place, brought to the disk with a checksum of every file, and
moved there in one step; only then are older ones removed. A run that is killed at any moment, or that fills the disk,
finds its last good one as it was. A checkpoint with a file that is missing, has another checksum or none is refused.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from riemannian_ode.atomic import move_into_place, partial_folder, remove_folder, remove_partials
from riemannian_ode.checks import one_line
from rishd.pretraining.checksums import SUMS, check_files, check_listed, digests, files_of, read_sums, write_sums
from rishd.pretraining.results import MODEL, SUMMARY

_WHOLE = re.compile(r"checkpoint-(\d+)")
_LONGEST = 300  # characters of another library's message


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


def way_out(checkpoint: Path) -> str:
    """What a message on a damaged checkpoint says to do."""
    older = [path for path in whole_checkpoints(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
    return f"remove {checkpoint}, then --resume goes on from {older[-1].name if older else 'the first step'}"


@contextmanager
def readable(checkpoint: Path, name: str) -> Iterator[None]:
    """Turn any error of reading a checkpoint into one that names the file and the way out.

    Args:
        checkpoint: Its folder.
        name: File or folder in it that is read.

    Raises:
        RunCheckpointError: in place of whatever the block raises.
    """
    try:
        yield
    except Exception as problem:  # safetensors, torch.load and the optimizers have errors of their own
        what = one_line(problem, _LONGEST) or type(problem).__name__
        raise RunCheckpointError(f"{checkpoint / name} cannot be loaded ({what}); {way_out(checkpoint)}.") from problem


def check_checkpoint(checkpoint: Path) -> None:
    """Compare all files with their checksums; all ranks together, each a share of the files.

    Checkpoints in transformers' format, as before there were checksums, are not checked.

    Args:
        checkpoint: Its folder.

    Raises:
        RunCheckpointError: naming the file, on every rank.
    """
    from rishd.pretraining.weights import WEIGHTS  # loads transformers

    problem: Exception | None = None
    try:
        before_sums = (checkpoint / "model.safetensors").exists() and not (checkpoint / WEIGHTS).exists()
        if (checkpoint / SUMS).exists() or not before_sums:
            sums = read_sums(checkpoint)
            check_listed(checkpoint, sums)
            check_files(checkpoint, {name: sums[name] for name in _share(sorted(sums))})
    except (OSError, ValueError) as error:
        problem = error
    if failed := problems_of_ranks(problem):
        raise RunCheckpointError(f"{failed[0]}; {way_out(checkpoint)}.") from problem


def check_model(folder: Path) -> None:
    """Compare the files of a complete run's ``model/`` with their checksums.

    Models that were saved before there were checksums only have to exist.

    Args:
        folder: Of the run.

    Raises:
        RunCheckpointError: naming the file and the way out.
    """
    model = folder / MODEL
    try:
        if (model / SUMS).exists() or not (model / "config.json").exists():
            sums = read_sums(model)
            check_listed(model, sums)
            check_files(model, sums)
    except ValueError as problem:
        raise RunCheckpointError(
            f"{problem}; remove {folder / SUMMARY}, then --resume saves the model again."
        ) from None


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
    partial = partial_folder(place)
    if is_first_rank:
        remove_partials(folder)
        partial.mkdir(parents=True)
    _barrier()
    sums: dict[str, str] = {}

    def to_disk_with_sums(partial: Path) -> None:
        sums.update(digests(partial, _share(files_of(partial))))

    def seal(partial: Path) -> None:
        shares = _gather(sums)
        if is_first_rank:
            write_sums(partial, {name: digest for share in shares for name, digest in share.items()})

    # In stages: before all ranks have written, another rank's files may be temporary ones that vanish under this one.
    for stage in (write, to_disk_with_sums, seal):
        problem: Exception | None = None
        try:
            stage(partial)
        except Exception as error:  # safetensors and torch.save have errors of their own for a full disk
            problem = error
        failed = problems_of_ranks(problem)
        if failed:
            if is_first_rank:
                shutil.rmtree(partial, ignore_errors=True)
            raise RunCheckpointError(
                f"the checkpoint of step {step} could not be written ({'; '.join(failed)}); make room, then --resume. "
                f"{kept(folder)}"
            ) from problem
    if is_first_rank:
        move_into_place(partial, place)  # an old one is of a run that was resumed from an earlier one
        for old in whole_checkpoints(folder)[:-keep]:
            remove_folder(old)
    _barrier()


def problems_of_ranks(problem: Exception | None) -> list[str]:
    """What went wrong on the ranks, the same list on each: all of them call it.

    Args:
        problem: Of this rank.
    """
    own = None if problem is None else one_line(problem, _LONGEST) or type(problem).__name__
    if not dist.is_initialized():
        return [own] if own else []
    return [f"rank {rank}: {text}" for rank, text in enumerate(_gather(own)) if text]


def _gather(own: Any) -> list[Any]:
    if not dist.is_initialized():
        return [own]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone


def _share(names: list[str]) -> list[str]:
    """This rank's part of the files."""
    return names[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else names


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
