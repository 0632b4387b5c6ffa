"""The modified study: what the optimizers' step h = 1 adds to the flow (claim C22), for LITE on a small network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from discretizations.constant_rule import ConstantRule, split_rule
from discretizations.modified_equation import PenalisedObjective
from discretizations.stability import mode_roots, spectral_radius, stable_limit
from riemannian_ode import RISHD, ConstantSplit, simulate
from riemannian_ode.arrays import matvec
from riemannian_ode.colours import BLACK, BLUE, GREEN, VERMILION
from rishd.record import Record
from rishd.study import STUDIES, StudyResult
from toy_landscapes import TwoLayerNetwork

ALPHA = 0.05
_CHI, _BETA_FLAT = 4.0, 20.0  # LITE's settings, in the theory's units
_SHARE = 0.15  # η relative to the stability limit of the sharpest direction, or of the sharpest flat direction
_SHARP_SHARE = 0.1  # sharp fraction of the directions
_EXPLAINED = 1.2  # times closer with the penalty, above which it explains at least part of the difference
# Name ↦ (χ, β₁, β₂), in the theory's units.
METHODS = {
    "heavy ball": (1.0, 0.0, 0.0),
    "Nesterov": (1.0, 1.0 / (1.0 - ALPHA), 1.0 / (1.0 - ALPHA)),
    "LITE": (_CHI, 1.0 / (1.0 - ALPHA), _BETA_FLAT),
}
_FLOWS = ("flow", "flow, read half a drift earlier", "penalised flow")


@dataclass(frozen=True)
class ModeRates:
    """Decay rates of a mode at h = 1 against κ, per step.

    Args:
        beta: β.
        kappa: κ up to the stability limit, shape ``(k,)``.
        rule: Rates of the update rule.
        flow: Rates of the flow.
        penalised: Rates of the flow with α(1 + α/2), gain 1 + α/2 and κ(1 + βκ/2).
    """

    beta: float
    kappa: np.ndarray
    rule: np.ndarray
    flow: np.ndarray
    penalised: np.ndarray


@dataclass(frozen=True)
class MethodRow:
    """A method on the network.

    Args:
        method: Of :data:`METHODS`.
        eta: Learning rate.
        gaps: Flow of :data:`_FLOWS` ↦ its distance from the update rule at every step, relative to the length of the
            update rule's path, shape ``(steps + 1,)``.
        penalty: Largest (η/4)gᵀABg over f along the path of the update rule.
        flat_share: Share of flat directions in the penalty at the same step.
    """

    method: str
    eta: float
    gaps: dict[str, np.ndarray]
    penalty: float
    flat_share: float

    @property
    def distances(self) -> dict[str, float]:
        """Flow ↦ its largest gap."""
        return {name: float(gap.max()) for name, gap in self.gaps.items()}


@dataclass(frozen=True)
class ModifiedStudy(Record):
    """Results of the study.

    Args:
        alpha: α.
        modes: One row per β.
        rows: One row per method.
    """

    alpha: float
    modes: tuple[ModeRates, ...]
    rows: tuple[MethodRow, ...]

    @property
    def answer(self) -> str:
        """For which methods the penalty on the gradient is what the step h = 1 adds."""
        _, shifted, penalised = _FLOWS
        times = {row.method: row.distances[shifted] / row.distances[penalised] for row in self.rows}
        explained = [f"{ratio:.2g} times closer to {method}" for method, ratio in times.items() if ratio >= _EXPLAINED]
        others = [method for method, ratio in times.items() if ratio < _EXPLAINED]
        gained = f"brings the flow {' and '.join(explained)}" if explained else "explains none of the methods"
        rest = f", and hardly changes it for {' and '.join(others)}" if explained and others else ""
        return (
            "The step h = 1 adds half a drift, a little damping and a penalty on the gradient. The penalty "
            f"{gained}{rest}."
        )

    @property
    def conclusion(self) -> str:
        """What the step h = 1 adds."""
        own, shifted, penalised = _FLOWS
        parts = "; ".join(
            f"{row.method} {100 * row.distances[own]:.2g}% from the flow, {100 * row.distances[shifted]:.2g}% once "
            f"read half a drift earlier, {100 * row.distances[penalised]:.2g}% with the penalty"
            for row in self.rows
        )
        lite = self.rows[-1]
        return (
            "The step h = 1 adds three things to the flow: the position is read half a drift late, the momentum decays "
            f"by α(1 + α/2) instead of α, and the gradient is penalised by (η/4)gᵀABg. Heavy ball has no penalty at "
            f"this order: once shifted, its distance from the flow is of second order (C22b). "
            f"LITE's is χβ₂ in flat directions: at most {100 * lite.penalty:.2g}% of the loss here, "
            f"{100 * lite.flat_share:.0f}% of it flat. Largest distance from the update rule, over the length of its "
            f"path: {parts}."
        )

    def table(self) -> list[dict[str, str]]:
        """One row per method."""
        return [
            {
                "method": row.method,
                "η": f"{row.eta:.3g}",
                **{f"distance to {name}": f"{100 * distance:.2g}%" for name, distance in row.distances.items()},
                "largest penalty": f"{100 * row.penalty:.2g}% of f",
                "its flat share": f"{100 * row.flat_share:.0f}%",
            }
            for row in self.rows
        ]


def modified_study(*, quick: bool = False, seed: int = 0) -> ModifiedStudy:
    """Compare the update rule with the flow, the shifted flow and the penalised flow.

    Args:
        quick: Whether to use fewer steps and κ.
        seed: Seed of the network and its start.
    """
    betas = (0.0, 1.0 / (1.0 - ALPHA), _BETA_FLAT)
    modes = tuple(_mode_rates(beta, 60 if quick else 300) for beta in betas)
    network = TwoLayerNetwork.teacher_student(inputs=5, width=6, outputs=2, samples=32, seed=seed)
    start = network.initial(seed + 1)
    rows = tuple(_row(network, start, method, 60 if quick else 400) for method in METHODS)
    return ModifiedStudy(ALPHA, modes, rows)


def _mode_rates(beta: float, count: int) -> ModeRates:
    kappa = np.geomspace(1e-3, 0.999, count) * float(stable_limit(ALPHA, beta))
    grow = 1.0 + 0.5 * ALPHA
    # Gain c and β equal gain 1 and β/c at κc (units of β).
    stiff = kappa * (1.0 + 0.5 * beta * kappa) * grow
    return ModeRates(
        beta,
        kappa,
        -np.log(spectral_radius(kappa, ALPHA, beta)),
        -mode_roots(kappa, ALPHA, beta)[..., 0].real,
        -mode_roots(stiff, ALPHA * grow, beta / grow)[..., 0].real,
    )


def _row(network: TwoLayerNetwork, start: np.ndarray, method: str, steps: int) -> MethodRow:
    chi, beta_sharp, beta_flat = METHODS[method]
    values, vectors = np.linalg.eigh(network.hessian(start))
    rank = max(1, round(_SHARP_SHARE * network.dimension))
    sharp = vectors[:, -rank:]
    eta = _SHARE * min(
        float(stable_limit(ALPHA, beta_sharp)) / values[-1],
        float(stable_limit(ALPHA, beta_flat)) / (chi * values[-rank - 1]),
    )
    rule = split_rule(eta=eta, alpha=ALPHA, sharp=sharp, chi=chi, beta_sharp=beta_sharp, beta_flat=beta_flat)
    state, w, m = (start, np.zeros_like(start)), [start], [np.zeros_like(start)]
    for _ in range(steps):
        state = rule.step(*state, network.gradient(state[0]))
        w.append(state[0])
        m.append(state[1])
    own = np.array(w)
    early = own + 0.5 * eta * matvec(rule.inverse_metric, np.array(m))
    split = {"chi": chi, "beta": beta_sharp, "beta_flat": beta_flat, "flat": ConstantSplit(sharp), "eta": eta}
    grow = 1.0 + 0.5 * ALPHA
    flow = _path(RISHD.from_optimizer(network, alpha=ALPHA, **split), start, steps)
    shifted = _path(RISHD.from_optimizer(network, alpha=ALPHA * grow, gain=grow, **split), start, steps)
    penalised = _path(
        RISHD.from_optimizer(PenalisedObjective(network, rule), alpha=ALPHA * grow, gain=grow, **split), start, steps
    )
    length = float(np.linalg.norm(np.diff(own, axis=0), axis=-1).sum())
    pairs = zip(_FLOWS, ((own, flow), (early, shifted), (early, penalised)), strict=True)
    penalties = PenalisedObjective(network, rule).value(own) / network.value(own) - 1.0
    worst = int(penalties.argmax())
    return MethodRow(
        method,
        eta,
        {name: np.linalg.norm(a - b, axis=-1) / length for name, (a, b) in pairs},
        float(penalties[worst]),
        _flat_share(rule, sharp, network.gradient(own[worst])),
    )


def _path(system: RISHD, start: np.ndarray, steps: int) -> np.ndarray:
    return np.asarray(simulate(system, start, integrator="dop853", h=1.0, steps=steps, progress=False).checked().w)


def _flat_share(rule: ConstantRule, sharp: np.ndarray, g: np.ndarray) -> float:
    flat = g - sharp @ (sharp.T @ g)
    whole = float(g @ rule.lagged @ g)
    return float(flat @ rule.lagged @ flat) / whole if whole else 0.0


def modified_figure(study: ModifiedStudy) -> Figure:
    """Plot rates of modes on top and distances on the network below.

    Args:
        study: Result of :func:`modified_study`.
    """
    figure = Figure(figsize=(12.0, 7.2), layout="constrained")
    upper, lower = figure.subplots(2, len(study.rows))
    styles: dict[str, dict[str, Any]] = {
        "update rule": {"color": BLACK, "lw": 2.2},
        "flow": {"color": BLUE, "lw": 1.4, "ls": "--"},
        "flow, read half a drift earlier": {"color": GREEN, "lw": 1.4, "ls": "-."},
        "penalised flow": {"color": VERMILION, "lw": 1.8, "ls": ":"},
    }
    for axes, mode in zip(upper, study.modes, strict=True):
        for name, rate in (("update rule", mode.rule), ("flow", mode.flow), ("penalised flow", mode.penalised)):
            axes.loglog(mode.kappa, rate, label=name, **styles[name])
        axes.set(xlabel="κ, up to the stability limit", title=f"One mode, β = {mode.beta:.3g}", ylim=(1e-3, 5.0))
    for axes, row in zip(lower, study.rows, strict=True):
        for name, gap in row.gaps.items():
            axes.semilogy(gap[1:], label=name, **styles[name])
        axes.set(xlabel="step", title=f"{row.method}, η = {row.eta:.3g}")
    upper[0].set_ylabel("decay rate per step")
    lower[0].set_ylabel("distance from the update rule,\nover the length of its path")
    for axes in (*upper, *lower):
        axes.grid(alpha=0.3)
    lines = {line.get_label(): line for axes in (upper[0], lower[0]) for line in axes.get_lines()}
    figure.legend(list(lines.values()), [str(label) for label in lines], loc="outside lower center", ncols=4)
    figure.suptitle(f"What the step h = 1 adds to the flow, α = {study.alpha:g}", fontsize=11)
    return figure


@STUDIES.register(place=110)
def modified(quick: bool, seed: int) -> StudyResult:
    """What the optimizers' step h = 1 adds to the flow: a shift, some damping, a penalty on the gradient."""
    study = modified_study(quick=quick, seed=seed)
    return StudyResult.of(study, modified=lambda: modified_figure(study))
