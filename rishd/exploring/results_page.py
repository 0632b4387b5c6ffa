"""The second page: loss curves, seeds and final losses of a comparison's recorded runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import fill
from typing import Any
from urllib.parse import urlencode

import panel as pn
import panel_material_ui as pmui
from bokeh.models import Range1d

from riemannian_ode.plotting import COLOURS
from rishd.exploring.drawing import legend_below, new_figure
from rishd.exploring.layout import alert, grid, note, page, select, warn
from rishd.exploring.results import CHOICES, Curve, Run, Selection, chosen, curves, table, variants

_DASHES = ("solid", "dashed", "dotted", "dashdot", "dotdash")
_MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "plus")
_LABELS = {
    "rates": "learning rates",
    "seeds": "seeds",
    "curve": "loss of",
    "over": "against",
}
_LAYOUT = (("controls", "curves"), ("controls", "ends"), ("controls", "words"))


class ResultsPage:
    """One visitor's page.

    Args:
        query: Parameters of the URL.
        runs: Of :func:`rishd.exploring.results.read_results`; empty if no folder was given.
        folder: Its name, for the title.
    """

    def __init__(self, query: Mapping[str, str], runs: Sequence[Run], folder: str = "") -> None:
        self.runs = runs
        self.words = note("Final losses")
        self.alert = alert()
        self._places = {name: pn.pane.Bokeh(None, sizing_mode="stretch_width") for name in ("curves", "ends")}
        link = ("./", "Flows")
        if not runs:
            self.words.object = (
                "### No results yet\n\nStart the explorer with the folder of a comparison, `rishd explore --results "
                "FOLDER`, where FOLDER is what `rishd compare --out` wrote."
            )
            self.root = page("RISHD explorer: results", self.words, link=link)
            return
        self.selection, problems = Selection.from_query(query, variants(runs))
        self.controls = self._controls()
        for widget in self.controls.values():
            widget.param.watch(lambda _: self.change(), "value")
        self._show(problems)
        self.root = page(
            "RISHD explorer: results",
            self.alert,
            pn.pane.Markdown(f"Runs of rishd compare in {escape(folder)}", margin=(4, 10)),
            grid(
                _LAYOUT,
                curves=self._places["curves"],
                controls=pn.Column(*self.controls.values(), sizing_mode="stretch_width"),
                ends=self._places["ends"],
                words=self.words,
            ),
            link=link,
        )

    def change(self) -> None:
        """Show what the controls say."""
        wanted: dict[str, Any] = {name: widget.value for name, widget in self.controls.items()}
        self.selection = Selection(**(wanted | {"variants": tuple(wanted["variants"])}))
        self._show([])
        if pn.state.location is not None:
            query = urlencode(self.selection.query())
            pn.state.location.search = f"?{query}" if query else ""

    def _show(self, problems: list[str]) -> None:
        with pn.io.hold():
            self._places["curves"].object = _curve_figure(curves(self.runs, self.selection), self.selection)
            self._places["ends"].object = _end_figure(chosen(self.runs, self.selection))
            self.words.object = (
                f"### Final validation losses, mean and 95% interval\n\n{_markdown(table(self.runs, self.selection))}"
            )
            warn(self.alert, problems)

    def _controls(self) -> dict[str, Any]:
        selection = self.selection
        controls: dict[str, Any] = {
            "variants": pmui.CheckBoxGroup(
                label="variants",
                options=list(variants(self.runs)),
                value=list(selection.variants or chosen(self.runs, selection)),
                sizing_mode="stretch_width",
                margin=(4, 10),
                styles={"max-height": "320px", "overflow-y": "auto"},
            )
        }
        return controls | {
            name: select(label, CHOICES[name], getattr(selection, name)) for name, label in _LABELS.items()
        }


def _style(place: int) -> dict[str, Any]:
    """A colour and a dash for each variant: readers need to distinguish only one of them."""
    return {
        "line_color": COLOURS[place % len(COLOURS)],
        "line_dash": _DASHES[(place % len(COLOURS) + place // len(COLOURS)) % len(_DASHES)],
    }


def _curve_figure(lines: Sequence[Curve], selection: Selection) -> Any:
    plot = new_figure(f"{selection.curve.capitalize()} loss", selection.over, "nats per token", y_range=Range1d())
    plot.height = 420
    names = list(dict.fromkeys(line.variant for line in lines))
    glyphs: dict[str, list[Any]] = {name: [] for name in names}
    for line in lines:
        place = names.index(line.variant)
        style = _style(place)
        drawn = [plot.line(line.x, line.loss, line_width=2.2, **style)]
        if (line.high > line.low).any():
            plot.varea(line.x, line.low, line.high, fill_color=style["line_color"], fill_alpha=0.15)
        if len(line.x) < 30:
            marker = _MARKERS[place % len(_MARKERS)]
            drawn.append(plot.scatter(line.x, line.loss, marker=marker, size=7, color=style["line_color"]))
        glyphs[line.variant] += drawn
    if lines:
        ends = [float(line.low.min()) for line in lines]
        heights = [float(line.high[len(line.x) // 8]) for line in lines]
        room = 0.05 * (max(heights) - min(ends) or 1.0)
        plot.y_range.update(start=min(ends) - room, end=max(heights) + room)
        legend_below(plot, list(glyphs.items()), click_policy="hide")
    return plot


def _end_figure(groups: Mapping[str, Sequence[Run]]) -> Any:
    finite = {fill(name, 20): [run.loss for run in runs if math.isfinite(run.loss)] for name, runs in groups.items()}
    names = [name for name, losses in finite.items() if losses]
    plot = new_figure("Final validation loss; bar: mean", "nats per token", "", y_range=names[::-1] or ["–"])
    plot.height = 130 + 36 * len(names)
    for place, name in enumerate(names):
        losses = finite[name]
        colour = COLOURS[place % len(COLOURS)]
        plot.scatter(
            losses, [name] * len(losses), marker=_MARKERS[place % len(_MARKERS)], size=10, color=colour, fill_alpha=0.6
        )
        plot.scatter(
            [sum(losses) / len(losses)], [name], marker="dash", angle=math.pi / 2, size=24, color="black", line_width=2
        )
    return plot


def _markdown(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return "No variant is chosen."
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([escape(row[key]).replace("|", "\\|") for key in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
