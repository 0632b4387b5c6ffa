"""Rows of the GPU benchmark: written as they come, with what was skipped and what failed."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from riemannian_ode.atomic import write_json


@dataclass
class Report:
    """Rows of a run.

    Args:
        file: JSON file, replaced atomically with every row; ``None`` for none.
        rows: ``{"name", "value", "unit"}``. The value is ``None`` for what was skipped or failed; the unit says why.
        wrong: Names of rows whose result is wrong or that failed.
    """

    file: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def row(self, name: str, value: float, unit: str = "ratio", *, limit: float | None = None) -> None:
        """Add a row; it counts as wrong if it is not finite or above the limit."""
        is_right = math.isfinite(value) and (limit is None or value <= limit)
        note = "" if is_right else f"  WRONG: must be finite and at most {limit}"
        print(f"  {name:64} {value:12.4g} {unit}{note}", flush=True)
        if not is_right:
            self.wrong.append(name)
        self._add(name, value if math.isfinite(value) else None, unit)

    def skip(self, name: str, why: str) -> None:
        """Name what is left out, and why."""
        print(f"  {name:64} skipped: {why}", flush=True)
        self._add(name, None, f"skipped: {why}")

    def attempt(self, name: str, deadline: float, work: Callable[[], None]) -> None:
        """Do a part's work unless its time is over; an error is reported, and the next part starts.

        Args:
            name: Name of the part.
            deadline: Time of ``time.perf_counter`` from which on the work is not begun.
            work: Adds the rows.
        """
        if time.perf_counter() >= deadline:
            self.skip(name, "no time is left")
            return
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            self.wrong.append(name)
            self._add(name, None, f"failed: {type(error).__name__}: {first}")
        finally:
            gc.collect()  # states of optimizers, before the next ones are built
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _add(self, name: str, value: float | None, unit: str) -> None:
        self.rows.append({"name": name, "value": value, "unit": unit})
        if self.file:
            write_json(self.file, self.rows)
