"""From a view to its numbers: runs the program, and measures what the page draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh

from discretizations import spectral_radius, stable_limit
from riemannian_ode import Plane, Trajectory, total_energy
from riemannian_ode.plane import as_plane
from riemannian_ode.split import metric_matrix
from rishd.exploring.program import METHODS, program
from rishd.exploring.view import View
from toy_landscapes.plotting import contour_levels

_GRID = 81  # points of the contours, on each side
_RUNS_AWAY = 1e3  # times the loss at the start, above which a path counts as lost
_FAR = 3.0  # widths of the picture beyond which a path is not drawn


class Mode(NamedTuple):
    """A curvature direction as the update rule sees it.

    Attributes:
        method: ``"base"``, ``"LITE"``, or ``"both"``.
        kind: ``"sharp"`` or ``"flat"``.
        kappa: κ = ηλa.
        beta: Its Hessian damping.
    """

    method: str
    kind: str
    kappa: float
    beta: float


class Heights(NamedTuple):
    """Contours over the plane.

    Attributes:
        x: Shape ``(columns,)``.
        y: Shape ``(rows,)``.
        above: Height above the infimum, shape ``(rows, columns)``.
        levels: Ascending.
    """

    x: np.ndarray
    y: np.ndarray
    above: np.ndarray
    levels: np.ndarray


@dataclass(frozen=True, eq=False)
class Picture:
    """What a view shows.

    Args:
        view: The setting.
        flows: Both methods, ensemble ``(2,)`` or ``(2, copies)``.
        paths: In the plane, NaN where they are not finite or far outside, shape ``(2, copies, saves, 2)``.
        losses: f above its infimum, shape ``(2, copies, saves)``.
        energies: E above its infimum, likewise; ``None`` where there is none.
        no_energy: Why there is none.
        labels: Of the plane.
        modes: Curvatures at the minimum; for a preconditioner with memory the sharpest one, in the metric at the end.
        no_modes: Why there are none.
        messages: In words, for each method: where it ended, or where and when it diverged.
        diverged: Whether a method did.
    """

    view: View
    flows: Trajectory
    paths: np.ndarray
    losses: np.ndarray
    energies: np.ndarray | None
    no_energy: str
    labels: tuple[str, str]
    modes: tuple[Mode, ...]
    no_modes: str
    messages: tuple[str, ...]
    diverged: bool


def compute(view: View) -> Picture:
    """Simulate a view.

    Args:
        view: The setting.

    Raises:
        ValueError: where the library refuses it, with the library's message.
    """
    made = _run(program(view).computes)
    landscape, flows = made["landscape"], made["flows"]
    plane = as_plane(made["plane"], view.scene.dimension)
    with np.errstate(over="ignore", invalid="ignore"):  # of a path that diverges
        w = _by_method(flows.w)
        losses = landscape.value(w) - _infimum(landscape)
        energies, no_energy = _energies(made)
    modes, no_modes = _modes(view, made)
    messages = tuple(_ending(name, flows.times, w[k], losses[k]) for k, name in enumerate(METHODS))
    return Picture(
        view=view,
        flows=flows,
        paths=_inside(plane, w, view.scene.extent),
        losses=losses,
        energies=energies,
        no_energy=no_energy,
        labels=plane.labels,
        modes=modes,
        no_modes=no_modes,
        messages=messages,
        diverged=any("runs away" in message or "not finite" in message for message in messages),
    )


@lru_cache(maxsize=16)
def heights(landscape_of: View) -> Heights:
    """Contours of a view's landscape; views that differ in other settings should be given alike.

    Args:
        landscape_of: ``View(landscape=…)``.
    """
    made = _run(program(landscape_of).computes)
    landscape, plane = made["landscape"], as_plane(made["plane"], landscape_of.scene.dimension)
    x, y = (np.linspace(*ends, _GRID) for ends in landscape_of.scene.extent)
    height = landscape.value(plane.lift(np.stack(np.meshgrid(x, y), axis=-1)))
    return Heights(x, y, *contour_levels(height, _infimum(landscape)))


def contraction(view: View, mode: Mode) -> str:
    """How a mode of the update rule behaves, in words.

    Args:
        view: The setting.
        mode: One of its modes.
    """
    if mode.kappa <= 0:
        return "negative curvature: the flow leaves, as it should"
    limit = float(stable_limit(view.alpha, mode.beta))
    if mode.kappa >= limit:
        return f"unstable: κ is above its limit {limit:.3g}"
    return f"stable, × {float(spectral_radius(mode.kappa, view.alpha, mode.beta)):.3f} per step"


def _run(text: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    exec(compile(text, "<view>", "exec"), made)  # our own text, with names and numbers that View has checked
    return made


def _by_method(states: np.ndarray) -> np.ndarray:
    """Saved states ``(saves, 2, [copies,] p)`` as ``(2, copies, saves, p)``."""
    saves, p = states.shape[0], states.shape[-1]
    return np.moveaxis(states.reshape(saves, len(METHODS), -1, p), 0, 2)


def _infimum(landscape: Any) -> float:
    found = getattr(landscape, "infimum", getattr(landscape, "minimum", 0.0))
    return float(found) if isinstance(found, (int, float)) else 0.0


def _energies(made: dict[str, Any]) -> tuple[np.ndarray | None, str]:
    flows = made["flows"]
    try:
        energy = total_energy(made["system"], 0.0, flows.w, flows.m, dict(flows.memory) or None)
    except ValueError as problem:
        return None, f"No energy: {problem}"
    except RuntimeError:  # torch's, of eigenvalues
        return None, "No energy: a decomposition of the metric failed on the way."
    by_method = _by_method(np.asarray(energy)[..., None])[..., 0]
    return by_method - _infimum(made["landscape"]), ""


def _modes(view: View, made: dict[str, Any]) -> tuple[tuple[Mode, ...], str]:
    landscape, metric, flows = made["landscape"], made["metric"], made["flows"]
    if view.geometry.remembers:
        if not metric.is_linear:
            return (), "This metric depends on the size of the momentum: no κ belongs to it."
        last = int(np.isfinite(_by_method(flows.w)[0, 0]).all(-1).sum()) - 1
        memory = {
            key: torch.as_tensor(value[last].reshape(-1, *value.shape[1 + flows.w.ndim - 2 :])[0])
            for key, value in flows.memory.items()
        }
        shape = view.scene.shape if view.geometry.shaped else (view.scene.dimension,)
        columns = np.eye(view.scene.dimension)
        inverse = np.stack(
            [metric.precondition(memory, torch.as_tensor(e).reshape(shape)).numpy().ravel() for e in columns]
        )
        product = inverse @ landscape.hessian(made["minimum"])
        if not np.isfinite(product).all():
            return (), "The metric at the end is not finite."
        top = float(np.linalg.eigvals(product).real.max())
        return (Mode("both", "sharp", view.eta * top, view.beta_sharp),), ""
    at = made["minimum"]
    curvatures = eigh(landscape.hessian(at), metric_matrix(metric, at), eigvals_only=True)[::-1]
    sharp, flat = view.eta * curvatures[: view.sharp], view.eta * curvatures[view.sharp :]
    return (
        *(Mode("both", "sharp", float(kappa), view.beta_sharp) for kappa in sharp),
        *(Mode("base", "flat", float(kappa), view.beta_sharp) for kappa in flat),
        *(Mode("LITE", "flat", float(view.chi * kappa), view.beta_flat) for kappa in flat),
    ), ""


def _inside(plane: Plane, w: np.ndarray, extent: tuple[tuple[float, float], tuple[float, float]]) -> np.ndarray:
    (left, right), (low, high) = extent
    center, size = np.array([left + right, low + high]) / 2, np.array([right - left, high - low])
    with np.errstate(over="ignore", invalid="ignore"):
        points = plane.project(w)
        near = np.asarray(np.all(np.abs(points - center) <= _FAR * size, axis=-1))
    return np.where(near[..., None], points, np.nan)


def _ending(name: str, times: np.ndarray, w: np.ndarray, losses: np.ndarray) -> str:
    """Where a method ended, of all its copies together; shapes ``(copies, saves, p)`` and ``(copies, saves)``."""
    of = f" (mean of {len(losses)} paths)" if len(losses) > 1 else ""
    with np.errstate(invalid="ignore"):
        lost = np.logical_not(losses <= _RUNS_AWAY * max(float(losses[0, 0]), 1e-12))
    if not lost.any():
        return f"{name}: f − inf f = {losses[:, -1].mean():.3g} at t = {times[-1]:g}{of}."
    save = int(np.flatnonzero(lost.any(axis=0))[0])
    copy = int(np.flatnonzero(lost[:, save])[0])
    point = ", ".join(f"{x:.3g}" for x in w[copy, save, :2])
    where = f"({point}{', …' if w.shape[-1] > 2 else ''})"
    finite = np.isfinite(losses[copy]) & np.isfinite(w[copy]).all(axis=-1)
    end = "" if finite.all() else f" From t = {times[int(np.flatnonzero(~finite)[0])]:.4g} on it is not finite."
    how_many = f" ({int(lost.any(axis=1).sum())} of {len(losses)} paths)" if len(losses) > 1 else ""
    return (
        f"{name} runs away{how_many}: at t = {times[save]:.4g}, w = {where}, f is over {_RUNS_AWAY:g} times what it "
        f"was at the start.{end} Lower η or χ."
    )
