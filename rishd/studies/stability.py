"""Contraction of the update rule over curvature and Hessian damping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from discretizations.stability import spectral_radius, stable_limit


@dataclass(frozen=True)
class StabilityMap:
    """Spectral radius of one mode's step at fixed α.

    Args:
        alpha: α.
        kappa: κ, shape ``(k,)``.
        beta: β, shape ``(b,)``, theory's units.
        radius: Shape ``(b, k)``.
        limit: Closed-form largest stable κ at each β (claim C6), shape ``(b,)``.
    """

    alpha: float
    kappa: np.ndarray
    beta: np.ndarray
    radius: np.ndarray
    limit: np.ndarray


def stability_map(alpha: float = 0.05) -> StabilityMap:
    """The map over κ in [0.001, 10] and β in [−1, 4] at damping α (0.05 is momentum 0.95).

    Args:
        alpha: α in (0, 1].
    """
    kappa, beta = np.geomspace(1e-3, 10.0, 400), np.linspace(-1.0, 4.0, 301)
    return StabilityMap(
        alpha, kappa, beta, spectral_radius(kappa[None, :], alpha, beta[:, None]), stable_limit(alpha, beta)
    )
