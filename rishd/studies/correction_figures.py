"""Figure of the correction study."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rishd.studies.correction import CorrectionStudy, correction_study
from rishd.study import STUDIES, StudyResult


def correction_figure(study: CorrectionStudy) -> Figure:
    """Plot the size of R over learning rate and curvature, and the effect of dropping it, one column per metric.

    Args:
        study: Result of :func:`rishd.studies.correction.correction_study`.
    """
    figure = Figure(figsize=(11.5, 6.4), layout="constrained")
    grid = figure.subplots(2, len(study.metrics), sharex=True, sharey="row", squeeze=False)
    curvatures = sorted({row.curvature for row in study.rows})
    shades = mpl.colormaps["cividis"](np.linspace(0.0, 0.85, len(curvatures)))
    for column, metric in enumerate(study.metrics):
        size, distance = grid[:, column]
        for curvature, shade in zip(curvatures, shades, strict=True):
            rows = [row for row in study.rows if (row.metric, row.curvature) == (metric, curvature)]
            eta = [row.eta for row in rows]
            size.loglog(eta, [row.typical for row in rows], "o-", color=shade, label=f"curvature {curvature:g}")
            size.loglog(eta, [row.of_gradient for row in rows], "s:", mfc="none", color=shade, lw=1.0, ms=4)
            size.loglog(eta, [row.of_memory for row in rows], "^--", mfc="none", color=shade, lw=1.0, ms=4)
            distance.loglog(eta, [row.distance for row in rows], "o-", color=shade)
        size.set(title=f"{metric}'s metric")
        distance.set(xlabel="learning rate η")
        for axes in (size, distance):
            axes.grid(alpha=0.3)
    grid[0, 0].set(ylabel="‖R‖ / ‖−αm + g‖")
    grid[1, 0].set(ylabel="distance of runs with and without R")
    grid[0, 0].legend(fontsize=8)
    figure.suptitle(
        f"The Riemannian correction, α = {study.alpha:g}, β = {study.beta:g}, ε = {study.epsilon:g}; "
        "dotted: ‖R‖ / ‖g‖; dashed: ½‖Ḟn‖ of the optimizer's averages instead of ‖R‖",
        fontsize=11,
    )
    return figure


@STUDIES.register(place=20)
def correction(quick: bool, seed: int) -> StudyResult:
    """The Riemannian correction R that optimizers drop: its size, and the effect of dropping it."""
    study = correction_study(quick=quick, seed=seed)
    return StudyResult.of(study, correction=lambda: correction_figure(study))
