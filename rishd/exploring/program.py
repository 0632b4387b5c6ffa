"""The Python program of a view. The page runs the first part of the very text that it shows."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import discretizations
import riemannian_ode
import toy_landscapes
from rishd.exploring.view import View

METHODS = ("base", "LITE")
_PACKAGES: tuple[Any, ...] = (discretizations, riemannian_ode, toy_landscapes)


class Program(NamedTuple):
    """A program in two parts.

    Attributes:
        computes: Makes ``landscape``, ``start``, ``minimum``, ``plane``, ``extent``, ``metric``, ``system``
            and ``flows``.
        draws: Prints final losses and draws the flows.
    """

    computes: str
    draws: str

    def __str__(self) -> str:
        return f"{self.computes}\n{self.draws}"


def program(view: View) -> Program:
    """The program that computes what a view shows.

    Args:
        view: The setting.
    """
    scene, geometry = view.scene, view.geometry
    metric = geometry.code.format(sharp=view.sharp, of=view.directions)
    ensemble = f"(2, {view.copies})" if view.noise > 0 else "2"
    last = [f"flat=MetricSplit(landscape, metric, sharp_rank={view.sharp})"]
    if geometry.remembers:
        last = [f"shape={scene.shape}"] if geometry.shaped else []
    settings = [
        f"alpha={view.alpha}",
        f"eta={view.eta}",
        f"beta={view.beta_sharp}",
        f"beta_flat={_members(view.beta_sharp, view.beta_flat, ensemble)}",
        f"chi={_members(1.0, view.chi, ensemble)}",
        *last,
    ]
    run = [
        "system",
        f"np.tile(start, ({ensemble.strip('()')}, 1))",
        f'integrator="{view.integrator}"',
        f"h={view.h}",
        f"steps={view.steps}",
        *([f"noise=GradientNoise(factor={view.noise}, seed=0)"] if view.noise > 0 else []),
    ]
    body = [
        f"landscape = {scene.landscape}",
        f"start = {scene.start}",
        f"minimum = {scene.minimum}",
        f"plane = {scene.plane or None}",
        f"extent = {scene.extent}",
        f"metric = {metric}",
        "system = RISHD.from_optimizer(  # two methods in one ensemble: base, then LITE",
        "    landscape,",
        "    metric,",
        *(f"    {line}," for line in settings),
        ")",
        "flows = simulate(",
        *(f"    {line}," for line in run),
        ")",
    ]
    text = "\n".join(body)
    member = "method, 0" if view.noise > 0 else "method,"
    draws = [
        "axes = landscape.plot(plane=plane, extent=extent)",
        f'for method, name in enumerate(("{METHODS[0]}", "{METHODS[1]}")):',
        f"    flows.plot(axes, plane=plane, members=[({member})], label=name)",
        '    print(f"{name}: f = {landscape.value(flows.w[-1, method]).mean():.6g} at t = {flows.times[-1]:g}")',
        'axes.figure.savefig("flows.png")',
    ]
    return Program(f"{_imports(text)}\n\n{text}\n", "\n".join(draws) + "\n")


def _members(base: float, lite: float, ensemble: str) -> str:
    """A coefficient of both methods, one value per member."""
    return f"np.array([{base}, {lite}])" if ensemble == "2" else f"np.full({ensemble}, [[{base}], [{lite}]])"


def _imports(text: str) -> str:
    used = set(re.findall(r"\b[A-Za-z_]\w*\b(?!=)", text))
    lines = ["import numpy as np", ""]
    for package in _PACKAGES:
        names = sorted(used & set(package.__all__))
        if names:
            lines.append(f"from {package.__name__} import {', '.join(names)}")
    return "\n".join(lines)
