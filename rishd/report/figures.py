"""Figures: functions from data to a matplotlib Figure, without further computations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from discretizations.plotting import plot_stability
from riemannian_ode.colours import BASE_COLOUR, BLACK, BLUE, GREEN, LITE_COLOUR, VERMILION
from rishd.studies.energy import EnergyStudy
from rishd.studies.valley import ValleyFlows

_OPTIMIZER_COLOURS = {"muon": BASE_COLOUR, "muon-lite": LITE_COLOUR, "adamw": GREEN}


def valley_figure(flows: ValleyFlows) -> Figure:
    """Plot the valley from above with both trajectories, and height over time.

    Args:
        flows: Result of :func:`rishd.studies.valley.valley_flows`.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    above, over_time = figure.subplots(1, 2, width_ratios=(1.6, 1))
    flows.valley.plot(above, plane=(0, 1), extent=((-10, 3), (-2.2, 2.2)), points=400)
    above.plot(*flows.river.T, color=BLACK, lw=1, ls="--", label="river (solved)")
    for flow, colour, name in ((flows.base, BASE_COLOUR, "base"), (flows.lite, LITE_COLOUR, _lite_label(flows))):
        flow.plot(above, color=colour, label=name)
        over_time.semilogy(flow.times, flows.valley.value(flow.w), color=colour, lw=1.6, label=name)
    above.set(xlabel="flat coordinate u", ylabel="sharp coordinate s", title="Flows on a curved river valley")
    above.legend(loc="upper right", fontsize=8)
    over_time.set(xlabel="time t (steps)", ylabel="f(w(t))", title="Height over time")
    over_time.grid(alpha=0.3)
    over_time.legend(fontsize=8)
    return figure


def energy_figure(study: EnergyStudy) -> Figure:
    """Plot energy over time, and the residual of its identity with and without the Riemannian correction.

    Args:
        study: Result of :func:`rishd.studies.energy.energy_study`.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    energy, residual = figure.subplots(1, 2)
    energy.semilogy(study.times, study.energy, color=BLUE)
    energy.set(xlabel="time t", ylabel="E = f + (η/2)‖m‖²", title="Energy of a flow with a state-dependent metric")
    floor = 1e-16  # in double precision smaller residuals are exactly zero
    for values, colour, name in (
        (study.residual_without, VERMILION, "R dropped, as optimizers do"),
        (study.residual_with, BLUE, "R kept"),
    ):
        residual.semilogy(study.times[1:], np.maximum(values[1:], floor), color=colour, label=name)
    residual.set(xlabel="time t", ylabel="|E(t) − E(0) + ∫−Ė dt|", title="What the energy identity leaves over")
    residual.legend(fontsize=8)
    for axes in (energy, residual):
        axes.grid(alpha=0.3)
    return figure


def stability_figure(alpha: float) -> Figure:
    """Plot the spectral radius over κ and β with the closed-form limits.

    Args:
        alpha: α.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    plot_stability(alpha, figure.subplots())
    return figure


def loss_figure(runs: Mapping[str, Any]) -> Figure:
    """Plot training and validation loss of several runs.

    Args:
        runs: Optimizer name to :class:`rishd.pretraining.results.RunResult`.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    training, validation = figure.subplots(1, 2)
    for name, run in runs.items():
        colour = _OPTIMIZER_COLOURS.get(name, BLACK)
        _draw_series(training, run.series("loss"), colour, name, marker=None)
        final = run.final_validation_loss
        label = name if final is None else f"{name}: {final:.3f}"
        _draw_series(validation, run.series("validation_loss"), colour, label, marker="o")
    training.set(xlabel="step", ylabel="training loss (nats per token)", title="Training")
    validation.set(xlabel="step", ylabel="validation loss (nats per token)", title="Validation (fixed token set)")
    for axes in (training, validation):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _draw_series(axes: Any, series: Sequence[tuple[int, float]], colour: str, label: str, marker: str | None) -> None:
    if series:
        steps, values = zip(*series, strict=True)
        axes.plot(steps, values, color=colour, label=label, marker=marker, ms=4, lw=1.6)


def _lite_label(flows: ValleyFlows) -> str:
    return f"LITE, χ = {flows.chi:g}, β₂ = {flows.beta_flat:g}"
