"""Ensembles of update rules on river valleys for the studies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from discretizations.update_rule import UpdateState, lite_step
from riemannian_ode.flow import Array, Projector
from toy_landscapes import Landscape, RiverValley

FAR = 1e8  # position of diverged runs: finite, but high
Mask: TypeAlias = Callable[[int, Array], Projector]  # (step, w) ↦ (x ↦ Qx)


def curved_valley(*, frequency: float = 0.7, floor: float = 0.05) -> RiverValley:
    """The valley of the studies: one meandering wall of curvature 8, a floor of width 2.

    Args:
        frequency: ω of the meander, per unit of u.
        floor: Curvature of the floor.
    """
    return RiverValley([8.0], floor_curvatures=[floor], floor_width=2.0, amplitudes=0.8, frequency=frequency)


def graded_valley() -> RiverValley:
    """A valley with walls of several curvatures, so that a mask can be partly wrong."""
    return RiverValley(
        [8.0, 2.0, 0.5], floor_curvatures=[0.05], floor_width=2.0, amplitudes=[0.8, 0.4, 0.2], frequency=0.7
    )


def upstream_starts(valley: RiverValley, count: int, seed: int) -> np.ndarray:
    """Random start points upstream and off the floor, shape ``(count, p)``.

    Args:
        valley: A valley with one floor coordinate.
        count: Number of starts.
        seed: Random seed.
    """
    rng = np.random.default_rng(seed)
    starts: np.ndarray = valley.valley_floor(rng.uniform(-9.0, -5.0, (count, 1)))
    starts[:, 1:] += rng.normal(0.0, 0.5, starts[:, 1:].shape)
    return starts


def sharpest_curvature(valley: RiverValley) -> float:
    """Largest Hessian eigenvalue on the river."""
    river = valley.river(np.linspace(-10.0, 3.0, 66)[:, None])
    return float(np.linalg.eigvalsh(valley.hessian(river)).max())


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Coefficients of the update rule; arrays broadcast against ``(*ensemble, p)``.

    Args:
        eta: η, or step ↦ η.
        alpha: α.
        beta_sharp: β₁ in the theory's units.
        beta_flat: β₂.
        chi: χ.
        mask: Flat projector by step and point; ``None`` is the base method with β₁.
        decay: λ of decoupled weight decay.
    """

    eta: Any
    alpha: Any = 0.1
    beta_sharp: Any = 0.0
    beta_flat: Any = 0.0
    chi: Any = 1.0
    mask: Mask | None = None
    decay: Any = 0.0

    def step(self, k: int, state: UpdateState, g: Array) -> UpdateState:
        """One step from w_k and m_{k−1} with gradient g_k."""
        w, m = state
        flat = None if self.mask is None else self.mask(k, w)
        return lite_step(
            w,
            m,
            g,
            eta=self.eta(k) if callable(self.eta) else self.eta,
            alpha=self.alpha,
            split=None if flat is None else (lambda covector, a: flat),
            chi=self.chi,
            beta_sharp=self.beta_sharp,
            beta_flat=self.beta_flat,
            decay=self.decay * w if np.any(self.decay) else None,
        )


def hessian_mask(landscape: Landscape) -> Mask:
    """The exact mask: the Hessian's flat projector at every step."""
    return lambda k, w: landscape.flat_projector(w)


def descend(
    landscape: Landscape,
    w: np.ndarray,
    rule: Coefficients,
    *,
    steps: int,
    gradient: Callable[[int, np.ndarray], np.ndarray] | None = None,
    height: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """f along runs from every member, shape ``(steps + 1, *ensemble)``; diverging runs stay finite but high.

    Args:
        landscape: f.
        w: Starts, shape ``(*ensemble, p)``.
        rule: Update rule.
        steps: Number of steps.
        gradient: (step, w) ↦ g; the landscape's by default.
        height: w ↦ recorded value; f by default.
    """
    record = height or landscape.value
    state, heights = UpdateState(w, np.zeros_like(w)), [record(w)]
    for k in range(steps):
        g = landscape.gradient(state.w) if gradient is None else gradient(k, state.w)
        w, m = rule.step(k, state, g)
        state = UpdateState(w.clip(-FAR, FAR), m.clip(-FAR, FAR))
        heights.append(record(state.w))
    return np.stack(heights)


def largest_settled(heights: np.ndarray, ladder: np.ndarray, *, part: float = 1.0) -> float:
    """Largest learning rate of an ascending ladder up to which all runs converge; 0 if none do, infinite if all do.

    Args:
        heights: f along runs, shape ``(steps + 1, starts, rates)``.
        ladder: Learning rates, shape ``(rates,)``.
        part: A run has converged if its last fifth stays below this fraction of its height at the start.
    """
    settled = (heights[-len(heights) // 5 :].max(0) < part * heights[0]).all(0)
    count = len(settled) if settled.all() else int(np.argmin(settled))
    return np.inf if count == len(settled) else float(ladder[count - 1]) if count else 0.0
