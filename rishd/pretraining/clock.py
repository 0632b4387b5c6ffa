"""Where the time of a run goes: seconds of training, of these the optimizer's, and the processor's."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any, NamedTuple

import torch


class Times(NamedTuple):
    """Seconds of training, of the optimizer within them, and of this process on processors (all its threads)."""

    seconds: float
    optimizer_seconds: float
    cpu_seconds: float


class StepClock:
    """Adds up training time and the optimizer's share of it, over the parts of a resumed run.

    On a GPU the optimizer's time is taken by events, which are read only when :meth:`read` asks, after a
    synchronisation that logging makes anyway.

    Args:
        device: Where the run computes.
        seconds: Of earlier parts.
        optimizer_seconds: Of earlier parts.
        cpu_seconds: Of earlier parts.
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
        """Training goes on."""
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def pause(self) -> None:
        """Something else than training begins: an evaluation, a checkpoint."""
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
