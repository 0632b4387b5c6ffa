"""Atomic checkpoints, and a rotation that always keeps at least one.

A checkpoint is written to a hidden folder, synced to disk with a checksum of every file, and renamed in one step; only
then are older checkpoints removed. A run that is killed at any moment, or that fills the disk, keeps its last good
checkpoint. A checkpoint with a file that is missing, or whose checksum is missing or wrong, is refused.
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
_LONGEST = 300  # longest part of another library's message, in characters


class RunCheckpointError(OSError):
    """A checkpoint that could not be written or read; the message says why and which checkpoint is good."""


def whole_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, the oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _WHOLE.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint."""
    whole = whole_checkpoints(folder)
    return whole[-1] if whole else None


def step_of(checkpoint: Path | None) -> int:
    """Steps done at a checkpoint; 0 without one."""
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def kept(folder: Path) -> str:
    """Sentence about the remaining checkpoints."""
    last = last_checkpoint(folder)
    return f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."


def way_out(checkpoint: Path) -> str:
    """The remedy for a damaged checkpoint."""
    older = [path for path in whole_checkpoints(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
    return f"remove {checkpoint}, then --resume continues from {older[-1].name if older else 'the first step'}"


@contextmanager
def readable(checkpoint: Path, name: str) -> Iterator[None]:
    """Turn any error of reading a checkpoint into one that names the file and the remedy.

    Args:
        checkpoint: Its folder.
        name: File or folder that is read.

    Raises:
        RunCheckpointError: instead of whatever the block raises.
    """
    try:
        yield
    except Exception as problem:  # safetensors, torch.load and the optimizers raise their own errors
        what = one_line(problem, _LONGEST) or type(problem).__name__
        raise RunCheckpointError(f"{checkpoint / name} cannot be loaded ({what}); {way_out(checkpoint)}.") from problem


def check_checkpoint(checkpoint: Path) -> None:
    """Verify the checksums of all files; all ranks together, each a share of the files.

    Checkpoints in transformers' format, from before checksums existed, are not checked.

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
    """Verify the checksums of a complete run's ``model/``.

    Models saved before checksums existed only have to exist.

    Args:
        folder: Folder of the run.

    Raises:
        RunCheckpointError: naming the file and the remedy.
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
        folder: Folder of the run.
        step: Steps done.
        write: Writes this rank's files into a folder.
        keep: Number of newest checkpoints to keep.
        is_first_rank: Whether this rank creates and renames the folder.

    Raises:
        RunCheckpointError: on every rank if any rank could not write; older checkpoints are unchanged.
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

    # In stages: until all ranks have written, another rank's files may be temporary and vanish.
    for stage in (write, to_disk_with_sums, seal):
        problem: Exception | None = None
        try:
            stage(partial)
        except Exception as error:  # safetensors and torch.save raise their own errors for a full disk
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
        move_into_place(partial, place)  # replaces one made before the run was resumed from an earlier step
        for old in whole_checkpoints(folder)[:-keep]:
            remove_folder(old)
    _barrier()


def problems_of_ranks(problem: Exception | None) -> list[str]:
    """The problems of all ranks, the same list on each; all ranks must call it.

    Args:
        problem: Problem of this rank.
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
