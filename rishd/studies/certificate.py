r"""The certificate study: choosing χ, β₂ and the sharp rank d_s from curvature, against a grid search on a valley.

A rule gives the largest κ it allows, ``limit(α, β)``: C9's for certified descent, C6's for linear stability. With the
flat curvature :math:`L_f(d_s)` that leaves :math:`\chi(\beta_2) = \text{limit}(\alpha, \beta_2)/(\eta L_f)`; β₂ and
d_s are those whose slowest mode at the end of the valley contracts fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from discretizations.stability import descent_limit, spectral_radius, stable_limit
from riemannian_ode.flow import Array, Projector
from riemannian_ode.split import complement
from rishd.probing.split_curvature import LIMITS
from rishd.record import Record
from rishd.studies.descent import Coefficients, Mask, descend, graded_valley, upstream_starts
from toy_landscapes import RiverValley

ALPHA = 0.1
_SHARE = 0.5  # tuned learning rate relative to the stability limit
_ENOUGH = 0.8  # of the grid search's gain: a choice that reaches it is as good


@dataclass(frozen=True)
class Choice:
    """χ, β₂ and d_s chosen by one method.

    Args:
        method: Name of the limit, or ``"grid search"``.
        sharp_rank: d_s.
        chi: χ.
        beta_flat: β₂.
        height: Median height after the fixed number of steps.
    """

    method: str
    sharp_rank: int
    chi: float
    beta_flat: float
    height: float


@dataclass(frozen=True)
class LearningRateCase:
    """All choices at one learning rate.

    Args:
        name: How η is chosen.
        eta: η.
        base_height: Height of the base method.
        heights: Heights on the grid, shape ``(ranks, chis, betas)``.
        choices: One per method.
        allowed: Method to the largest χ over ``beta`` at the grid search's d_s, shape ``(betas,)``.
    """

    name: str
    eta: float
    base_height: float
    heights: np.ndarray
    choices: tuple[Choice, ...]
    allowed: dict[str, np.ndarray]

    def choice(self, method: str) -> Choice:
        """The choice of a method."""
        return next(choice for choice in self.choices if choice.method == method)

    def share(self, method: str) -> float:
        """Share of the grid search's gain over the base method, in the logarithm of the height."""
        best = np.log(self.base_height / self.choice("grid search").height)
        return float(np.log(self.base_height / self.choice(method).height) / best)

    def share_text(self, method: str) -> str:
        """The share as text; empty for a choice that is worse than the base method."""
        share = self.share(method)
        return f" ({100 * share:.0f}% of the gain)" if share > 0 else ""


@dataclass(frozen=True)
class CertificateStudy(Record):
    """Results of the study.

    Args:
        steps: Number of steps.
        curvatures: Largest eigenvalues of each order on the river, descending, shape ``(p,)``.
        ranks: d_s tried.
        chi: χ tried, shape ``(chis,)``.
        beta: β₂ tried, shape ``(betas,)``.
        cases: One per learning rate.
    """

    steps: int
    curvatures: np.ndarray
    ranks: tuple[int, ...]
    chi: np.ndarray
    beta: np.ndarray
    cases: tuple[LearningRateCase, ...]

    @property
    def answer(self) -> str:
        """Whether curvature alone finds the coefficients that a grid search finds."""
        shares = {method: [case.share(method) for case in self.cases] for method in LIMITS}
        best = max(shares, key=lambda method: min(shares[method]))
        verdict = "Yes, curvature alone does" if min(shares[best]) >= _ENOUGH else "No, curvature alone does not do"
        parts = "; ".join(
            f"{method} {', '.join(_share_text(share) for share in found)}" for method, found in shares.items()
        )
        etas = ", ".join(case.name for case in self.cases)
        return (
            f"{verdict} as well as a grid search. Shares of the grid search's gain over the base method, by learning "
            f"rate ({etas}): {parts}."
        )

    @property
    def conclusion(self) -> str:
        """How close each rule comes to the grid search."""
        parts = []
        for case in self.cases:
            grid = case.choice("grid search")
            rules = "; ".join(
                f"{method} gives d_s = {choice.sharp_rank}, χ = {choice.chi:.3g}, β₂ = {choice.beta_flat:.3g} and "
                f"{_height(choice.height)}{case.share_text(method)}"
                for method in LIMITS
                for choice in (case.choice(method),)
            )
            parts.append(
                f"At the {case.name} learning rate {case.eta:.3g} the base method is at {case.base_height:.2g} after "
                f"{self.steps} steps and the best of the grid (d_s = {grid.sharp_rank}, χ = {grid.chi:.3g}, β₂ = "
                f"{grid.beta_flat:.3g}) at {_height(grid.height)}; {rules}."
            )
        return " ".join(parts)

    def table(self) -> list[dict[str, str]]:
        """One row per learning rate and method."""
        return [
            {
                "η": f"{case.name}: {case.eta:.3g}",
                "method": choice.method,
                "d_s": str(choice.sharp_rank),
                "χ": f"{choice.chi:.3g}",
                "β₂": f"{choice.beta_flat:.3g}",
                "height": _height(choice.height),
                "share of the gain": f"{case.share(choice.method):.2f}",
            }
            for case in self.cases
            for choice in case.choices
        ]


def _share_text(share: float) -> str:
    return f"{100 * share:.0f}%" if share > 0 else "nothing"


def _height(value: float) -> str:
    return f"{value:.2g}" if value < 1e3 else "divergence"


def certificate_study(*, quick: bool = False, seed: int = 0) -> CertificateStudy:
    """Choose by both limits and by a grid search, at the certified and at a tuned learning rate.

    Args:
        quick: Whether to use a coarser grid and fewer starts.
        seed: Seed of the starts.
    """
    valley = graded_valley()
    starts = upstream_starts(valley, 2 if quick else 12, seed)
    river = valley.river(np.linspace(-10.0, 3.0, 66)[:, None])
    curvatures = np.linalg.eigvalsh(valley.hessian(river)).max(0)[::-1]
    bottom = np.linalg.eigvalsh(valley.hessian(np.zeros((1, valley.dimension))))[0, ::-1]
    chi, beta = np.geomspace(1.0, 256.0, 9 if quick else 17), np.linspace(0.0, 12.0, 4 if quick else 13)
    ranks, steps = tuple(range(1, valley.dimension)), 80
    etas = {
        "certified": float(descent_limit(ALPHA, 0.0)) / curvatures[0],
        "tuned": _SHARE * float(stable_limit(ALPHA, 0.0)) / curvatures[0],
    }
    cases = []
    for name, eta in etas.items():
        heights = np.stack(
            [_heights(valley, starts, rank, eta, chi[:, None, None], beta[:, None], steps=steps) for rank in ranks]
        )
        r, i, j = np.unravel_index(int(np.argmin(heights)), heights.shape)
        choices = [Choice("grid search", ranks[r], float(chi[i]), float(beta[j]), float(heights[r, i, j]))]
        allowed = {}
        for method, limit in LIMITS.items():
            rank, ratio, damping = choose(limit, eta, curvatures, bottom)
            height = float(_heights(valley, starts, rank, eta, ratio, damping, steps=steps))
            choices.append(Choice(method, rank, ratio, damping, height))
            allowed[method] = limit(ALPHA, beta) / (eta * curvatures[ranks[r]])
        base = float(_heights(valley, starts, 1, eta, 1.0, 0.0, steps=steps))
        cases.append(LearningRateCase(name, eta, base, heights, tuple(choices), allowed))
    return CertificateStudy(steps, curvatures, ranks, chi, beta, tuple(cases))


def choose(
    limit: Callable[[Any, Any], np.ndarray], eta: float, curvatures: np.ndarray, bottom: np.ndarray
) -> tuple[int, float, float]:
    """The d_s, χ and β₂ with the fastest slowest mode among those that the limit allows.

    Args:
        limit: Largest κ at (α, β).
        eta: η.
        curvatures: Bounds on the Hessian's eigenvalues, descending, shape ``(p,)``.
        bottom: Eigenvalues at the end of the run, descending, shape ``(p,)``.
    """
    beta = np.linspace(0.0, 12.0, 121)
    best = (np.inf, 1, 1.0, 0.0)
    for rank in range(1, len(curvatures)):
        chi = limit(ALPHA, beta) / (eta * curvatures[rank])
        flat = spectral_radius(eta * chi[:, None] * bottom[rank:], ALPHA, beta[:, None]).max(-1)
        sharp = spectral_radius(eta * bottom[:rank], ALPHA, 0.0).max()
        slowest = np.where(chi >= 1.0, np.maximum(flat, sharp), np.inf)
        k = int(np.argmin(slowest))
        if slowest[k] < best[0]:
            best = (float(slowest[k]), rank, float(chi[k]), float(beta[k]))
    return best[1:]


def top_eigenspace_mask(valley: RiverValley, rank: int) -> Mask:
    """The projector off the Hessian's ``rank`` top eigenvectors."""

    def mask(k: int, w: Array) -> Projector:
        return complement(np.linalg.eigh(valley.hessian(w))[1][..., -rank:])

    return mask


def _heights(
    valley: RiverValley, starts: np.ndarray, rank: int, eta: float, chi: Any, beta: Any, *, steps: int
) -> np.ndarray:
    """Median final height over starts, shape of the grid of χ and β₂ without its last axis of length 1."""
    grid = np.broadcast_shapes(np.shape(chi), np.shape(beta))[:-1]
    w = np.broadcast_to(
        starts.reshape(-1, *(1 for _ in grid), valley.dimension), (len(starts), *grid, valley.dimension)
    )
    rule = Coefficients(eta=eta, alpha=ALPHA, chi=chi, beta_flat=beta, mask=top_eigenspace_mask(valley, rank))
    median: np.ndarray = np.median(descend(valley, w.copy(), rule, steps=steps)[-1], axis=0)
    return median
