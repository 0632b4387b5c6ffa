"""Figures of ``rishd compare``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from riemannian_ode.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from rishd.comparing.plan import Plan
from rishd.comparing.record import RecordedRun
from rishd.comparing.scaling import PowerLaw
from rishd.comparing.statistics import Comparison, VariantResult, final_runs
from rishd.comparing.transfer import Transfer

_PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
_LINES = ("-", "--", ":")
_MARKS = ("o", "s", "^", "D", "v")
_HEADROOM = 1.5  # a run failed if its loss exceeds the best by more than this many times the spread of final losses


def comparison_figure(comparison: Comparison) -> Figure:
    """Plot losses against learning rates in the search, and final losses with intervals.

    Args:
        comparison: Result of :func:`rishd.comparing.statistics.compare`.
    """
    styles = _styles(comparison.results)
    final = [row for row in _ends(comparison) if row.loss is not None and math.isfinite(row.loss.mean)]
    figure = Figure(figsize=(11.5, max(4.4, 2.0 + 0.36 * len(final))), layout="constrained")
    search, ends = figure.subplots(1, 2, width_ratios=(1, 1.15))
    ceiling = _ceiling([loss for row in comparison.results for loss in row.rates.values()])
    for row in comparison.results:
        if len(row.rates) > 1:
            rates = sorted(row.rates)
            losses = [min(row.rates[lr], ceiling) for lr in rates]
            colour, line = styles[row.variant, row.cell]
            search.semilogx(rates, losses, "o", ls=line, color=colour, mfc="none", label=_name(row))
            beyond = [lr for lr in rates if row.rates[lr] > ceiling]
            search.semilogx(beyond, [ceiling] * len(beyond), "^", color=colour)
    search.set(
        xlabel="peak learning rate",
        ylabel="final validation loss (nats per token)",
        title="Search, first seed (▲: worse than drawn)",
    )
    if search.lines:
        figure.legend(*search.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
        tried = sorted({lr for row in comparison.results if len(row.rates) > 1 for lr in row.rates})
        search.set_xticks(tried, [f"{lr:g}" for lr in tried], fontsize=7.5, rotation=45)
        search.minorticks_off()
    for place, row in enumerate(final):
        assert row.loss is not None
        colour, _ = styles[row.variant, row.cell]
        half = row.loss.half if math.isfinite(row.loss.half) else 0.0
        ends.errorbar(row.loss.mean, place, xerr=half, fmt="o", color=colour, capsize=3)
        ends.plot(list(row.losses.values()), np.full(len(row.losses), place), "|", color=colour, ms=9)
    ends.set_yticks(range(len(final)), [_name(row) for row in final], fontsize=8)
    ends.invert_yaxis()
    ends.set(
        xlabel="final validation loss (nats per token)", title="At the best learning rate: mean, 95% interval, runs"
    )
    for axes in (search, ends):
        axes.grid(alpha=0.3)
    return figure


def _ends(comparison: Comparison) -> list[VariantResult]:
    """Results with distinct final runs; a variant for shorter runs shares the final runs of its parent."""
    ends: list[VariantResult] = []
    for row in comparison.results:
        if all(row.losses != other.losses for other in ends):
            ends.append(row)
    return ends


def curve_figure(plan: Plan, recorded: Mapping[str, RecordedRun], comparison: Comparison) -> Figure:
    """Plot validation loss against tokens for every variant at its best learning rate, mean over seeds.

    Args:
        plan: The comparison.
        recorded: Runs by key.
        comparison: Their statistics.
    """
    styles = _styles(comparison.results)
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    axes: Any = figure.subplots()
    lowest: list[float] = []
    for row in _ends(comparison):
        runs = [run for run in final_runs(plan, recorded, row.variant, row.cell).values() if math.isfinite(run.loss)]
        if not runs:
            continue
        common = set.intersection(*({point[1] for point in run.data["validation"]} for run in runs))
        tokens = sorted(common)
        losses = np.array([[dict((t, v) for _, t, v in run.data["validation"])[t] for t in tokens] for run in runs])
        colour, line = styles[row.variant, row.cell]
        axes.plot(
            tokens, losses.mean(0), color=colour, ls=line, lw=1.5, label=f"{_name(row)}: {losses[:, -1].mean():.3f}"
        )
        lowest += [float(losses[:, -1].mean()), float(losses[:, len(tokens) // 4].mean())]
    if lowest:
        spread = max(lowest) - min(lowest)
        axes.set_ylim(min(lowest) - 0.05 * spread, max(lowest) + 0.1 * spread)
    axes.set(xlabel="tokens", ylabel="validation loss (nats per token)", title="Means over seeds, best learning rates")
    axes.grid(alpha=0.3)
    if lowest:
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def length_figure(comparison: Comparison) -> Figure:
    """Plot the final losses of separately annealed runs against their length, with the baseline's final loss.

    Args:
        comparison: Result of :func:`rishd.comparing.statistics.compare`.
    """
    shown = [row for row in comparison.results if row.lengths and row.loss is not None]
    bases = [base for row in shown if row.baseline and (base := comparison.result(row.baseline, row.cell))]
    styles = _styles([*shown, *bases])
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes: Any = figure.subplots()
    drawn: set[tuple[str, str]] = set()
    for place, row in enumerate(shown):
        colour, _ = styles[row.variant, row.cell]
        mark = _MARKS[place % len(_MARKS)]
        points = {**row.lengths, 1.0: row.losses}
        lengths = sorted(points)
        for length in lengths:
            losses = list(points[length].values())
            axes.plot(np.full(len(losses), length), losses, mark, color=colour, ms=4, mfc="none")
        means = [float(np.mean(list(points[length].values()))) for length in lengths]
        axes.plot(lengths, means, f"{mark}-", color=colour, ms=4, label=f"{_name(row)}: mean and runs")
        base = comparison.result(row.baseline, row.cell) if row.baseline else None
        if base is not None and base.loss is not None and (base.variant, base.cell) not in drawn:
            drawn.add((base.variant, base.cell))
            shade, _ = styles[base.variant, base.cell]
            axes.axhline(base.loss.mean, color=shade, lw=1.2, ls="--", label=f"{_name(base)}, all steps")
            if math.isfinite(base.loss.half):
                axes.axhspan(base.loss.mean - base.loss.half, base.loss.mean + base.loss.half, color=shade, alpha=0.15)
    axes.set(
        xlabel="length over the baseline's (each run annealed)",
        ylabel="final validation loss (nats per token)",
        title="How much shorter may the run be?",
    )
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    return figure


def scaling_figure(laws: Sequence[PowerLaw]) -> Figure:
    """Plot fitted power laws with their data points.

    Args:
        laws: Result of :func:`rishd.comparing.scaling.scaling_laws`.
    """
    axes_names = list(dict.fromkeys(law.axis for law in laws))
    figure = Figure(figsize=(6.2 * len(axes_names), 4.2), layout="constrained")
    panels = figure.subplots(1, len(axes_names), squeeze=False)[0]
    for axes, name in zip(panels, axes_names, strict=True):
        for place, law in enumerate(law for law in laws if law.axis == name):
            colour, line = _PALETTE[place % len(_PALETTE)], _LINES[place // len(_PALETTE) % len(_LINES)]
            x = np.geomspace(law.x[0] / 1.1, law.x[-1] * 1.1, 100)
            floor = f"{law.floor:.2f} + " if law.floor else ""
            axes.plot(law.x, law.loss, "o", color=colour, mfc="none")
            axes.plot(
                x,
                law(x),
                ls=line,
                color=colour,
                label=f"{law.variant}: {floor}(x/{law.scale:.2g})$^{{-{law.exponent:.3f}}}$",
            )
        label = "tokens" if name == "tokens" else "parameters without embedding and head"
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="final validation loss (nats per token)")
        for kind in ("set_major_formatter", "set_minor_formatter"):
            getattr(axes.yaxis, kind)(StrMethodFormatter("{x:g}"))
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.suptitle("Scaling laws", fontsize=11)
    return figure


def transfer_figure(transfers: Sequence[Transfer]) -> Figure:
    """Plot loss against learning rate for models of several sizes, one panel per variant; best rates are filled.

    Args:
        transfers: Result of :func:`rishd.comparing.transfer.transfers`.
    """
    columns = min(3, len(transfers))
    rows = -(-len(transfers) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes in panels.flat[len(transfers) :]:
        axes.set_visible(False)
    for axes, transfer in zip(panels.flat, transfers, strict=False):
        for place, (cell, losses, best) in enumerate(zip(transfer.cells, transfer.rates, transfer.best, strict=True)):
            rates = [lr for lr in sorted(losses) if math.isfinite(losses[lr])]
            colour = _PALETTE[place % len(_PALETTE)]
            axes.plot(rates, [losses[lr] for lr in rates], "o-", color=colour, mfc="white", label=cell)
            axes.plot(best, losses[best], "o", color=colour)
        axes.set(xscale="log", xlabel="peak learning rate", title=transfer.variant)
        axes.set_xticks(sorted({lr for losses in transfer.rates for lr in losses}))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.tick_params(axis="x", labelsize=7.5, rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    for row in panels:
        row[0].set_ylabel("final validation loss (nats per token)")
    return figure


def _styles(results: Sequence[VariantResult]) -> dict[tuple[str, str], tuple[str, str]]:
    """A colour for each variant and a line style for each cell."""
    variants = list(dict.fromkeys(row.variant for row in results))
    cells = list(dict.fromkeys(row.cell for row in results))
    return {
        (row.variant, row.cell): (
            _PALETTE[variants.index(row.variant) % len(_PALETTE)],
            _LINES[
                (cells.index(row.cell) if len(cells) > 1 else variants.index(row.variant) // len(_PALETTE))
                % len(_LINES)
            ],
        )
        for row in results
    }


def _name(row: VariantResult) -> str:
    return f"{row.variant}, {row.cell}" if row.cell else row.variant


def _ceiling(losses: Sequence[float]) -> float:
    """The height at which losses of failed runs are drawn."""
    good = sorted(loss for loss in losses if math.isfinite(loss))
    if not good:
        return math.inf
    return good[0] + _HEADROOM * max(0.05, good[len(good) // 2] - good[0]) * 2
