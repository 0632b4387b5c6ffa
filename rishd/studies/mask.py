r"""The mask study: how soft, stale or wrong the sharp/flat mask may be on a curved river valley.

Along Hessian eigenvectors with eigenvalue λ, the soft mask has weights
:math:`q(\lambda) = [1 + (\lambda/\tau)^{1/s}]^{-1}` (1 for λ ≤ 0): s → 0 is the hard mask at the threshold τ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from discretizations.stability import stable_limit
from riemannian_ode.arrays import matvec
from riemannian_ode.flow import Array, Projector
from rishd.record import Record
from rishd.studies.descent import (
    Coefficients,
    Mask,
    descend,
    graded_valley,
    largest_settled,
    sharpest_curvature,
    upstream_starts,
)
from toy_landscapes import RiverValley

ALPHA, CHI, BETA_FLAT = 0.1, 4.0, 5.0
_THRESHOLD = 0.16  # τ: the geometric mean of the floor's curvature and the flattest wall's
_SHARE = 0.15  # common learning rate relative to the base method's stability limit


@dataclass(frozen=True)
class MaskSweep:
    """Sweep of one fault of the mask over its size.

    Args:
        fault: The fault: Softness, cadence or error rate.
        sizes: Sizes, shape ``(k,)``: s; steps between refreshes (∞ for never); probability that a step swaps sharp and
            flat.
        height: Median over starts of f after the fixed number of steps at the common learning rate, shape ``(k,)``.
        stable: Largest stable learning rate over the base method's, shape ``(k,)``; infinite beyond the search range.
    """

    fault: str
    sizes: np.ndarray
    height: np.ndarray
    stable: np.ndarray


@dataclass(frozen=True)
class MaskStudy(Record):
    """Results of the study.

    Args:
        steps: Number of steps.
        eta: Common learning rate.
        base_height: Height of the base method at that rate.
        base_stable: Largest stable learning rate of the base method.
        chi: χ.
        beta_flat: β₂.
        sweeps: One sweep per fault.
    """

    steps: int
    eta: float
    base_height: float
    base_stable: float
    chi: float
    beta_flat: float
    sweeps: tuple[MaskSweep, ...]

    def tolerated(self, sweep: MaskSweep, quantity: Callable[[MaskSweep], np.ndarray], bound: float) -> float | None:
        """Largest size up to which a quantity stays at or above a bound; ``None`` if it never is."""
        good = quantity(sweep) >= bound
        count = len(good) if good.all() else int(np.argmin(good))
        return float(sweep.sizes[count - 1]) if count else None

    def gain(self, sweep: MaskSweep) -> np.ndarray:
        """Gain in height over the base method, relative to the exact mask's gain (1: no loss), shape ``(k,)``."""
        right = np.log(self.base_height / self.sweeps[0].height[0])
        gained: np.ndarray = np.log(self.base_height / sweep.height) / right
        return gained

    @property
    def answer(self) -> str:
        """The faults of the mask that keep half of the gain or of the learning rate."""
        half = 0.5 * float(self.sweeps[0].stable[0])
        gains = [self.tolerated(x, self.gain, 0.5) for x in self.sweeps]
        rates = [self.tolerated(x, lambda y: y.stable, half) for x in self.sweeps]
        exact = all(size in (None, x.sizes[0]) for x, size in zip(self.sweeps, gains, strict=True))
        return (
            f"The mask {'must' if exact else 'need not'} be exact: half of LITE's gain (in the logarithm of the "
            f"height) survives up to {self._sizes(gains)}, half of its learning rate up to {self._sizes(rates)}."
        )

    def _sizes(self, sizes: list[float | None]) -> str:
        """Each fault with its size."""
        *first, last = (f"{x.fault} {_size(size)}" for x, size in zip(self.sweeps, sizes, strict=True))
        return f"{', '.join(first)} or {last}"

    @property
    def conclusion(self) -> str:
        """Gain and largest stable learning rate with the exact mask."""
        exact = self.sweeps[0]
        return (
            f"With the exact mask LITE (χ = {self.chi:g}, β₂ = {self.beta_flat:g}) reaches {exact.height[0]:.2g} after "
            f"{self.steps} steps and the base method {self.base_height:.2g}. Its largest stable learning "
            f"rate is {exact.stable[0]:.2f} of the base method's."
        )

    def table(self) -> list[dict[str, str]]:
        """One row per fault and size."""
        return [
            {
                "fault": sweep.fault,
                "size": _size(float(size)),
                "height": f"{height:.3g}",
                "share of the gain": f"{gain:.2f}",
                "stable η / base": "all" if np.isinf(stable) else f"{stable:.2f}",
            }
            for sweep in self.sweeps
            for size, height, gain, stable in zip(
                sweep.sizes, sweep.height, self.gain(sweep), sweep.stable, strict=True
            )
        ]


def _size(value: float | None) -> str:
    return "none" if value is None else "never refreshed" if np.isinf(value) else f"{value:g}"


def mask_study(*, quick: bool = False, seed: int = 0) -> MaskStudy:
    """Sweep the three faults.

    Args:
        quick: Whether to use fewer starts, sizes and learning rates.
        seed: Seed of the starts and the errors.
    """
    valley, steps = graded_valley(), 120
    starts = upstream_starts(valley, 2 if quick else 12, seed)
    limit = float(stable_limit(ALPHA, 0.0)) / sharpest_curvature(valley)
    eta = _SHARE * limit
    ladder = limit * np.geomspace(0.02, 1.3, 25 if quick else 61)
    base = Coefficients(eta=np.append(ladder, eta)[:, None], alpha=ALPHA)
    heights = descend(valley, _copies(starts, len(ladder) + 1), base, steps=3 * steps)
    base_stable = largest_settled(heights[..., :-1], ladder)
    sizes = {
        "softness": np.array([0.0, 0.25, 0.5, 1.0, 2.0] if quick else [0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0]),
        "cadence": np.array([1, 5, 20, 80, np.inf] if quick else [1, 2, 5, 10, 20, 40, 80, 160, np.inf]),
        "error rate": np.array([0.0, 0.02, 0.1, 0.5] if quick else [0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]),
    }
    sweeps = []
    for fault, values in sizes.items():
        rates = np.append(ladder, eta)
        w = np.broadcast_to(starts[:, None, None], (len(starts), len(values), len(rates), valley.dimension)).copy()
        rule = Coefficients(
            eta=rates[:, None],
            alpha=ALPHA,
            chi=CHI,
            beta_flat=BETA_FLAT,
            mask=faulty_mask(valley, fault, values[:, None], seed=seed),
        )
        heights = descend(valley, w, rule, steps=3 * steps)
        stable = [largest_settled(heights[:, :, k, :-1], ladder) / base_stable for k in range(len(values))]
        sweeps.append(MaskSweep(fault, values, np.median(heights[steps, :, :, -1], axis=0), np.array(stable)))
    base_height = float(np.median(descend(valley, starts, Coefficients(eta=eta, alpha=ALPHA), steps=steps)[-1]))
    return MaskStudy(steps, eta, base_height, base_stable, CHI, BETA_FLAT, tuple(sweeps))


def _copies(starts: np.ndarray, count: int) -> np.ndarray:
    return np.repeat(starts[:, None], count, axis=1)


def faulty_mask(valley: RiverValley, fault: str, size: np.ndarray, *, seed: int) -> Mask:
    """The Hessian's mask with one fault.

    Args:
        valley: The landscape.
        fault: Softness, cadence or error rate.
        size: Its size, broadcasts against the ensemble.
        seed: Seed of the errors, which are drawn for every member and step.
    """
    rng = np.random.default_rng(seed)
    held: dict[str, Any] = {}

    def mask(k: int, w: Array) -> Projector:
        stale = fault == "cadence" and "vectors" in held
        if stale:  # members due for a refresh get the new eigenvectors
            due = np.broadcast_to(k % np.where(np.isinf(size), k + 1, size) == 0, w.shape[:-1])
            if not due.any():
                return _weighted(held["vectors"], held["weights"])
            held["vectors"][due], held["weights"][due] = _eigen(valley, w[due], 0.0)
            return _weighted(held["vectors"], held["weights"])
        vectors, weights = _eigen(valley, w, size if fault == "softness" else 0.0)
        if fault == "error rate":
            swapped = rng.random(w.shape[:-1]) < size
            weights = np.where(swapped[..., None], 1.0 - weights, weights)
        held.update(vectors=vectors, weights=weights)
        return _weighted(vectors, weights)

    return mask


def _eigen(valley: RiverValley, w: np.ndarray, softness: Any) -> tuple[np.ndarray, np.ndarray]:
    """Hessian eigenvectors and the mask's weights q(λ)."""
    values, vectors = np.linalg.eigh(valley.hessian(w))
    distance = np.log(np.maximum(values, 1e-300) / _THRESHOLD)
    sharpness = np.asarray(softness, dtype=np.float64)[..., None]
    exponent = np.clip(distance / np.where(sharpness > 0, sharpness, 1e-300), -50.0, 50.0)
    return vectors, 1.0 / (1.0 + np.exp(exponent))


def _weighted(vectors: np.ndarray, weights: np.ndarray) -> Projector:
    """x ↦ V diag(q) Vᵀx."""
    transposed = np.swapaxes(vectors, -1, -2)
    return lambda x: matvec(vectors, weights * matvec(transposed, x))
