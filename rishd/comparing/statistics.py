"""Statistics of recorded runs: losses with intervals, differences by seed, step and time ratios."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from rishd.comparing.plan import Plan
from rishd.comparing.record import RecordedRun
from rishd.comparing.schedule import best_rate, planned, rate_losses
from rishd.record import Record

CONFIDENCE = 0.95
_SAME_START = 5e-4  # relative; bfloat16 on different processors differs by less


class Interval(NamedTuple):
    """A mean and the half-width of its t-interval, NaN for a single value."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.half:.4f}" if math.isfinite(self.half) else "")


def t_interval(values: Iterable[float]) -> Interval | None:
    r"""Mean and half-width :math:`t_{0.975,\,n-1}\, s/\sqrt n` of a 95% confidence interval; ``None`` for no values.

    Args:
        values: Independent and roughly normal.
    """
    x = np.array(list(values), dtype=np.float64)
    if not len(x):
        return None
    if len(x) == 1:
        return Interval(float(x[0]), math.nan)
    if not np.all(np.isfinite(x)):  # a run diverged
        return Interval(float(x.mean()), math.nan)
    quantile = float(stats.t.ppf(0.5 * (1.0 + CONFIDENCE), len(x) - 1))
    return Interval(float(x.mean()), quantile * float(x.std(ddof=1)) / len(x) ** 0.5)


def length_reaching(points: Sequence[tuple[float, float]], loss: float) -> float | None:
    """Share of the steps at which annealed runs of growing length reach a loss, by linear interpolation.

    Args:
        points: Pairs (length, final loss).
        loss: Target loss.

    Returns:
        ``None`` if even the longest run is above the target; the shortest length if the shortest run is already below
            it.
    """
    ordered = sorted(points)
    for (short, high), (long, low) in zip([(0.0, math.inf), *ordered], ordered, strict=False):
        if low <= loss:
            return long if not math.isfinite(high) else short + (long - short) * (high - loss) / (high - low)
    return None


@dataclass(frozen=True)
class VariantResult:
    """One variant at one cell, at its best learning rate.

    Args:
        variant: Its name.
        cell: Its cell.
        lr: Best learning rate; ``None`` while the search is incomplete.
        at_edge: Whether it is at the edge of its grid, so that a better rate may lie beyond.
        rates: Learning rate ↦ final validation loss in the search.
        losses: Seed ↦ final validation loss.
        loss: Mean and interval over seeds.
        tokens: Training tokens per run.
        parameters: Parameters without embedding and head.
        seconds_per_step: Median over seeds; processor seconds for runs on a CPU.
        baseline: Variant it is compared with, or ``None``.
        difference: Loss minus the baseline's with the same seed.
        steps_to: Share of the run's steps after which it reaches the baseline's final loss; over the seeds that reach
            it.
        seconds_to: The same in seconds, relative to the baseline's.
        reached: Number of seeds that reach it.
        lengths: Share of the steps ↦ final losses of separately annealed runs, by seed.
        step_ratio: Share of the baseline's steps after which an annealed run reaches its final loss.
        time_ratio: The same ratio in seconds.
        unreached: Number of seeds whose full run stays above the baseline's loss; they have no ratio.
        at_shortest: Number of seeds whose shortest run is already below it; their ratio is an upper bound.
    """

    variant: str
    cell: str
    lr: float | None
    at_edge: bool
    rates: Mapping[float, float]
    losses: Mapping[int, float]
    loss: Interval | None
    tokens: int | None
    parameters: int | None
    seconds_per_step: float | None
    baseline: str | None
    difference: Interval | None
    steps_to: Interval | None
    seconds_to: Interval | None
    reached: int
    lengths: Mapping[float, Mapping[int, float]]
    step_ratio: Interval | None
    time_ratio: Interval | None
    unreached: int
    at_shortest: int


@dataclass(frozen=True)
class Comparison(Record):
    """Results of all variants.

    Args:
        baseline: The plan's baseline.
        results: One per variant and cell, in the plan's order; those without recorded runs are omitted.
        missing: Number of due runs.
        unequal: Complaints about runs that should have started equal but did not.
    """

    baseline: str | None
    results: tuple[VariantResult, ...]
    missing: int
    unequal: tuple[str, ...] = ()

    def result(self, variant: str, cell: str) -> VariantResult | None:
        """The result of a variant and cell."""
        return next((row for row in self.results if (row.variant, row.cell) == (variant, cell)), None)

    def table(self) -> list[dict[str, str]]:
        """One row per variant and cell."""
        rows = []
        for row in self.results:
            rate = "" if row.lr is None else f"{row.lr:g}" + (" (edge)" if row.at_edge else "")
            missed = f" ({row.reached} of {len(row.losses)} seeds)" if row.reached < len(row.losses) else ""
            cells = {
                "variant": row.variant,
                "cell": row.cell,
                "lr": rate or f"searching ({len(row.rates)} done)",
                "seeds": str(len(row.losses)),
                "validation loss": str(row.loss) if row.loss else "",
                "minus baseline": str(row.difference) if row.difference else "",
                "steps to its loss": _ratio(row.steps_to) + (missed if row.baseline else ""),
                "seconds to its loss": _ratio(row.seconds_to),
                "annealed steps": _ratio(row.step_ratio, row.at_shortest) + _unreached(row),
                "annealed seconds": _ratio(row.time_ratio, row.at_shortest),
                "s a step": "" if row.seconds_per_step is None else f"{row.seconds_per_step:.3g}",
            }
            rows.append(cells)
        kept = [key for key in (rows[0] if rows else {}) if key in ("variant", "lr") or any(row[key] for row in rows)]
        return [{key: row[key] for key in kept} for row in rows]

    def warnings(self) -> list[str]:
        """Warnings that a reader should know before trusting a row."""
        lines = [
            f"{row.variant}{f' at {row.cell}' if row.cell else ''}: the best learning rate {row.lr:g} is at the edge "
            f"of its grid {', '.join(f'{lr:g}' for lr in sorted(row.rates))}; widen it."
            for row in self.results
            if row.at_edge
        ]
        if self.missing:
            lines.append(f"{self.missing} runs are due and not recorded yet.")
        return [*lines, *self.unequal]


def compare(plan: Plan, recorded: Mapping[str, RecordedRun], *, missing: int = 0) -> Comparison:
    """Statistics of every variant that has a recorded run.

    Args:
        plan: The comparison.
        recorded: Runs by key.
        missing: Number of due runs, for the record.
    """
    rows = [
        row
        for name in plan.variants
        for cell in plan.cells_of(name)
        if (row := _variant_result(plan, recorded, name, cell)) is not None
    ]
    return Comparison(plan.baseline, tuple(rows), missing, unequal_starts(recorded.values()))


def unequal_starts(runs: Iterable[RecordedRun]) -> tuple[str, ...]:
    """Complaints about runs with equal model, text, batch and seed whose first losses, before any step, differ.

    Args:
        runs: Recorded runs.
    """
    groups: dict[str, dict[str, float]] = {}
    for run in runs:
        config, first = run.data.get("config"), run.data.get("first_loss")
        if config is not None and first is not None:
            shared = [config["model"], config["data"], config["training"]["batch_size"], config["seed"]]
            groups.setdefault(json.dumps(shared, sort_keys=True), {})[run.data["label"]] = float(first)
    return tuple(
        f"{low} begins with a loss of {group[low]:.4f} and {high} with {group[high]:.4f} on the same seed: they saw "
        "other text or initial weights. The program has changed between them; record them again."
        for group in groups.values()
        for low, high in ((min(group, key=lambda key: group[key]), max(group, key=lambda key: group[key])),)
        if group[high] - group[low] > _SAME_START * group[low]
    )


def final_runs(plan: Plan, recorded: Mapping[str, RecordedRun], name: str, cell: str) -> dict[int, RecordedRun]:
    """Seed ↦ run at the best learning rate and full length."""
    best = best_rate(plan, recorded, name, cell)
    if best is None:
        return {}
    found = {seed: recorded.get(planned(plan, name, cell, lr=best, seed=seed).key) for seed in plan.seeds_of(name)}
    return {seed: run for seed, run in found.items() if run is not None}


def _variant_result(plan: Plan, recorded: Mapping[str, RecordedRun], name: str, cell: str) -> VariantResult | None:
    rates = rate_losses(plan, recorded, name, cell)
    best = best_rate(plan, recorded, name, cell)
    runs = final_runs(plan, recorded, name, cell)
    if not rates and not runs:
        return None
    losses = {seed: run.loss for seed, run in runs.items()}
    other = plan.baseline_of(name)
    base: dict[int, RecordedRun] = {}
    if other is not None and cell in plan.cells_of(other):
        base = {seed: run for seed, run in final_runs(plan, recorded, other, cell).items() if seed in runs}
    steps_to = {
        seed: steps / run.summary["steps"]
        for seed, run in base.items()
        if (steps := runs[seed].steps_to(run.loss)) is not None
    }
    cost = _median(run.seconds_per_step for run in runs.values())
    base_cost = _median(run.seconds_per_step for run in base.values())
    relative = cost / base_cost if cost is not None and base_cost else math.nan
    lengths = _lengths(plan, recorded, name, cell, best)
    ratios: dict[int, float] = {}
    unreached = at_shortest = 0
    for seed, run in base.items():
        points = [(length, found[seed]) for length, found in lengths.items() if seed in found]
        if not points:
            continue
        reached = length_reaching([*points, (1.0, losses[seed])], run.loss)
        unreached += reached is None
        at_shortest += reached == min(points)[0]
        if reached is not None:
            ratios[seed] = reached
    first = next(iter(runs.values()), None)
    grid = sorted(plan.grid(name, cell) or ())
    return VariantResult(
        name,
        cell,
        best,
        best is not None and len(grid) > 1 and best in (grid[0], grid[-1]),
        rates,
        losses,
        t_interval(losses.values()),
        None if first is None else int(first.summary["tokens"]),
        None if first is None else int(first.summary["non_embedding_parameters"]),
        cost,
        other if base else None,
        t_interval(losses[seed] - run.loss for seed, run in base.items()),
        t_interval(steps_to.values()),
        t_interval(relative * ratio for ratio in steps_to.values()),
        len(steps_to),
        lengths,
        t_interval(ratios.values()),
        t_interval(relative * ratio for ratio in ratios.values()),
        unreached,
        at_shortest,
    )


def _lengths(
    plan: Plan, recorded: Mapping[str, RecordedRun], name: str, cell: str, lr: float | None
) -> dict[float, dict[int, float]]:
    found: dict[float, dict[int, float]] = {}
    for length in plan.variants[name].lengths if lr is not None else ():
        for seed in plan.seeds_of(name):
            run = recorded.get(planned(plan, name, cell, lr=lr, seed=seed, length=length).key)  # type: ignore[arg-type]
            if run is not None:
                found.setdefault(length, {})[seed] = run.loss
    return found


def _median(values: Iterable[float]) -> float | None:
    listed = list(values)
    return float(np.median(listed)) if listed else None


def _unreached(row: VariantResult) -> str:
    return f" (not reached by {row.unreached} seeds)" if row.unreached else ""


def _ratio(interval: Interval | None, bounded: int = 0) -> str:
    if interval is None:
        return ""
    text = f"{interval.mean:.3f}" + (f" ± {interval.half:.3f}" if math.isfinite(interval.half) else "")
    return f"≤ {text}" if bounded else text
