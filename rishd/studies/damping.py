"""The damping study: Hessian damping of flat, sharp or all directions on a valley, and the paper's ablation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from discretizations.stability import asymptotic_speedup, stable_limit
from rishd.record import Record
from rishd.studies.descent import (
    Coefficients,
    curved_valley,
    descend,
    hessian_mask,
    largest_settled,
    sharpest_curvature,
    upstream_starts,
)
from toy_landscapes import RiverValley

ALPHA = 0.1
CHI, BETA = 4.0, 5.0  # settings of the ablation: χ(1 + αβ) = 6
PLACES = {"all directions": (1.0, 1.0), "flat only": (0.0, 1.0), "sharp only": (1.0, 0.0)}  # β₁ and β₂ relative to β
_IN = {"all directions": "all directions", "flat only": "flat directions only", "sharp only": "sharp directions only"}
_SHARE = 0.08  # common learning rate relative to the undamped stability limit
_OWN_SHARE = 0.7  # learning rate relative to each rule's own limit
_SETTLING = 600  # steps after which a run must have converged
# Name ↦ (χ, β₁ relative to β, β₂ relative to β); LITE-L and LITE-H are the paper's ablations.
_ABLATION = {
    "base": (1.0, 0.0, 0.0),
    "χ only (LITE-L)": (CHI, 0.0, 0.0),
    "β₂ only (LITE-H)": (1.0, 0.0, 1.0),
    "β everywhere": (1.0, 1.0, 1.0),
    "χ and β everywhere": (CHI, 1.0, 1.0),
    "χ and β₂ (LITE)": (CHI, 0.0, 1.0),
}


@dataclass(frozen=True)
class DampingSweep:
    """Sweep of β in one place.

    Args:
        place: A key of :data:`PLACES`.
        stable: Largest stable learning rate for each β, shape ``(b,)``; infinite beyond the search range.
        predicted: Claim C6 with the largest curvature on the river, shape ``(b,)``.
        height: Median height after the fixed number of steps at the common learning rate, shape ``(b,)``.
    """

    place: str
    stable: np.ndarray
    predicted: np.ndarray
    height: np.ndarray


@dataclass(frozen=True)
class AblationRow:
    """Results for one rule of the ablation.

    Args:
        rule: Name of the rule.
        speedup: χ(1 + αβ₂) of flat modes at equal learning rate, claim C5.
        stable: Largest stable learning rate.
        heights: Median height over steps at the common learning rate, shape ``(steps + 1,)``.
        own_height: Final median height at 0.7 of the rule's own limit.
    """

    rule: str
    speedup: float
    stable: float
    heights: np.ndarray
    own_height: float


@dataclass(frozen=True)
class DampingStudy(Record):
    """Results of the study.

    Args:
        steps: Fixed number of steps.
        eta: Common learning rate.
        beta: Values of β, shape ``(b,)``.
        sweeps: One sweep per place.
        ablation: One row per rule.
    """

    steps: int
    eta: float
    beta: np.ndarray
    sweeps: tuple[DampingSweep, ...]
    ablation: tuple[AblationRow, ...]

    @property
    def answer(self) -> str:
        """Where Hessian damping should act."""
        keeps = {sweep.place: float(sweep.stable[-1] / sweep.stable[0]) for sweep in self.sweeps}
        best, *others = sorted(keeps, key=lambda place: -keeps[place])
        lowest = min(self.ablation, key=lambda row: row.own_height)
        rest = " and ".join(f"{100 * keeps[place]:.0f}% in {_IN[place]}" for place in others)
        return (
            f"Hessian damping belongs in {_IN[best]}: there β = {self.beta[-1]:g} leaves {100 * keeps[best]:.0f}% of "
            f"the stable learning rate, against {rest}. At {_OWN_SHARE:g} of each rule's own limit, {lowest.rule} ends "
            "lowest."
        )

    @property
    def conclusion(self) -> str:
        """How well C6 predicts the limit, and where each rule of the ablation ends."""
        everywhere = next(sweep for sweep in self.sweeps if sweep.place == "all directions")
        error = float(np.abs(everywhere.stable / everywhere.predicted - 1).max())
        finals = ", ".join(f"{row.rule} {_height(row.heights[-1])}" for row in self.ablation)
        own = ", ".join(f"{row.rule} {_height(row.own_height)}" for row in self.ablation)
        return (
            f"Claim C6 predicts the limit of damping everywhere to {100 * error:.0f}%. After {self.steps} steps at the "
            f"same η = {self.eta:.3g} the heights are: {finals}. At {_OWN_SHARE:g} of each rule's own limit: {own}."
        )

    def table(self) -> list[dict[str, str]]:
        """One row per rule of the ablation."""
        return [
            {
                "rule": row.rule,
                "flat speed-up (C5)": f"{row.speedup:.3g}",
                "largest stable η": f"{row.stable:.3g}",
                "height at common η": _height(row.heights[-1]),
                "height at 0.7 of own limit": f"{row.own_height:.3g}",
            }
            for row in self.ablation
        ]


def _height(value: float) -> str:
    return "diverges" if value > 1e3 else f"{value:.2g}"


def damping_study(*, quick: bool = False, seed: int = 0) -> DampingStudy:
    """Sweep β in each place; run the ablation.

    Args:
        quick: Whether to use fewer starts, β and learning rates.
        seed: Seed of the starts.
    """
    valley, steps = curved_valley(), 150
    starts = upstream_starts(valley, 3 if quick else 16, seed)
    sharpest = sharpest_curvature(valley)
    limit = float(stable_limit(ALPHA, 0.0)) / sharpest
    eta = _SHARE * limit
    beta = np.linspace(0.0, 8.0, 5 if quick else 17)
    ladder = limit * np.geomspace(0.04, 1.4, 40 if quick else 160)
    sweeps = []
    for place, (sharp, flat) in PLACES.items():
        rates = np.append(ladder, eta)
        rule = _rule(
            valley, rates[:, None], 1.0, sharp * beta[:, None, None], flat * beta[:, None, None], split=sharp != flat
        )
        heights = _run(valley, starts, (len(beta), len(rates)), rule, _SETTLING)
        stable = np.array([largest_settled(heights[:, :, i, :-1], ladder) for i in range(len(beta))])
        predicted = stable_limit(ALPHA, sharp * beta) / sharpest
        sweeps.append(DampingSweep(place, stable, predicted, np.median(heights[steps, :, :, -1], axis=0)))
    rows = []
    for name, (chi, sharp, flat) in _ABLATION.items():
        is_split = (chi, sharp) != (1.0, flat)
        rates = np.append(ladder, eta)
        rule = _rule(valley, rates[:, None], chi, sharp * BETA, flat * BETA, split=is_split)
        heights = _run(valley, starts, (len(rates),), rule, _SETTLING)
        stable_eta = largest_settled(heights[..., :-1], ladder)
        own = _rule(valley, _OWN_SHARE * min(stable_eta, ladder[-1]), chi, sharp * BETA, flat * BETA, split=is_split)
        rows.append(
            AblationRow(
                name,
                float(asymptotic_speedup(ALPHA, 0.0, flat * BETA, chi)),
                stable_eta,
                np.median(heights[: steps + 1, :, -1], axis=1),
                float(np.median(_run(valley, starts, (), own, steps)[-1])),
            )
        )
    return DampingStudy(steps, eta, beta, tuple(sweeps), tuple(rows))


def _rule(valley: RiverValley, eta: Any, chi: float, beta_sharp: Any, beta_flat: Any, *, split: bool) -> Coefficients:
    mask = hessian_mask(valley) if split else None
    return Coefficients(eta=eta, alpha=ALPHA, chi=chi, beta_sharp=beta_sharp, beta_flat=beta_flat, mask=mask)


def _run(
    valley: RiverValley, starts: np.ndarray, configurations: tuple[int, ...], rule: Coefficients, steps: int
) -> np.ndarray:
    """Heights from every start under every configuration, shape ``(steps + 1, starts, *configurations)``."""
    singles = starts.reshape(len(starts), *(1 for _ in configurations), valley.dimension)
    w = np.broadcast_to(singles, (len(starts), *configurations, valley.dimension)).copy()
    return descend(valley, w, rule, steps=steps)
