"""Arrays in one ``.npz`` file, written completely or not at all."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from riemannian_ode.atomic import replaced


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an ``.npz`` file atomically: a failure leaves the old file unchanged.

    Args:
        path: File to write.
        arrays: Name to array, number or text.
    """
    with _interrupts_later(), replaced(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block; inside zipfile it would surface as a different error."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets interrupts
        yield
        return
    received = []
    previous = signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received:
        signal.raise_signal(signal.SIGINT)
