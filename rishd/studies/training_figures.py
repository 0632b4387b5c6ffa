"""Figures of the noise and robustness studies."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from riemannian_ode.colours import BASE_COLOUR, BLUE, GREEN, LITE_COLOUR, PURPLE, VERMILION
from rishd.studies.noise import NoiseStudy, noise_study
from rishd.studies.noise_schedules import SCHEDULES, ScheduleStudy, schedule_study
from rishd.studies.robustness import RobustnessStudy, RobustnessSweep, robustness_study
from rishd.study import STUDIES, StudyResult

_HIGHEST = 1e2  # heights above it belong to diverged runs, and are drawn there
_LAG_COLOURS = (GREEN, VERMILION, PURPLE)


def noise_figure(study: NoiseStudy) -> Figure:
    """Plot final heights at the best learning rates and the gain over σ, and final heights over the batch size.

    Args:
        study: Result of :func:`rishd.studies.noise.noise_study`.
    """
    figure = Figure(figsize=(15.5, 4.2), layout="constrained")
    heights, gains, batches = figure.subplots(1, 3)
    for sweep, line in zip(study.sweeps, ("-", "--"), strict=True):
        for values, colour, name in ((sweep.base, BASE_COLOUR, "base"), (sweep.lite, LITE_COLOUR, "LITE")):
            heights.loglog(study.sigma, values, "o" + line, mfc="none", color=colour, label=f"{name}, {sweep.schedule}")
        gains.loglog(study.sigma, sweep.gain, "o" + line, color=BLUE, label=f"each at its best η, {sweep.schedule}")
        gains.loglog(
            study.sigma, sweep.equal_gain, "s" + line, mfc="none", color=VERMILION, label=f"equal η, {sweep.schedule}"
        )
    gains.axhline(1.0, color="0.5", lw=0.8)
    gains.axhline(study.floor_ratio, color="0.3", lw=1.0, ls=":", label="stationary floors alone (C10)")
    heights.set(
        xlabel="gradient noise σ (batch size 1/σ²)",
        ylabel=f"mean f after {study.steps} steps",
        title="Each at its best learning rate",
    )
    gains.set(xlabel="gradient noise σ (batch size 1/σ²)", ylabel="base over LITE", title="Gain of LITE")
    for batch_sweep, line in zip(study.batch_sweeps, ("-", "--"), strict=True):
        for values, colour, name in (
            (batch_sweep.base, BASE_COLOUR, "base"),
            (batch_sweep.lite, LITE_COLOUR, "LITE"),
        ):
            label = f"{name}, {batch_sweep.schedule}"
            batches.loglog(study.batches, values, "o" + line, mfc="none", color=colour, label=label)
    batches.invert_xaxis()
    batches.set(
        xlabel="batch size (noise grows to the right)",
        ylabel=f"mean f − f* after {study.steps} steps",
        title="Regression, each at its best learning rate",
    )
    for axes in (heights, gains, batches):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def noise_schedule_figure(study: ScheduleStudy) -> Figure:
    """Plot the best χ(t) of a flat mode with its formula, and the loss of the schedules used in training.

    Args:
        study: Result of :func:`rishd.studies.noise_schedules.schedule_study`.
    """
    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    best, lost = figure.subplots(1, 2)
    shortest = min(case.horizon for case in study.cases)
    for case, colour in zip(
        (case for case in study.cases if case.horizon == shortest), (BLUE, GREEN, PURPLE, VERMILION), strict=False
    ):
        time = (np.arange(len(case.best)) + 0.5) / len(case.best)
        best.semilogy(time, case.best, color=colour, lw=1.6, label=f"floor / loss at start = {case.noise:g}")
        best.semilogy(time, case.formula, color=colour, lw=1.2, ls=":")
    for kind in ("set_major_formatter", "set_minor_formatter"):
        getattr(best.yaxis, kind)(LogFormatter(labelOnlyBase=False, minor_thresholds=(2.0, 0.5)))
    best.set(xlabel="t / T", ylabel="χ", title=f"Best χ(t) at 2sT = {shortest:g}; dotted: half of loss over floor")
    best.legend(fontsize=8)
    horizons = sorted({case.horizon for case in study.cases})
    for i, (name, colour) in enumerate(zip(SCHEDULES, (BLUE, VERMILION, GREEN), strict=True)):
        for horizon, line in zip(horizons, ("-", "--"), strict=False):
            cases = [case for case in study.cases if case.horizon == horizon]
            factor = [case.losses[i] / case.best_loss for case in cases]
            label = f"{name}, 2sT = {horizon:g}"
            lost.semilogx([case.noise for case in cases], factor, "o" + line, color=colour, mfc="none", label=label)
    lost.axhline(1.0, color="0.5", lw=0.8)
    lost.set(
        xlabel="base method's floor over the loss at the start",
        ylabel="final loss over that of the best χ(t)",
        title="Schedules of χ, each at its best peak",
    )
    lost.legend(fontsize=8)
    return figure


@STUDIES.register(place=60)
def noise(quick: bool, seed: int) -> StudyResult:
    """LITE's gain over its base method under gradient noise, and the best χ(t) of a mode."""
    study, schedules = noise_study(quick=quick, seed=seed), schedule_study(quick=quick)
    return StudyResult(
        {**study.as_dict(), "schedules": schedules.as_dict()},
        study.table(),
        {"noise": lambda: noise_figure(study), "noise_schedules": lambda: noise_schedule_figure(schedules)},
        f"{study.answer} {schedules.answer}",
        f"{study.conclusion} {schedules.conclusion}",
    )


def robustness_figure(study: RobustnessStudy) -> Figure:
    """Plot final heights of both methods over the size of each disturbance.

    Args:
        study: Result of :func:`rishd.studies.robustness.robustness_study`.
    """
    figure = Figure(figsize=(11.5, 6.8), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).flat
    sweeps = {sweep.disturbance: sweep for sweep in study.sweeps}
    for name in ("clipping", "weight decay", "spike"):
        axes, sweep = next(panels), sweeps[name]
        _draw_both(axes, sweep, "-")
        axes.set(title=name.capitalize(), xlabel=sweep.label)
    _plain_sizes(figure.axes[0], sweeps["clipping"].sizes)
    _plain_sizes(figure.axes[2], sweeps["spike"].sizes)
    _symlog(figure.axes[1], sweeps["weight decay"].sizes)
    precision = next(panels)
    for name, line in (("float32", "-"), ("bfloat16", "--")):
        _draw_both(precision, sweeps[name], line, f", {name}")
    precision.set(title="Precision of state and update", xlabel=sweeps["bfloat16"].label, xscale="log")
    lags, ratio = next(panels), next(panels)
    for (name, sweep), colour in zip(
        ((name, sweep) for name, sweep in sweeps.items() if name.startswith("lag")), _LAG_COLOURS, strict=True
    ):
        lags.semilogy(sweep.sizes, _shown(sweep.lite), "o-", mfc="none", color=colour, label=f"LITE, {name[5:]}")
        lags.axhline(sweep.base[0], color=colour, lw=0.9, ls=":")
        lags.set(title="Lag of the mask (dotted: base)", xlabel=sweep.label)
        _symlog(lags, sweep.sizes)
    for name, line in (("float32", "-"), ("bfloat16", "--")):
        sweep = sweeps[name]
        ratio.semilogx(sweep.sizes, sweep.lite / sweep.base, "o" + line, mfc="none", color=LITE_COLOUR, label=name)
    ratio.axhline(1.0, color="0.5", lw=0.8)
    ratio.set(title="Precision: LITE over base", xlabel=sweeps["bfloat16"].label)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7.5)
    for row in (0, 3):
        figure.axes[row].set_ylabel(f"f after {study.steps} steps (top: diverged)")
    figure.suptitle(
        f"Disturbed runs on a curved valley, η = {study.eta:.3g}, χ = {study.chi:g}, β₂ = {study.beta_flat:g}",
        fontsize=11,
    )
    return figure


@STUDIES.register(place=70)
def robustness(quick: bool, seed: int) -> StudyResult:
    """LITE under clipping, weight decay, bfloat16, learning-rate spikes and lagging masks."""
    study = robustness_study(quick=quick, seed=seed)
    return StudyResult.of(study, robustness=lambda: robustness_figure(study))


def _shown(heights: np.ndarray) -> np.ndarray:
    shown: np.ndarray = np.minimum(heights, _HIGHEST)
    return shown


def _draw_both(axes: Any, sweep: RobustnessSweep, line: str, suffix: str = "") -> None:
    sizes = np.where(np.isinf(sweep.sizes), 3 * sweep.sizes[np.isfinite(sweep.sizes)].max(), sweep.sizes)
    for values, colour, name in ((sweep.base, BASE_COLOUR, "base"), (sweep.lite, LITE_COLOUR, "LITE")):
        axes.semilogy(sizes, _shown(values), "o" + line, mfc="none", color=colour, label=name + suffix)


def _symlog(axes: Any, sizes: np.ndarray) -> None:
    """Logarithmic axis that includes 0 and is labelled with the sizes themselves."""
    smallest = float(sizes[sizes > 0].min())
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.set_xlim(left=-0.2 * smallest)
    axes.minorticks_off()


def _plain_sizes(axes: Any, sizes: np.ndarray) -> None:
    """Logarithmic axis labelled with the sizes themselves."""
    places = np.where(np.isinf(sizes), 3 * sizes[np.isfinite(sizes)].max(), sizes)
    axes.set_xscale("log")
    axes.set_xticks(places, ["none" if np.isinf(size) else f"{size:g}" for size in sizes])
    axes.minorticks_off()
