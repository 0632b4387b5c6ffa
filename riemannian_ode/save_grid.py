"""The times at which a run takes steps, saves and writes checkpoints."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.checks import shown
from riemannian_ode.flow import Array


class SavePoints:
    """Location of each requested time on the grid t0, t0 + h, …, t0 + steps·h.

    Args:
        times: Requested times, increasing.
        t0: Start time.
        h: Step.
        steps: Number of steps.

    Raises:
        ValueError: for times that are not finite, not increasing, or outside the simulated span.
    """

    def __init__(self, times: Sequence[float] | Array, *, t0: float, h: float, steps: int) -> None:
        try:
            array = np.asarray(to_numpy(times), dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(())
        if array.ndim != 1 or not np.isfinite(array).all():
            raise ValueError(f"save_at = {shown(times)} must be a list of finite times.")
        if (np.diff(array) <= 0).any():
            i = int(np.argmax(np.diff(array) <= 0))
            raise ValueError(f"save_at must increase, but {array[i + 1]:.17g} comes after {array[i]:.17g}; sort it.")
        end = t0 + steps * h
        slack = 8 * np.finfo(np.float64).eps * max(abs(t0), abs(end))
        outside = array[(array < t0 - slack) | (array > end + slack)]
        if outside.size:
            raise ValueError(
                f"save_at holds t = {outside[0]:.17g}, outside the simulated span {t0:g} … {end:g}; raise steps."
            )
        self.times = array
        self._on_grid: set[int] = set()
        self._inside: dict[int, list[float]] = {}
        for t in array.tolist():
            k = round((t - t0) / h)
            if abs(t - (t0 + k * h)) <= slack:  # a grid time up to rounding
                self._on_grid.add(k)
            else:
                self._inside.setdefault(k if t > t0 + k * h else k - 1, []).append(t)
        self._steps = sorted(self._on_grid | set(self._inside))

    def has(self, k: int) -> bool:
        """Whether the end of step k (time t0 + kh) is requested."""
        return k in self._on_grid

    def inside(self, k: int) -> Sequence[float]:
        """Requested times strictly between t0 + kh and t0 + (k+1)h."""
        return self._inside.get(k, ())

    def next_step(self, k: int) -> int | None:
        """The first step after k that ends at a requested time or just before one; ``None`` if there is none."""
        i = bisect_right(self._steps, k)
        return self._steps[i] if i < len(self._steps) else None


@dataclass(frozen=True)
class SaveGrid:
    """Steps of equal size, and which of them are followed by a save or a checkpoint.

    Args:
        t0: Start time.
        h: Step.
        steps: Number of steps.
        save_every: Steps between saves.
        save_at: Additional save times.
        write_every: Steps between checkpoints; ``None`` writes none.
    """

    t0: float
    h: float
    steps: int
    save_every: int
    save_at: SavePoints
    write_every: int | None

    def time(self, k: int) -> float:
        """Time after k steps."""
        return self.t0 + k * self.h

    def is_saved(self, k: int) -> bool:
        """Whether the state after k steps is saved."""
        return k % self.save_every == 0 or k == self.steps or self.save_at.has(k)

    def is_written(self, k: int) -> bool:
        """Whether a checkpoint is written after k steps."""
        return self.write_every is not None and k % self.write_every == 0

    def next_stop(self, k: int) -> int:
        """The next step after k with a save or checkpoint at its end or inside it; k itself at the end."""
        strides = [self.save_every] if self.write_every is None else [self.save_every, self.write_every]
        stops = [self.steps, *(k - k % stride + stride for stride in strides)]
        wanted = self.save_at.next_step(k)
        return min(stops) if wanted is None else min(*stops, wanted)
