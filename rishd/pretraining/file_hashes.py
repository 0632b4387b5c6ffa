"""Content hashes of files, cached so that only changed files are read again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from rishd.pretraining.cache import cache_folder, cache_key, locked, read_record, write_record
from rishd.pretraining.text_files import CorpusError
from rishd.progress import Advance, silent

_State: TypeAlias = list[int]  # identity of a file: size, times of change of content and of entry, inode
_CHUNK = 1 << 22  # bytes
_THREADS = 8  # hashing releases Python's lock
_SAVED = 5.0  # seconds between writes of the index, from which an interrupted process continues
# A file that changes twice within one tick of the file system's clock has the same time after both changes. So the hash
# of a file that changed this recently is not cached. Nanoseconds; FAT has the coarsest clock.
_YOUNG = 2 * 10**9


class HashedFiles:
    """Files and the SHA-256 of their content.

    A hash is stored with the file's size, times of change and inode, and recomputed if one of them differs.

    Args:
        paths: The files.
        progress: Called with (what, done, total), in MiB, while files are read.

    Attributes:
        digests: Hexadecimal digests in the order of the paths.
    """

    def __init__(self, paths: Sequence[Path], progress: Advance = silent) -> None:
        self.paths = tuple(path.absolute() for path in paths)
        index = cache_folder() / f"hashes-{cache_key(sorted(map(str, self.paths)))}.json"
        known, self._states = _read(index), [_state(path) for path in self.paths]
        if self._missing(known):
            with locked(index.with_suffix(".lock"), "to hash the corpus", self._waiting(progress)) as alive:
                known = self._hash(_read(index), index, progress, alive)
        self.digests = tuple(str(known[str(path)][1]) for path in self.paths)

    def require_unchanged(self) -> None:
        """Compare sizes, times and inodes with those at the time of hashing.

        Raises:
            CorpusError: naming a file that has changed since.
        """
        for path, state in zip(self.paths, self._states, strict=True):
            if not path.exists() or _state(path) != state:
                raise CorpusError(f"{path} changed while it was being read; start again to read the new text.")

    def _missing(self, known: dict[str, Any]) -> list[tuple[Path, _State]]:
        files = zip(self.paths, self._states, strict=True)
        return [(path, state) for path, state in files if known.get(str(path), [None])[0] != state]

    def _hash(self, known: dict[str, Any], index: Path, progress: Advance, alive: Callable[[], None]) -> dict[str, Any]:
        """Hashes of all files; hashes of files that are old enough are also written to the index."""
        missing, young = self._missing(known), time.time_ns() - _YOUNG
        kept = {str(path): known[str(path)] for path in self.paths if str(path) in known}
        total, done, saved = sum(state[0] for _, state in missing), 0, time.monotonic()
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            digests = pool.map(lambda file: _digest(file[0], alive), missing)
            for (path, state), digest in zip(missing, digests, strict=True):
                known[str(path)] = [state, digest]
                if max(state[1:3]) < young:
                    kept[str(path)] = known[str(path)]
                done += state[0]
                progress("hashing the corpus (MiB)", done >> 20, total >> 20)
                if time.monotonic() - saved > _SAVED:
                    write_record(index, {"files": kept})
                    saved = time.monotonic()
        self.require_unchanged()
        write_record(index, {"files": kept})
        return known

    def _waiting(self, progress: Advance) -> Callable[[], None]:
        return lambda: progress("waiting for another process to hash the corpus", 0, 1)


def _read(index: Path) -> dict[str, Any]:
    record = read_record(index)
    return {} if record is None else dict(record["files"])


def _state(path: Path) -> _State:
    # `cp -p` and `rsync -t` set back the time of the content, but the time of the entry cannot be set back.
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _digest(path: Path, alive: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            alive()
    return digest.hexdigest()
