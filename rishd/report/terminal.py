"""Results as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from rishd.report.typeset import ratio

_NO_NUMBERS = ("not applicable", "work limit")  # start of a scheme's status in these cases


def claims_table(results: Sequence[Any]) -> Table:
    """One row per claim: verdict, instances, tightness of its tightest bound, worst residual, seconds."""
    table = Table(
        Column("claim", no_wrap=True),
        "what",
        Column("verdict", no_wrap=True),
        Column("n", justify="right", no_wrap=True),
        Column("tightness", no_wrap=True),
        Column("residual", no_wrap=True),
        Column("s", justify="right", no_wrap=True),
        caption="n: random instances. tightness: measured/bound (median, worst, adversary's) of the tightest bound. "
        "residual: worst / tolerance. s: seconds.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for result in results:
        tightest, closest = result.tightest_bound, result.closest_identity
        colour = "green" if result.as_expected else "red"
        table.add_row(
            result.key,
            result.title,
            f"[{colour}]{result.verdict}[/{colour}]",
            str(result.instances),
            _tightness_text(tightest) if tightest else "",
            f"{closest.values.max():.0e} / {closest.tolerance:.0e}" if closest else "",
            f"{result.seconds:.1f}",
        )
    return table


def evidence_table(result: Any) -> Table:
    """One row per piece of evidence: description, number of trials, and worst value with its limit."""
    from rishd.claims.evidence import Bound, Identity, Proof

    table = Table(
        Column("evidence"),
        Column("n", justify="right", no_wrap=True),
        Column("worst", justify="right", no_wrap=True),
        Column("limit", justify="right", no_wrap=True),
        Column("holds", no_wrap=True),
        title=f"{result.key}, {result.title}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for part in result.evidence:
        if isinstance(part, Proof):
            cells = ["", "0", "0"]
        elif isinstance(part, Bound):
            cells = [str(part.values.size), ratio(part.worst, 3), "1"]
        elif isinstance(part, Identity):
            cells = [str(part.values.size), f"{part.values.max(initial=0.0):.1e}", f"{part.tolerance:.0e}"]
        else:
            cells = [str(part.values.size), f"{part.values.max(initial=0.0):.3g}", ""]
        held = getattr(part, "holds", None)
        colour = "red" if held is False else "green"
        mark = "" if held is None else f"[{colour}]{'yes' if held else 'no'}[/{colour}]"
        table.add_row(escape(part.name), *cells, mark)
    return table


def _tightness_text(bound: Any) -> str:
    found = [] if bound.adversary is None else [bound.adversary.tightness]
    return " ".join(ratio(value, 3) for value in (float(np.median(bound.values)), float(bound.values.max()), *found))


def integrator_table(study: Any) -> Table:
    """One row per problem and scheme: precision at its finest setting, cost of six digits, energy drift."""
    from rishd.studies.integrators import SIX_DIGITS

    table = Table("problem", "integrator", "best error", "gradients to 1e-6", "seconds to 1e-6", "energy drift")
    rows: dict[tuple[str, str], list[Any]] = {}
    for run in study.runs:
        rows.setdefault((run.problem, run.scheme), []).append(run)
    for (problem, scheme), runs in rows.items():
        if runs[0].status.startswith(_NO_NUMBERS):
            table.add_row(problem, scheme, runs[0].status.partition(":")[0], "", "", "")
            continue
        good = [run for run in runs if run.error <= SIX_DIGITS]
        cheapest = min(good, key=lambda run: run.gradients) if good else None
        drifts = [run.drift for run in runs if run.drift == run.drift]  # NaN is not equal to itself
        table.add_row(
            problem,
            scheme,
            f"{min((run.error for run in runs if run.error == run.error), default=float('nan')):.1e}",
            str(cheapest.gradients) if cheapest else "",
            f"{cheapest.seconds:.3f}" if cheapest else "",
            f"{min(drifts):.1e}" if drifts else "",
        )
    return table


def optimizer_step_table(study: Any) -> Table:
    """One row per problem and scheme: steps of h = 1."""
    table = Table(
        "problem", "integrator", "gradients per step", "descends up to η", "least loss", "at η", "flow's loss at that η"
    )
    flows = {row.problem: row for row in study.optimizer_steps if math.isnan(row.gradients)}
    for row in study.optimizer_steps:
        if row.status != "finished":
            table.add_row(row.problem, row.scheme, row.status.partition(":")[0], "", "", "", "")
            continue
        best = min(range(len(row.losses)), key=lambda i: row.losses[i])
        table.add_row(
            row.problem,
            row.scheme,
            "" if row is flows[row.problem] else f"{row.gradients:.1f}",
            f"{row.largest_descending:.2g}" + (" or more" if row.descends_everywhere else ""),
            f"{row.losses[best]:.2g}",
            f"{row.learning_rates[best]:.2g}",
            f"{flows[row.problem].losses[best]:.2g}",
        )
    return table


def text_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Table of rows with equal columns, unchanged."""
    table = Table()
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(text) for text in row.values()))
    return table
