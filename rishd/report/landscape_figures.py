"""Figure of the two-dimensional landscapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from riemannian_ode.colours import BLACK, VERMILION
from rishd.studies.landscapes import LandscapeMap
from toy_landscapes.plotting import CURVE_STYLES, shade

_COLUMNS = 3


def landscape_figure(maps: Sequence[LandscapeMap]) -> Figure:
    """Plot height above the infimum on a logarithmic scale, with rivers, floors, minima and saddles.

    Args:
        maps: Result of :func:`rishd.studies.landscapes.landscape_maps`.
    """
    rows = -(-len(maps) // _COLUMNS)
    figure = Figure(figsize=(11.5, 3.7 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes, each in zip(grid.flat, maps, strict=False):
        _draw(axes, each)
    for axes in grid.flat[len(maps) :]:
        axes.axis("off")
    handles = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles))
    return figure


def _draw(axes: Any, each: LandscapeMap) -> None:
    shade(axes, each.x, each.y, each.height)
    for label, points in each.curves.items():
        axes.plot(*points.T, label=label, **CURVE_STYLES[label])
    marks = {"ls": "", "mec": "white", "mew": 0.8, "zorder": 3}
    if len(each.minima):
        axes.plot(*each.minima.T, marker="o", ms=8, color=VERMILION, label="minimum", **marks)
    if len(each.saddles):
        axes.plot(*each.saddles.T, marker="X", ms=9, color=BLACK, label="saddle", **marks)
    axes.set(
        title=each.title,
        xlabel=each.labels[0],
        ylabel=each.labels[1],
        xlim=(each.x[0], each.x[-1]),
        ylim=(each.y[0], each.y[-1]),
    )
