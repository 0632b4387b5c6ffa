"""Recorded runs of ``rishd compare``, filtered and grouped for the second page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import numpy as np

from riemannian_ode.checks import require_choice, shown
from rishd.comparing.plan import run_key
from rishd.comparing.record import RUNS, RecordedRun, read_runs
from rishd.comparing.statistics import t_interval

_LABEL = re.compile(r"(?P<variant>.+), lr (?P<lr>[^,]+), seed (?P<seed>\d+)(?P<rest>.*)")
_AT_FIRST = 6  # variants shown before any is chosen
_SEPARATOR = ";"


class Run(NamedTuple):
    """A recorded run.

    Attributes:
        variant: Its variant, with cell and length, and a number where variants of one name differ in settings.
        lr: Peak learning rate.
        seed: Seed.
        loss: Final validation loss, infinite if it diverged.
        steps: Number of steps.
        tokens_per_step: Tokens of a step.
        validation: Step and loss, shape ``(evaluations, 2)``, finite.
        training: Step and mean loss, shape ``(parts, 2)``.
    """

    variant: str
    lr: float
    seed: int
    loss: float
    steps: int
    tokens_per_step: float
    validation: np.ndarray
    training: np.ndarray


class Curve(NamedTuple):
    """A line of the figure: one run, or the mean of several with their range.

    Attributes:
        variant: Which.
        x: Steps or tokens.
        loss: Shape of ``x``.
        low: Smallest of the runs, shape of ``x``.
        high: Largest.
    """

    variant: str
    x: np.ndarray
    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of the results is shown.

    Args:
        variants: Names; empty for the first six.
        rates: Runs at each variant's best learning rate, or all.
        seeds: A line each run, or their mean with their range.
        curve: Which loss.
        over: Against what.
    """

    variants: tuple[str, ...] = ()
    rates: Literal["best", "all"] = "best"
    seeds: Literal["mean", "each"] = "mean"
    curve: Literal["validation", "training"] = "validation"
    over: Literal["steps", "tokens"] = "steps"

    def query(self) -> dict[str, str]:
        """What differs from the defaults, as URL parameters."""
        values = {
            each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) != each.default
        }
        return {name: _SEPARATOR.join(value) if name == "variants" else value for name, value in values.items()}

    @classmethod
    def from_query(cls, query: Mapping[str, str], known: Sequence[str]) -> tuple[Selection, list[str]]:
        """The selection of a URL, and in plain words what of it is not usable.

        Args:
            query: Parameters as text.
            known: Names of all variants.
        """
        problems: list[str] = []
        good: dict[str, Any] = {}
        for name, text in query.items():
            try:
                if name == "variants":
                    for variant in text.split(_SEPARATOR):
                        require_choice("variants", variant, known)
                    good[name] = tuple(text.split(_SEPARATOR))
                elif name in CHOICES:
                    require_choice(name, text, CHOICES[name])
                    good[name] = text
                else:
                    raise ValueError(
                        f"{shown(name)} is no setting of this page; there are variants, {', '.join(CHOICES)}."
                    )
            except ValueError as problem:
                problems.append(f"{problem} The default is shown.")
        return cls(**good), problems


CHOICES: Mapping[str, tuple[str, ...]] = {
    name: get_args(kind) for name, kind in get_type_hints(Selection).items() if name != "variants"
}


def read_results(folder: Path) -> tuple[Run, ...]:
    """The runs of a comparison's folder, in the order of their record.

    Args:
        folder: ``--out`` of ``rishd compare``.

    Raises:
        ValueError: for a folder without runs, or a damaged record.
    """
    recorded = list(read_runs(folder).values())
    settings: dict[str, list[str]] = {}  # of each name: one record may hold two comparisons that use it differently
    runs = []
    for each in recorded:
        run, key = _run(each), _settings(each.data.get("config", {}))
        known = settings.setdefault(run.variant, [])
        if key not in known:
            known.append(key)
        place = known.index(key)
        runs.append(run._replace(variant=f"{run.variant} ({place + 1})") if place else run)
    if not runs:
        raise ValueError(f"--results: {folder} has no recorded runs ({RUNS}); give the --out folder of rishd compare.")
    return tuple(runs)


def variants(runs: Sequence[Run]) -> tuple[str, ...]:
    """Names of the variants, in order."""
    return tuple(dict.fromkeys(run.variant for run in runs))


def chosen(runs: Sequence[Run], selection: Selection) -> dict[str, list[Run]]:
    """The selected runs by variant.

    Args:
        runs: Of :func:`read_results`.
        selection: Which.
    """
    found: dict[str, list[Run]] = {}
    for variant in selection.variants or variants(runs)[:_AT_FIRST]:
        of_it = [run for run in runs if run.variant == variant]
        best = best_rate(of_it)
        found[variant] = [run for run in of_it if selection.rates == "all" or run.lr == best]
    return found


def best_rate(runs: Sequence[Run]) -> float:
    """Learning rate of the lowest final loss with the first seed, which searches.

    Args:
        runs: Of one variant.
    """
    first = min(run.seed for run in runs)
    return min((run for run in runs if run.seed == first), key=lambda run: run.loss).lr


def curves(runs: Sequence[Run], selection: Selection) -> list[Curve]:
    """The lines of a selection: the mean of the runs with one learning rate, or each run.

    Args:
        runs: Of :func:`read_results`.
        selection: Which.
    """
    lines = []
    for variant, of_it in chosen(runs, selection).items():
        groups = [[run] for run in of_it]
        if selection.seeds == "mean":
            groups = [[run for run in of_it if run.lr == lr] for lr in dict.fromkeys(run.lr for run in of_it)]
        lines += [curve for group in groups if (curve := _curve(variant, group, selection)) is not None]
    return lines


def table(runs: Sequence[Run], selection: Selection) -> list[dict[str, str]]:
    """Final validation losses, a row a variant and learning rate.

    Args:
        runs: Of :func:`read_results`.
        selection: Which.
    """
    rows = []
    for variant, of_it in chosen(runs, selection).items():
        for lr in sorted({run.lr for run in of_it}):
            losses = [run.loss for run in of_it if run.lr == lr]
            diverged = sum(not math.isfinite(loss) for loss in losses)
            rows.append(
                {
                    "variant": variant,
                    "learning rate": f"{lr:g}",
                    "seeds": str(len(losses)),
                    "final validation loss": f"{diverged} diverged" if diverged else str(t_interval(losses)),
                }
            )
    return rows


def _run(recorded: RecordedRun) -> Run:
    data, summary = recorded.data, recorded.summary
    found = _LABEL.fullmatch(data["label"])
    variant, lr, seed = (
        (found["variant"] + found["rest"], float(found["lr"]), int(found["seed"]))
        if found
        else (str(data["label"]), math.nan, 0)
    )
    validation = [(step, loss) for step, _, loss in data["validation"] if loss is not None]
    steps = max(1, int(summary["steps"]))
    return Run(
        variant,
        lr,
        seed,
        recorded.loss,
        steps,
        int(summary["tokens"]) / steps,
        np.array(validation, dtype=np.float64).reshape(-1, 2),
        np.array(data.get("training", []), dtype=np.float64).reshape(-1, 2),
    )


def _settings(config: Mapping[str, Any]) -> str:
    """What a run sets, except learning rate and seed."""
    return run_key({**config, "seed": 0, "optimizer": {**config.get("optimizer", {}), "lr": 0.0}})


def _curve(variant: str, runs: Sequence[Run], selection: Selection) -> Curve | None:
    series = [run.validation if selection.curve == "validation" else run.training for run in runs]
    common = sorted(set.intersection(*({float(step) for step in each[:, 0]} for each in series)))
    if not common:
        return None
    losses = np.array([[dict(each)[step] for step in common] for each in series])
    x = np.array(common) * (runs[0].tokens_per_step if selection.over == "tokens" else 1.0)
    return Curve(variant, x, losses.mean(axis=0), losses.min(axis=0), losses.max(axis=0))
