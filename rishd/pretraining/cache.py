"""The cache of tokenizers, tokens and hashes between runs; damaged files are detected by checksums and made again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from riemannian_ode.atomic import write_json

# Version of the cache. Increase it if the file format changes, or if the same corpus gives different texts, parts,
# tokenizers or tokens. Otherwise old caches stay in use, and runs differ silently from those on a fresh machine.
FORMAT = 4
_POLL = 0.05  # seconds between checks whether another process is done
_QUIET = 10.0  # seconds of waiting before a log line says so
_PATIENCE = 600.0  # seconds without progress of the process that holds the lock
_log = logging.getLogger(__name__)


class CacheError(ValueError):
    """The cache cannot be used; the message names the file and the remedy."""


def cache_folder() -> Path:
    """``$RISHD_CACHE``, ``$XDG_CACHE_HOME/rishd`` or ``~/.cache/rishd``."""
    own = os.environ.get("RISHD_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rishd"


def cache_key(*parts: Any) -> str:
    """A short hash of plain data and :data:`FORMAT`."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:24]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write plain data atomically, with a checksum that :func:`read_record` verifies."""
    write_json(path, {**record, "checksum": _checksum(path, record)})


def place(path: Path) -> str:
    """A file's path in the cache, which is part of its checksum so that a copy of another file counts as damaged."""
    return Path(os.path.relpath(path, cache_folder())).as_posix()


def read_record(path: Path) -> dict[str, Any] | None:
    """Data written by :func:`write_record` to this path; ``None`` if the file is missing, damaged or copied."""
    try:
        record = json.loads(path.read_bytes())
        if record.pop("checksum") == _checksum(path, record):
            return dict(record)
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    warn_of_damage(path)
    return None


def warn_of_damage(path: Path) -> None:
    """Warn that a file of the cache is damaged; the caller makes it again."""
    _log.warning("%s is damaged; it is made again", path)


@contextmanager
def locked(path: Path, purpose: str, waiting: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
    """Lock out other processes of this machine until the block ends; the system releases a dead process's lock.

    Yields a function that the block calls as it makes progress. A process that waits gives up when the holder has not
    called it for ten minutes, so that it does not wait for a stopped or hung process forever.

    Args:
        path: Lock file; created if missing.
        purpose: What the lock is for, as in "to encode the text".
        waiting: Called repeatedly while another process holds the lock.

    Raises:
        CacheError: if the file system has no locks, or the process that holds the lock makes no progress.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        _acquire(stream, path, purpose, waiting)
        try:
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}")
            stream.flush()
            yield lambda: os.utime(stream.fileno())
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)  # closing alone would leave the lock to children forked meanwhile


def _acquire(stream: TextIO, path: Path, purpose: str, waiting: Callable[[], None]) -> None:
    start = alive = time.monotonic()
    seen, said = 0, False
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError as problem:
            raise CacheError(
                f"{path} cannot be locked ({problem.strerror}); set RISHD_CACHE to a local disk."
            ) from None
        now, changed = time.monotonic(), os.fstat(stream.fileno()).st_mtime_ns
        if changed != seen:
            alive, seen = now, changed
        stream.seek(0)
        holder = stream.read() or "another process"
        if now - alive > _PATIENCE:
            raise CacheError(
                f"{holder} holds {path} {purpose} and has made no progress for {_PATIENCE:.0f} s; end it, then start "
                "again."
            )
        if now - start > _QUIET and not said:
            _log.warning("waiting for %s, which holds %s %s", holder, path, purpose)
            said = True
        waiting()
        time.sleep(_POLL)


def _checksum(path: Path, record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([place(path), record], sort_keys=True).encode()).hexdigest()
