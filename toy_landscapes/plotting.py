"""Plots of landscapes and of your own objectives, and animations of trajectories on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.checks import require_count, shown
from riemannian_ode.colours import BLACK, GREEN, ORANGE, VERMILION
from riemannian_ode.objective import Objective
from riemannian_ode.plane import Plane, as_plane
from riemannian_ode.plotting import COLOURS, new_axes, plot_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from riemannian_ode.trajectory import Trajectory

Extent = tuple[tuple[float, float], tuple[float, float]]
CURVE_STYLES: dict[str, dict[str, Any]] = {
    "river": {"color": GREEN, "lw": 2.0},
    "floor": {"color": ORANGE, "lw": 1.4, "ls": "--"},
    "curve of minima": {"color": VERMILION, "lw": 2.0},
}
_LEVELS = 12
_SUFFIXES = (".gif", ".mp4", ".html")


def plot_landscape(
    objective: Objective,
    ax: Axes | None = None,
    *,
    plane: Plane | tuple[int, int] | None = None,
    extent: Extent = ((-3.0, 3.0), (-3.0, 3.0)),
    points: int = 161,
) -> Axes:
    """Plot an objective's heights over a plane, on a logarithmic scale above the lowest height.

    For a two-dimensional landscape the plot includes its river, valley floor and minima, if known.

    Args:
        objective: Anything with ``value(w)`` for w of shape ``(…, p)``.
        ax: matplotlib axes; by default those of a new figure, ``ax.figure``.
        plane: Plane, or two coordinate indices; the first two by default. An objective without ``dimension`` needs
            a :class:`riemannian_ode.Plane`.
        extent: Ranges of x and y in the plane.
        points: Grid points per side.

    Returns:
        The axes.

    Raises:
        ValueError: for fewer than two coordinates, an empty extent, or an objective that is finite nowhere on it.
    """
    require_count("points", points, 2)
    (left, right), (low, high) = _checked(extent)
    if not isinstance(plane, Plane) and not hasattr(objective, "dimension"):
        raise ValueError("the objective has no dimension; give plane=Plane.of_coordinates(p), or another Plane.")
    view = as_plane(plane, getattr(objective, "dimension", 2))
    x, y = np.linspace(left, right, points), np.linspace(low, high, points)
    height = to_numpy(objective.value(view.lift(np.stack(np.meshgrid(x, y), axis=-1))))
    if height.shape != (points, points):
        raise ValueError(
            f"objective.value gives shape {height.shape} for points of shape {(points, points, view.center.size)}; "
            "it must take leading axes."
        )
    if not np.isfinite(height).any():
        raise ValueError(f"the objective is finite nowhere on {extent}; choose another extent.")
    axes = new_axes(ax)
    _shade(axes, x, y, height, _infimum(objective))
    if plane is None and getattr(objective, "dimension", 0) == 2:
        _draw_known(axes, objective, x)
    axes.set(xlabel=view.labels[0], ylabel=view.labels[1], xlim=(left, right), ylim=(low, high))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="upper right")
    return axes


def plot_spectrum(landscape: Any, w: Any, ax: Axes | None = None, *, label: str | None = None) -> Axes:
    """Plot the Hessian's eigenvalues at a point by rank; negative ones as hollow markers at their absolute value.

    Args:
        landscape: Has ``hessian(w)``; with ``sharp_rank``, a line separates sharp from flat.
        w: Point, shape ``(p,)``.
        ax: matplotlib axes; by default those of a new figure, ``ax.figure``.
        label: Name in a legend.

    Returns:
        The axes.

    Raises:
        ValueError: for a Hessian that is not finite.
    """
    hessian = to_numpy(landscape.hessian(w))
    if hessian.ndim != 2 or not np.isfinite(hessian).all():
        raise ValueError(f"the Hessian at w has shape {hessian.shape} or is not finite; give one point, shape (p,).")
    values = np.linalg.eigvalsh(hessian)[::-1]
    rank = np.arange(1, len(values) + 1)
    axes = new_axes(ax)
    (line,) = axes.plot(rank[values > 0], values[values > 0], "o", ms=4, label=label)
    axes.plot(rank[values < 0], -values[values < 0], "o", ms=5, mfc="none", color=line.get_color())
    sharp = getattr(landscape, "sharp_rank", 0)
    if 0 < sharp < len(values):
        axes.axvline(sharp + 0.5, color=BLACK, lw=0.8, ls=":")
    axes.set(xlabel="rank", ylabel="eigenvalue of the Hessian", yscale="log")
    if len(values) > 30:
        axes.set(xscale="log")
    axes.grid(alpha=0.3)
    if label is not None:
        axes.legend(fontsize=8)
    return axes


def animate(
    objective: Objective,
    trajectories: Mapping[str, Trajectory],
    path: str | Path,
    *,
    plane: Plane | tuple[int, int] | None = None,
    extent: Extent | None = None,
    seconds: float = 6.0,
    frames_per_second: int = 20,
) -> Path:
    """Write an animation of trajectories over the heights of their objective.

    All trajectories share one clock: a frame shows each of them at the same time.

    Args:
        objective: As for :func:`plot_landscape`.
        trajectories: Single trajectories by name.
        path: File to write, ``.gif``, ``.mp4`` (needs ffmpeg) or ``.html`` (a page with a player).
        plane: As for :func:`plot_landscape`.
        extent: Ranges of x and y; by default those of the trajectories, with a margin.
        seconds: Length of the animation.
        frames_per_second: Frames per second.

    Returns:
        The path.

    Raises:
        ValueError: for no trajectories, an ensemble, another file extension, or a missing ffmpeg.
    """
    from matplotlib.animation import FFMpegWriter, FuncAnimation

    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"path = {str(path)!r} must end in {', '.join(_SUFFIXES)}.")
    if path.suffix == ".mp4" and not FFMpegWriter.isAvailable():
        raise ValueError("an .mp4 needs ffmpeg, which is not on this machine's path; install it, or write a .gif.")
    require_count("frames_per_second", frames_per_second, 1)
    frames = max(2, round(seconds * frames_per_second))
    view = as_plane(plane, getattr(objective, "dimension", 2))
    paths = {name: _path(name, trajectory, view) for name, trajectory in trajectories.items()}
    if not paths:
        raise ValueError("trajectories is empty; give at least one by name.")
    box = extent or _around(np.concatenate([points for _, points in paths.values()]))
    axes = plot_landscape(objective, plane=plane, extent=box)
    figure: Any = axes.figure
    lines = {
        name: axes.plot([], [], color=COLOURS[k % len(COLOURS)], lw=1.6, label=name)[0] for k, name in enumerate(paths)
    }
    dots = {name: axes.plot([], [], "o", color=line.get_color(), ms=7, zorder=4)[0] for name, line in lines.items()}
    axes.legend(fontsize=8, loc="upper right")
    end = max(float(times[-1]) for times, _ in paths.values())

    def draw(frame: int) -> list[Any]:
        now = end * frame / (frames - 1)
        for name, (times, points) in paths.items():
            here = np.array([np.interp(now, times, points[:, k]) for k in (0, 1)])
            past = np.concatenate([points[times <= now], here[None]])
            lines[name].set_data(*past.T)
            dots[name].set_data(here[:1], here[1:])
        axes.set_title(f"t = {now:.0f}", fontsize=10)
        return [*lines.values(), *dots.values()]

    animation = FuncAnimation(figure, draw, frames=frames, interval=1000.0 / frames_per_second, blit=False)
    if path.suffix == ".html":
        path.write_text(animation.to_jshtml(fps=frames_per_second), encoding="utf-8")
    else:
        animation.save(path, fps=frames_per_second, writer="pillow" if path.suffix == ".gif" else "ffmpeg")
    return path


def contour_levels(height: np.ndarray, infimum: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Heights above an infimum, and the levels to draw them at, on a logarithmic scale.

    Args:
        height: Shape ``(rows, columns)``.
        infimum: Height that counts as 0.

    Returns:
        Heights raised to half the lowest level, shape of ``height``, NaN where not finite; and levels, ascending,
        shape ``(12,)``, or ``(0,)`` for a constant.
    """
    above = np.where(np.isfinite(height), height, np.nan) - infimum
    lowest, highest = np.nanquantile(above, [0.02, 0.98])
    if not highest > 0:
        return above, np.empty(0)
    levels = np.geomspace(max(lowest, 1e-3 * highest), highest * (1 + 1e-9), _LEVELS)
    return np.maximum(above, 0.5 * levels[0]), levels  # a minimum on the grid has no logarithm


def shade(axes: Axes, x: np.ndarray, y: np.ndarray, height: np.ndarray, infimum: float = 0.0) -> None:
    """Plot heights above an infimum in shades of grey, on a logarithmic scale.

    Args:
        axes: Axes to draw on.
        x: Shape ``(columns,)``.
        y: Shape ``(rows,)``.
        height: Shape ``(rows, columns)``.
        infimum: Height treated as 0.
    """
    from matplotlib.colors import LogNorm

    above, levels = contour_levels(height, infimum)
    if not levels.size:
        return
    settings: dict[str, Any] = {"levels": levels, "norm": LogNorm(levels[0], levels[-1])}
    axes.contourf(x, y, above, cmap="Greys", alpha=0.7, extend="both", **settings)
    axes.contour(x, y, above, colors=BLACK, linewidths=0.3, alpha=0.5, **settings)


def _shade(axes: Axes, x: np.ndarray, y: np.ndarray, height: np.ndarray, infimum: float | None) -> None:
    lowest = float(np.nanmin(np.where(np.isfinite(height), height, np.nan)))
    shade(axes, x, y, height, lowest if infimum is None else infimum)


def _infimum(objective: Any) -> float | None:
    """The known infimum of a landscape."""
    for name in ("infimum", "minimum"):
        value = getattr(objective, name, None)
        if isinstance(value, (int, float)):
            return float(value)
    return None


def _draw_known(axes: Axes, landscape: Any, x: np.ndarray) -> None:
    curves = landscape.known_curves(x) if hasattr(landscape, "known_curves") else {}
    for name, points in curves.items():
        axes.plot(*points.T, label=name, **CURVE_STYLES.get(name, {}))
    minima = getattr(landscape, "minimizers", None)
    if minima is not None:
        axes.plot(*np.atleast_2d(minima).T, "o", color=VERMILION, ms=7, mec="white", ls="", label="minimum", zorder=3)


def _path(name: str, trajectory: Trajectory, view: Plane) -> tuple[np.ndarray, np.ndarray]:
    points = view.project(trajectory.w)
    if points.ndim != 2:
        raise ValueError(f"trajectory {name!r} is an ensemble of shape {points.shape[1:-1]}; animate single members.")
    kept = np.isfinite(points).all(axis=-1)
    if kept.sum() < 2:
        raise ValueError(f"trajectory {name!r} has {int(kept.sum())} finite saved states; a line needs two.")
    return trajectory.times[kept], points[kept]


def _around(points: np.ndarray) -> Extent:
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.1 * np.maximum(high - low, 1e-3 * (1.0 + np.abs(high)))
    (left, bottom), (right, top) = low - margin, high + margin
    return (float(left), float(right)), (float(bottom), float(top))


def _checked(extent: Any) -> Extent:
    try:
        (left, right), (low, high) = ((float(a), float(b)) for a, b in extent)
    except (TypeError, ValueError):
        raise ValueError(f"extent = {shown(extent)} must be two ranges, e.g. ((-3, 3), (-2, 2)).") from None
    if not (left < right and low < high and all(map(math.isfinite, (left, right, low, high)))):
        raise ValueError(f"extent = {shown(extent)} must have finite ranges, each from its lower end to its upper one.")
    return (left, right), (low, high)


def plot_flows(
    objective: Objective, trajectories: Mapping[str, Trajectory], ax: Axes | None = None, **options: Any
) -> Axes:
    """Plot several trajectories over the heights of their objective.

    Args:
        objective: As for :func:`plot_landscape`.
        trajectories: Trajectories by name.
        ax: matplotlib axes; by default those of a new figure, ``ax.figure``.
        options: ``plane``, ``extent`` and ``points`` of :func:`plot_landscape`. By default the extent contains all
            trajectories, and in more than two dimensions the plane is the one closest to them.

    Raises:
        ValueError: for no trajectories, or as in :func:`plot_landscape`.
    """
    if not trajectories:
        raise ValueError("trajectories is empty; give at least one by name, or use plot_landscape.")
    dimension = next(iter(trajectories.values())).w.shape[-1]
    if dimension > 2 and options.get("plane") is None:
        options = options | {"plane": Plane.through([each.w for each in trajectories.values()])}
    view = as_plane(options.get("plane"), dimension)
    if "extent" not in options:
        points = np.concatenate([view.project(each.w).reshape(-1, 2) for each in trajectories.values()])
        options = options | {"extent": _around(points[np.isfinite(points).all(axis=-1)])}
    axes = plot_landscape(objective, ax, **options)
    for k, (name, trajectory) in enumerate(trajectories.items()):
        plot_path(trajectory, axes, plane=view, label=name, color=COLOURS[k % len(COLOURS)])
    return axes
