"""The due runs of a plan, given the recorded ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rishd.comparing.plan import Plan, PlannedRun
from rishd.comparing.record import RecordedRun


def due_runs(plan: Plan, recorded: Mapping[str, RecordedRun], *, only: Sequence[str] = ()) -> list[PlannedRun]:
    """Unrecorded runs whose settings are known, in the order of the variants.

    A grid of learning rates runs with the first seed. Once it is complete, the other seeds and lengths are due at the
    best rate, and variants that inherit from this one know their learning rate.

    Args:
        plan: The comparison.
        recorded: Recorded runs by key.
        only: Variants to consider; all if empty.

    Raises:
        ValueError: for an unknown variant.
    """
    for name in only:
        if name not in plan.variants:
            raise ValueError(f"no variant is called {name!r}; there are {', '.join(plan.variants)}.")
    due: dict[str, PlannedRun] = {}
    for name in only or plan.variants:
        for cell in plan.cells_of(name):
            for run in known_runs(plan, recorded, name, cell):
                if run.key not in recorded:
                    due.setdefault(run.key, run)
    return list(due.values())


def known_runs(plan: Plan, recorded: Mapping[str, RecordedRun], name: str, cell: str) -> Iterator[PlannedRun]:
    """All runs of a variant and cell whose settings are known so far, recorded or not."""
    variant, seeds = plan.variants[name], plan.seeds_of(name)
    rates = plan.grid(name, cell) or ()
    for lr in rates:
        for seed in seeds if variant.every_seed else seeds[:1]:
            yield planned(plan, name, cell, lr=lr, seed=seed)
    best = best_rate(plan, recorded, name, cell)
    if best is None:
        return
    for seed in seeds:
        yield planned(plan, name, cell, lr=best, seed=seed)
    for seed in seeds:
        for length in variant.lengths:
            yield planned(plan, name, cell, lr=best, seed=seed, length=length)


def planned(plan: Plan, name: str, cell: str, *, lr: float, seed: int, length: float = 1.0) -> PlannedRun:
    """One run."""
    return PlannedRun(name, cell, lr, seed, length, plan.config(name, cell, lr=lr, seed=seed, length=length))


def best_rate(plan: Plan, recorded: Mapping[str, RecordedRun], name: str, cell: str) -> float | None:
    """The learning rate with the smallest final validation loss, averaged over the seeds of the search.

    Returns:
        ``None`` while runs of the search are missing, or if all of them diverged.
    """
    rates = plan.grid(name, cell)
    if rates is None:
        other = plan.variants[name].like
        assert other is not None
        return best_rate(plan, recorded, other, cell if cell in plan.cells_of(other) else plan.cells_of(other)[0])
    if len(rates) == 1:
        return rates[0]
    losses = rate_losses(plan, recorded, name, cell)
    if len(losses) < len(rates) or not math.isfinite(min(losses.values())):
        return None
    return min(losses, key=lambda lr: losses[lr])


def rate_losses(plan: Plan, recorded: Mapping[str, RecordedRun], name: str, cell: str) -> dict[float, float]:
    """Final validation loss of each learning rate with complete search; infinite if a run diverged."""
    seeds = plan.seeds_of(name) if plan.variants[name].every_seed else plan.seeds_of(name)[:1]
    losses: dict[float, float] = {}
    for lr in plan.grid(name, cell) or ():
        found = [recorded.get(planned(plan, name, cell, lr=lr, seed=seed).key) for seed in seeds]
        if all(found):
            losses[lr] = sum(run.loss for run in found if run) / len(seeds)
    return losses
