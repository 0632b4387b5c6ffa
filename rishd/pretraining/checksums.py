"""SHA-256 of every file of a folder, in the format of ``sha256sum --check SHA256SUMS``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from riemannian_ode.atomic import to_disk, write_text

SUMS = "SHA256SUMS"
# Files that may be opened when a checkpoint or a model is read, including those that only some versions write or only
# some libraries look for. The folder may contain other files.
_READ = ("*.json", "*.jsonl", "*.safetensors", "optimizer.pt", "optimizer/*", "scheduler.pt", "rng_state*.pth")


def files_of(folder: Path) -> list[str]:
    """Sorted relative names of all files in a folder and its subfolders, without the checksum file."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if name != SUMS)


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Sync files to disk and compute their SHA-256.

    Args:
        folder: Their folder.
        names: Files, relative to the folder.
    """
    found: dict[str, str] = {}
    for name in names:
        to_disk(folder / name)
        found[name] = _digest(folder / name)
    return found


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write ``SHA256SUMS`` and sync the folder's entries to disk.

    Args:
        folder: The folder.
        sums: Result of :func:`digests` for all files.
    """
    write_text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
    for path in folder.rglob("*"):
        if path.is_dir():
            to_disk(path)


def read_sums(folder: Path) -> dict[str, str]:
    """SHA-256 by file.

    Raises:
        ValueError: if the file is missing or damaged, naming it.
    """
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        raise ValueError(f"{path} is missing or damaged") from None
    return sums


def check_files(folder: Path, sums: Mapping[str, str]) -> None:
    """Verify files against their checksums.

    Args:
        folder: Their folder.
        sums: Result of :func:`read_sums`, or a part of it.

    Raises:
        ValueError: naming the first file that differs or is missing.
    """
    for name, digest in sums.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}, of {folder / SUMS}, is missing")
        if _digest(path) != digest:
            raise ValueError(f"{path} does not match {folder / SUMS}: one of the two is damaged")


def check_listed(folder: Path, sums: Mapping[str, str]) -> None:
    """Refuse a file that would be read without a checksum.

    Args:
        folder: Folder of a checkpoint or a model.
        sums: Complete result of :func:`read_sums`.

    Raises:
        ValueError: naming the first file that is not listed.
    """
    for name in files_of(folder):
        is_read = any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in _READ)
        if is_read and name not in sums:
            raise ValueError(f"{folder / name} is not listed in {folder / SUMS}: nothing shows whether it is complete")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
