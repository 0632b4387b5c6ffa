r"""The noise study: LITE's gain over the base method under gradient noise, with constant and annealed learning rates.

On the curved valley, noise with standard deviation σ per coordinate represents batches of :math:`1/\sigma^2` samples
whose gradients have variance 1. On a linear regression the noise comes from real mini-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from discretizations.stability import stable_limit, step_matrix
from lite.schedules import learning_rate_factor
from rishd.record import Record
from rishd.studies.descent import (
    Coefficients,
    curved_valley,
    descend,
    hessian_mask,
    sharpest_curvature,
    upstream_starts,
)
from toy_landscapes import GaussianNoise, Landscape, LinearRegression, MiniBatches, RiverValley, StochasticGradient

ALPHA, CHI, BETA_FLAT = 0.1, 4.0, 5.0
SCHEDULES = ("constant", "annealed")
_TAIL = 0.05  # final fraction of the steps over which the height is averaged
_SAMPLES, _INPUT_SPECTRUM = 64, (8.0, 4.0, 0.02, 0.01, 0.005)  # of the regression: two sharp and three flat directions
_NOTICED = 1.2  # smallest gain that is called one
_SHARE = 0.1  # learning rate of the comparison at equal η, relative to the stability limit


@dataclass(frozen=True)
class NoiseSweep:
    """Results of one schedule for each σ.

    Args:
        schedule: A key of :data:`SCHEDULES`.
        base: Mean final height of the base method at its best learning rate, shape ``(k,)``.
        lite: LITE's at its own best learning rate, shape ``(k,)``.
        base_eta: Best learning rates of the base method, shape ``(k,)``.
        lite_eta: LITE's best learning rates.
        equal_base: Mean final height of the base method at the common learning rate, shape ``(k,)``.
        equal_lite: LITE's height at the common learning rate.
    """

    schedule: str
    base: np.ndarray
    lite: np.ndarray
    base_eta: np.ndarray
    lite_eta: np.ndarray
    equal_base: np.ndarray
    equal_lite: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """Base method's height over LITE's, each at its best learning rate."""
        ratio: np.ndarray = self.base / self.lite
        return ratio

    @property
    def equal_gain(self) -> np.ndarray:
        """Base method's height over LITE's at the common learning rate."""
        ratio: np.ndarray = self.equal_base / self.equal_lite
        return ratio


@dataclass(frozen=True)
class BatchSweep:
    """Results of one schedule for each batch size, on a linear regression.

    Args:
        schedule: A key of :data:`SCHEDULES`.
        base: Mean final height of the base method at its best learning rate, shape ``(k,)``.
        lite: LITE's at its own best learning rate, shape ``(k,)``.
    """

    schedule: str
    base: np.ndarray
    lite: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """Base method's height over LITE's."""
        ratio: np.ndarray = self.base / self.lite
        return ratio


@dataclass(frozen=True)
class NoiseStudy(Record):
    """Results of the study.

    Args:
        steps: Number of steps.
        eta: Common learning rate.
        sigma: σ, shape ``(k,)``.
        floor_ratio: Base method's stationary height over LITE's at the common learning rate: claim C10's covariance at
            the bottom of the valley, where it is a quadratic.
        sweeps: One per schedule.
        batches: Batch sizes of the regression, shape ``(k,)``.
        batch_sweeps: One per schedule.
    """

    steps: int
    eta: float
    sigma: np.ndarray
    floor_ratio: float
    sweeps: tuple[NoiseSweep, ...]
    batches: np.ndarray
    batch_sweeps: tuple[BatchSweep, ...]

    @property
    def answer(self) -> str:
        """Whether LITE's gain survives gradient noise."""
        least, most = (max(sweep.gain[k] for sweep in self.sweeps) for k in (0, -1))
        verdict = "Yes, LITE's gain survives noise" if most >= _NOTICED else "No, strong noise takes LITE's gain away"
        return (
            f"{verdict}: each at its best learning rate and schedule, it ends {least:.2g} times lower than the base "
            f"method at the least noise and {most:.3g} times at the most."
        )

    @property
    def conclusion(self) -> str:
        """How the gain depends on noise and schedule."""
        constant, annealed = self.sweeps
        parts = [
            f"{sweep.gain[0]:.3g} at σ = {self.sigma[0]:g} and {sweep.gain[-1]:.3g} at σ = {self.sigma[-1]:g} "
            f"({sweep.schedule})"
            for sweep in self.sweeps
        ]
        return (
            f"Each at its best learning rate, LITE ends lower than the base method by the factor "
            f"{' and '.join(parts)}; on mini-batches of a regression by {self._batch_text()}. "
            f"At the same constant η = {self.eta:.3g} the factor falls to {constant.equal_gain[-1]:.2g} at the largest "
            f"σ (the stationary floors of claim C10 alone: {self.floor_ratio:.2g}) and with annealing to "
            f"{annealed.equal_gain[-1]:.2g}."
        )

    def _batch_text(self) -> str:
        return " and ".join(
            f"{sweep.gain[0]:.3g} at batch size {self.batches[0]} and {sweep.gain[-1]:.3g} at {self.batches[-1]} "
            f"({sweep.schedule})"
            for sweep in self.batch_sweeps
        )

    def table(self) -> list[dict[str, str]]:
        """One row per schedule and σ."""
        return [
            {
                "schedule": sweep.schedule,
                "σ": f"{self.sigma[k]:g}",
                "batch size": f"{self.sigma[k] ** -2:.3g}",
                "base": f"{sweep.base[k]:.3g} at η = {sweep.base_eta[k]:.2g}",
                "LITE": f"{sweep.lite[k]:.3g} at η = {sweep.lite_eta[k]:.2g}",
                "gain": f"{sweep.gain[k]:.3g}",
                "gain at equal η": f"{sweep.equal_gain[k]:.3g}",
            }
            for sweep in self.sweeps
            for k in range(len(self.sigma))
        ]


def noise_study(*, quick: bool = False, seed: int = 0) -> NoiseStudy:
    """Run both methods under growing noise, with tuned and with equal learning rates.

    Args:
        quick: Whether to use fewer starts, learning rates and σ.
        seed: Seed of starts and noise.
    """
    # The floor is so flat that the base method has not converged even at the largest stable learning rate.
    valley, steps = curved_valley(floor=0.005), 300
    starts = upstream_starts(valley, 8 if quick else 64, seed)
    limit = float(stable_limit(ALPHA, 0.0)) / sharpest_curvature(valley)
    eta = _SHARE * limit
    ladder = limit * np.geomspace(1e-3, 0.8, 12 if quick else 28)
    sigma = np.array([0.01, 0.1, 1.0]) if quick else np.array([0.01, 0.03, 0.1, 0.3, 1.0])
    sweeps = []
    for schedule in SCHEDULES:
        base, fast = (
            np.array(
                [
                    _final_heights(
                        valley, starts, np.append(ladder, eta), GaussianNoise(s**2), schedule, lite, steps, seed
                    )
                    for s in sigma
                ]
            )
            for lite in (False, True)
        )
        sweeps.append(
            NoiseSweep(
                schedule,
                base[:, :-1].min(1),
                fast[:, :-1].min(1),
                ladder[base[:, :-1].argmin(1)],
                ladder[fast[:, :-1].argmin(1)],
                base[:, -1],
                fast[:, -1],
            )
        )
    batches = np.array([_SAMPLES, 8, 1] if quick else [_SAMPLES, 16, 4, 1])
    batch_sweeps = _batch_sweeps(batches, members=4 if quick else 16, rates=8 if quick else 16, steps=steps, seed=seed)
    return NoiseStudy(steps, eta, sigma, _floor_ratio(valley, eta), tuple(sweeps), batches, batch_sweeps)


def _batch_sweeps(batches: np.ndarray, *, members: int, rates: int, steps: int, seed: int) -> tuple[BatchSweep, ...]:
    """Run both methods on a linear regression with mini-batches, each at its best learning rate."""
    regression = LinearRegression.synthetic(
        [1.0], _INPUT_SPECTRUM, samples=_SAMPLES, noise=0.3, seed=seed, sharp_rank=2
    )
    ladder = float(stable_limit(ALPHA, 0.0)) / _INPUT_SPECTRUM[0] * np.geomspace(1e-3, 0.8, rates)
    starts = np.zeros((members, regression.dimension))
    sweeps = []
    for schedule in SCHEDULES:
        base, fast = (
            np.array(
                [
                    _final_heights(regression, starts, ladder, MiniBatches(int(b)), schedule, lite, steps, seed).min()
                    - regression.value(regression.minimizer)
                    for b in batches
                ]
            )
            for lite in (False, True)
        )
        sweeps.append(BatchSweep(schedule, base, fast))
    return tuple(sweeps)


def stationary_height(curvature: float, eta: float, alpha: float, beta: float) -> float:
    """Mean height of one mode under unit gradient noise: the discrete Lyapunov equation of its step (claim C10).

    Args:
        curvature: λ.
        eta: η, times χ if the mode is flat.
        alpha: α.
        beta: β.
    """
    kick = eta * np.array([-(1.0 + beta), 1.0])
    covariance = solve_discrete_lyapunov(step_matrix(eta * curvature, alpha, beta), np.outer(kick, kick))
    return 0.5 * curvature * float(covariance[0, 0])


def _floor_ratio(valley: RiverValley, eta: float) -> float:
    flat, sharp = np.linalg.eigvalsh(valley.hessian(np.zeros(2)))
    walls = stationary_height(sharp, eta, ALPHA, 0.0)
    base = walls + stationary_height(flat, eta, ALPHA, 0.0)
    return base / (walls + stationary_height(flat, CHI * eta, ALPHA, BETA_FLAT))


def _final_heights(
    landscape: Landscape,
    starts: np.ndarray,
    rates: np.ndarray,
    noise: GaussianNoise | MiniBatches,
    schedule: str,
    lite: bool,
    steps: int,
    seed: int,
) -> np.ndarray:
    """Mean height over the last steps and all starts, shape ``(rates,)``."""
    noisy = StochasticGradient(landscape, noise, generator=np.random.default_rng(seed + 1))

    def eta(k: int) -> Any:
        if schedule == "constant":
            return rates[:, None]
        return rates[:, None] * learning_rate_factor(
            k, schedule="wsd", warmup_steps=0, total_steps=steps, min_ratio=0.0
        )

    rule = Coefficients(eta=eta, alpha=ALPHA)
    if lite:
        rule = Coefficients(eta=eta, alpha=ALPHA, chi=CHI, beta_flat=BETA_FLAT, mask=hessian_mask(landscape))
    w = np.repeat(starts[:, None], len(rates), axis=1)
    heights = descend(noisy, w, rule, steps=steps)
    tail: np.ndarray = heights[-max(1, round(_TAIL * steps)) :].mean((0, 1))
    return tail
