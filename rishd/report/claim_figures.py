"""Figures of claims: tightness of trials, and an illustration of each claim."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from riemannian_ode.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from rishd.claims import Bound, ClaimResult, Identity, Panel
from rishd.report.typeset import SCRIPT

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_RANGE = (1e-4, 2.0)  # range of the x-axis; values outside are drawn at the edge
_PAGE_SIZE = (4.2, 3.1)  # inches; about as wide as a phone's screen
_ROLES: dict[str, dict[str, Any]] = {
    "measured": {"lw": 1.8, "ls": "-"},
    "bound": {"lw": 1.4, "ls": "--"},
    "reference": {"lw": 1.2, "ls": ":"},
    "points": {"ls": "", "marker": "o", "ms": 5.0, "mfc": "none"},
}


def claim_figure(result: ClaimResult) -> Figure | None:
    """Figure of the claim's illustrations and the share of instances up to each tightness.

    Args:
        result: Result of a claim.

    Returns:
        The figure; ``None`` for a claim without panels, bounds or identities.
    """
    trials = [part for part in result.evidence if isinstance(part, Bound | Identity) and part.values.size]
    columns = len(result.panels) + bool(trials)
    if not columns:
        return None
    lines = -(-len(trials) // 2)  # height of the legend below, in two columns
    figure = Figure(figsize=(5.6 * max(columns, 1.5), 4.4 + 0.24 * lines), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for panel, here in zip(result.panels, axes, strict=False):
        _draw_panel(here, panel)
    if trials:
        _draw_trials(axes[-1], trials)
        handles, labels = axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
    figure.suptitle(f"{result.key}: {result.title} ({result.verdict})", fontsize=11)
    return figure


def panels_figure(panels: Sequence[Panel]) -> Figure:
    """Illustrations side by side, without trials.

    Args:
        panels: Panels of one claim or of several.
    """
    figure = Figure(figsize=(5.2 * max(len(panels), 1.4), 4.2), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        _draw_panel(axes, panel)
    return figure


def panel_figure(panel: Panel) -> Figure:
    """One illustration without title and legend, which the page shows as text.

    Args:
        panel: Panel of a claim.
    """
    figure = Figure(figsize=_PAGE_SIZE, layout="constrained")
    axes = figure.subplots()
    _draw_panel(axes, panel, legend=False)
    axes.set_title("")
    return figure


def trials_figure(trials: Sequence[Bound | Identity]) -> Figure:
    """Tightness of trials without title and legend, which the page shows as text.

    Args:
        trials: Pieces of a claim's evidence, each with at least one instance.
    """
    figure = Figure(figsize=_PAGE_SIZE, layout="constrained")
    axes = figure.subplots()
    _draw_trials(axes, trials)
    axes.set_title("")
    return figure


def _draw_panel(axes: Any, panel: Panel, *, legend: bool = True) -> None:
    """Draw measured curves solid, and their bounds dashed in the same colour."""
    colours: dict[str, int] = {}
    for curve in panel.curves:
        role = "line" if curve.role == "points" else curve.role
        colours.setdefault(role, 0)
        style: dict[str, Any] = {"color": _COLOURS[colours[role] % len(_COLOURS)], **_ROLES[curve.role]}
        colours[role] += 1
        axes.plot(curve.x, curve.y, label=_mathtext(curve.label) or None, **style)
    axes.set(title=_mathtext(panel.title), xlabel=_mathtext(panel.xlabel), ylabel=_mathtext(panel.ylabel))
    axes.set_xscale("log" if "x" in panel.log else "linear")
    axes.set_yscale("log" if "y" in panel.log else "linear")
    for axis, name in ((axes.xaxis, "x"), (axes.yaxis, "y")):
        low, high = axis.get_view_interval()
        if name in panel.log and high >= 100.0 * low:  # decades have labels; labels between them would overlap
            axis.set_minor_formatter(NullFormatter())
        elif name in panel.log and high >= 10.0 * low:
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(FuncFormatter(_two_or_five))
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=8)


def _two_or_five(x: float, _: int | None = None) -> str:
    """A label for ticks that start with 2 or 5."""
    return f"{x:g}" if f"{x:.0e}"[0] in "25" else ""


def _mathtext(text: str) -> str:
    """Convert a label's subscripts and superscripts for matplotlib."""
    return SCRIPT.sub(lambda match: f"${match[1]}{{{match[2] or match[3] or match[4]}}}$", text)


def _draw_trials(axes: Any, trials: Sequence[Bound | Identity]) -> None:
    for i, part in enumerate(trials):
        colour = _COLOURS[i % len(_COLOURS)]
        strict = isinstance(part, Identity) and part.tolerance == 0
        scale = part.tolerance if isinstance(part, Identity) and not strict else 1.0
        ratio = np.sort(np.clip(part.values / scale, *_RANGE))
        share = np.arange(1, ratio.size + 1) / ratio.size
        label = _mathtext(textwrap.shorten(part.name, 84, placeholder=" …"))
        dashes = "-" if i < len(_COLOURS) else "--"
        axes.plot(ratio, share, color=colour, lw=1.6, ls=dashes if isinstance(part, Bound) else ":", label=label)
        if isinstance(part, Bound) and part.adversary is not None:
            found = np.clip(part.adversary.tightness, *_RANGE)
            axes.plot(found, 1.0, "*", color=colour, ms=10, clip_on=False, zorder=4)
    axes.axvline(1.0, color=BLACK, lw=1.0)
    axes.set(
        xscale="log",
        xlim=(0.8 * _RANGE[0], 1.1 * _RANGE[1]),
        ylim=(0.0, 1.05),
        title="How close trials come to the limit (★ adversary)",
        xlabel="measured / bound; dotted: residual / tolerance",
        ylabel="share of instances",
    )
    axes.grid(alpha=0.3)
