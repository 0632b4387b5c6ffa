"""The pictures of a view, drawn by Bokeh in the browser: made once, then only their numbers change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, Legend, Range1d
from bokeh.plotting import figure
from bokeh.plotting.contour import contour_data

from discretizations import descent_limit, flat_rate, spectral_radius, stable_limit
from riemannian_ode.colours import BASE_COLOUR, BLACK, GREEN, LITE_COLOUR, SKY
from rishd.exploring.computing import Heights, Picture
from rishd.exploring.program import METHODS

_STYLES: dict[str, dict[str, Any]] = {
    "base": {"line_color": BASE_COLOUR, "line_width": 2.5, "line_dash": "solid"},
    "LITE": {"line_color": LITE_COLOUR, "line_width": 2.5, "line_dash": [7, 3]},
}
_MARKERS = {"base": "circle", "LITE": "square"}
_GREYS = (
    "#ffffff",
    "#f4f4f4",
    "#ececec",
    "#e2e2e2",
    "#d8d8d8",
    "#cecece",
    "#c3c3c3",
    "#b7b7b7",
    "#ababab",
    "#9e9e9e",
    "#919191",
)
_MARKS = (
    ("sharp", "both", "triangle", BLACK),
    ("flat", "base", "circle", BASE_COLOUR),
    ("flat", "LITE", "square", LITE_COLOUR),
)
_KAPPA = np.geomspace(1e-4, 20.0, 240)
_DECADES, _GROWTH = 12.0, 1e3  # of losses over time: decades that are shown, and growth, at most


def new_figure(title: str, x: str, y: str, **options: Any) -> figure:
    """A figure as wide as its place, without tools, which would catch a finger that scrolls.

    Args:
        title: Above it.
        x: Label.
        y: Label.
        options: Of Bokeh's ``figure``.
    """
    plot = figure(
        title=title,
        x_axis_label=x,
        y_axis_label=y,
        height=320,
        min_width=280,
        min_border_right=16,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        **options,
    )
    plot.title.update(text_font_size="15px")
    for axis in plot.axis:
        axis.update(
            axis_label_text_font_size="14px", major_label_text_font_size="13px", axis_label_text_font_style="normal"
        )
    return plot


def legend_below(plot: figure, entries: Sequence[tuple[str, list[Any]]], *, columns: int = 2, **options: Any) -> None:
    """Put a legend under a figure, where it covers nothing.

    Args:
        plot: The figure.
        entries: Label and renderers.
        columns: Entries side by side.
        options: Of Bokeh's ``Legend``.
    """
    legend = Legend(
        items=list(entries),
        orientation="horizontal",
        label_text_font_size="13px",
        ncols=columns,
        border_line_alpha=0.0,
        glyph_height=22,
        glyph_width=32,
        margin=0,
        padding=2,
        spacing=8,
        **options,
    )
    plot.add_layout(legend, "below")


class Pictures:
    """The five figures; :meth:`show` gives them the numbers of another view."""

    def __init__(self) -> None:
        self._landscape = ""
        self.plane = new_figure("Paths over the landscape", "w₁", "w₂", x_range=Range1d(), y_range=Range1d())
        over_time: dict[str, Any] = {"y_axis_type": "log", "y_range": Range1d(), "x_range": Range1d()}
        self.loss = new_figure("Loss over time", "time t", "f − inf f", **over_time)
        self.energy = new_figure("Energy over time", "time t", "E − inf f", **(over_time | {"y_range": Range1d()}))
        self.stability = new_figure(
            "Stability of the update rule (C6, C9)",
            "κ = ηλa",
            "Hessian damping β",
            x_axis_type="log",
            x_range=Range1d(1e-3, 20.0),
            y_range=Range1d(-0.9, 4.0),
        )
        self.modes = new_figure(
            "Decay rate of a mode (C5, C6)",
            "κ = ηλa",
            "rate per step",
            x_axis_type="log",
            y_axis_type="log",
            x_range=Range1d(1e-3, 20.0),
            y_range=Range1d(1e-3, 10.0),
        )
        self._sources: dict[str, ColumnDataSource] = {}
        self._draw_plane()
        self._draw_series(self.loss, "loss")
        self._draw_series(self.energy, "energy")
        self._draw_modes()
        self._draw_stability()

    def show(self, picture: Picture, ground: Heights) -> None:
        """Show a view.

        Args:
            picture: Its numbers.
            ground: Contours of its landscape.
        """
        view = picture.view
        if view.landscape != self._landscape:
            self._landscape = view.landscape
            for reach, (low, high) in zip((self.plane.x_range, self.plane.y_range), view.scene.extent, strict=True):
                reach.update(start=low, end=high)
            for axis, label in zip((self.plane.xaxis, self.plane.yaxis), picture.labels, strict=True):
                axis[0].update(axis_label=label)
            levels = ground.levels.copy()
            levels[[0, -1]] = 0.1 * levels[0], 2.0 * float(np.nanmax(ground.above))  # the outermost fill what is left
            self._contours.set_data(contour_data(ground.x, ground.y, ground.above, levels))
        for k, name in enumerate(METHODS):
            paths = picture.paths[k]
            self._put(f"path {name}", xs=[p[:, 0] for p in paths], ys=[p[:, 1] for p in paths])
            ends = [p[np.isfinite(p).all(axis=-1)][-1] for p in paths]
            self._put(f"end {name}", x=[p[0] for p in ends], y=[p[1] for p in ends])
        self._put("start", x=picture.paths[0, :1, 0, 0], y=picture.paths[0, :1, 0, 1])
        self._show_series(self.loss, "loss", picture.flows.times, picture.losses)
        self._show_series(self.energy, "energy", picture.flows.times, picture.energies)
        self._show_stability(picture)
        self._show_modes(picture)

    def numbers(self, name: str) -> dict[str, Any]:
        """What a renderer draws, by column.

        Args:
            name: Such as ``"path base"``, ``"loss LITE"`` or ``"mode sharp"``.
        """
        return dict(self._sources[name].data)

    def _source(self, name: str, *columns: str) -> ColumnDataSource:
        self._sources[name] = ColumnDataSource({column: [] for column in columns})
        return self._sources[name]

    def _put(self, name: str, **columns: Any) -> None:
        self._sources[name].data = columns

    def _draw_plane(self) -> None:
        flat = np.outer(np.linspace(1.0, 2.0, 4), np.ones(4))
        self._contours = self.plane.contour(
            np.arange(4.0),
            np.arange(4.0),
            flat,
            levels=list(np.linspace(1.0, 2.0, 12)),
            fill_color=list(_GREYS),
            line_color="#777777",
            line_width=0.5,
        )
        entries = []
        for name in METHODS:
            line = self.plane.multi_line("xs", "ys", source=self._source(f"path {name}", "xs", "ys"), **_STYLES[name])
            end = self.plane.scatter(
                "x",
                "y",
                source=self._source(f"end {name}", "x", "y"),
                marker=_MARKERS[name],
                size=10,
                fill_color=_STYLES[name]["line_color"],
                line_color="white",
            )
            entries.append((name, [line, end]))
        start = self.plane.scatter(
            "x",
            "y",
            source=self._source("start", "x", "y"),
            marker="star",
            size=16,
            fill_color=BLACK,
            line_color="white",
        )
        legend_below(self.plane, [*entries, ("start", [start])], columns=3)

    def _draw_series(self, plot: figure, what: str) -> None:
        entries = []
        for name in METHODS:
            source = self._source(f"{what} {name}", "xs", "ys")
            entries.append((name, [plot.multi_line("xs", "ys", source=source, **_STYLES[name])]))
        legend_below(plot, entries)

    def _show_series(self, plot: figure, what: str, times: np.ndarray, values: np.ndarray | None) -> None:
        rows = np.empty((len(METHODS), 0, 0)) if values is None else values
        shown = rows[np.isfinite(rows) & (rows > 0)]
        first = float(shown[0]) if shown.size else 1.0
        high = 3.0 * min(float(shown.max(initial=first)), _GROWTH * first)
        low = 0.5 * max(float(shown.min(initial=first)), high / 10.0**_DECADES)
        plot.x_range.update(start=0.0, end=float(times[-1]))
        plot.y_range.update(start=low, end=high)
        with np.errstate(invalid="ignore"):
            drawn = np.where((rows > 0) & (rows < _GROWTH * high), rows, np.nan)
        for name, lines in zip(METHODS, drawn, strict=True):
            self._put(f"{what} {name}", xs=[times] * len(lines), ys=list(lines))

    def _draw_stability(self) -> None:
        stable = self.stability.harea(
            "left",
            "limit",
            "beta",
            source=self._source("stable", "left", "limit", "beta"),
            fill_color=SKY,
            fill_alpha=0.35,
        )
        edge = self.stability.line("limit", "beta", source=self._sources["stable"], line_color=BLACK, line_width=2)
        certified = self.stability.line(
            "limit",
            "beta",
            source=self._source("certified", "limit", "beta"),
            line_color=GREEN,
            line_width=2.5,
            line_dash="dashed",
        )
        marks = self._draw_marks()
        legend_below(
            self.stability,
            [("stable (C6)", [stable, edge]), ("descent certified, left of it (C9)", [certified]), *marks],
        )

    def _draw_marks(self) -> list[tuple[str, list[Any]]]:
        """Points of the present modes, on the map of stability and on the curves of rates."""
        entries = []
        for kind, method, marker, colour in _MARKS:
            source = self._source(f"mode {kind}, {method}", "kappa", "beta", "rate")
            style = {"marker": marker, "size": 11, "fill_color": colour, "line_color": "white"}
            entries.append((f"{kind}, {method}", [self.stability.scatter("kappa", "beta", source=source, **style)]))
            self.modes.scatter("kappa", "rate", source=source, **style)
        return entries

    def _show_stability(self, picture: Picture) -> None:
        view = picture.view
        low, high = -0.9, max(4.0, view.beta_flat + 1.0, view.beta_sharp + 1.0)
        self.stability.y_range.update(end=high)
        beta = np.linspace(low, high, 120)
        limit = np.minimum(stable_limit(view.alpha, beta), 1e3)
        self._put("stable", left=np.full_like(beta, 1e-6), limit=limit, beta=beta)
        above = beta[beta > -1.0 / (2.0 - view.alpha) + 1e-6]
        self._put("certified", limit=descent_limit(view.alpha, above), beta=above)
        for kind, method, _, _ in _MARKS:
            shown = [m for m in picture.modes if (m.kind, m.method) == (kind, method) and m.kappa > 0]
            kappa, damping = np.array([m.kappa for m in shown]), np.array([m.beta for m in shown])
            rate = -np.log(spectral_radius(kappa, view.alpha, damping)) if shown else np.empty(0)
            self._put(f"mode {kind}, {method}", kappa=kappa, beta=damping, rate=np.where(rate > 0, rate, np.nan))
        kappas = [mode.kappa for mode in picture.modes if mode.kappa > 0] or [1e-2]
        for plot in (self.stability, self.modes):
            plot.x_range.update(start=min(1e-3, 0.5 * min(kappas)), end=max(20.0, 2.0 * max(kappas)))

    def _draw_modes(self) -> None:
        entries = []
        for name in METHODS:
            flow = self.modes.line(
                "kappa", "flow", source=self._source(f"rate {name}", "kappa", "flow", "rule"), **_STYLES[name]
            )
            rule = self.modes.line(
                "kappa",
                "rule",
                source=self._sources[f"rate {name}"],
                line_color=_STYLES[name]["line_color"],
                line_width=1.5,
                line_dash="dotted",
            )
            which = "β♯ (base, sharp)" if name == "base" else "β♭ (LITE, flat)"
            entries += [(f"{which}: flow", [flow]), ("update rule", [rule])]
        legend_below(self.modes, entries)

    def _show_modes(self, picture: Picture) -> None:
        view = picture.view
        for name, beta in zip(METHODS, (view.beta_sharp, view.beta_flat), strict=True):
            rule = -np.log(spectral_radius(_KAPPA, view.alpha, beta))
            self._put(
                f"rate {name}",
                kappa=_KAPPA,
                flow=flat_rate(_KAPPA, view.alpha, beta),
                rule=np.where(rule > 0, rule, np.nan),
            )
