"""Claims C21, C21b and C21c: the update rule's edge of stability, its central flow, and where that flow fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from discretizations.central_flow import complementary
from discretizations.constant_rule import ConstantRule
from discretizations.proofs import edge
from discretizations.stability import spectral_radius, stable_limit, step_matrix
from rishd.claims.claim import register_claim
from rishd.claims.edge_problems import (
    PROBLEMS,
    SETTINGS,
    Comparison,
    Setting,
    clock_ratio,
    compare,
    compare_at_drawn_start,
)
from rishd.claims.evidence import Bound, Curve, Evidence, Hypothesis, Identity, Measurement, Panel, Proof
from rishd.claims.instances import from_spectrum, random_bases

_FULL = 100  # instances from which all trainings run
_QUICK = SETTINGS[:4]  # used for few instances: the valley, and momentum on the tanh network
_SLOW = 3.0 + 1e-9  # largest ρ of C21b, plus rounding
_P = 4


@register_claim("C21", "edge of stability of the update rule", seconds=6)
def edge_of_stability(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The point where the update rule starts to oscillate, the motion of the average, and the oscillation's size.

    Statement: an oscillation of period 2 exists exactly if :math:`\eta D^{1/2}HD^{1/2}` has the eigenvalue 2, with

    .. math:: D = A\left(B + \tfrac1{2-\alpha}\right) .

    Let :math:`S = \lambda_{\max}(D^{1/2}HD^{1/2})` with the vector u, :math:`u^\top D^{-1}u = 1`. With
    :math:`w_k = \bar w + (-1)^kxu` the mean gradient is :math:`\nabla f + \frac12x^2\nabla S`, exactly if f is a
    polynomial of degree 4. The shadow of C7 moves by :math:`-\eta C` times this gradient,
    :math:`C = A(B + \frac1\alpha)`, and the variance that keeps :math:`\eta S = 2` is

    .. math::

       x^2 = \max\left(0,\ -2\,\frac{\langle\nabla S, C\nabla f\rangle}
       {\langle\nabla S, C\nabla S\rangle}\right) .

    With several critical directions, the covariance X solves a semidefinite complementarity problem.

    Hypotheses: :math:`A` and :math:`B` symmetric, constant, commuting, :math:`A` and :math:`D` positive definite;
    averages change slowly. For :math:`\beta < -\alpha/(2 - \alpha)^2` a mode loses stability in another way (C6).

    Proof: docs/theory, claim C21; symbolic.

    Check: random A, B and H that does not commute with them: the whole step at ηS = 2 has the eigenvalue −1; random
    complementarity problems of up to three directions: both cones and the product.

    Source: for gradient descent arXiv:2410.24206 (central flows); for momentum also arXiv:2605.06821 (rod flows);
    with Hessian damping and a split derived in docs/theory.
    """
    distance, beyond = _whole_steps(rng, instances)
    return [
        Proof("an oscillation of period 2 and its momentum, by the update rule itself", edge.period_two()),
        Proof("mean gradient of a cubic, and the variance that holds the sharpness", edge.averaged_motion()),
        Identity("distance from −1 of an eigenvalue of the whole step at ηS = 2, p = 4", distance, 1e-6, "rounding"),
        Identity("spectral radius below 1 at ηS = 2.02 (share)", beyond, 0.0, "yes or no"),
        Identity(
            "complementarity: negative parts and product over their sizes, k ≤ 3",
            np.array([_complementarity(rng) for _ in range(instances)]),
            1e-5,
            "iterations",
        ),
        _edges_panel(),
    ]


@register_claim("C21b", "central flow against training", expected="holds", seconds=60)
def central_flow_of_training(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""At the edge of stability, the central flow follows the averages of training.

    Statement: if the clocks of the average and of the oscillation have the ratio

    .. math:: \rho = \frac{1/\alpha + \beta}{1/(2-\alpha) + \beta} \le 3 ,

    the variance of the oscillation equals the central flow's up to a factor of 2. If plain gradient flow leaves the
    edge, :math:`\eta S > 2.35`, the averaged iterate's sharpness is at most half as far from 2, and its loss is closer
    to the central flow's than to gradient flow's.

    Hypotheses: full batch; constant A and B; :math:`\beta \ge 0`; a small amount of noise; training does not diverge;
    the flow starts when training is at the edge, here after a quarter of the run.

    Proof: none; see C21 for the flow.

    Check: a valley, a tanh and a softplus network, and a tiny transformer, each trained by momentum, Nesterov's method
    and LITE (constant split), with random initial sharpness and network weights. Averages are over the second half of
    the flow's time. An instance is a run: there are twelve, or four with fewer than 100 instances (`--quick`). The
    factors 2, ½ and 1 are conventions, fixed before the first run with random starts; no known error bound implies
    them.

    Finding: of 72 runs (seeds 21 to 26) one diverged (LITE on the tanh network) and one never reached the edge. In the
    other 70 the variance is 0.76 to 1.46 times the flow's; in 62 of them it agrees within a quarter. In the 52 runs
    where gradient flow leaves the edge, :math:`\eta S` is at most 0.18 times as far from 2 as gradient flow's (it is
    off by at most 0.30), and the loss is at most 0.93 times as far from the central flow as from gradient flow, with a
    median of 0.08. Both conditions are needed: at :math:`\rho = 5.7` (momentum 0.7) the variance is 0.6 to 2.4 times
    the flow's, depending on the start, and a flow that starts before the edge may go elsewhere: its loss was up to 4.8
    times as far off as gradient flow's.

    Source: derived in docs/theory; tried here.
    """
    settings = SETTINGS if instances >= _FULL else _QUICK
    made = {name: PROBLEMS[name]() for name in dict.fromkeys(setting.problem for setting in settings)}
    seeds = zip(settings, rng.spawn(len(settings)), strict=True)
    tried = [compare_at_drawn_start(*made[setting.problem], setting, own) for setting, own in seeds]
    runs = [run for run in tried if run is not None]
    sharpness, ratios = np.array([run.sharpness for run in runs]), np.array([run.variance_ratio for run in runs])
    slow = Hypothesis("ρ ≤ 3", np.array([run.setting.clock_ratio <= _SLOW for run in runs]))
    critical = Hypothesis("the flow becomes critical", np.array([bool(run.path.critical.any()) for run in runs]))
    leaves = Hypothesis("gradient flow leaves the edge: ηS > 2.35", sharpness[:, 2] > 2.35)
    return [
        Measurement("training diverges", np.array([float(run is None) for run in tried])),
        Bound("oscillation's variance over twice the flow's", ratios, 2.0 + 0.0 * ratios, hypotheses=(slow, critical)),
        Bound(
            "half the flow's variance over the oscillation's", 0.5 + 0.0 * ratios, ratios, hypotheses=(slow, critical)
        ),
        Bound(
            "distance of mean ηS from 2, over half of gradient flow's",
            np.abs(sharpness[:, 0] - 2.0),
            0.5 * np.abs(sharpness[:, 2] - 2.0),
            hypotheses=(slow, leaves),
        ),
        Bound(
            "distance of the loss to the central flow, over that to gradient flow",
            np.array([run.gap_ratio for run in runs]),
            np.ones(len(runs)),
            hypotheses=(slow, leaves),
        ),
        Measurement("variance over the central flow's", ratios),
        Measurement("mean ηS at the averaged iterate", sharpness[:, 0]),
        Measurement("ηS of gradient flow", sharpness[:, 2]),
        *_run_panels(runs[-1]),
    ]


@register_claim("C21c", "where the central flow fails", expected="measured", seconds=15)
def central_flow_limits(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Measurements of where the central flow breaks down as its hypotheses are violated.

    Statement: measured: the variance of the oscillation over the central flow's, on the valley of C21b, against the
    ratio of the clocks of the average and of the oscillation,

    .. math:: \rho = \frac{1/\alpha + \beta}{1/(2-\alpha) + \beta} ,

    once for momentum with several :math:`\alpha`, once at :math:`\alpha = 0.1` with several :math:`\beta`. ρ is 1 for
    gradient descent and 19 for momentum 0.9 without Hessian damping.

    Hypotheses: those of C21b, except for the violated one.

    Proof: none.

    Check: means over the second half of full-batch runs against the central flow; the same run without any noise; for
    negative damping, the unstable mode's rotation per step over π, which is 1 for period 2.

    Finding: :math:`\rho` decides, no matter whether it comes from momentum or from weak Hessian damping. Up to 3 the
    variance agrees with the flow's within about a third; at 6 it is twice as large; at 10 many times; at 19 training
    diverges at the edge. Hessian damping of 20 makes momentum 0.9 as stable as gradient descent. Without noise the
    oscillation has nothing to grow from, and the sharpness exceeds 2. With :math:`\beta < -\alpha/(2-\alpha)^2` the
    unstable mode rotates by less than π per step: there is no oscillation of period 2, and `CentralFlow` raises an
    error.

    Source: measured here.
    """
    landscape, start = PROBLEMS["valley"]()
    is_full = instances >= _FULL
    base = Setting("valley", "momentum", 0.1, 700 if is_full else 200)
    memories = (0.6, 0.45, 0.3, 0.2, 0.1) if is_full else (0.6, 0.1)
    dampings = (0.5, 1.0, 2.0, 5.0, 20.0) if is_full else (20.0,)

    def ratios(settings: Sequence[Setting]) -> np.ndarray:
        runs = [compare(landscape, start, setting, rng) for setting in settings]
        return np.array([np.inf if run is None else run.variance_ratio for run in runs])

    momentum = ratios([replace(base, alpha=alpha) for alpha in memories])
    damped = ratios([replace(base, own=(1.0, beta, beta)) for beta in dampings])
    clocks = [
        np.array([clock_ratio(alpha, 0.0) for alpha in memories]),
        np.array([clock_ratio(base.alpha, beta) for beta in dampings]),
    ]
    quiet = replace(base, method="Nesterov", alpha=0.3, sharpness=1.6, jitter=0.0)
    silent = compare(landscape, start, quiet, rng)
    alpha = rng.uniform(0.05, 0.9, instances)
    beta = -alpha / (2.0 - alpha) ** 2 * rng.uniform(1.05, 1.5, instances)
    roots = np.linalg.eigvals(step_matrix(stable_limit(alpha, beta), alpha, beta))
    both = np.sort(np.concatenate(clocks))
    return [
        *(
            Measurement(f"variance over the central flow's at ρ = {clock:.3g}, {name} (∞: diverged)", ratio[None])
            for name, all_clocks, all_ratios in (
                ("momentum", clocks[0], momentum),
                ("α = 0.1 with β", clocks[1], damped),
            )
            for clock, ratio in zip(all_clocks, all_ratios, strict=True)
        ),
        Measurement(
            "the same for Nesterov, α = 0.3, without noise",
            np.array([np.inf if silent is None else silent.variance_ratio]),
        ),
        Measurement("turn of the unstable mode over π, β < −α/(2 − α)²", np.abs(np.angle(roots)).max(-1) / np.pi),
        Panel(
            "Oscillation at the edge, valley (diverged runs omitted)",
            "ρ, clock of the average over that of the oscillation",
            "variance over the central flow's",
            (
                Curve("β = 0", clocks[0], _finite(momentum), "points"),
                Curve("α = 0.1, β > 0", clocks[1], _finite(damped), "points"),
                Curve("central flow", both, np.ones(len(both)), "reference"),
            ),
            log="xy",
        ),
    ]


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _whole_steps(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the step's closest eigenvalue from −1 at the edge, and whether the step is stable 1% beyond it."""
    basis = random_bases(rng, n, _P)
    alpha = rng.uniform(0.02, 1.0, n)
    inverse_metric = from_spectrum(basis, np.exp(rng.uniform(-1.0, 1.0, (n, _P))))
    damping = from_spectrum(basis, rng.uniform(0.0, 10.0, (n, _P)))
    hessian = from_spectrum(random_bases(rng, n, _P), rng.uniform(-1.0, 4.0, (n, _P)) + np.array([3.0, 0, 0, 0]))
    rule = ConstantRule(np.ones(n), alpha, inverse_metric, damping)
    sharpest = np.linalg.eigvals(rule.edge_metric @ hessian).real.max(-1)

    def roots(sharpness: float) -> np.ndarray:
        eta = sharpness / sharpest
        scaled = ConstantRule(eta, alpha, inverse_metric, damping)
        columns = []
        for i in range(2 * _P):
            unit = np.zeros((n, 2 * _P))
            unit[:, i] = 1.0
            w, m = unit[:, :_P], unit[:, _P:]
            columns.append(np.concatenate(scaled.step(w, m, np.einsum("nij,nj->ni", hessian, w)), axis=-1))
        return np.linalg.eigvals(np.stack(columns, axis=-1))

    at_edge, beyond = roots(2.0), roots(2.02)
    return np.abs(at_edge + 1.0).min(-1), (np.abs(beyond).max(-1) < 1.0).astype(float)


def _complementarity(rng: np.random.Generator) -> float:
    k, p = int(rng.integers(1, 4)), 6
    third = rng.normal(size=(k, k, p))
    flat = (third + np.swapaxes(third, 0, 1)).reshape(k * k, p)
    matrix = flat @ flat.T
    offset = rng.normal(size=(k, k))
    offset = offset + offset.T
    if np.linalg.eigvalsh(matrix)[-k * (k + 1) // 2] < 1e-3:  # p vectors may not determine X uniquely
        return 0.0
    x = complementary(matrix, offset)
    slack = (matrix @ x.ravel()).reshape(k, k) + offset
    size = 1.0 + np.abs(x).max() + np.abs(slack).max()
    least = min(np.linalg.eigvalsh(x)[0], np.linalg.eigvalsh(slack)[0])
    return float(max(-least, abs((x * slack).sum()) / size) / size)


def _edges_panel() -> Panel:
    """Plot of a mode's largest stable κ against β: the edge of period 2, and the spectral radius just inside it."""
    beta = np.geomspace(0.05, 30.0, 80)
    curves = []
    for alpha in (0.05, 0.3):
        limit = 2.0 / (beta + 1.0 / (2.0 - alpha))
        measured = np.array([_crossing(alpha, float(b)) for b in beta[::8]])
        curves += [
            Curve(f"2/(β + 1/(2 − α)), α = {alpha:g}", beta, limit),
            Curve("measured on the update rule", beta[::8], measured, "points"),
        ]
    return Panel("Edge of one mode", "Hessian damping β", "critical κ = ηλa", tuple(curves), log="xy")


def _crossing(alpha: float, beta: float) -> float:
    low, high = 1e-3, 10.0
    for _ in range(50):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if spectral_radius(middle, alpha, beta) < 1.0 else (low, middle)
    return float(low)


def _run_panels(run: Comparison) -> tuple[Panel, Panel]:
    name = f"{run.setting.problem}, {run.setting.method}"
    times, spare = run.path.times, run.plain.times
    return (
        Panel(
            f"Sharpness, {name}",
            "step",
            "ηS",
            (
                Curve("central flow", times, run.path.sharpness),
                Curve("gradient flow", spare, run.plain.sharpness, "bound"),
            ),
        ),
        Panel(
            f"Oscillation, {name}",
            "step",
            "variance",
            (
                Curve("training", times, run.measured[: len(times)], "reference"),
                Curve("central flow", times, run.path.variance),
            ),
        ),
    )
