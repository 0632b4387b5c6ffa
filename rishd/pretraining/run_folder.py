"""Output folders: ownership, records of runs and software, and the checkpoint to continue from."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from riemannian_ode.atomic import write_json, write_text
from rishd.pretraining.checkpoint_folders import last_checkpoint, problems_of_ranks
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.config_files import dump_yaml, make_config
from rishd.pretraining.results import CONFIG, FORMAT, RECORD, format_problem
from rishd.provenance import git_state, versions

# Settings that may change when a run is resumed. They do not affect numbers, except that the last changes rounding.
_FREE = ("logging.", "checkpoints.", "training.micro_batch_size")
_LOCK = "run.lock"
_PACKAGES = ("rishd", "torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")


class RunFolderError(ValueError):
    """An output folder that cannot be used; the message gives the reason and the remedy."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock a run's folder until the block ends; the system releases a dead process's lock.

    The folder is created if missing, and removed if it is empty at the end.

    Args:
        folder: Output folder.

    Raises:
        RunFolderError: if another process holds the folder (the message says which and since when), or if it is a file.
    """
    if folder.is_file():  # checked once: another process may be removing a folder
        raise RunFolderError(f"{folder} is a file; --out takes a folder.")
    path = folder / _LOCK
    stream = _locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is held: a process that opened it before finds that it is gone
        with suppress(OSError):
            folder.rmdir()
        stream.close()


@contextmanager
def hold_for_all_ranks(folder: Path, *, is_first_rank: bool) -> Iterator[None]:
    """:func:`hold` on the first rank for all ranks of a run, which call it together.

    Args:
        folder: Output folder.
        is_first_rank: Whether this is the first rank.

    Raises:
        RunFolderError: on every rank.
    """
    problem: RunFolderError | None = None
    with ExitStack() as held:
        if is_first_rank:
            try:
                held.enter_context(hold(folder))
            except RunFolderError as error:
                problem = error
        if failed := problems_of_ranks(problem):
            raise problem or RunFolderError(failed[0])
        yield


def _locked(path: Path) -> IO[str]:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a+", encoding="utf-8")
        except (FileNotFoundError, FileExistsError):  # the previous holder is removing the folder
            if path.parent.is_symlink() and not path.parent.exists():
                raise RunFolderError(f"{path.parent} is a link to nothing; --out takes a folder.") from None
            continue
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            stream.close()
            raise RunFolderError(
                f"{path.parent} is in use by {holder}; wait until that run ends or stop it, or give another --out."
            ) from None
        except OSError as problem:
            stream.close()
            raise RunFolderError(
                f"{path} cannot be locked ({problem.strerror}); give an --out on a file system with locks (flock)."
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                break
        stream.close()  # the previous holder has removed it meanwhile
    stream.truncate(0)
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    stream.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
    stream.flush()
    return stream


def check_run_folder(folder: Path, config: PretrainConfig, corpus_hash: str, *, resume: bool) -> Path | None:
    """Check that an output folder can hold a run, before anything is written.

    Args:
        folder: Output folder.
        config: The run.
        corpus_hash: Content hash of its corpus.
        resume: Whether to continue the run in the folder.

    Returns:
        The last complete checkpoint to continue from; ``None`` to start.

    Raises:
        RunFolderError: if the folder contains a run and ``resume`` is off, or a different run.
    """
    if (folder / RECORD).exists():
        there = read_record(folder)
        if not resume:
            raise RunFolderError(f"{folder} already holds a run; give --resume to continue it, or another --out.")
        differing = _differences(there["config"], json.loads(json.dumps(config.to_mapping())))
        if there["corpus_hash"] != corpus_hash:
            differing.append(f"the corpus hash is {there['corpus_hash'][:16]} there, {corpus_hash[:16]} here")
        if differing:
            raise RunFolderError(
                f"{folder} holds another run ({'; '.join(differing)}); resume with its settings, or give another --out."
            )
        return last_checkpoint(folder)
    # A run that was killed before its record was written leaves the folder free.
    if folder.exists() and any(path.name != _LOCK and path.suffix != ".partial" for path in folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty and holds no run of rishd; give another --out.")
    if resume:
        raise RunFolderError(f"{folder} holds no run to resume; check the path, or leave --resume out to start one.")
    return None


def claim_run_folder(folder: Path, config: PretrainConfig, corpus_hash: str, facts: Mapping[str, Any]) -> None:
    """Write a new run's record atomically; from then on the folder belongs to that run.

    Args:
        folder: Output folder, checked by :func:`check_run_folder`.
        config: The run.
        corpus_hash: Content hash of its corpus.
        facts: Further entries of the record.
    """
    record = {"format": FORMAT, "config": config.to_mapping(), "corpus_hash": corpus_hash, "seed": config.seed}
    write_json(folder / RECORD, {**record, "versions": versions(_PACKAGES), "git": git_state(), **facts})


def write_config(folder: Path) -> Path:
    """Write the run's settings to ``config.yaml`` from its record if the file is missing.

    Args:
        folder: Folder of a run.

    Raises:
        RunFolderError: if the record cannot be read.
    """
    path = folder / CONFIG
    if not path.exists():
        write_text(path, dump_yaml(read_record(folder)["config"]))
    return path


def read_record(folder: Path) -> dict[str, Any]:
    """A run's record, with all settings.

    Raises:
        RunFolderError: if it cannot be read.
    """
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        problem = format_problem(path, record["format"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _unreadable(path) from None
    if problem:  # checked before anything else is read: another format may have other entries
        raise RunFolderError(problem)
    try:
        if not isinstance(record["corpus_hash"], str):
            raise TypeError("corpus_hash")
        # Settings that did not exist yet had today's defaults.
        record["config"] = json.loads(json.dumps(make_config(record["config"]).to_mapping()))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _unreadable(path) from None
    return record


def _unreadable(path: Path) -> RunFolderError:
    return RunFolderError(f"{path} is not readable as a run's record; name another run's folder.")


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in dict.fromkeys((*here, *there)):
        old, new, name = there.get(key), here.get(key), prefix + key
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{name}.")
        elif old != new and not name.startswith(_FREE):
            found.append(f"{name} is {old!r} there, {new!r} here")
    return found
