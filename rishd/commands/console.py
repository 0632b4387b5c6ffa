"""What the commands share: where they print, their output formats and exit codes."""

from __future__ import annotations

import enum

from rich.console import Console

out, err = Console(), Console(stderr=True)

FAILED, USAGE, INTERRUPTED = 1, 2, 130  # exit codes: a check failed, bad input, Ctrl-C (128 + SIGINT)


class Format(enum.StrEnum):
    """Output formats."""

    table = "table"
    json = "json"
