"""Time accounting of a run: seconds of training, in the optimizer, and of processor time."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any, NamedTuple

import torch


class Times(NamedTuple):
    """Seconds of training, the optimizer's part of them, and processor time of this process (all threads)."""

    seconds: float
    optimizer_seconds: float
    cpu_seconds: float


class StepClock:
    """Accumulates training time and the optimizer's share of it over the parts of a resumed run.

    On a GPU events measure the optimizer's time. Only :meth:`read` reads them, after a synchronisation that logging
    needs anyway.

    Args:
        device: Device of the run.
        seconds: Seconds of earlier parts.
        optimizer_seconds: Optimizer seconds of earlier parts.
        cpu_seconds: Processor seconds of earlier parts.
    """

    def __init__(
        self, device: torch.device, *, seconds: float = 0.0, optimizer_seconds: float = 0.0, cpu_seconds: float = 0.0
    ) -> None:
        self._cuda = device.type == "cuda"
        self._seconds, self._optimizer_seconds, self._cpu_seconds = seconds, optimizer_seconds, cpu_seconds
        self._since: float | None = None
        self._cpu_since = 0.0
        self._optimizer_since: Any = None
        self._pairs: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Training continues."""
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def pause(self) -> None:
        """Something other than training begins: an evaluation or a checkpoint."""
        if self._since is not None:
            if self._cuda:
                torch.cuda.synchronize()
            self._seconds += time.perf_counter() - self._since
            self._cpu_seconds += time.process_time() - self._cpu_since
            self._since = None

    def optimizer_begins(self) -> None:
        """The optimizer's step begins."""
        self._optimizer_since = self._now()

    def optimizer_ends(self) -> None:
        """The optimizer's step has ended."""
        if self._cuda:
            self._pairs.append((self._optimizer_since, self._now()))
        else:
            self._optimizer_seconds += self._now() - self._optimizer_since

    def read(self) -> Times:
        """Times so far."""
        for begin, end in self._pairs:
            end.synchronize()
            self._optimizer_seconds += begin.elapsed_time(end) / 1000
        self._pairs.clear()
        running = cpu = 0.0
        if self._since is not None:
            running, cpu = time.perf_counter() - self._since, time.process_time() - self._cpu_since
        return Times(self._seconds + running, self._optimizer_seconds, self._cpu_seconds + cpu)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def peak_memory_bytes() -> int:
    """Largest memory so far: allocated on the accelerator if there is one, else resident in this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # bytes on macOS, KiB elsewhere
