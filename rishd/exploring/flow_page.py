"""The first page: sliders and selects on one side, what the flows do on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import numpy as np
import panel as pn
import panel_material_ui as pmui

from riemannian_ode.checks import shown
from rishd.exploring.choices import GEOMETRIES, RANGES, SCENES, integrators
from rishd.exploring.computing import compute, contraction, heights
from rishd.exploring.drawing import Pictures
from rishd.exploring.layout import alert, grid, note, page, select, warn
from rishd.exploring.program import program
from rishd.exploring.view import View

_RATES = np.geomspace(RANGES["eta"].low, RANGES["eta"].high, 101)
_LAYOUT = (
    ("controls", "plane", "loss"),
    ("controls", "stability", "modes"),
    ("controls", "energy", "words"),
    ("controls", "code", "code"),
)
_COPY = "navigator.clipboard?.writeText(area.value)"


class FlowPage:
    """One visitor's page.

    Args:
        query: Parameters of the URL.
    """

    def __init__(self, query: Mapping[str, str]) -> None:
        self.view, problems = View.from_query(query)
        self.pictures = Pictures()
        self.controls = _controls(self.view)
        self.code = pmui.TextAreaInput(
            label="Python code of this view",
            rows=18,
            max_length=20_000,
            sizing_mode="stretch_width",
            sx={"& textarea": {"fontFamily": "monospace", "fontSize": "13px", "whiteSpace": "pre"}},
        )
        copy = pmui.Button(label="Copy the Python code", width=220)
        copy.js_on_click(args={"area": self.code}, code=_COPY)
        self.words = note("Results")
        self.alert = alert()
        self._is_waiting = self._is_setting = False
        for name, widget in self.controls.items():
            widget.param.watch(lambda event, name=name: self._moved(name, event.new), "value")
        self._show(problems)
        pictures = self.pictures
        self.root = page(
            "RISHD explorer",
            self.alert,
            grid(
                _LAYOUT,
                plane=pn.pane.Bokeh(pictures.plane, sizing_mode="stretch_width"),
                controls=pn.Column(*self.controls.values(), sizing_mode="stretch_width"),
                words=self.words,
                loss=pn.pane.Bokeh(pictures.loss, sizing_mode="stretch_width"),
                stability=pn.pane.Bokeh(pictures.stability, sizing_mode="stretch_width"),
                modes=pn.pane.Bokeh(pictures.modes, sizing_mode="stretch_width"),
                energy=pn.pane.Bokeh(pictures.energy, sizing_mode="stretch_width"),
                code=pn.Column(copy, self.code, sizing_mode="stretch_width"),
            ),
            link=("results", "Results"),
        )

    def _moved(self, name: str, value: Any) -> None:
        """A control has moved: show the new view as soon as all moves that have arrived are taken in."""
        if self._is_setting:
            return
        if pn.state.curdoc is None or pn.state.curdoc.session_context is None:
            self.change()
        elif not self._is_waiting:
            self._is_waiting = True
            pn.state.curdoc.add_next_tick_callback(self.change)

    def change(self) -> None:
        """Show what the controls say; what does not fit is refused in words, and the last view stays."""
        self._is_waiting = False
        wanted = {name: widget.value for name, widget in self.controls.items()}
        problems = []
        scene, geometry = SCENES[wanted["landscape"]], GEOMETRIES[wanted["metric"]]
        usable = integrators(geometry=geometry, noisy=wanted["noise"] > 0)
        if wanted["integrator"] not in usable:
            problems.append(
                f"{wanted['integrator']} does not take {'noise' if wanted['noise'] > 0 else geometry.title}; "
                f"semi-implicit-euler is shown."
            )
            wanted["integrator"] = "semi-implicit-euler"
        most = geometry.directions(scene)
        if wanted["sharp"] > most:
            problems.append(f"r is at most {most} here.")
            wanted["sharp"] = most
        before = self.view
        try:
            self.view = replace(before, **wanted)
            self._show(problems)
        except ValueError as problem:
            self.view = before
            self._say([*problems, f"{problem} The pictures show the last view that fits."])
            return
        if pn.state.location is not None:
            pn.state.location.search = _search(self.view)

    def _show(self, problems: list[str]) -> None:
        view = self.view
        picture = compute(view)
        with pn.io.hold():
            self.pictures.show(picture, heights(View(landscape=view.landscape)))
            self.code.value = str(program(view))
            self.words.object = _words(view, picture)
            self._say([*problems, *(message for message in picture.messages if "runs away" in message)])
            self._fit(view)

    def _say(self, problems: list[str]) -> None:
        warn(self.alert, problems)

    def _fit(self, view: View) -> None:
        """Offer what this metric takes, and show what the view has."""
        self._is_setting = True
        try:
            options = list(integrators(geometry=view.geometry, noisy=view.noise > 0))
            self.controls["integrator"].param.update(options=options, value=view.integrator)
            self.controls["sharp"].param.update(end=max(1, view.directions), value=view.sharp)
        finally:
            self._is_setting = False


def _search(view: View) -> str:
    query = urlencode(view.query())
    return f"?{query}" if query else ""


def _controls(view: View) -> dict[str, Any]:
    """A widget for each setting, in the order of the page."""
    wide: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": (4, 10)}
    scenes = {scene.title: key for key, scene in SCENES.items()}
    metrics = {geometry.title: key for key, geometry in GEOMETRIES.items()}
    controls: dict[str, Any] = {
        "landscape": select("landscape", scenes, view.landscape),
        "metric": select("metric or preconditioner", metrics, view.metric),
    }
    for name, limits in RANGES.items():
        value = getattr(view, name)
        if limits.step == 0:
            rates = sorted({*(float(f"{rate:.3g}") for rate in _RATES), value})
            controls[name] = pmui.DiscreteSlider(
                label=limits.label, options={f"{rate:.3g}": rate for rate in rates}, value=value, **wide
            )
            continue
        kind = pmui.IntSlider if isinstance(value, int) else pmui.FloatSlider
        ends = {"start": limits.low, "end": limits.high, "step": limits.step}
        if kind is pmui.IntSlider:
            ends = {key: int(end) for key, end in ends.items()}
        controls[name] = kind(label=limits.label, value=value, **ends, **wide)
    usable = integrators(geometry=view.geometry, noisy=view.noise > 0)
    controls["integrator"] = select("integrator", usable, view.integrator)
    return controls


def _words(view: View, picture: Any) -> str:
    lines = [f"- {message}" for message in picture.messages]
    named: dict[str, Any] = {}
    for mode in picture.modes:  # the largest κ of each kind comes first
        named.setdefault(f"{mode.kind}, {mode.method}", mode)
    where = "at the minimum" + (", in the metric at the end" if view.geometry.remembers else "")
    for name, mode in named.items():
        lines.append(f"- Largest κ {where}, {name}: {shown(round(mode.kappa, 4))}, {contraction(view, mode)}.")
    lines += [f"- {text}" for text in (picture.no_modes, picture.no_energy) if text]
    return "\n".join(["### Results", *lines])
