"""Claim C20: the stationary noise of the flow on a quadratic, and the noise that the update rule adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.linalg import solve_continuous_lyapunov
from scipy.stats import chi2, norm

from discretizations.noise import floor_ratio_bounds, flow_covariance, flow_loss_floor, loss_floor
from discretizations.proofs import noise as proofs
from discretizations.stability import stable_limit
from riemannian_ode import RISHD, GradientNoise, simulate
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Attained, Curve, Evidence, Identity, Measurement, Panel, Proof
from rishd.claims.trial import Inequality, Parameters, Range, draw, try_bounds
from toy_landscapes import Quadratic

_CHAINS, _STEP, _STEPS = 32, 0.125, 120  # members of each instance's ensemble, and its duration: 15 units of time
_SLOWEST = 0.5  # smallest decay rate of an ensemble's slowest mode, which forgets its start to 1e−6 in the variance
_FALSE_ALARM = 1e-6  # probability that a correct formula fails the ensemble check
_BOX = {"alpha": Range(1e-3, 1.0, log=True), "beta": Range(0.0, 8.0), "share": Range(1e-4, 0.999)}


@register_claim("C20", "stationary noise of the flow", seconds=4)
def flow_noise(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Stationary covariance and loss floor of a flow mode with gradient noise, compared with the update rule's.

    Statement: the gradient :math:`\lambda w + \sigma\,\mathrm dB/\mathrm dt`, i.e. the stochastic differential equation

    .. math::

       \mathrm dw = -\eta a(m + \beta\lambda w)\,\mathrm dt - \eta a\beta\sigma\,\mathrm dB, \qquad
       \mathrm dm = (-\alpha m + \lambda w)\,\mathrm dt + \sigma\,\mathrm dB,

    has, with :math:`\kappa = \eta a\lambda`, the stationary loss

    .. math:: \sigma^2\eta a\,\frac{1 + \alpha\beta + \beta^2\kappa}{4(\alpha + \beta\kappa)} .

    The floor of the update rule (C10) has the same limit for :math:`\kappa \to 0`, and diverges at the stability limit
    :math:`\kappa_*` of C6: for :math:`\beta \ge 0`

    .. math::

       \frac{1}{1 - \kappa/\kappa_*} \le \frac{\text{floor of the rule}}{\text{floor of the flow}} \le
       \frac{1}{1 - \kappa/\kappa_*}
       \left[1 + \frac{3 - 2\alpha}{2 - \alpha}\,\frac{\beta\kappa}{1 + \alpha\beta + \beta^2\kappa}\right] .

    Hypotheses: :math:`\kappa > 0`, :math:`1 + \alpha\beta > 0`, :math:`\alpha + \beta\kappa > 0`; noise independent of
    the state. For the comparison :math:`\alpha \le 1`, :math:`\beta \ge 0` and :math:`\kappa < \kappa_*`.

    Proof: docs/theory, claim C20; symbolic: the closed form solves the Lyapunov equation, and both bounds.

    Check: SciPy's solution of the Lyapunov equation; ensembles of 32 members per instance by the scheme ``ubu``, whose
    variances are compared with the closed form by a χ² test, each instance and all together (a correct formula fails
    with probability 1e−6); the bounds on random instances, and an adversary.

    Sharpness: the lower bound is an equality at :math:`\beta = 0`, the upper bound at :math:`\alpha = 1`.

    Finding: for every :math:`\beta \ge 0`, steps of h = 1 add noise and never remove any. The bracket stays below
    :math:`1 + \frac{3}{4}\sqrt{\kappa} < \frac{5}{2}`, so :math:`1/(1 - \kappa/\kappa_*)` dominates the ratio of the
    floors.

    Source: derived in docs/theory.
    """
    alpha = rng.uniform(0.01, 1.0, instances)
    beta = np.where(rng.random(instances) < 0.8, rng.uniform(0.0, 5.0, instances), rng.uniform(-0.5, 0.0, instances))
    kappa = np.exp(rng.uniform(np.log(1e-3), np.log(10.0), instances))
    kappa = np.where(beta < 0, np.minimum(kappa, 0.9 * alpha / np.maximum(-beta, 1e-9)), kappa)
    exact, solved = flow_covariance(kappa, alpha, beta), _by_scipy(kappa, alpha, beta)
    difference = np.abs(exact - solved).max(axis=(-2, -1)) / np.abs(exact).max(axis=(-2, -1))
    half = 0.5 * stable_limit(alpha, np.abs(beta))
    part = loss_floor(half, alpha, np.abs(beta), rate=1.0, sigma=1.0)
    return [
        Proof("the closed form solves the Lyapunov equation; the bounds of rule over flow", proofs.flow_noise()),
        Identity(
            "closed form against SciPy's continuous Lyapunov solver", difference, 1e-9, "conditioning near stability"
        ),
        _ensembles(rng, instances),
        *try_bounds(_rule_beside_flow, _BOX, rng, instances),
        *_attained(rng, instances),
        Measurement(
            "rule's floor over the flow's at half the stability limit",
            part / flow_loss_floor(half, alpha, np.abs(beta), rate=1.0, sigma=1.0),
        ),
        _panel(rng),
    ]


def _by_scipy(kappa: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    solved = []
    for k, a, b in zip(kappa, alpha, beta, strict=True):
        entry = np.array([-b, 1.0])
        solved.append(solve_continuous_lyapunov(np.array([[-b * k, -1.0], [k, -a]]), -np.outer(entry, entry)))
    return np.stack(solved)


def _rule_beside_flow(parameters: Parameters) -> Mapping[str, Inequality]:
    alpha, beta = parameters["alpha"], parameters["beta"]
    kappa = parameters["share"] * stable_limit(alpha, beta)
    rule = loss_floor(kappa, alpha, beta, rate=1.0, sigma=1.0)
    flow = flow_loss_floor(kappa, alpha, beta, rate=1.0, sigma=1.0)
    bounds = floor_ratio_bounds(kappa, alpha, beta)
    return {
        "flow's floor over 1 − κ/κ*, by the rule's": Inequality(bounds.lower * flow, rule),
        "rule's floor, by the flow's times the upper bound": Inequality(rule, bounds.upper * flow),
    }


def _attained(rng: np.random.Generator, instances: int) -> list[Attained]:
    parameters = draw(_BOX, rng, instances)
    lower, _ = _rule_beside_flow({**parameters, "beta": 0.0 * parameters["beta"]}).values()
    _, upper = _rule_beside_flow({**parameters, "alpha": 1.0 + 0.0 * parameters["alpha"]}).values()
    names = {"lower bound at β = 0": lower, "upper bound at α = 1": upper}
    return [
        Attained(f"1 − tightness of the {name}", np.abs(1.0 - tried.value / tried.limit), 1e-9, "equality")
        for name, tried in names.items()
    ]


def _ensembles(rng: np.random.Generator, instances: int) -> Identity:
    alpha, beta = rng.uniform(0.5, 1.5, (20, instances)), rng.uniform(0.0, 2.0, (20, instances))
    kappa = rng.uniform(0.1, 1.0, (20, instances))
    first = (_slowest(kappa, alpha, beta) >= _SLOWEST).argmax(0)  # first draw whose modes forget their start in time
    kappa, alpha, beta = (x[first, np.arange(instances)] for x in (kappa, alpha, beta))
    variance = flow_covariance(kappa, alpha, beta)[..., 0, 0] * kappa**2  # λ = σ = 1: κ = ηa
    squares = (_ends(rng, kappa, alpha, beta) ** 2).sum(0) / variance
    scores = norm.ppf(chi2.cdf(squares, _CHAINS))
    together = (squares.sum() - _CHAINS * instances) / np.sqrt(2.0 * _CHAINS * instances)
    quantile = float(norm.ppf(1.0 - 0.5 * _FALSE_ALARM / (instances + 1)))
    return Identity(
        "variances of ensembles against the closed form, in standard scores: each instance, and all together",
        np.abs(np.append(scores, together)),
        quantile,
        f"χ² law with {_CHAINS} degrees of freedom per instance, false alarm {_FALSE_ALARM:g} over all",
    )


def _slowest(kappa: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Rate of the slower eigenvalue of the mode's matrix."""
    half = 0.5 * (alpha + beta * kappa)
    root = np.sqrt(np.maximum(half**2 - kappa * (1.0 + alpha * beta), 0.0))
    return np.asarray(half - root)


def _ends(rng: np.random.Generator, kappa: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Final w of an ensemble's paths that start at 0, shape ``(chains, instances)``; λ = σ = 1."""
    system = RISHD.from_optimizer(Quadratic([1.0]), alpha=alpha, beta=beta, eta=kappa)
    noise = GradientNoise(factor=1.0, seed=int(rng.integers(2**63)))
    start = np.zeros((_CHAINS, len(kappa), 1))
    settings: dict[str, Any] = {"steps": _STEPS, "save_every": _STEPS, "progress": False}
    run = simulate(system, start, integrator="ubu", h=_STEP, noise=noise, keep_states=False, **settings)
    return np.asarray(run.w[-1, ..., 0])


def _panel(rng: np.random.Generator) -> Panel:
    """Plot of the floors of flow and rule against κ at α = 0.5, with ensembles of the flow."""
    curves, alpha = [], 0.5
    for beta in (0.0, 1.0, 4.0):
        kappa = np.geomspace(1e-3, 0.999 * stable_limit(alpha, beta), 300)
        flow = flow_loss_floor(kappa, alpha, beta, rate=1.0, sigma=1.0)
        curves.append(Curve(f"flow, β = {beta:g}", kappa, flow))
        rule = loss_floor(kappa, alpha, beta, rate=1.0, sigma=1.0)
        curves.append(Curve("update rule (C10)" if beta == 0 else "", kappa, rule, "reference"))
        points = np.geomspace(0.35, 0.95, 6) * stable_limit(alpha, beta)
        many = np.repeat(points, 50)
        ends = _ends(rng, many, alpha + 0.0 * many, beta + 0.0 * many).reshape(_CHAINS, 6, 50)
        losses = 0.5 * (ends**2).mean((0, 2)) / points
        curves.append(Curve("ensembles of the flow" if beta == 0 else "", points, losses, "points"))
    return Panel("Noise floor of one mode, α = 0.5", "κ = ηλa", "loss floor / (σ²ηa)", tuple(curves), log="xy")
