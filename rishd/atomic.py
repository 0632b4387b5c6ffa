"""Files that are whole or as they were, whenever the process or the machine stops."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def to_disk(path: Path) -> None:
    """Wait until the disk has a file's content or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; missing folders are created.

    Args:
        path: Where.
        content: The whole content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # ranks may write the same file
    partial.write_bytes(content)
    to_disk(partial)  # otherwise the new name may outlive a power cut that its content does not
    partial.replace(path)
    to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` for text, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, atomically.

    Raises:
        ValueError: for a number that is not finite.
    """
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")
