"""Largest stable step of each scheme on one mode of a quadratic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from discretizations.stability import stable_limit
from riemannian_ode import RISHD, PhaseState, integrator
from rishd.studies.integrator_problems import ALPHA
from toy_landscapes import Quadratic

CURVATURES = tuple(float(kappa) for kappa in np.geomspace(0.01, 10.0, 7))


@dataclass(frozen=True)
class StableStep:
    """Largest stable step of a scheme on one mode.

    Args:
        scheme: Name of the scheme.
        kappa: Preconditioned curvature ηλa at h = 1.
        beta: β in the theory's units.
        measured: Largest h with spectral radius ≤ 1, by bisection; infinite if there is no limit in the search range.
        closed_form: Claim C6 rescaled to h, for the optimizers' scheme; NaN for others, and beyond hα = 1.
    """

    scheme: str
    kappa: float
    beta: float
    measured: float
    closed_form: float


def stable_step(name: str, kappa: float, beta: float) -> StableStep:
    """Bisect for the largest h up to which a step's matrix has spectral radius ≤ 1; α = 0.5.

    Args:
        name: Name of a one-step integrator.
        kappa: Preconditioned curvature.
        beta: β in the theory's units.
    """
    landscape = Quadratic([kappa])
    system = RISHD.from_optimizer(landscape, alpha=ALPHA, eta=1.0, beta=beta)
    scheme: Any = integrator(name)
    basis = PhaseState(np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]]))

    def is_stable(h: float) -> bool:
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                new = scheme.step(system, 0.0, basis, h)
        except (ValueError, RuntimeError):
            return False
        matrix = np.concatenate([new.w, new.m], axis=1).T
        return bool(np.isfinite(matrix).all() and np.abs(np.linalg.eigvals(matrix)).max() <= 1.0 + 1e-10)

    ladder = np.geomspace(1e-2, 1e3, 61)
    stable = [is_stable(float(h)) for h in ladder]
    closed_form = _closed_form(kappa, beta) if name == "semi-implicit-euler" else float("nan")
    if all(stable):
        return StableStep(name, kappa, beta, float("inf"), closed_form)
    first_bad = stable.index(False)
    if first_bad == 0:
        return StableStep(name, kappa, beta, 0.0, closed_form)
    low, high = float(ladder[first_bad - 1]), float(ladder[first_bad])
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_stable(middle) else (low, middle)
    return StableStep(name, kappa, beta, low, closed_form)


def _closed_form(kappa: float, beta: float) -> float:
    """Claim C6 at step size h; NaN if the limit lies beyond its hypothesis hα ≤ 1.

    m = h·m' turns step h into step 1 with α' = hα, β' = β/h, κ' = h²κ; the result is the h at which κ' reaches its
    limit.
    """
    low, high = 1e-6, 1.0 / ALPHA

    def is_inside(h: float) -> bool:
        return bool(h**2 * kappa < stable_limit(h * ALPHA, beta / h))

    if is_inside(high):
        return float("nan")
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_inside(middle) else (low, middle)
    return low
