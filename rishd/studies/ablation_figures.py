"""Figures of the mask, damping and certificate studies on river valleys."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from riemannian_ode.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from rishd.studies.certificate import CertificateStudy, LearningRateCase, certificate_study
from rishd.studies.damping import ALPHA, DampingStudy, damping_study
from rishd.studies.mask import MaskStudy, mask_study
from rishd.study import STUDIES, StudyResult

_HIGHEST = 1e2  # heights above it belong to diverged runs, and are drawn there
_AXIS = {
    "softness": "softness s of the mask",
    "cadence": "steps between refreshes (last: never)",
    "error rate": "share of steps with sharp and flat swapped",
}
_PLACES = {"all directions": (BLUE, "o", "-"), "flat only": (GREEN, "s", "-"), "sharp only": (VERMILION, "^", "--")}
_RULES = {
    "base": (BLACK, "-"),
    "χ only (LITE-L)": (SKY, "-"),
    "β₂ only (LITE-H)": (GREEN, "-"),
    "β everywhere": (ORANGE, "--"),
    "χ and β everywhere": (PURPLE, "--"),
    "χ and β₂ (LITE)": (VERMILION, "-"),
}
_METHODS: dict[str, dict[str, Any]] = {
    "grid search": {"marker": "*", "ms": 13, "color": VERMILION},
    "C9 (descent)": {"marker": "o", "ms": 9, "color": BLUE},
    "C6 (stability)": {"marker": "s", "ms": 8, "color": ORANGE},
}


def mask_figure(study: MaskStudy) -> Figure:
    """Plot height and largest stable learning rate against the size of each fault, one column per fault.

    Args:
        study: Result of :func:`rishd.studies.mask.mask_study`.
    """
    figure = Figure(figsize=(11.5, 6.2), layout="constrained")
    grid = figure.subplots(2, len(study.sweeps), sharey="row", squeeze=False)
    for column, sweep in enumerate(study.sweeps):
        finite = np.where(np.isinf(sweep.sizes), 4 * sweep.sizes[np.isfinite(sweep.sizes)].max(), sweep.sizes)
        height, stable = grid[:, column]
        height.semilogy(finite, np.minimum(sweep.height, _HIGHEST), "o-", color=VERMILION, label="LITE with this mask")
        height.axhline(study.base_height, color=BLUE, ls="--", label="base method")
        stable.semilogy(finite, sweep.stable, "o-", color=VERMILION)
        stable.axhline(1.0, color=BLUE, ls="--")
        for axes in (height, stable):
            if sweep.fault == "cadence":
                axes.set_xscale("log")
            elif sweep.fault == "error rate":
                axes.set_xscale("symlog", linthresh=0.01, linscale=0.5)
                axes.set_xlim(left=-0.001)
            axes.grid(alpha=0.3)
        stable.set(xlabel=_AXIS[sweep.fault])
        height.set(title=sweep.fault.capitalize())
    grid[0, 0].set(ylabel=f"f after {study.steps} steps (top: diverged)", ylim=(None, 3 * _HIGHEST))
    grid[1, 0].set(ylabel="largest stable η, over the base's")
    grid[0, 0].legend(fontsize=8, loc="center left")
    figure.suptitle(f"Faults of the mask on a curved valley (χ = {study.chi:g}, β₂ = {study.beta_flat:g})", fontsize=11)
    return figure


@STUDIES.register(place=30)
def mask(quick: bool, seed: int) -> StudyResult:
    """How soft, stale or wrong the sharp/flat mask may be."""
    study = mask_study(quick=quick, seed=seed)
    return StudyResult.of(study, mask=lambda: mask_figure(study))


def damping_figure(study: DampingStudy) -> Figure:
    """Plot largest stable learning rate and height against β by place, and heights of the ablation over steps.

    Args:
        study: Result of :func:`rishd.studies.damping.damping_study`.
    """
    figure = Figure(figsize=(12.5, 4.0), layout="constrained")
    stable, height, ablation = figure.subplots(1, 3)
    for sweep in study.sweeps:
        colour, marker, line = _PLACES[sweep.place]
        stable.semilogy(study.beta, sweep.stable, marker, mfc="none", color=colour, label=sweep.place)
        stable.semilogy(study.beta, sweep.predicted, line, lw=1.0, color=colour)
        drawn = np.minimum(sweep.height, _HIGHEST)
        height.semilogy(study.beta, drawn, marker, ls=line, mfc="none", lw=1.2, color=colour, label=sweep.place)
        unstable = sweep.stable < study.eta
        height.semilogy(study.beta[unstable], drawn[unstable], "x", color=BLACK, ms=5, zorder=3)
    height.plot([], [], "x", color=BLACK, ms=5, label="η above the largest stable one")
    stable.set(xlabel="β", ylabel="largest stable η", title="Stability (marks: measured, lines: C6)")
    height.set(
        xlabel="β",
        ylabel=f"f after {study.steps} steps",
        title=f"Height at η = {study.eta:.3g}, χ = 1",
    )
    for row in study.ablation:
        colour, line = _RULES[row.rule]
        ablation.semilogy(np.minimum(row.heights, _HIGHEST), line, color=colour, lw=1.5, label=row.rule)
    ablation.set(xlabel="step", ylabel="f", title=f"Ablation at η = {study.eta:.3g}")
    for axes in (stable, height, ablation):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7.5)
    figure.suptitle(f"Where Hessian damping acts, α = {ALPHA:g}", fontsize=11)
    return figure


@STUDIES.register(place=40)
def damping(quick: bool, seed: int) -> StudyResult:
    """Hessian damping in flat, in sharp and in all directions; the paper's ablation."""
    study = damping_study(quick=quick, seed=seed)
    return StudyResult.of(study, damping=lambda: damping_figure(study))


def certificate_figure(study: CertificateStudy) -> Figure:
    """Plot heights over χ and β₂ at the best sharp rank, each limit's allowed region, and each method's choice.

    A choice at another sharp rank is drawn hollow.

    Args:
        study: Result of :func:`rishd.studies.certificate.certificate_study`.
    """
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    panels = figure.subplots(1, len(study.cases), sharey=True, squeeze=False)[0]
    floor = min(float(case.heights.min()) for case in study.cases)
    mesh = None
    for axes, case in zip(panels, study.cases, strict=True):
        best = study.ranks.index(case.choice("grid search").sharp_rank)
        mesh = axes.pcolormesh(
            study.beta,
            study.chi,
            np.clip(case.heights[best], floor, _HIGHEST),
            norm=LogNorm(floor, _HIGHEST),
            cmap="cividis",
            shading="nearest",
        )
        _draw_choices(axes, study, case)
        axes.set(
            yscale="log",
            xlabel="β₂",
            ylim=(study.chi[0] / 1.2, study.chi[-1] * 1.2),
            title=f"η = {case.eta:.3g} ({case.name}); colours at d_s = {study.ranks[best]}",
        )
    panels[0].set_ylabel("χ")
    if mesh is not None:
        figure.colorbar(mesh, ax=panels, label=f"f after {study.steps} steps (brightest: diverged)")
    handles = {line.get_label(): line for line in panels[0].get_lines()}
    title = "hollow: chosen at another d_s than the colours'"
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        title=title,
        title_fontsize=8,
    )
    return figure


@STUDIES.register(place=50)
def certificate(quick: bool, seed: int) -> StudyResult:
    """χ, β₂ and the sharp rank chosen from curvature, against a grid search."""
    study = certificate_study(quick=quick, seed=seed)
    return StudyResult.of(study, certificate=lambda: certificate_figure(study))


def _draw_choices(axes: Any, study: CertificateStudy, case: LearningRateCase) -> None:
    for method, chi in case.allowed.items():
        axes.plot(
            study.beta, chi, color=_METHODS[method]["color"], lw=1.6, label=f"largest χ by {method} at the colours' d_s"
        )
    for choice in case.choices:
        style = _METHODS[choice.method]
        label = f"chosen by {choice.method}"
        is_shown = choice.sharp_rank == case.choice("grid search").sharp_rank  # the colours' d_s
        face = {"mec": "white"} if is_shown else {"mec": style["color"], "mew": 2, "mfc": "none"}
        axes.plot(choice.beta_flat, choice.chi, ls="", label=label, clip_on=False, **style, **face)
        is_right = choice.beta_flat > 0.6 * study.beta[-1]
        axes.annotate(
            f"d_s = {choice.sharp_rank}",
            (choice.beta_flat, choice.chi),
            (-10 if is_right else 10, 6),
            textcoords="offset points",
            ha="right" if is_right else "left",
            fontsize=8,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
        )
