"""Shared parts of the commands: consoles, output formats and exit codes."""

from __future__ import annotations

import enum
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console

# A file or a pipe has no width: tables are written at full width unless COLUMNS limits it.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 280
out, err = Console(width=_WIDTH), Console(stderr=True)

FAILED, USAGE, INTERRUPTED = 1, 2, 130  # exit codes: a check failed, bad input, Ctrl-C (128 + SIGINT)


def usable_folder(option: str, folder: Path) -> Path:
    """Create a folder for results and try to write to it before the work starts.

    Raises:
        ValueError: naming the option if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as problem:
        raise ValueError(f"{option}: {folder} takes no files ({problem.strerror}); give another folder.") from None


class Format(enum.StrEnum):
    """Output formats."""

    table = "table"
    json = "json"
