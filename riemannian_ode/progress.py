"""The progress bar of a simulation: steps done, steps per second, time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

DELAY = 2.0  # seconds before a bar appears: shorter runs would only flicker
_REPAINT = 0.1  # seconds between repaints


class RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        if task.speed is None:
            return Text("")
        return Text(f"{task.speed:,.0f} steps/s" if task.speed >= 100 else f"{task.speed:.2g} steps/s")


@contextlib.contextmanager
def progress_bar(steps: int, wanted: bool | None, *, first: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yields ``advance(k)``, to be called after step k.

    Args:
        steps: Number of the last step.
        wanted: Whether to show the bar; ``None`` shows it in a terminal, once the run takes more than 2 s.
        first: Steps already done (in a resumed run); they do not count in the rate.
    """
    console = Console(stderr=True)
    if wanted is False or (wanted is None and not console.is_terminal):
        yield lambda k: None
        return
    columns = TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console)
    task: Any = None
    start = last = time.monotonic()

    def advance(k: int) -> None:
        nonlocal task, last
        now = time.monotonic()
        if now - last < _REPAINT and (task is None or k < steps):
            return
        last = now
        if task is None:
            if wanted is None and now - start < DELAY:
                return
            bar.start()
            task = bar.add_task("", total=steps, completed=first)
        bar.update(task, completed=k)

    try:
        yield advance
    finally:
        if task is not None:
            bar.stop()
