"""Claims C16a and C16d: published rates of inertial flows on strongly convex objectives, and better rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from discretizations.proofs import lyapunov
from riemannian_ode import RISHD, Trajectory
from riemannian_ode.rates import strongly_convex_rate
from rishd.claims import constants
from rishd.claims.claim import register_claim
from rishd.claims.convex import SMOOTH_PROFILES, ConvexRidges, convex_ridges, example_ridges, ridge_box
from rishd.claims.evidence import Bound, Curve, Evidence, Measurement, Panel, Proof
from rishd.claims.flows import decay_tightness, solve
from rishd.claims.trial import Box, Inequality, Parameters, Range, try_bounds

_P = 2
_BETTER = "r√μ t over log(E(0)/E(t)), the better rate"
_STRONG_PHASES = ((2.0, 48), (22.0, 160))
_STRONG_BOX: Box = {
    **ridge_box(_P, 2, profiles=SMOOTH_PROFILES, strength=(0.05, 1.0)),
    "start": Range(-3.0, 3.0, _P),
}


@register_claim("C16a", "strongly convex flow (Attouch et al.)", seconds=4)
def strongly_convex_flow(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The rate of Attouch, Chbani, Fadili and Riahi for strongly convex f, and a faster rate from their energy.

    Statement: for :math:`0 \le \beta \le \frac{1}{2\sqrt\mu}` the flow

    .. math:: \ddot x + 2\sqrt\mu\,\dot x + \beta\nabla^2f\,\dot x + \nabla f = 0

    has :math:`f - f_* \le E(0)\,e^{-\sqrt\mu\,t/2}` for

    .. math:: E = f - f_* + \frac{1}{2}\lVert\sqrt\mu(x - x_*) + \dot x + \beta\nabla f\rVert^2 .

    The same :math:`E` decays like :math:`e^{-r\sqrt\mu\,t}` with :math:`r` from 1 (:math:`\beta = 0`) to 0.63
    (:math:`\beta\sqrt\mu = \frac{1}{2}`), and positive if :math:`\beta\sqrt\mu < 3`.

    Hypotheses: :math:`f` μ-strongly convex; any start and velocity.

    Proof: docs/theory, claim C16; symbolic: Ė + rE and the form that bounds it.

    Check: strongly convex ridge functions by DOP853; √μ t/2 over the measured exponent log(E(0)/(f − f*)), and r√μ t
    over log(E(0)/E(t)), each at the worst save time; the latter also for β√μ from ½ to 2.9.

    Sharpness: no instance is known that attains the better rate for all :math:`t`; the code's :math:`r` is compared
    with the proof's conditions.

    Finding: the published rate ½ is loose; the same energy gives :math:`r \ge 0.63`.

    Source: arXiv:1907.10536 (the rate ½); the rate r is derived in docs/theory.
    """
    box: Box = {**_STRONG_BOX, "velocity": Range(-2.0, 2.0, _P), "damping": Range(0.0, 0.5)}
    return [
        Proof("energy, form, and its Schur complement", lyapunov.strongly_convex_flow()),
        *try_bounds(lambda x: _strong_bounds(x, "one"), box, rng, instances, slack=1e-6),
        *constants.strongly_convex_constants(rng, "one"),
        Measurement(
            "r of the better rate over ½", 2.0 * strongly_convex_rate(1.0, rng.uniform(0, 0.5, instances), gamma="one")
        ),
        *_better_beyond("one", "β√μ from ½ to 2.9", {**box, "damping": Range(0.5, 2.9)}, rng, instances),
        _strong_panel("one"),
    ]


@register_claim("C16d", "high-resolution flow (Shi et al.)", seconds=4)
def high_resolution_flow(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The rate of Shi, Du, Jordan and Su for the high-resolution ODE of Nesterov's method, and a faster rate.

    Statement: with :math:`\gamma = 1 + \sqrt{\mu s}`, :math:`0 < s \le \frac{1}{L}` and
    :math:`\dot x(0) = -\frac{2\sqrt s}{\gamma}\nabla f(x_0)`, the flow

    .. math:: \ddot x + 2\sqrt\mu\,\dot x + \sqrt s\,\nabla^2f\,\dot x + \gamma\nabla f = 0

    has

    .. math:: f - f_* \le \frac{2}{s}\lVert x_0 - x_*\rVert^2e^{-\sqrt\mu\,t/4} .

    For any :math:`s` and start, the energy

    .. math:: \gamma(f - f_*) + \frac{1}{2}\lVert\sqrt\mu(x - x_*) + \dot x + \sqrt s\,\nabla f\rVert^2

    decays like :math:`e^{-r\sqrt\mu\,t}` with :math:`r = \frac{1 + \sqrt{\mu s}}{1 + 2\sqrt{\mu s}}`, which is at least
    :math:`\frac{2}{3}` for :math:`s \le \frac{1}{\mu}`.

    Hypotheses: :math:`f` μ-strongly convex, for the first bound also L-smooth.

    Proof: docs/theory, claim C16; symbolic: Ė + rE and the form that bounds it. The first bound is only tested.

    Check: as in C16a, with the exponents of both bounds; the better one also from any velocity, for sL up to 100.

    Sharpness: as in C16a, no instance is known that attains the better rate for all :math:`t`.

    Finding: the published rate ¼ is loose; the same flow has :math:`r \ge \frac{2}{3}` without any smoothness
    assumption.

    Source: arXiv:1810.08907 (the rate ¼); the rate r is derived in docs/theory.
    """
    box: Box = {**_STRONG_BOX, "step": Range(0.01, 1.0, log=True)}  # s·L
    return [
        Proof("energy, form, and its Schur complement", lyapunov.strongly_convex_flow()),
        *try_bounds(lambda x: _strong_bounds(x, "corrected"), box, rng, instances, slack=1e-6),
        *constants.strongly_convex_constants(rng, "corrected"),
        *_better_beyond(
            "corrected",
            "any velocity, sL to 100",
            {**box, "velocity": Range(-2.0, 2.0, _P), "step": Range(0.01, 100.0, log=True)},
            rng,
            instances,
        ),
        _strong_panel("corrected"),
    ]


def _strong_bounds(parameters: Parameters, gamma: Literal["one", "corrected"]) -> dict[str, Inequality]:
    objective = convex_ridges(parameters, _P)
    mu = objective.strength
    root = np.sqrt(mu)
    x0 = parameters["start"]
    g0 = objective.gradient(x0)
    if gamma == "one":
        beta, weight = parameters["damping"] / root, np.ones_like(mu)
        velocity = parameters["velocity"]
    else:
        beta = np.sqrt(parameters["step"] / objective.smoothness)
        weight = 1.0 + root * beta
        velocity = parameters.get("velocity", -2.0 * (beta / weight)[:, None] * g0)
    flow, y = _strong_flow(objective, x0, velocity, beta, weight)
    gap = objective.value(flow.w)
    energy = weight * gap + 0.5 * (y**2).sum(-1)
    rate = strongly_convex_rate(mu, beta, gamma=gamma)
    one = np.ones_like(mu)
    convex = {"f μ-strongly convex": objective.is_convex_at(flow.w)}
    better = {_BETTER: Inequality(decay_tightness(flow.times, energy, rate), one, convex)}
    if gamma == "one":
        published = decay_tightness(flow.times, gap, 0.5 * root, energy[0])
        admitted = {**convex, "β ≤ 1/(2√μ)": parameters["damping"] <= 0.5}
        return {
            "√μ t/2 over log(E(0)/(f − f*)), the published rate": Inequality(published, one, admitted),
            **better,
        }
    start = 2.0 / beta**2 * (x0**2).sum(-1)
    return {
        "f − f* over (2/s)‖x_0 − x*‖²e^{−√μ t/4}, at the worst time": Inequality(
            (gap * np.exp(np.minimum(0.25 * root * flow.times[:, None], 27.0))).max(0), start, convex
        ),
        "√μ t/4 over log((2/s)‖x_0 − x*‖²/(f − f*)), the published rate": Inequality(
            decay_tightness(flow.times, gap, 0.25 * root, start), one, convex
        ),
        **better,
    }


def _better_beyond(
    gamma: Literal["one", "corrected"], where: str, box: Box, rng: np.random.Generator, instances: int
) -> list[Bound]:
    """The better rate outside the range of the published one."""
    return try_bounds(
        lambda x: {f"{_BETTER}, {where}": _strong_bounds(x, gamma)[_BETTER]}, box, rng, instances, slack=1e-6
    )


def _strong_flow(
    objective: ConvexRidges, x0: np.ndarray, velocity: np.ndarray, beta: np.ndarray, gamma: np.ndarray
) -> tuple[Trajectory, np.ndarray]:
    """The flow with α = 2√μ, and √μ(x − x*) + ẋ + β∇f along the flow."""
    root = np.sqrt(objective.strength)
    system = RISHD.from_coefficients(objective, alpha=2.0 * root, beta=beta, gamma=gamma)
    v0 = velocity + beta[:, None] * objective.gradient(x0)
    flow = solve(system, x0, system.momentum_of(x0, v0), phases=_STRONG_PHASES, rtol=1e-9)
    return flow, root[:, None] * flow.w + system.velocity_of(flow.w, flow.m)


def _strong_panel(gamma: Literal["one", "corrected"]) -> Panel:
    objective, x0 = convex_ridges(example_ridges(1, 0.1), _P), np.array([[2.0, -3.0]])
    root, smooth = np.sqrt(0.1), objective.smoothness
    beta = 0.5 / root * np.ones(1) if gamma == "one" else 1.0 / np.sqrt(smooth)
    weight = np.ones(1) if gamma == "one" else 1.0 + root * beta
    velocity = np.zeros((1, _P)) if gamma == "one" else -2.0 * (beta / weight)[:, None] * objective.gradient(x0)
    flow, y = _strong_flow(objective, x0, velocity, beta, weight)
    gap = objective.value(flow.w)[:, 0]
    energy = weight * gap + 0.5 * (y[:, 0] ** 2).sum(-1)
    start = energy[0] if gamma == "one" else 2.0 / beta[0] ** 2 * (x0**2).sum()
    published = start * np.exp(-(0.5 if gamma == "one" else 0.25) * root * flow.times)
    better = energy[0] / weight * np.exp(-float(strongly_convex_rate(0.1, beta[0], gamma=gamma)) * flow.times)
    curves = (
        Curve("f − f*", flow.times, gap),
        Curve("published bound", flow.times, published, "bound"),
        Curve("better bound", flow.times, better, "bound"),
    )
    title = "β = 1/(2√μ)" if gamma == "one" else "s = 1/L"
    return Panel(f"Strongly convex f, {title} (one instance)", "time t", "f − f*", curves, log="y")
