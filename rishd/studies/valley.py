"""Base and LITE flows on a curved river valley."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from discretizations.stability import asymptotic_speedup
from riemannian_ode import RISHD, Trajectory, simulate
from toy_landscapes import RiverValley

_ALPHA, _ETA, _BETA = 0.5, 0.05, 0.0  # the base method is heavy ball with momentum 0.5
_CHI, _BETA_FLAT = 3.0, 2.0
_START = (-9.0, 1.6)
_STEPS = 300


@dataclass(frozen=True)
class ValleyFlows:
    """Trajectories in a valley, and the river that they should follow.

    Args:
        valley: The landscape.
        river: Points of the solved river, shape ``(points, 2)``.
        base: Flow of the base method.
        lite: Flow with LITE's χ and β₂ on the flat subspace of the Hessian.
        chi: χ.
        beta_flat: β₂.
        predicted_speedup: χ(1 + αβ₂)/(1 + αβ₁), claim C5.
    """

    valley: RiverValley
    river: np.ndarray
    base: Trajectory
    lite: Trajectory
    chi: float
    beta_flat: float
    predicted_speedup: float

    @property
    def measured_speedup(self) -> float:
        """Ratio of the base method's to LITE's time to lose 90% of the height that the base method loses in its run.

        Both times start when the walls' energy is gone (after a tenth of the run) and the flows follow the river.
        """
        heights = [self.valley.value(flow.w) for flow in (self.base, self.lite)]
        begin = len(self.base.times) // 10
        start, end = heights[0][begin], heights[0][-1]
        target = start - 0.9 * (start - end)
        times = []
        for height in heights:
            if not (height <= target).any():
                raise RuntimeError(f"a flow did not fall to {target:.3g} in {len(height) - 1} steps; simulate longer.")
            entered = int(np.argmax(height <= start))
            reached = int(np.argmax(height <= target))
            times.append(float(self.base.times[reached] - self.base.times[entered]))
        return times[0] / times[1]


def valley_flows(*, progress: bool | None = None) -> ValleyFlows:
    """Simulate both flows from the same point by semi-implicit Euler at h = 1, the optimizers' scheme."""
    valley = RiverValley([8.0], floor_curvatures=[0.05], floor_width=2.0, amplitudes=0.8, frequency=0.7)
    shared: dict[str, Any] = {"alpha": _ALPHA, "eta": _ETA, "beta": _BETA}
    base = RISHD.from_optimizer(valley, **shared)
    lite = RISHD.from_optimizer(valley, flat=valley.flat_split, chi=_CHI, beta_flat=_BETA_FLAT, **shared)
    w0 = np.array(_START)
    runs = [simulate(system, w0, h=1.0, steps=_STEPS, progress=progress).checked() for system in (base, lite)]
    return ValleyFlows(
        valley,
        valley.river(np.linspace(-10.0, 3.0, 261)[:, None]),
        runs[0],
        runs[1],
        _CHI,
        _BETA_FLAT,
        float(asymptotic_speedup(_ALPHA, _BETA, _BETA_FLAT, _CHI)),
    )
