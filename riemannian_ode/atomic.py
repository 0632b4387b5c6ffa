"""Files and folders that are whole, as they were, or absent, whenever the process or the machine stops."""

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
    """Wait until the disk has a file's content or a folder's entries."""
    if sys.platform == "win32":  # which opens no folder, and syncs no file that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Write a file atomically: the block writes the yielded path, which then takes the place of ``path``.

    If the block raises, ``path`` stays as it was.

    Args:
        path: The file, new or not.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # ranks may write the same file
    try:
        yield partial
        move_into_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk half a file helps nobody
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically; missing folders are created.

    Args:
        path: Where.
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
    """Where the ranks of a run write a folder together before :func:`move_into_place`."""
    return path.with_name(f".{path.name}.partial")


def move_into_place(partial: Path, path: Path) -> None:
    """Give a file or folder that is written its name, and bring that to the disk.

    A file replaces an old one in one step; an old folder is removed first.

    Args:
        partial: What is written; the files in a folder are on the disk already.
        path: Its place, in the same folder.
    """
    to_disk(partial)  # otherwise the new name may outlive a power cut that its content does not
    if partial.is_dir():
        remove_folder(path)
    partial.replace(path)
    to_disk(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, whose name is gone before its first file is."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.old.partial")
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half written or half removed in a folder."""
    for path in folder.glob("*.partial"):  # hidden ones, too
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
