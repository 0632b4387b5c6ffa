"""Plots of modes: decay rates of the flow and stability of the update rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from discretizations.stability import descent_limit, flat_rate, spectral_radius, stable_limit
from riemannian_ode.colours import BLACK, ORANGE
from riemannian_ode.plotting import COLOURS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_modes(
    alpha: float,
    beta: Mapping[str, float] | float = 0.0,
    ax: Axes | None = None,
    *,
    kappa: tuple[float, float] = (1e-4, 10.0),
) -> Axes:
    """Plot a mode's decay rate against its curvature, for the flow (claim C5) and the update rule (claim C6).

    Args:
        alpha: α in (0, 1].
        beta: β in the theory's units, or several by name.
        ax: matplotlib axes; by default those of a new figure, ``ax.figure``.
        kappa: Range of κ = ηλa.

    Returns:
        The axes, with solid lines for the flow and dashed lines for the rule; the latter end where it is unstable.
    """
    values = np.geomspace(*kappa, 400)
    axes = new_axes(ax)
    named = beta if isinstance(beta, Mapping) else {f"β = {beta:g}": beta}
    for place, (name, each) in enumerate(named.items()):
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(values, flat_rate(values, alpha, each), color=colour, lw=1.8, label=f"{name}, flow")
        rate = -np.log(spectral_radius(values, alpha, each))
        axes.plot(values, np.where(rate > 0, rate, np.nan), color=colour, lw=1.4, ls="--", label=f"{name}, update rule")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="κ = ηλa (preconditioned curvature × learning rate)",
        ylabel="decay rate (per step)",
        title=f"rate of a mode, α = {alpha:g}",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return axes


def plot_stability(
    alpha: float,
    ax: Axes | None = None,
    *,
    kappa: tuple[float, float] = (1e-3, 10.0),
    beta: tuple[float, float] = (-1.0, 4.0),
    marks: Mapping[str, tuple[float, float]] | None = None,
    bar: bool = True,
) -> Axes:
    """Plot the spectral radius of a step of the update rule over κ and β, with the limits of claims C6 and C9.

    Args:
        alpha: α in (0, 1].
        ax: matplotlib axes; by default those of a new figure, ``ax.figure``.
        kappa: Range of κ = ηλa.
        beta: Range of β in the theory's units.
        marks: Points (κ, β) to mark, by name.
        bar: Whether to draw a colour bar.

    Returns:
        The axes.
    """
    from matplotlib.colors import TwoSlopeNorm

    x, y = np.geomspace(*kappa, 400), np.linspace(*beta, 301)
    axes = new_axes(ax, size=(7.0, 4.2))
    mesh = axes.pcolormesh(
        x,
        y,
        np.clip(spectral_radius(x[None, :], alpha, y[:, None]), 0.5, 1.5),
        norm=TwoSlopeNorm(1.0, 0.5, 1.5),
        cmap="PuOr_r",
        shading="nearest",
        rasterized=True,
    )
    axes.plot(stable_limit(alpha, y), y, color=BLACK, lw=1.5, label="stable below (C6)")
    certified = y[y > -0.5]
    axes.plot(descent_limit(alpha, certified), certified, color=BLACK, lw=1.2, ls="--", label="descent certified (C9)")
    style: dict[str, Any] = {"color": ORANGE, "mec": "black", "ms": 8, "zorder": 3}
    for name, (at_kappa, at_beta) in (marks or {}).items():
        axes.plot(at_kappa, at_beta, "o", **style)
        axes.annotate(name, (at_kappa, at_beta), xytext=(6, 6), textcoords="offset points", fontsize=8)
    axes.set(
        xscale="log",
        xlim=kappa,
        ylim=beta,
        xlabel="κ = ηλa (preconditioned curvature × learning rate)",
        ylabel="Hessian damping β (theory's units)",
        title=f"stability of the update rule, α = {alpha:g} (momentum {1 - alpha:g})",
    )
    axes.legend(loc="upper left", fontsize=8)
    if bar:
        axes.figure.colorbar(mesh, ax=axes, label="spectral radius of a step (< 1 is stable)", extend="both")
    return axes
