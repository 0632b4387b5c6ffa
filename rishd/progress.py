"""A progress bar for a sequence of named tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """An ``advance`` that does nothing."""


@contextmanager
def progress_bar(console: Console) -> Iterator[Advance]:
    """Yields ``advance(what, done, total)``; each new ``what`` gets its own line. Silent outside a terminal.

    Args:
        console: Console to draw on; by default standard error, so that standard output stays clean.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance
