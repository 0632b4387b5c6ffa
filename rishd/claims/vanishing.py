"""Claims C16b and C16c: convergence rates of flows with vanishing damping on convex objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from discretizations.proofs import lyapunov
from riemannian_ode import RISHD, TimeDependent, Trajectory
from rishd.claims.claim import register_claim
from rishd.claims.convex import PROFILES, SMOOTH_PROFILES, ConvexRidges, convex_ridges, example_ridges, ridge_box
from rishd.claims.evidence import Attained, Curve, Evidence, Measurement, Panel, Proof
from rishd.claims.flows import solve, time_integral
from rishd.claims.trial import Box, Inequality, Parameters, Range, draw, try_bounds

_P = 2
_PHASES = ((2.0, 48), (17.0, 160))
_NESTEROV_PHASES = ((20.0, 200),)
_CONVEX_BOX: Box = {**ridge_box(_P, 2, profiles=SMOOTH_PROFILES), "start": Range(-3.0, 3.0, _P)}
_EARLY = 1e-3  # start time of the flow at rest at t = 0; the state there is known up to t⁴


@register_claim("C16b", "vanishing damping (Attouch et al.)", seconds=4)
def vanishing_damping_flow(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The bounds of Attouch, Chbani, Fadili and Riahi for convex f with vanishing damping a/t and Hessian damping.

    Statement: let

    .. math:: \ddot x + \frac{a}{t}\dot x + \beta(t)\nabla^2f\,\dot x + b(t)\nabla f = 0

    with :math:`w = b - \dot\beta - \frac{\beta}{t} > 0` and :math:`t\dot w \le (a - 3)w` for :math:`t \ge t_0`. Then

    .. math::

       f - f_* \le \frac{E(t_0)}{t^2w}, \qquad \int_{t_0}^\infty t^2\beta w\lVert\nabla f\rVert^2\,dt \le E(t_0)

    for

    .. math:: E = t^2w(f - f_*) + \frac{1}{2}\lVert(a - 1)(x - x_*) + t(\dot x + \beta\nabla f)\rVert^2 .

    Hypotheses: :math:`f` convex with a minimiser; :math:`a \ge 1`, :math:`\beta \ge 0`, :math:`t_0 > 0`, and the two
    conditions on :math:`w` from :math:`t_0` on.

    Proof: docs/theory, claim C16; symbolic: Ė for any a, β(t), b(t).

    Check: convex ridge functions by DOP853 from t_0 = 1 (a choice of units), with β constant or growing like t, b = 1
    or 1 + β/t, a from 2.8 to 8. If the conditions fail, the claim is not applicable; the largest ratios are then
    measured at b = 1 with a = 3 and constant β > 0, and with a < 3.

    Sharpness: C16c's instance attains the first bound; no instance is known that attains the second. The bounds are
    used only in this claim; the library has no function for them.

    Finding: a below 3 violates the bounds many times over. Constant :math:`\beta` at :math:`a = 3`, :math:`b = 1`
    violates the second condition, but the bounds hardly: they hold with :math:`E(t_0)/(1 - \beta/t_0)` (docs/theory).

    Source: arXiv:1907.10536.
    """
    box: Box = {
        **_CONVEX_BOX,
        "velocity": Range(-2.0, 2.0, _P),
        "a": Range(2.8, 8.0),
        "beta": Range(0.0, 0.7),
        "kind": Range(0.0, 3.0 - 1e-9),
    }
    outside = {}
    for what, a in (("a = 3, β > 0", Range(3.0, 3.0)), ("a < 3", Range(1.0, 2.9))):
        missing = draw({**box, "a": a}, rng, max(instances // 4, 8))
        missing["kind"] = np.full(len(missing["kind"]), 1.0)  # b = 1: no β > 0 satisfies tẇ ≤ (a−3)w here
        outside[what] = _vanishing_bounds(missing)
    return [
        Proof("derivative of the energy", lyapunov.vanishing_damping_flow()),
        *try_bounds(_vanishing_bounds, box, rng, instances, slack=1e-6),
        _attained(),
        *(
            Measurement(f"{name}, where the conditions fail (b = 1, {what})", tried.value / tried.limit)
            for what, beyond in outside.items()
            for name, tried in beyond.items()
        ),
        _vanishing_panel(),
    ]


@register_claim("C16c", "Nesterov's flow (Su, Boyd, Candès)", seconds=3)
def nesterov_flow(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The rate of Su, Boyd and Candès for Nesterov's method on convex f in continuous time.

    Statement: from rest, :math:`\ddot x + \frac{3}{t}\dot x + \nabla f = 0` has

    .. math:: f - f_* \le \frac{2\lVert x_0 - x_*\rVert^2}{t^2} .

    Hypotheses: :math:`f` convex with a minimiser, :math:`\dot x(0) = 0`.

    Proof: docs/theory, claim C16: the case a = 3, β = 0, b = 1 of C16b with t_0 → 0; symbolic.

    Check: convex ridge functions by DOP853 from t = 0.001 on the series x_0 − t²∇f(x_0)/8; the largest ratio over all
    save times.

    Sharpness: Huber functions attain the bound as their widths vanish; the bound is used only in this claim.

    Finding: the constant 2 cannot be improved: :math:`f = c\lvert x\rvert` attains it (docs/theory).

    Source: Su, Boyd and Candès, JMLR 17 (2016), Theorem 3.
    """
    return [
        Proof("derivative of the energy", lyapunov.vanishing_damping_flow()),
        *try_bounds(_nesterov_bounds, _CONVEX_BOX, rng, instances, slack=1e-5),
        _attained(),
        _nesterov_panel(),
    ]


@dataclass(frozen=True)
class _Run:
    """A flow from t = 1 with w and β along it, each of shape ``(saves, n)``, and E at the start."""

    objective: ConvexRidges
    flow: Trajectory
    weight: np.ndarray
    damping: np.ndarray
    start: np.ndarray


def _run(parameters: Parameters) -> _Run:
    objective = convex_ridges(parameters, _P)
    a, slope = parameters["a"], parameters["beta"]
    kind = np.floor(parameters["kind"]).astype(int)
    corrected, grows = kind == 0, kind == 2  # b = 1 + β/t, else b = 1; β = slope·t/4, else β = slope

    def beta(t: float) -> Any:
        return np.where(grows, 0.25 * slope * t, slope)

    def beta_rate(t: float) -> Any:
        return np.where(grows, 0.25 * slope, 0.0)

    def b(t: float) -> Any:
        return 1.0 + np.where(corrected, beta(t) / t, 0.0)

    system = RISHD.from_coefficients(
        objective, alpha=TimeDependent(lambda t: a / t), beta=TimeDependent(beta, beta_rate), gamma=TimeDependent(b)
    )
    x0 = parameters["start"]
    v0 = parameters["velocity"] + beta(1.0)[:, None] * objective.gradient(x0)
    flow = solve(system, x0, system.momentum_of(x0, v0), phases=_PHASES, t0=1.0, rtol=1e-9)
    weight = np.stack([b(t) - beta_rate(t) - beta(t) / t for t in flow.times.tolist()])
    shadow = (a - 1.0)[:, None] * x0 + v0
    start = weight[0] * objective.value(x0) + 0.5 * (shadow**2).sum(-1)
    return _Run(objective, flow, weight, np.stack([beta(t) for t in flow.times.tolist()]), start)


def _vanishing_bounds(parameters: Parameters) -> dict[str, Inequality]:
    run = _run(parameters)
    times, weight, damping = run.flow.times[:, None], run.weight, run.damping
    gap, gradient = run.objective.value(run.flow.w), run.objective.gradient(run.flow.w)
    # tẇ is β/t where β and b = 1 are constant, else 0.
    growth = np.where(np.floor(parameters["kind"]) == 1, damping / times, 0.0)
    hypotheses = {
        "f convex": run.objective.is_convex_at(run.flow.w),
        "w > 0": (weight > 0).all(0),
        "tẇ ≤ (a−3)w": (growth <= (parameters["a"] - 3.0) * weight + 1e-12).all(0),
    }
    spent = time_integral(run.flow.times, times**2 * damping * weight * (gradient**2).sum(-1))[-1]
    return {
        "t²w(f − f*) over E(t_0), at the worst time": Inequality(
            (gap * times**2 * weight).max(0), run.start, hypotheses
        ),
        "∫t²βw‖∇f‖² over E(t_0)": Inequality(spent, run.start, hypotheses),
    }


def _nesterov_bounds(
    parameters: Parameters, *, phases: Sequence[tuple[float, int]] = _NESTEROV_PHASES
) -> dict[str, Inequality]:
    objective, x0 = convex_ridges(parameters, _P), parameters["start"]
    flow = _nesterov_trajectory(objective, x0, phases=phases)
    gap = objective.value(flow.w)
    return {
        "t²(f − f*) over 2‖x_0 − x*‖², at the worst time": Inequality(
            (flow.times[:, None] ** 2 * gap).max(0), 2.0 * (x0**2).sum(-1), {"f convex": objective.is_convex_at(flow.w)}
        )
    }


def _nesterov_trajectory(
    objective: ConvexRidges, x0: np.ndarray, *, phases: Sequence[tuple[float, int]] = _NESTEROV_PHASES
) -> Trajectory:
    system = RISHD.from_coefficients(objective, alpha=TimeDependent(lambda t: 3.0 / t), beta=0.0, gamma=1.0)
    g0 = objective.gradient(x0)
    early, velocity = x0 - _EARLY**2 / 8.0 * g0, -_EARLY / 4.0 * g0
    return solve(system, early, system.momentum_of(early, velocity), phases=phases, t0=_EARLY, rtol=1e-9)


def _attained() -> Attained:
    """C16c's bound on Huber functions up to the time at which c|x| attains it, when x is half its start."""
    width, x0 = np.array([1e-4, 1e-3]), np.array([[1.0, 0.0], [1.0, 0.0]])
    parameters = {
        "directions": x0,
        "weights": 1.0 / width[:, None],  # slope 1 beyond the width
        "widths": width[:, None],
        "profile": np.full(2, float(len(PROFILES) - 1)),
    }
    (tried,) = _nesterov_bounds({**parameters, "start": x0}, phases=((2.0, 20),)).values()
    return Attained(
        "t²(f − f*) over 2‖x_0 − x*‖², Huber functions", np.abs(tried.value / tried.limit - 1.0), 2e-3, "their width"
    )


def _vanishing_panel() -> Panel:
    curves = []
    for name, kind, a in (("b = 1 + β/t, a = 3", 0.0, 3.0), ("b = 1, a = 5", 1.0, 5.0)):
        shape = {"a": np.array([a]), "beta": np.array([0.4]), "kind": np.array([kind])}
        run = _run({**example_ridges(1, 0.0), "velocity": np.zeros((1, _P)), **shape})
        times = run.flow.times
        curves += [
            Curve(name, times, run.objective.value(run.flow.w)[:, 0]),
            Curve(f"bound, {name}", times, run.start[0] / (times**2 * run.weight[:, 0]), "bound"),
        ]
    return Panel("Vanishing damping, β = 0.4 (one instance)", "time t", "f − f*", tuple(curves), log="xy")


def _nesterov_panel() -> Panel:
    curves = []
    x0 = np.array([[2.0, -3.0]])
    for name, profile in (("pseudo-Huber", 1), ("quadratic", 0)):
        objective = convex_ridges(example_ridges(profile, 0.0), _P)
        flow = _nesterov_trajectory(objective, x0)
        curves.append(Curve(name, flow.times[1:], objective.value(flow.w)[1:, 0]))
    curves.append(Curve("2‖x₀ − x*‖²/t²", flow.times[1:], 2.0 * (x0**2).sum() / flow.times[1:] ** 2, "bound"))
    return Panel("Nesterov's flow (one instance)", "time t", "f − f*", tuple(curves), log="xy")
