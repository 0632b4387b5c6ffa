"""The schemes study: stability and speed of discretisations of the flow at h = 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from discretizations.curvature_schemes import CURVATURE_SCHEMES
from discretizations.scheme_modes import all_schemes, decay_rate, slow_rate, stable_limit, step_matrix
from discretizations.schemes import ONE_GRADIENT_SCHEMES
from rishd.record import Record
from rishd.studies.descent import FAR, curved_valley, largest_settled, sharpest_curvature, upstream_starts
from toy_landscapes import RiverValley

OPTIMIZER = "semi-implicit-euler"
_MEASURED_BETAS = (-0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
_GAIN = 1.2  # over the optimizers' scheme, below which a difference is no reason to change
_SHARE = 0.8  # learning rate relative to each scheme's limit at which speeds on the valley are compared
_FALL = 0.9  # target relative to the initial height
_FLOOR_TIMES = 12.0  # length of a run, in units of the slowest run's time scale
_SETTLED = 0.1  # a run has converged if its last fifth stays below this fraction of the initial height


@dataclass(frozen=True)
class LimitRow:
    """Largest stable κ at one β, in closed form and by bisection on the eigenvalues of the step."""

    scheme: str
    beta: float
    closed_form: float
    measured: float


@dataclass(frozen=True)
class ValleyRow:
    """A scheme on the curved river valley.

    Args:
        scheme: Name.
        beta: β in the theory's units.
        predicted: Learning rate at which the largest curvature on the river has the largest stable κ; infinite for
            curvature schemes.
        measured: Largest learning rate up to which all runs converge; 0 if runs fail even at the smallest rate tried
            (0.8 of the prediction; for curvature schemes 0.3 of the optimizers' rule's), infinite if all converge.
        steps: Median number of steps to lose 90% of the height at 0.8 of the predicted limit (for curvature schemes, of
            the optimizers' rule's limit); infinite if half of the runs do not.
    """

    scheme: str
    beta: float
    predicted: float
    measured: float
    steps: float


@dataclass(frozen=True)
class SchemeStudy(Record):
    """Results of the study.

    Args:
        alpha: α.
        nesterov: β of Nesterov's form, 1/(1 − α).
        beta: Values of β, shape ``(b,)``.
        limits: Largest stable κ of the schemes with one gradient over β, each of shape ``(b,)``.
        kappa: Values of κ, shape ``(k,)``.
        rates: Decay rate over κ at β = 0 and at ``nesterov``, by scheme, each of shape ``(2, k)``.
        rows: Limits in closed form and by measurement.
        valley: Runs on the valley.
    """

    alpha: float
    nesterov: float
    beta: np.ndarray
    limits: dict[str, np.ndarray]
    kappa: np.ndarray
    rates: dict[str, np.ndarray]
    rows: tuple[LimitRow, ...]
    valley: tuple[ValleyRow, ...]

    def limit(self, scheme: str, beta: float) -> float:
        """Largest stable κ in closed form."""
        return float(stable_limit(scheme, self.alpha, beta))

    def reach(self, scheme: str, beta: float) -> float:
        """Rate of the slowest mode times the condition number at the stability limit: slow rate · largest stable κ."""
        return float(slow_rate(scheme, self.alpha, beta)) * self.limit(scheme, beta)

    @property
    def answer(self) -> str:
        """Whether another scheme beats the optimizers' own."""
        reach = {name: self.reach(name, 0.0) / self.reach(OPTIMIZER, 0.0) for name in ONE_GRADIENT_SCHEMES}
        top = max(reach, key=lambda name: reach[name])
        verdict = "No other scheme is worth a change" if reach[top] < _GAIN else "Another scheme is faster"
        gained = 100 * (reach[top] - 1)
        return (
            f"{verdict}: of the schemes with one gradient per step {top} is the fastest at its limit, {gained:.0f}% "
            f"over the optimizers' {OPTIMIZER}, which gains as much if it is retuned. At equal κ slow modes decay "
            f"equally fast in all, to {100 * self.slow_rate_spread:.1g}%."
        )

    @property
    def conclusion(self) -> str:
        """The most stable and the fastest scheme, with this study's numbers."""
        limits = {name: self.limit(name, 0.0) for name in ONE_GRADIENT_SCHEMES}
        top = max(limits, key=lambda name: limits[name])
        late = self.limit("explicit-euler", self.nesterov) / self.limit(OPTIMIZER, self.nesterov)
        contraction = {name: float(self.rates[name][0].max()) for name in ONE_GRADIENT_SCHEMES}
        quick = max(contraction, key=lambda name: contraction[name])
        gain = self.reach(top, 0.0) / self.reach(OPTIMIZER, 0.0) - 1
        return (
            f"Stability at α = {self.alpha:g}: with one gradient per step and β = 0 {top} has the largest stable κ, "
            f"{limits[top]:.3g} against {limits[OPTIMIZER]:.3g} of the optimizers' {OPTIMIZER} and "
            f"{limits['explicit-euler']:.3g} of explicit-euler, but at Nesterov's β = {self.nesterov:.3g} the limit of "
            f"explicit-euler is {late:.2g} times the optimizers'. Both are the optimizers' rule with other α, β and η. "
            f"Speed: at equal κ all schemes have the same slow rate (to {100 * self.slow_rate_spread:.1g}%), and "
            f"{quick} contracts oscillations fastest ({contraction[quick]:.4f} per step, {top} "
            f"{contraction[top]:.4f}), so what {top} gains on ill-conditioned problems is its limit, "
            f"{100 * gain:.0f}%, which a retuned {OPTIMIZER} gains too."
        )

    @property
    def slow_rate_spread(self) -> float:
        """Ratio of the largest to the smallest slow rate of all schemes at β = 0, minus 1."""
        rates = [float(slow_rate(name, self.alpha, 0.0)) for name in all_schemes()]
        return max(rates) / min(rates) - 1.0

    def table(self) -> list[dict[str, str]]:
        """One row per β and scheme: limit, reach, and results on the valley."""

        def number(value: float, zero: str, infinite: str) -> str:
            return zero if value == 0 else infinite if np.isinf(value) else f"{value:.3g}"

        return [
            {
                "β": f"{run.beta:.3g}",
                "scheme": run.scheme,
                "needs": "gradient" if run.scheme in ONE_GRADIENT_SCHEMES else "gradient, curvature",
                "largest stable κ": number(self.limit(run.scheme, run.beta), "0", "none"),
                "slow rate × it": number(self.reach(run.scheme, run.beta), "0", ""),
                "valley: η predicted": number(run.predicted, "0", "any"),
                "η measured": number(run.measured, "none settles", "all settle"),
                "steps to fall 90%": number(run.steps, "0", "never"),
            }
            for run in self.valley
        ]


def scheme_study(*, alpha: float = 0.1, quick: bool = False, seed: int = 0) -> SchemeStudy:
    """Evaluate closed forms over β and κ, numerical limits, and runs on a curved river valley.

    Args:
        alpha: α in (0, 1).
        quick: Whether to use coarser grids and fewer starts.
        seed: Seed of the random starts on the valley.
    """
    nesterov = 1.0 / (1.0 - alpha)
    beta = np.linspace(0.0, 4.0, 161 if quick else 801)
    kappa = np.geomspace(1e-3, 30.0, 200 if quick else 800)
    betas = np.array([[0.0], [nesterov]])
    return SchemeStudy(
        alpha,
        nesterov,
        beta,
        {name: stable_limit(name, alpha, beta) for name in ONE_GRADIENT_SCHEMES},
        kappa,
        {name: decay_rate(name, kappa, alpha, betas) for name in all_schemes()},
        tuple(
            LimitRow(name, b, float(stable_limit(name, alpha, b)), measured_limit(name, alpha, b))
            for name in ONE_GRADIENT_SCHEMES
            for b in _MEASURED_BETAS
        ),
        tuple(_valley_rows(alpha, (0.0, nesterov), quick=quick, seed=seed)),
    )


def measured_limit(scheme: str, alpha: float, beta: float) -> float:
    """Largest κ below which the step's eigenvalues lie inside the unit circle (first crossing, by bisection).

    Args:
        scheme: Name of a scheme with one gradient.
        alpha: α.
        beta: β.
    """

    def is_stable(kappa: Any) -> np.ndarray:
        eigenvalues = np.linalg.eigvals(step_matrix(scheme, kappa, alpha, beta))
        return np.asarray(np.abs(eigenvalues).max(axis=-1) < 1.0)

    ladder = np.geomspace(1e-4, 1e3, 2001)
    first = int(np.argmin(is_stable(ladder)))
    low, high = float(ladder[first - 1]), float(ladder[first])
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_stable(middle) else (low, middle)
    return low


def _valley_rows(alpha: float, betas: tuple[float, ...], *, quick: bool, seed: int) -> list[ValleyRow]:
    valley = curved_valley()
    starts = upstream_starts(valley, 2 if quick else 8, seed)
    sharpest = sharpest_curvature(valley)
    rows = []
    for beta in betas:
        for name in all_schemes():
            predicted = float(stable_limit(name, alpha, beta)) / sharpest
            unit = predicted if np.isfinite(predicted) else float(stable_limit(OPTIMIZER, alpha, beta)) / sharpest
            grid = np.arange(0.8, 1.2, 0.01) if np.isfinite(predicted) else np.geomspace(0.3, 30.0, 21)
            ladder = unit * np.append(grid, _SHARE)
            slowest = float(slow_rate(name, alpha, beta)) * ladder.min() * float(valley.floor.min())
            steps = int(np.clip(_FLOOR_TIMES / slowest, 400, 8000))
            heights = _heights(valley, name, starts, ladder, alpha, beta, steps=steps)
            measured = largest_settled(heights[:, :, :-1], ladder[:-1], part=_SETTLED)
            fallen = heights[:, :, -1] < (1 - _FALL) * heights[0, :, -1]
            median = float(np.median(np.where(fallen.any(0), fallen.argmax(0), np.inf)))
            rows.append(ValleyRow(name, beta, predicted, measured, median))
    return rows


def _heights(
    valley: RiverValley, name: str, starts: np.ndarray, eta: np.ndarray, alpha: float, beta: float, *, steps: int
) -> np.ndarray:
    """f along runs from every start at every learning rate, shape ``(steps + 1, starts, rates)``."""
    plain = name in ONE_GRADIENT_SCHEMES
    rates: Any = eta[:, None] if plain else torch.as_tensor(eta)[:, None]
    w: Any = np.repeat(starts[:, None], len(eta), axis=1)
    w = w if plain else torch.as_tensor(w)
    m, heights = 0.0 * w, [valley.value(w)]
    for _ in range(steps):
        g = valley.gradient(w)
        if plain:
            w, m = ONE_GRADIENT_SCHEMES[name].step(w, m, g, alpha=alpha, eta=rates, beta=beta)
        else:
            # What an optimizer could compute: the diagonal of the Hessian without its negative part.
            curvature = torch.diagonal(valley.hessian(w), dim1=-2, dim2=-1).clamp(min=0.0)
            w, m = CURVATURE_SCHEMES[name].step(w, m, g, curvature, alpha=alpha, eta=rates, beta=beta)
        w, m = w.clip(-FAR, FAR), m.clip(-FAR, FAR)  # diverged runs stay finite, but high
        heights.append(valley.value(w))
    return np.stack([np.asarray(height) for height in heights])
