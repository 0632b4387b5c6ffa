"""Energy along one flow with a state-dependent metric, with and without the Riemannian correction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from riemannian_ode import RISHD, StateDependentMetric, energy_identity_residual, simulate
from riemannian_ode.integrators.adaptive import DOP853
from toy_landscapes import Quadratic

_SPAN, _SAVES = 20.0, 1000  # span in units of time; number of save points


@dataclass(frozen=True)
class EnergyStudy:
    """Energies and residuals of the energy identity over time.

    Args:
        times: Save times, shape ``(saves,)``.
        energy: E(t) with R kept, shape ``(saves,)``.
        residual_with: ‖E(t) − E(0) + ∫−Ė‖ with R kept, shape ``(saves,)``.
        residual_without: The same with R dropped.
    """

    times: np.ndarray
    energy: np.ndarray
    residual_with: np.ndarray
    residual_without: np.ndarray


def energy_study() -> EnergyStudy:
    """Integrate the flows with and without R by DOP853 from the same point."""
    import torch

    def metric(w: Any) -> Any:
        return torch.diag(0.4 + w**2) + 0.2 * torch.outer(torch.cos(w), torch.cos(w))

    landscape = Quadratic(np.array([1.0, 0.3]))
    residuals = []
    for correction in (True, False):
        system = RISHD.from_optimizer(
            landscape, StateDependentMetric(metric), alpha=0.2, beta=0.3, eta=0.8, correction=correction
        )
        flow = simulate(
            system, np.array([2.0, -1.5]), integrator=DOP853(rtol=1e-10, atol=1e-11), h=_SPAN / _SAVES, steps=_SAVES
        ).checked()
        balance = energy_identity_residual(system, flow)
        residuals.append((flow.times, balance.energy, np.abs(balance.energy - balance.energy[0] + balance.dissipated)))
    (times, energy, with_r), (_, _, without_r) = residuals
    return EnergyStudy(times, energy, with_r, without_r)
