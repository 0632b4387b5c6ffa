"""The robustness study: LITE and its base method on a curved valley under disturbances that occur in training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from discretizations.stability import stable_limit
from discretizations.update_rule import UpdateState
from riemannian_ode.flow import Array, Projector
from rishd.record import Record
from rishd.studies.descent import (
    Coefficients,
    Mask,
    curved_valley,
    descend,
    hessian_mask,
    sharpest_curvature,
    upstream_starts,
)
from toy_landscapes import RiverValley

ALPHA, CHI, BETA_FLAT = 0.1, 4.0, 5.0
_STEPS = 100
_SHARE = 0.1  # η relative to the stability limit
_OFFSET = np.array([5.0, 0.0])  # distance of the valley's end from w = 0, so that weight decay pulls away from it
_SPIKE_AT, _SPIKE_LENGTH = 40, 5  # in steps
PRECISIONS = ("float32", "bfloat16")
_FREQUENCIES = (0.35, 0.7, 1.4)  # ω of rivers with slower and faster bends


@dataclass(frozen=True)
class RobustnessSweep:
    """Results of both methods for each size of one disturbance.

    Args:
        disturbance: Its name.
        label: Meaning of its size.
        sizes: Sizes, shape ``(k,)``; infinite means no clipping.
        base: Median final height of the base method, shape ``(k,)``.
        lite: Median final height of LITE, shape ``(k,)``.
    """

    disturbance: str
    label: str
    sizes: np.ndarray
    base: np.ndarray
    lite: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """Base method's height over LITE's."""
        ratio: np.ndarray = self.base / self.lite
        return ratio


@dataclass(frozen=True)
class RobustnessStudy(Record):
    """Results of the study.

    Args:
        steps: Number of steps.
        eta: η.
        chi: χ.
        beta_flat: β₂.
        sweeps: One per disturbance; sizes start with no disturbance.
    """

    steps: int
    eta: float
    chi: float
    beta_flat: float
    sweeps: tuple[RobustnessSweep, ...]

    @property
    def answer(self) -> str:
        """Which disturbances LITE's gain survives."""
        tried = [sweep for sweep in self.sweeps if sweep.disturbance not in PRECISIONS]
        behind = {
            sweep.disturbance: sweep.sizes[int(np.argmax(sweep.gain < 1.0))]
            for sweep in tried
            if (sweep.gain < 1.0).any()
        }
        ahead = "; ".join(sweep.disturbance for sweep in tried if sweep.disturbance not in behind)
        lost = "; ".join(f"{name} (from {size:g})" for name, size in behind.items())
        verdict = "Yes" if not behind else "In part" if ahead else "No"
        return (
            f"{verdict}. LITE stays ahead of the base method at every size of: {ahead or 'nothing tried'}. It falls "
            f"behind under: {lost or 'nothing tried'}."
        )

    @property
    def conclusion(self) -> str:
        """LITE's gain under the disturbances."""
        parts = []
        for sweep in self.sweeps:
            if sweep.disturbance in PRECISIONS:
                continue
            worst = "diverges" if sweep.lite[-1] > 1e3 else f"{sweep.gain[-1]:.2g}"
            parts.append(f"{sweep.disturbance} {worst} at {sweep.sizes[-1]:g}")
        single, half = (next(s for s in self.sweeps if s.disturbance == name) for name in PRECISIONS)
        stalls = half.gain < 1.0
        where = f"at η ≤ {half.sizes[int(np.argmax(stalls))]:.2g}" if stalls.any() else "at no tested η"
        return (
            f"Undisturbed, LITE ends {self.sweeps[0].gain[0]:.2g} times lower than the base method after {self.steps} "
            f"steps; the same factor under the largest disturbance is: {'; '.join(parts)}. "
            f"State and update in bfloat16 leave LITE {half.lite[0] / single.lite[0]:.2g} times higher than in float32 "
            f"and the base method {half.base[0] / single.base[0]:.2g} times; LITE is behind the base method {where}."
        )

    def table(self) -> list[dict[str, str]]:
        """One row per disturbance and size."""
        return [
            {
                "disturbance": sweep.disturbance,
                "size": f"{sweep.sizes[k]:.3g}",
                "base": f"{sweep.base[k]:.3g}",
                "LITE": f"{sweep.lite[k]:.3g}",
                "gain": f"{sweep.gain[k]:.3g}",
            }
            for sweep in self.sweeps
            for k in range(len(sweep.sizes))
        ]


def robustness_study(*, quick: bool = False, seed: int = 0) -> RobustnessStudy:
    """Run every disturbance.

    Args:
        quick: Whether to use fewer starts.
        seed: Seed of the starts.
    """
    valley = curved_valley()
    starts = upstream_starts(valley, 4 if quick else 32, seed)
    limit = float(stable_limit(ALPHA, 0.0)) / sharpest_curvature(valley)
    eta = _SHARE * limit

    def heights(sizes: np.ndarray, run: Callable[[Coefficients, np.ndarray], np.ndarray]) -> list[np.ndarray]:
        rules = [_rule(valley, eta, lite=lite) for lite in (False, True)]
        return [np.median(run(rule, sizes[:, None])[-1], axis=0) for rule in rules]

    copies = np.repeat(starts[:, None], 7, axis=1)

    def clipped(rule: Coefficients, sizes: np.ndarray) -> np.ndarray:
        return _descend(valley, copies[:, : len(sizes)], rule, gradient=lambda g: _clipped(g, sizes))

    def decayed(rule: Coefficients, sizes: np.ndarray) -> np.ndarray:
        return _descend(valley, copies[:, : len(sizes)], replace(rule, decay=sizes))

    def spiked(rule: Coefficients, sizes: np.ndarray) -> np.ndarray:
        def rate(k: int) -> np.ndarray:
            return eta * np.where(_SPIKE_AT <= k < _SPIKE_AT + _SPIKE_LENGTH, sizes, 1.0)

        return _descend(valley, copies[:, : len(sizes)], replace(rule, eta=rate))

    clip = np.array([np.inf, 10.0, 3.0, 1.0, 0.3, 0.1])
    decay = np.array([0.0, 0.003, 0.01, 0.03, 0.1])
    spike = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    shares = np.geomspace(1.0, 1e-3, 7) * eta
    sweeps = [
        RobustnessSweep("clipping", "largest ‖g‖ let through", clip, *heights(clip, clipped)),
        RobustnessSweep("weight decay", "λ", decay, *heights(decay, decayed)),
        RobustnessSweep("spike", "learning rate over η for 5 steps", spike, *heights(spike, spiked)),
    ]
    for name, dtype in zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True):

        def rounded(rule: Coefficients, sizes: np.ndarray, dtype: torch.dtype = dtype) -> np.ndarray:
            return _low_precision(valley, copies[:, : len(sizes)], replace(rule, eta=torch.as_tensor(sizes)), dtype)

        sweeps.append(RobustnessSweep(name, "learning rate η", shares, *heights(shares, rounded)))
    sweeps += [_lag_sweep(frequency, starts.shape[0], eta, seed) for frequency in _FREQUENCIES]
    return RobustnessStudy(_STEPS, eta, CHI, BETA_FLAT, tuple(sweeps))


def _lag_sweep(frequency: float, count: int, eta: float, seed: int) -> RobustnessSweep:
    """Sweep of a mask that lags by L steps, on rivers with different bends."""
    valley = curved_valley(frequency=frequency)
    starts = upstream_starts(valley, count, seed)
    lags = np.array([0, 1, 2, 4, 8, 16, 32])
    base = float(np.median(_descend(valley, starts, _rule(valley, eta, lite=False))[-1]))
    lite = [
        float(
            np.median(
                _descend(valley, starts, replace(_rule(valley, eta, lite=True), mask=lagging_mask(valley, int(lag))))[
                    -1
                ]
            )
        )
        for lag in lags
    ]
    return RobustnessSweep(
        f"lag, ω = {frequency:g}", "steps the mask lags", lags.astype(float), np.full(len(lags), base), np.array(lite)
    )


def lagging_mask(valley: RiverValley, lag: int) -> Mask:
    """The Hessian's mask at the point ``lag`` steps ago (at the first point in the beginning)."""
    seen: deque[Array] = deque(maxlen=lag + 1)

    def mask(k: int, w: Array) -> Projector:
        seen.append(w)
        return valley.flat_projector(seen[0])

    return mask


def _rule(valley: RiverValley, eta: float, *, lite: bool) -> Coefficients:
    if not lite:
        return Coefficients(eta=eta, alpha=ALPHA)
    return Coefficients(eta=eta, alpha=ALPHA, chi=CHI, beta_flat=BETA_FLAT, mask=hessian_mask(valley))


def _clipped(g: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """g clipped to norm ``bound``, member by member."""
    norm = np.linalg.norm(g, axis=-1, keepdims=True)
    clipped: np.ndarray = g * np.minimum(1.0, bound / np.maximum(norm, np.finfo(g.dtype).tiny))
    return clipped


def _descend(
    valley: RiverValley,
    starts: np.ndarray,
    rule: Coefficients,
    *,
    gradient: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Heights of runs with w = 0 away from the valley's end."""
    shape = gradient or (lambda g: g)
    mask = rule.mask
    moved = None if mask is None else (lambda k, w: mask(k, w - _OFFSET))
    return descend(
        valley,
        starts + _OFFSET,
        replace(rule, mask=moved),
        steps=_STEPS,
        gradient=lambda k, w: shape(valley.gradient(w - _OFFSET)),
        height=lambda w: valley.value(w - _OFFSET),
    )


def _low_precision(valley: RiverValley, starts: np.ndarray, rule: Coefficients, dtype: torch.dtype) -> np.ndarray:
    """Heights of runs with state and update in ``dtype``; gradient and mask use the rounded point."""
    mask = rule.mask
    wide = torch.float64

    def rounded_mask(k: int, w: Array) -> Projector:
        flat = (mask or hessian_mask(valley))(k, w.to(wide) - torch.as_tensor(_OFFSET))
        return lambda x: flat(x.to(wide)).to(dtype)

    low = replace(rule, eta=rule.eta.to(dtype), mask=None if mask is None else rounded_mask)
    state = UpdateState(torch.as_tensor(starts + _OFFSET).to(dtype), torch.zeros(starts.shape, dtype=dtype))
    for k in range(_STEPS):
        g = valley.gradient(state.w.to(wide) - torch.as_tensor(_OFFSET)).to(dtype)
        state = low.step(k, state, g)
    heights: np.ndarray = valley.value(state.w.to(wide) - torch.as_tensor(_OFFSET))[None].numpy()
    return heights
