"""Transfer of the best learning rate from small to larger models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rishd.comparing.statistics import Comparison, VariantResult
from rishd.record import Record


@dataclass(frozen=True)
class Transfer(Record):
    """One variant over models of several sizes.

    Args:
        variant: Its name.
        cells: Cells from the smallest model to the largest.
        parameters: Their parameters, without embedding and head.
        best: Best learning rate of each.
        rates: Learning rate ↦ final validation loss for each.
        loss: Smallest loss of the largest model.
        lost: Loss increase of the largest model at the smallest model's best learning rate, nats per token; NaN if not
            tried.
    """

    variant: str
    cells: tuple[str, ...]
    parameters: tuple[int, ...]
    best: tuple[float, ...]
    rates: tuple[Mapping[float, float], ...]
    loss: float
    lost: float

    def row(self) -> dict[str, str]:
        """The row of a table."""
        best = {f"best lr, {cell}": f"{lr:g}" for cell, lr in zip(self.cells, self.best, strict=True)}
        lost = f"{self.lost:.4f}" if math.isfinite(self.lost) else "not tried" if math.isnan(self.lost) else "diverged"
        return {"variant": self.variant, **best, "largest, at its best": f"{self.loss:.4f}", "lost by transfer": lost}


def transfers(comparison: Comparison) -> list[Transfer]:
    """Transfers for every variant with a learning-rate search at several model sizes.

    Args:
        comparison: Result of :func:`rishd.comparing.statistics.compare`.
    """
    found = []
    for variant in dict.fromkeys(row.variant for row in comparison.results):
        rows = [row for row in comparison.results if row.variant == variant and _is_searched(row)]
        rows.sort(key=lambda row: row.parameters or 0)
        if len({row.parameters for row in rows}) < 2:
            continue
        best = tuple(row.lr for row in rows if row.lr is not None)
        largest = rows[-1].rates
        least = min(largest.values())
        found.append(
            Transfer(
                variant,
                tuple(row.cell for row in rows),
                tuple(row.parameters or 0 for row in rows),
                best,
                tuple(row.rates for row in rows),
                least,
                largest.get(best[0], math.nan) - least,
            )
        )
    return found


def _is_searched(row: VariantResult) -> bool:
    return row.lr is not None and len(row.rates) > 1 and row.parameters is not None
