"""Files that are whole or as they were, whenever the process ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file atomically; folders that lack are made.

    Args:
        path: Where.
        text: The whole content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, atomically.

    Raises:
        ValueError: for a number that is not finite.
    """
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")
