r"""The best χ(t) for a flat mode under gradient noise at a given horizon.

A mode's second moments satisfy exact recursions, so no paths are simulated: with :math:`y = (w, \eta a\,m)`,
:math:`S_{k+1} = M_kS_kM_k^\top + \sigma^2b_kb_k^\top`, where χ multiplies the position's row of M and b. In the slow
limit the flow's loss ℓ satisfies :math:`\dot\ell = -2s\chi(\ell - \chi\ell_\infty)`, with the base method's rate s and
floor :math:`\ell_\infty` (claim C20). The best χ is :math:`\ell/2\ell_\infty`, so :math:`\chi \propto 1/(t + t_0)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from discretizations.noise import flow_loss_floor, loss_floor
from lite.schedules import learning_rate_factor
from rishd.record import Record

ALPHA, BETA, KAPPA = 0.05, 1.0, 2e-4  # α and κ of the mode: Muon's momentum; slow, like flat directions
SCHEDULES: tuple[Literal["constant", "cosine", "wsd"], ...] = ("constant", "cosine", "wsd")
_SWEEPS = 60  # sweeps of coordinate descent over χ(t); with 12, χ has waves and the loss is 0.6% larger


@dataclass(frozen=True)
class FloorRow:
    """Floors at one χ, learning rate and batch size.

    Args:
        chi: χ.
        eta: Learning rate relative to the mode's above.
        batch: Batch size; the gradient's variance is 1 over it.
        flow: Floor of claim C20, in units of a.
        rule: Floor of claim C10, in units of a.
    """

    chi: float
    eta: float
    batch: int
    flow: float
    rule: float


@dataclass(frozen=True)
class BestChi:
    """The best χ(t) at one noise and horizon.

    Args:
        noise: The base method's floor over the loss at the start.
        horizon: 2sT, the number of factors e by which the base method's loss would fall without noise.
        peaks: Best peak of each of :data:`SCHEDULES`.
        losses: Final loss with these peaks, relative to the initial loss.
        best: χ(t) by coordinate descent started from the formula, shape ``(steps,)``.
        best_loss: Its final loss.
        formula: χ(t) of :func:`slow_limit_chi`, shape ``(steps,)``.
        formula_loss: Its final loss.
    """

    noise: float
    horizon: float
    peaks: np.ndarray
    losses: np.ndarray
    best: np.ndarray
    best_loss: float
    formula: np.ndarray
    formula_loss: float


@dataclass(frozen=True)
class ScheduleStudy(Record):
    """Results of the study.

    Args:
        largest: Largest χ allowed.
        floors: Floors of C20 and C10.
        cases: One per noise and horizon.
    """

    largest: float
    floors: tuple[FloorRow, ...]
    cases: tuple[BestChi, ...]

    @property
    def answer(self) -> str:
        """Which of the schedules of training comes nearest to the best χ(t)."""
        worst = self._losses().max(0)
        best = int(worst.argmin())
        return (
            f"The best χ(t) of a flat mode stays high until the loss nears the noise floor and then falls like 1/t; of "
            f"the schedules of training {SCHEDULES[best]} comes nearest, within {worst[best]:.2g} times the best loss."
        )

    def _losses(self) -> np.ndarray:
        """Of the schedules over the best, shape ``(cases, schedules)``."""
        return np.stack([case.losses / case.best_loss for case in self.cases])

    @property
    def conclusion(self) -> str:
        """The form of the best χ(t), and the loss of the schedules used in training."""
        losses = self._losses()
        formula = np.array([case.formula_loss / case.best_loss for case in self.cases])
        apart = max(row.rule / row.flow for row in self.floors) - 1.0
        texts = ", ".join(
            f"{low:.2g} to {high:.2g} with {name}"
            for name, low, high in zip(SCHEDULES, losses.min(0), losses.max(0), strict=True)
        )
        return (
            "Once it falls, the best χ(t) is half the ratio of the loss to the base method's floor. This formula ends "
            f"within {100 * (float(np.median(formula)) - 1):.2g}% of the best loss that coordinate descent found in "
            f"half of the cases, and at {formula.max():.2g} times it in the worst, of least noise, where momentum "
            f"overshoots. The schedules of training, each at its best peak, end at {texts} times the best loss. "
            f"{self._winners}. The floors of the flow (C20) and of the update rule (C10) differ by at most "
            f"{100 * apart:.2g}% in flat modes."
        )

    @property
    def _winners(self) -> str:
        quiet, noisy = self._best_of(min), self._best_of(max)
        if quiet == noisy:
            return f"Of the three, {quiet} is best at the least and at the most noise"
        return f"Of the three, {quiet} is best at the least noise, and {noisy} at the most"

    def _best_of(self, which: Callable[[Iterable[float]], float]) -> str:
        """The schedule with the lowest final loss at the smallest or largest noise, averaged over the horizons."""
        noise = which(case.noise for case in self.cases)
        losses = np.stack([case.losses / case.best_loss for case in self.cases if case.noise == noise])
        return SCHEDULES[int(losses.mean(0).argmin())]


def schedule_study(*, quick: bool = False) -> ScheduleStudy:
    """The best χ(t), and the best constant, cosine and wsd schedules, over noise and horizon.

    Args:
        quick: Whether to use fewer cases and steps.
    """
    steps, largest = (150, 20.0) if quick else (600, 20.0)
    noises = (1e-3, 0.1) if quick else (1e-4, 1e-3, 1e-2, 0.1)
    horizons = (1.0,) if quick else (1.0, 5.0)
    cases = [_best(noise, horizon, steps, largest) for horizon in horizons for noise in noises]
    floors = [
        FloorRow(chi, eta, batch, *_floors(chi, eta, batch))
        for batch in (1, 16)
        for eta in (1.0, 4.0)
        for chi in (1.0, 4.0)
    ]
    return ScheduleStudy(largest, tuple(floors), tuple(cases))


def _floors(chi: float, eta: float, batch: int) -> tuple[float, float]:
    mode = chi * eta * KAPPA, ALPHA, BETA
    settings = {"rate": chi * eta, "sigma": batch**-0.5}
    return float(flow_loss_floor(*mode, **settings)), float(loss_floor(*mode, **settings))


def slow_limit_chi(noise: float, kappa: float, steps: int, largest: float) -> np.ndarray:
    r"""Best χ at each step in the slow limit, :math:`\min(\chi_{max}, \ell/2\ell_\infty)`, shape ``(steps,)``.

    Args:
        noise: The base method's floor over the loss at the start.
        kappa: κ of the mode.
        steps: Number of steps.
        largest: χ_max.
    """
    rate, loss, found = kappa * (1.0 / ALPHA + BETA), 1.0, []
    for _ in range(steps):
        chi = min(largest, loss / (2.0 * noise))
        floor = chi * noise
        loss = floor + (loss - floor) * float(np.exp(-2.0 * rate * chi))
        found.append(chi)
    return np.array(found)


def final_loss(chi: np.ndarray, noise: float, kappa: float) -> np.ndarray:
    """Mean loss of the mode after the update rule's steps, relative to the initial loss, from rest.

    Args:
        chi: χ at every step, shape ``(steps, *ensemble)``.
        noise: The base method's floor over the loss at the start.
        kappa: κ of the mode.
    """
    moments = _start(noise, kappa, chi.shape[1:])
    for x in chi:
        moments = _stepped(moments, x, kappa)
    return np.asarray(moments[..., 0, 0])


def _variance(noise: float, kappa: float) -> float:
    """σ² in units in which the mode starts at w = 1 and ηa = 1."""
    return noise * 0.5 * kappa / float(loss_floor(kappa, ALPHA, BETA, rate=1.0, sigma=1.0))


def _start(noise: float, kappa: float, shape: tuple[int, ...]) -> np.ndarray:
    """Second moments of (w, ηa·m, σξ), where ξ is the noise of the next step, shape ``(*shape, 3, 3)``."""
    return np.broadcast_to(np.diag([1.0, 0.0, _variance(noise, kappa)]), (*shape, 3, 3))


def _maps(kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """A step of (w, ηa·m, σξ) as M₀ + χM₁; the noise is redrawn with the same variance."""
    still = np.array([[1.0, 0.0, 0.0], [kappa, 1.0 - ALPHA, 1.0], [0.0, 0.0, 0.0]])
    moving = np.array([[-(1.0 + BETA) * kappa, -(1.0 - ALPHA), -(1.0 + BETA)], [0.0] * 3, [0.0] * 3])
    return still, moving


def _stepped(moments: np.ndarray, chi: np.ndarray, kappa: float) -> np.ndarray:
    still, moving = _maps(kappa)
    step = still + np.asarray(chi)[..., None, None] * moving
    after = step @ moments @ step.swapaxes(-1, -2)
    after[..., 2, 2] = moments[..., 2, 2]
    return np.asarray(after)


def _improved(chi: np.ndarray, noise: float, kappa: float, largest: float) -> np.ndarray:
    """χ(t) after sweeps of exact coordinate descent: the final loss is quadratic in the χ of one step."""
    (still, moving), steps = _maps(kappa), len(chi)
    for _ in range(_SWEEPS):
        costs = [np.diag([1.0, 0.0, 0.0])]
        for x in chi[:0:-1]:
            step = still + x * moving
            costs.append(step.T @ costs[-1] @ step)
        moments, found = _start(noise, kappa, ()), np.empty(steps)
        for k, cost in enumerate(reversed(costs)):
            linear = float(np.sum(cost * (moving @ moments @ still.T)))
            square = float(np.sum(cost * (moving @ moments @ moving.T)))
            found[k] = np.clip(-linear / square, 0.0, largest)
            moments = _stepped(moments, found[k], kappa)
        chi = found
    return chi


def _best(noise: float, horizon: float, steps: int, largest: float) -> BestChi:
    kappa = horizon / (2.0 * steps * (1.0 / ALPHA + BETA))
    peaks = np.geomspace(0.02, largest, 240)
    best_peaks, losses = [], []
    for name in SCHEDULES:
        ended = final_loss(shape_of(name, steps)[:, None] * peaks, noise, kappa)
        best_peaks.append(peaks[ended.argmin()])
        losses.append(ended.min())
    formula = slow_limit_chi(noise, kappa, steps, largest)
    best = _improved(formula, noise, kappa, largest)
    ended = final_loss(np.stack([best, formula], axis=1), noise, kappa)
    return BestChi(
        noise, horizon, np.array(best_peaks), np.array(losses), best, float(ended[0]), formula, float(ended[1])
    )


def shape_of(name: Literal["constant", "cosine", "wsd"], steps: int) -> np.ndarray:
    """A schedule of :data:`SCHEDULES` with peak 1, shape ``(steps,)``."""
    if name == "constant":
        return np.ones(steps)
    factors = [
        learning_rate_factor(k, schedule=name, warmup_steps=0, total_steps=steps, min_ratio=0.0) for k in range(steps)
    ]
    return np.array(factors)
