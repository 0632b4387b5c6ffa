"""Figure of the two-dimensional landscapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from rishd.colours import BLACK, BLUE, ORANGE, VERMILION
from rishd.studies.landscapes import LandscapeMap

_COLUMNS = 3
_STYLES: dict[str, dict[str, Any]] = {
    "river": {"color": BLUE, "lw": 2.0},
    "floor": {"color": ORANGE, "lw": 1.4, "ls": "--"},
    "curve of minima": {"color": VERMILION, "lw": 2.0},
}


def landscape_figure(maps: Sequence[LandscapeMap]) -> Figure:
    """Height above the infimum on a logarithmic scale, with rivers, floors, minima and saddles.

    Args:
        maps: Of :func:`rishd.studies.landscapes.landscape_maps`.
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
    lowest, highest = np.quantile(each.height, [0.02, 0.98])
    levels = np.geomspace(max(lowest, 1e-3 * highest), highest, 12)
    height = np.maximum(each.height, 0.5 * levels[0])  # a minimum on the grid has no logarithm
    shading = {"levels": levels, "norm": LogNorm(levels[0], levels[-1])}
    axes.contourf(each.x, each.y, height, cmap="Greys", alpha=0.7, extend="both", **shading)
    axes.contour(each.x, each.y, height, colors=BLACK, linewidths=0.3, alpha=0.5, **shading)
    for label, points in each.curves.items():
        axes.plot(*points.T, label=label, **_STYLES[label])
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
