"""Figures of the schemes study."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from riemannian_ode.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from rishd.studies.schemes import OPTIMIZER, SchemeStudy, scheme_study
from rishd.study import STUDIES, StudyResult

_CURVATURE = {"ls": (0, (4, 2)), "lw": 1.4}
# Schemes with one gradient are solid, schemes that need curvature are dashed. position-first-euler has the same modes
# as semi-implicit-euler and shares its line.
_STYLES: dict[str, dict[str, Any]] = {
    OPTIMIZER: {"color": BLACK, "lw": 2.2, "label": "semi-implicit = position-first"},
    "explicit-euler": {"color": VERMILION, "lw": 1.6, "label": "explicit"},
    "implicit-damping": {"color": BLUE, "lw": 1.6, "label": "implicit damping"},
    "exponential-damping": {"color": GREEN, "lw": 1.6, "label": "exponential damping"},
    "leapfrog": {"color": ORANGE, "lw": 1.6, "ls": ":", "label": "leapfrog"},
    "implicit-euler": {"color": PURPLE, "label": "implicit (curvature)", **_CURVATURE},
    "implicit-midpoint": {"color": SKY, "label": "implicit midpoint (curvature)", **_CURVATURE},
    "strang": {"color": ORANGE, "label": "Strang, midpoint (curvature)", **_CURVATURE},
    "exponential-euler": {"color": GREEN, "label": "exponential = flow (curvature)", **_CURVATURE},
}


def scheme_figure(study: SchemeStudy) -> Figure:
    """Plot the largest stable κ against β, the same relative to the optimizers', and decay rates over κ at two β.

    Args:
        study: Result of :func:`rishd.studies.schemes.scheme_study`.
    """
    figure = Figure(figsize=(11.5, 7.4), layout="constrained")
    limit, ratio, plain, nesterov = figure.subplots(2, 2).flat
    drawn = [name for name in _STYLES if name in study.limits]
    for name in drawn:
        limit.semilogy(study.beta, study.limits[name], **_STYLES[name])
        if name != "explicit-euler":
            ratio.plot(study.beta, study.limits[name] / study.limits[OPTIMIZER], **_STYLES[name])
    for row in study.rows:
        if row.scheme in drawn and row.beta >= 0:
            limit.plot(row.beta, row.measured, "o", ms=4, mfc="white", color=_STYLES[row.scheme]["color"])
    for axes in (limit, ratio):
        axes.axvline(study.nesterov, color="0.6", lw=0.8, zorder=0)
        axes.set(xlabel="Hessian damping β (theory's units; grey: Nesterov's)", xlim=(study.beta[0], study.beta[-1]))
    limit.set(ylabel="largest stable κ", title="Stability limit (line: closed form, circle: measured)")
    ratio.set(ylabel="largest stable κ, over semi-implicit", title="The same, relative, without explicit Euler")
    for axes, k, beta in ((plain, 0, 0.0), (nesterov, 1, study.nesterov)):
        for name, style in _STYLES.items():
            rate = study.rates[name][k]
            axes.loglog(study.kappa, np.where(rate > 0, rate, np.nan), **style)
        axes.set(
            xlabel="κ = ηλa (preconditioned curvature × learning rate)",
            ylabel="decay rate −ln ρ per step",
            xlim=(study.kappa[0], study.kappa[-1]),
            title=f"Rate at β = {beta:.3g}",
        )
    ceiling = max(rate.max() for rate in study.rates.values())
    for axes in (plain, nesterov):
        axes.set_ylim(5e-3, 1.3 * ceiling)
    for axes in (limit, ratio, plain, nesterov):
        axes.grid(alpha=0.3)
    handles = {line.get_label(): line for line in plain.get_lines()}
    figure.legend(list(handles.values()), list(handles), loc="outside right center", fontsize=8)
    figure.suptitle(
        f"Discretisations of one mode at h = 1, α = {study.alpha:g} (momentum {1 - study.alpha:g})", fontsize=11
    )
    return figure


@STUDIES.register(place=10)
def schemes(quick: bool, seed: int) -> StudyResult:
    """Discretisations of the flow at h = 1: stability and speed."""
    study = scheme_study(quick=quick, seed=seed)
    return StudyResult.of(study, schemes=lambda: scheme_figure(study))
