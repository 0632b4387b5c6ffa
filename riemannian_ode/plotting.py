"""Plots of trajectories. The first plot loads matplotlib; nothing here touches pyplot's current figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from riemannian_ode.energy import energy_identity_residual
from riemannian_ode.plane import Plane, as_plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from riemannian_ode.dynamics import RISHD
    from riemannian_ode.saved_states import SavedStates

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)


def new_axes(ax: Axes | None, *, size: tuple[float, float] = (6.4, 4.4)) -> Axes:
    """Return the given axes, or the axes of a new figure (``ax.figure``).

    Args:
        ax: matplotlib axes, or ``None``.
        size: Width and height of a new figure, in inches.
    """
    if ax is not None:
        return ax
    from riemannian_ode.shown_figure import ShownFigure

    return ShownFigure(figsize=size, layout="constrained").add_subplot()


def plot_path(
    trajectory: SavedStates,
    ax: Axes | None = None,
    *,
    plane: Plane | tuple[int, int] | None = None,
    members: Sequence[tuple[int, ...]] | None = None,
    label: str | None = None,
    **style: Any,
) -> Axes:
    """Draw a trajectory in a plane: its line, a star at the start and a dot at the end.

    Args:
        trajectory: At least two finite saved states.
        ax: Axes to draw on; by default those of a new figure.
        plane: Plane, or two coordinate indices; the first two by default.
        members: Ensemble indices to draw; by default all, at most 50.
        label: Name in a legend.
        style: Further arguments of matplotlib's ``plot``, e.g. ``color``.

    Returns:
        The axes.

    Raises:
        ValueError: for fewer than two finite states, or fewer than two coordinates.
    """
    w = to_numpy(trajectory.w)
    view = as_plane(plane, w.shape[-1])
    points = view.project(w)
    ensemble = points.shape[1:-1]
    chosen = list(np.ndindex(ensemble))[:50] if members is None else list(members)
    axes = new_axes(ax)
    style = {"lw": 1.5} | style
    for place, member in enumerate(chosen):
        path = points[(slice(None), *member)]
        path = path[np.isfinite(path).all(axis=-1)]
        if len(path) < 2:
            raise ValueError(
                f"the trajectory{f' of member {member}' if member else ''} has {len(path)} finite saved "
                f"{'state' if len(path) == 1 else 'states'}; a line needs two. {trajectory.message}".rstrip()
            )
        (line,) = axes.plot(*path.T, label=label if place == 0 else None, **style)
        style = {"color": line.get_color()} | style
        axes.plot(*path[0], "*", color=BLACK, ms=8, zorder=3)
        axes.plot(*path[-1], "o", color=line.get_color(), ms=5, zorder=3)
    if not axes.get_xlabel():
        axes.set(xlabel=view.labels[0], ylabel=view.labels[1])
    if label is not None:
        axes.legend(fontsize=8)
    return axes


def plot_energy(trajectory: SavedStates, system: RISHD, ax: Axes | None = None) -> Axes:
    """Plot f, E, and E plus the dissipated energy over time; the last is constant if the energy identity holds.

    Args:
        trajectory: A single trajectory with at least 6 finite saved states.
        system: The dynamics that produced it.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes; the title has the residual of the energy identity.

    Raises:
        ValueError: for an ensemble, or as in :func:`riemannian_ode.energy_identity_residual`.
    """
    if to_numpy(trajectory.w).ndim != 2:
        raise ValueError(
            f"the trajectory is an ensemble of shape {np.shape(trajectory.w)[1:-1]}; plot the energy of one member."
        )
    balance = energy_identity_residual(system, trajectory)
    gain = float(np.asarray(to_numpy(system.at("gain", 0.0))).reshape(-1)[0])
    values = gain * to_numpy(system.objective.value(trajectory.w))
    axes = new_axes(ax)
    axes.plot(trajectory.times, balance.energy, color=BLUE, lw=1.8, label="energy E")
    axes.plot(trajectory.times, values, color=SKY, lw=1.2, label="value f(w)" if gain == 1.0 else f"{gain:g} f(w)")
    axes.plot(
        trajectory.times, balance.energy + balance.dissipated, color=BLACK, lw=1.2, ls="--", label="E + dissipated"
    )
    axes.fill_between(
        trajectory.times, balance.energy, balance.energy + balance.dissipated, color=ORANGE, alpha=0.2, lw=0
    )
    residual = float(np.max(balance.residual))
    axes.set(xlabel="time t", ylabel="energy", title=f"energy identity: residual {residual:.1e}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return axes
