"""The worst-case study: the update rule on convex objectives, claim C23 (needs the ``pep`` extra)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize

from discretizations.certificate import lookahead_certificate
from discretizations.worst_cases import RuleBlock, convex_rate_tightness, minimax_loss, worst_case
from riemannian_ode.colours import BLACK, BLUE, GREEN, ORANGE, VERMILION
from rishd.record import Record
from rishd.study import STUDIES, StudyResult

ALPHA = 0.3  # of the split; its base method is Nesterov's with κ = α, which moves like gradient descent with step 1/L
_BETA = 1.0 / (1.0 - ALPHA)
_RATIOS = (4.0, 16.0, 64.0)  # ratio L_s/L_f
_FAR = 4.0
_SLACK_CASES = tuple((alpha, beta) for alpha in (0.1, 0.3, 0.6) for beta in (0.0, 1.0 / (1.0 - alpha)))
_TIE = 1e-4  # relative; smaller differences are solver errors
_SHARE = 0.5  # κ of the slack relative to the limit of C9


@dataclass(frozen=True)
class MethodRow:
    """Results of a method with one block.

    Args:
        method: Its name.
        alpha: α.
        kappa: κ.
        beta: β.
        worst: Largest f(w_N) − f* over L‖w₀ − w*‖², N = 1, 2, …
    """

    method: str
    alpha: float
    kappa: float
    beta: float
    worst: np.ndarray


@dataclass(frozen=True)
class SlackRow:
    """C8b's bound at half of its largest step.

    Args:
        alpha: α.
        beta: β.
        tightness: Worst case over the bound, N = 1, 2, …
    """

    alpha: float
    beta: float
    tightness: np.ndarray


@dataclass(frozen=True)
class SplitRow:
    """LITE's χ and β₂ for starts with √L_f‖Q(w₀ − w*)‖ up to r times √L_s‖P(w₀ − w*)‖.

    Args:
        reach: The ratio r.
        worst: Worst case at each χL_f/L_s of the study, with β₂ = β₁.
        best_share: χL_f/L_s with the best worst case.
        best_beta: Its best β₂.
        best: Worst case with these.
    """

    reach: float
    worst: np.ndarray
    best_share: float
    best_beta: float
    best: float


@dataclass(frozen=True)
class WorstCaseStudy(Record):
    """Results of the study.

    Args:
        minimax: Worst case of the optimal method, the optimized gradient method, N = 1, 2, …
        methods: One row per method.
        slack: One row per (α, β).
        split_steps: Number of steps N for the split.
        shares: Values of χL_f/L_s.
        split: One row per r.
        ball: L_s/L_f ↦ worst case at χ = 1 and at χ = L_s/L_f, for starts in a ball.
        blockwise: Largest ratio to the exact worst case if only each block's own curvature is bounded.
    """

    minimax: np.ndarray
    methods: tuple[MethodRow, ...]
    slack: tuple[SlackRow, ...]
    split_steps: int
    shares: np.ndarray
    split: tuple[SplitRow, ...]
    ball: dict[float, tuple[float, float]]
    blockwise: float

    @property
    def answer(self) -> str:
        """Whether χ improves the worst case."""
        equal = self.split[0]
        gains = [self.base(equal, ratio) / equal.best for ratio in _RATIOS]
        unchanged = max(abs(one / other - 1.0) for one, other in self.ball.values())
        best = min(self.methods, key=lambda row: row.worst[-1]).worst[-1] / self.minimax[-1]
        verdict = "Yes, χ can help" if max(gains) > 1.0 + _TIE else "No, χ does not help"
        return (
            f"{verdict}: where sharp and flat directions can hold the same loss, the best χ divides the worst case by "
            f"{min(gains):.2g} to {max(gains):.2g}. For starts in a ball χ "
            f"{'changes nothing' if unchanged < _TIE else 'matters, too'}. With the best constant coefficients the "
            f"worst case is {best:.2g} times the lower bound of all methods."
        )

    @property
    def conclusion(self) -> str:
        """What worst cases imply for the methods, for C8b, and for χ and β₂."""
        steps = len(self.minimax)
        methods = ", ".join(f"{row.method} {row.worst[-1]:.3g}" for row in self.methods)
        ends = np.array([row.tightness[[0, -1]] for row in self.slack])
        equal, far = self.split
        gains = ", ".join(f"{self.base(equal, ratio) / equal.best:.2g} at L_s/L_f = {ratio:g}" for ratio in _RATIOS)
        unchanged = max(abs(one / other - 1.0) for one, other in self.ball.values())
        plain = far.worst[self.shares == 1.0][0]
        return (
            f"Largest f(w_N) − f* over L‖w₀ − w*‖² after {steps} steps, each with the best coefficients found: "
            f"{methods}; no method can be below {self.minimax[-1]:.3g}. The exact worst case is "
            f"{ends[:, 0].min():.2f} to {ends[:, 0].max():.2f} of C8b's bound after one step and "
            f"{ends[:, 1].min():.2f} to {ends[:, 1].max():.2f} after {steps}. For starts in a ball the sharp block is "
            f"the worst case: χ between 1 and L_s/L_f changes it by {100 * unchanged:.0g}%. If both blocks can "
            f"hold the same loss (r = 1), χ = L_s/L_f with β₂ = β₁ is best; it divides the worst case after "
            f"{self.split_steps} steps by {gains}. More damping helps only for starts farther along the "
            f"flat block: at r = {far.reach:g}, χ = {far.best_share:.2g} L_s/L_f and β₂ = {far.best_beta:.3g} "
            f"(β₁ = {_BETA:.3g}) have the worst case {far.best:.2g} instead of {plain:.2g}. If only each block's own "
            f"curvature is bounded, PEPit's conditions allow up to {self.blockwise:.2g} times the worst case."
        )

    def base(self, row: SplitRow, ratio: float) -> float:
        """Worst case at χ = 1."""
        return float(row.worst[self.shares == 1.0 / ratio][0])

    def table(self) -> list[dict[str, str]]:
        """One row per ratio of curvatures and kind of start."""
        rows = [
            {
                "L_s/L_f": f"{ratio:g}",
                "starts": f"r = {row.reach:g}",
                "worst at χ = 1": f"{self.base(row, ratio):.3g}",
                "best χ": f"{row.best_share * ratio:.3g}",
                "best β₂": f"{row.best_beta:.3g}",
                "worst there": f"{row.best:.3g}",
            }
            for ratio in _RATIOS
            for row in self.split
        ]
        ball = [
            {
                "L_s/L_f": f"{ratio:g}",
                "starts": "ball",
                "worst at χ = 1": f"{one:.3g}",
                "best χ": f"any from 1 to {ratio:g}",
                "best β₂": f"{_BETA:.3g} does",
                "worst there": f"{scaled:.3g}",
            }
            for ratio, (one, scaled) in self.ball.items()
        ]
        return ball + rows


def worst_case_study(*, quick: bool = False) -> WorstCaseStudy:
    """Compute worst cases of methods, C8b's slack, and the best χ and β₂.

    Args:
        quick: Whether to use fewer steps and evaluations.

    Raises:
        MissingExtraError: without the ``pep`` extra.
    """
    steps, split_steps, budget = (3, 2, 16) if quick else (10, 5, 100)
    shares = np.array([1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0, 1.5, 2.0])
    exact = _split(1.0, 1.0, _BETA, split_steps)
    blockwise = worst_case(_blocks(1.0, 1.0, _BETA), alpha=ALPHA, steps=split_steps, smoothness="blockwise")
    known = [_method(name, steps, budget) for name in _METHODS]
    return WorstCaseStudy(
        minimax_loss(steps),
        (*known, _free_method(known, steps, budget)),
        tuple(_slack(alpha, beta, steps) for alpha, beta in _SLACK_CASES),
        split_steps,
        shares,
        tuple(_split_row(reach, shares, split_steps, budget) for reach in (1.0, _FAR)),
        {x: (_split(x**-0.5, 1.0 / x, _BETA, split_steps), _split(x**-0.5, 1.0, _BETA, split_steps)) for x in _RATIOS},
        blockwise / exact,
    )


def _sigmoid(x: float) -> float:
    return float(1.0 / (1.0 + np.exp(-x)))


# Name ↦ (free parameters ↦ α, κ, β; start of the search for the best ones).
_METHODS: dict[str, tuple[Callable[[np.ndarray], tuple[float, float, float]], tuple[float, ...]]] = {
    "gradient descent": (lambda x: (1.0, float(np.exp(x[0])), 0.0), (0.5,)),
    "heavy ball": (lambda x: (_sigmoid(x[0]), float(np.exp(x[1])), 0.0), (1.0, 0.3)),
    "Nesterov": (lambda x: (_sigmoid(x[0]), float(np.exp(x[1])), 1.0 + float(np.exp(x[0]))), (-0.5, -1.0)),
}


def _method(name: str, steps: int, budget: int) -> MethodRow:
    settings, start = _METHODS[name]
    return _row(name, settings(_search(lambda x: _worst(settings(x), steps), start, budget)), steps)


def _free_method(known: Sequence[MethodRow], steps: int, budget: int) -> MethodRow:
    """All three coefficients free, started from the best known method, so the result is never worse."""
    best = min(known, key=lambda row: row.worst[-1])
    inside = min(best.alpha, 0.95)
    start = (np.log(inside / (1.0 - inside)), np.log(best.kappa), best.beta)

    def settings(x: np.ndarray) -> tuple[float, float, float]:
        return _sigmoid(x[0]), float(np.exp(x[1])), float(x[2])

    found = settings(_search(lambda x: _worst(settings(x), steps), start, budget))
    kept = (best.alpha, best.kappa, best.beta)
    return _row("free α, κ, β", min(found, kept, key=lambda coefficients: _worst(coefficients, steps)), steps)


def _row(name: str, coefficients: tuple[float, float, float], steps: int) -> MethodRow:
    return MethodRow(name, *coefficients, np.array([_worst(coefficients, n) for n in range(1, steps + 1)]))


def _worst(coefficients: tuple[float, float, float], steps: int) -> float:
    alpha, kappa, beta = coefficients
    return worst_case([RuleBlock(kappa=kappa, beta=beta)], alpha=alpha, steps=steps)


def _search(loss: Callable[[np.ndarray], float], start: Sequence[float], budget: int) -> np.ndarray:
    """Local minimisation by Nelder–Mead, since worst cases have kinks."""
    first = np.asarray(start, dtype=float)
    simplex = first + np.vstack([np.zeros(first.size), 0.2 * np.eye(first.size)])
    found = minimize(
        loss,
        first,
        method="Nelder-Mead",
        options={"xatol": 1e-3, "fatol": 1e-7, "maxfev": budget, "initial_simplex": simplex},
    )
    return np.asarray(found.x)


def _slack(alpha: float, beta: float, steps: int) -> SlackRow:
    kappa = _SHARE * float(lookahead_certificate(alpha, beta).limit)
    tightness = [convex_rate_tightness([kappa], [beta], alpha=alpha, steps=n) for n in range(1, steps + 1)]
    return SlackRow(alpha, beta, np.array(tightness))


def _blocks(reach: float, share: float, beta_flat: float) -> list[RuleBlock]:
    sharp = RuleBlock(kappa=ALPHA, beta=_BETA)
    return [sharp, RuleBlock(kappa=ALPHA * share, beta=beta_flat, weight=reach**-2)]


def _split(reach: float, share: float, beta_flat: float, steps: int) -> float:
    return worst_case(_blocks(reach, share, beta_flat), alpha=ALPHA, steps=steps)


def _split_row(reach: float, shares: np.ndarray, steps: int, budget: int) -> SplitRow:
    def loss(x: np.ndarray) -> float:
        return _split(reach, float(np.exp(x[0])), float(np.exp(x[1])), steps)

    found = _search(loss, (np.log(0.6), np.log(4.0)), budget)
    scaled = np.array([0.0, np.log(_BETA)])  # χ = L_s/L_f, β₂ = β₁
    best = found if loss(found) < (1.0 - _TIE) * loss(scaled) else scaled
    worst = np.array([_split(reach, float(x), _BETA, steps) for x in shares])
    return SplitRow(reach, worst, float(np.exp(best[0])), float(np.exp(best[1])), loss(best))


def worst_case_figure(study: WorstCaseStudy) -> Figure:
    """Plot methods, C8b's slack, and the worst case against χ.

    Args:
        study: Result of :func:`worst_case_study`.
    """
    figure = Figure(figsize=(13.5, 4.6), layout="constrained")
    methods, slack, split = figure.subplots(1, 3)
    steps = np.arange(1, len(study.minimax) + 1)
    for row, colour in zip(study.methods, (BLUE, GREEN, ORANGE, VERMILION), strict=True):
        label = f"{row.method}: α = {row.alpha:.2g}, κ = {row.kappa:.2g}, β = {row.beta:.2g}"
        methods.loglog(steps, row.worst, color=colour, marker="o", ms=3, label=label)
    methods.loglog(steps, study.minimax, color=BLACK, ls=":", label="lower bound of all methods")
    methods.set(
        title=f"Best coefficients for N = {steps[-1]}",
        xlabel="step N",
        ylabel="worst $f(w_N) - f_*$ over $L\\Vert w_0 - w_*\\Vert^2$",
    )
    colours = dict(zip(sorted({row.alpha for row in study.slack}), (BLUE, ORANGE, GREEN), strict=True))
    for case in study.slack:
        style = "-" if case.beta == 0 else "--"
        label = f"α = {case.alpha:g}, β = {case.beta:.3g}"
        slack.plot(steps, case.tightness, style, color=colours[case.alpha], marker="o", ms=3, label=label)
    slack.set(title="Exact worst case over C8b's bound", xlabel="step K", ylabel="worst case / bound", ylim=(0.0, 1.05))
    for reach_row, colour in zip(study.split, (BLUE, VERMILION), strict=True):
        split.loglog(
            study.shares, reach_row.worst, color=colour, marker="o", ms=3, label=f"r = {reach_row.reach:g}, β₂ = β₁"
        )
        label = f"r = {reach_row.reach:g}, best: β₂ = {reach_row.best_beta:.3g}"
        split.plot(reach_row.best_share, reach_row.best, "*", color=colour, ms=13, label=label)
    split.set(
        title=f"LITE, N = {study.split_steps}, α = {ALPHA:g}", xlabel="$\\chi L_f/L_s$", ylabel="worst $f(w_N) - f_*$"
    )
    for axes in (methods, slack, split):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7.5)
    return figure


@STUDIES.register(place=130)
def worst_cases(quick: bool, seed: int) -> StudyResult:
    """Exact worst cases on convex objectives: methods, C8b's slack, the best χ and β₂ (needs the pep extra)."""
    study = worst_case_study(quick=quick)
    return StudyResult.of(study, worst_cases=lambda: worst_case_figure(study))
