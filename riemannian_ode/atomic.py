"""Atomic writes: after a crash a file or folder is complete, unchanged or absent, never half written."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def to_disk(path: Path) -> None:
    """Wait until a file's content or a folder's entries are on disk."""
    if sys.platform == "win32":  # Windows can neither open a folder nor sync a file opened for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Write a file atomically: the block writes to the yielded path, which then replaces ``path``.

    If the block raises, ``path`` is unchanged.

    Args:
        path: The file; it may exist.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # ranks may write the same file
    try:
        yield partial
        move_into_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a half-written file would only fill the disk
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically; missing folders are created.

    Args:
        path: File to write.
        content: The whole content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` for text, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, atomically.

    Raises:
        ValueError: for a number that is not finite.
    """
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def partial_folder(path: Path) -> Path:
    """Temporary folder that all ranks of a run write to before :func:`move_into_place`."""
    return path.with_name(f".{path.name}.partial")


def move_into_place(partial: Path, path: Path) -> None:
    """Rename a finished temporary file or folder to its final name, and sync the rename to disk.

    A file replaces an old one atomically; an old folder is removed first.

    Args:
        partial: The temporary file or folder; a folder's files are already synced.
        path: Its final path, in the same parent folder.
    """
    to_disk(partial)  # otherwise the new name may survive a power cut without its content
    if partial.is_dir():
        remove_folder(path)
    partial.replace(path)
    to_disk(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder if it exists; it is renamed first, so that no half-removed folder keeps the name."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.old.partial")
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def remove_partials(folder: Path) -> None:
    """Remove half-written and half-removed leftovers of killed processes from a folder."""
    for path in folder.glob("*.partial"):  # including hidden files
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
