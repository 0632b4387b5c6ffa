"""Figures of the proxy and alignment studies."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from riemannian_ode.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from rishd.studies.alignment import OPTIMIZERS, AlignmentStudy, alignment_study
from rishd.studies.proxy import METRICS, ProxyStudy, proxy_study
from rishd.study import STUDIES, StudyResult

_PROXY_COLOURS = {
    "none": BLACK,
    "random": "0.6",
    "momentum": VERMILION,
    "second moment": ORANGE,
    "Fisher": GREEN,
    "HVP": BLUE,
    "exact": PURPLE,
}
_OPTIMIZER_COLOURS = dict(zip(OPTIMIZERS, (BLACK, GREEN, BLUE, ORANGE, VERMILION), strict=True))
_STAGE_COLOURS = (SKY, BLUE, BLACK)
_CEILING = 3.0  # losses above it belong to diverged runs


def proxy_figure(study: ProxyStudy) -> Figure:
    """Plot the curvature captured by each mask, its loss over learning rates, and Muon's loss over β by metric.

    Args:
        study: Result of :func:`rishd.studies.proxy.proxy_study`.
    """
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    captured, loss, damping = figure.subplots(1, 3)
    rows = [row for row in study.proxies if row.proxy != "none"]
    names = [row.proxy for row in rows]
    captured.barh(names, [row.captured for row in rows], color=[_PROXY_COLOURS[name] for name in names])
    captured.set(xlabel="share of what k directions can hold", title=f"Curvature in the mask, k = {study.rank}")
    for row in study.proxies:
        loss.loglog(study.rates, _finite(row.loss), "o-", ms=4, color=_PROXY_COLOURS[row.proxy], label=row.proxy)
    loss.set(
        xlabel="learning rate η", ylabel=f"median loss after {study.steps} steps", title="Heavy ball with LITE's χ"
    )
    for metric, colour, line in zip(METRICS, (BLUE, VERMILION), ("-", "--"), strict=True):
        chosen = [row for row in study.metrics if row.metric == metric]
        best = [row.loss.min() for row in chosen]
        damping.semilogy([row.beta for row in chosen], best, "o" + line, color=colour, label=f"{metric} metric")
    damping.set(xlabel="β beside msign", ylabel="lowest loss over learning rates", title="Muon: g preconditioned by")
    for axes in (loss, damping):
        axes.legend(fontsize=8)
    for axes in (captured, loss, damping):
        axes.grid(alpha=0.3)
    captured.set_axisbelow(True)
    return figure


@STUDIES.register(place=80)
def proxy(quick: bool, seed: int) -> StudyResult:
    """The best source of a matrix's mask, and the best metric for damping the gradient."""
    study = proxy_study(quick=quick, seed=seed)
    return StudyResult.of(study, proxy=lambda: proxy_figure(study))


def alignment_figure(study: AlignmentStudy) -> Figure:
    """Plot update size over the Hessian's eigendirections at each stage, and the mask's coverage by layer.

    Args:
        study: Result of :func:`rishd.studies.alignment.alignment_study`.
    """
    figure = Figure(figsize=(4.2 * len(study.steps) + 4.6, 4.4), layout="constrained")
    panels: Any = figure.subplots(1, len(study.steps) + 1, width_ratios=[1.0] * len(study.steps) + [1.25])
    for axes, step in zip(panels, study.steps, strict=False):
        for name in OPTIMIZERS:
            row = study.update(name, step)
            place = (np.arange(len(row.size)) + 0.5) / len(row.size)
            axes.semilogy(place, row.size, "o-", ms=3.5, color=_OPTIMIZER_COLOURS[name], label=name)
        axes.axhline(1.0, color="0.5", lw=0.8)
        axes.set(xlabel="eigenvalue's rank, sharpest first", title=f"after {step} steps", ylim=(0.03, 6.0))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("update size, 1 is isotropic")
    panels[1].legend(fontsize=8, loc="lower center", ncols=2)
    covered = panels[-1]
    layers = list(dict.fromkeys(row.layer for row in study.coverage))
    height = 0.8 / len(study.steps)
    for i, step in enumerate(study.steps):
        scores = [row.score for row in study.coverage if row.step == step]
        covered.barh(
            np.arange(len(layers)) + (i - 0.5 * (len(study.steps) - 1)) * height,
            scores,
            height=height,
            color=_STAGE_COLOURS[i],
            label=f"after {step} steps",
        )
    covered.axvline(study.coverage[0].chance, color=VERMILION, lw=1.2, ls="--", label="random subspace")
    covered.set_yticks(range(len(layers)), [layer.removesuffix(".weight") for layer in layers], fontsize=8)
    covered.invert_yaxis()
    covered.set(xlabel="coverage score", xlim=(0.0, 1.0), title="Top Hessian space in the momentum's")
    covered.legend(fontsize=7.5, loc="upper right")
    return figure


@STUDIES.register(place=90)
def alignment(quick: bool, seed: int) -> StudyResult:
    """Update size by Hessian eigendirection, and the momentum mask's coverage of the top eigenspace."""
    study = alignment_study(quick=quick, seed=seed)
    return StudyResult.of(study, alignment=lambda: alignment_figure(study))


def _finite(loss: np.ndarray) -> np.ndarray:
    shown: np.ndarray = np.minimum(loss, _CEILING)
    return shown
