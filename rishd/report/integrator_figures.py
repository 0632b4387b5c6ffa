"""Figures of the integrator study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from riemannian_ode import INTEGRATORS
from riemannian_ode.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION
from rishd.studies.integrators import IntegratorStudy
from rishd.studies.optimizer_steps import FLOW, OptimizerSteps

_MARKERS = "osD^v<>PX*"
_CEILING = 1e3  # end of the search for stable steps


def _family(name: str) -> str:
    """Colour of a scheme by its declared structure."""
    scheme = INTEGRATORS[name]
    if "optimizer" in scheme.structure:
        return BLACK
    if scheme.adaptive:
        return ORANGE
    if "exact-damping" in scheme.structure:
        return GREEN
    if "exact-linear" in scheme.structure:
        return PURPLE
    return VERMILION if scheme.implicit else BLUE


def _styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour per family and a marker per scheme, distinguishable without colour and in print."""
    seen: dict[str, int] = {}
    styles = {}
    for name in names:
        colour = _family(name)
        index = seen.setdefault(colour, 0)
        seen[colour] += 1
        styles[name] = {
            "color": colour,
            "marker": _MARKERS[index % len(_MARKERS)],
            "ls": ("-", "--", ":", "-.")[index % 4],
            "ms": 4.5,
            "lw": 1.2,
        }
    return styles


def work_precision_figure(study: IntegratorStudy) -> Figure:
    """Plot error against gradient evaluations and against seconds, one column per problem.

    Args:
        study: Result of :func:`rishd.studies.integrators.integrator_study`.
    """
    problems = list(dict.fromkeys(run.problem for run in study.runs))
    styles = _styles(dict.fromkeys(run.scheme for run in study.runs))
    figure = Figure(figsize=(4.6 * len(problems) + 2.0, 7.6), layout="constrained")
    grid = figure.subplots(2, len(problems), squeeze=False, sharey="col")
    for column, problem in enumerate(problems):
        for row, (key, label) in enumerate((("gradients", "gradient evaluations"), ("seconds", "seconds"))):
            axes = grid[row, column]
            for scheme, style in styles.items():
                runs = [run for run in study.runs if run.problem == problem and run.scheme == scheme]
                points = [(getattr(run, key), run.error) for run in runs if 0 < run.error < 10]
                if points:
                    axes.loglog(*zip(*points, strict=True), label=scheme, **style)
            axes.set(xlabel=label, ylabel="relative error at the end" if column == 0 else "")
            axes.grid(alpha=0.3)
            if row == 0:
                axes.set_title(problem)
    _legend(figure, grid.flat)
    return figure


def stable_step_figure(study: IntegratorStudy) -> Figure:
    """Plot the largest stable step against curvature, one panel per β, with the closed form.

    Args:
        study: Result of :func:`rishd.studies.integrators.integrator_study`.
    """
    betas = sorted({row.beta for row in study.stable_steps})
    styles = _styles(dict.fromkeys(row.scheme for row in study.stable_steps))
    figure = Figure(figsize=(4.2 * max(len(betas), 1) + 2.0, 4.4), layout="constrained")
    panels = figure.subplots(1, max(len(betas), 1), squeeze=False, sharey=True)[0]
    for axes, beta in zip(panels, betas, strict=False):
        unlimited = []
        for scheme, style in styles.items():
            rows = [row for row in study.stable_steps if row.beta == beta and row.scheme == scheme]
            if all(np.isinf(row.measured) for row in rows):
                unlimited.append(scheme)
                continue
            axes.loglog(
                [row.kappa for row in rows], [min(row.measured, _CEILING) for row in rows], label=scheme, **style
            )
            known = [row for row in rows if np.isfinite(row.closed_form)]
            if known:
                kappas, limits = [row.kappa for row in known], [row.closed_form for row in known]
                axes.loglog(kappas, limits, color="0.6", lw=5, alpha=0.6, label="closed form (C6)", zorder=0)
        axes.axhline(1.0, color="0.6", lw=0.8)  # an optimizer's step
        axes.set(xlabel="κ = ηλa", title=f"β = {beta:g}", ylim=(None, 2 * _CEILING))
        if unlimited:
            axes.text(
                0.03, 0.97, "\n".join(("no limit below 10³:", *unlimited)), transform=axes.transAxes, va="top", size=7
            )
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("largest stable step h (grey: an optimizer's)")
    _legend(figure, panels)
    return figure


def optimizer_step_figure(study: IntegratorStudy) -> Figure:
    """Plot loss over the flow's, and distance to the flow, after 20 steps of h = 1, one column per problem.

    Args:
        study: Result of :func:`rishd.studies.integrators.integrator_study`.
    """
    problems = list(dict.fromkeys(row.problem for row in study.optimizer_steps))
    names = [name for name in dict.fromkeys(row.scheme for row in study.optimizer_steps) if name != FLOW]
    styles = _styles(names)
    figure = Figure(figsize=(4.6 * len(problems) + 3.0, 8.2), layout="constrained")
    grid = figure.subplots(2, len(problems), squeeze=False)
    for column, problem in enumerate(problems):
        rows = {row.scheme: row for row in study.optimizer_steps if row.problem == problem}
        mesh = _draw_losses(grid[0, column], rows, names)
        grid[0, column].set(title=problem, xlabel="learning rate η")
        axes = grid[1, column]
        for name in names:
            good = [outcome == "descends" for outcome in rows[name].outcomes]
            shown = np.where(good, rows[name].distances, np.nan) if good else np.array([])
            if np.isfinite(shown).any():
                axes.loglog(rows[name].learning_rates, shown, label=name, **styles[name])
        axes.set(xlabel="learning rate η", ylabel="distance to the flow, over ‖w₀‖" if column == 0 else "")
        axes.grid(alpha=0.3)
    figure.colorbar(mesh, ax=grid[0].tolist(), label="log₁₀ of the loss over the flow's", extend="both")
    figure.suptitle("Steps of h = 1: loss (×: it diverges, s: the solver fails) and distance to the flow", fontsize=10)
    _legend(figure, grid[1], location="outside lower center", columns=6)
    return figure


def _draw_losses(axes: Any, rows: dict[str, OptimizerSteps], names: Sequence[str]) -> Any:
    """Draw a cell per scheme and learning rate: loss over the flow's, × if it diverges, s if its solver fails."""
    flow = rows[FLOW]
    table = np.full((len(names), len(flow.learning_rates)), np.nan)
    for i, name in enumerate(names):
        for j, outcome in enumerate(rows[name].outcomes):
            if outcome == "descends":
                table[i, j] = np.log10(rows[name].losses[j] / flow.losses[j])
            else:
                axes.text(j, i, "×" if outcome == "diverges" else "s", ha="center", va="center", color="0.4", size=9)
        if not rows[name].outcomes:
            reason = rows[name].status.partition(":")[0]
            axes.text(len(flow.learning_rates) / 2, i, reason, ha="center", va="center", color="0.4", size=8)
    mesh = axes.imshow(table, norm=TwoSlopeNorm(0.0, -2.0, 2.0), cmap="PuOr_r", aspect="auto")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xticks(range(0, len(flow.learning_rates), 2), [f"{eta:.2g}" for eta in flow.learning_rates[::2]])
    return mesh


def _legend(
    figure: Figure,
    panels: Iterable[Any],
    *,
    location: Literal["outside right center", "outside lower center"] = "outside right center",
    columns: int = 1,
) -> None:
    """Draw one legend for all panels next to them."""
    handles = {str(line.get_label()): line for axes in panels for line in axes.get_lines()}
    named = {label: line for label, line in handles.items() if not label.startswith("_")}
    figure.legend(list(named.values()), list(named), loc=location, fontsize=8, ncols=columns)
