"""Claim C12: the flow's semi-implicit Euler step at h = 1, the update rule and the optimizer agree to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from discretizations.update_rule import lite_step
from riemannian_ode import RISHD, ConstantMetric, ConstantSplit, GradientNoise, simulate, total_energy
from riemannian_ode.integrators.discrete_gradient import DiscreteGradient
from riemannian_ode.split import complement
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Evidence, Hypothesis, Identity
from rishd.claims.flows import solve
from rishd.claims.instances import curved_metric, from_spectrum, random_bases, rippled_quadratics
from rishd.claims.optimizer_paths import gaps, optimizers

_STEPS = 10
_PATHS = (None, GradientNoise(factor=0.3))  # one random problem per optimizer, since an equality needs no more
_STEP_SIZES = (0.1, 0.5, 2.0)


@register_claim("C12", "semi-implicit Euler = update rule = optimizer", expected="holds", seconds=20)
def optimizer_equivalence(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    r"""Semi-implicit Euler with h = 1 and R = 0 equals the update rule, and the update rule equals the optimizer.

    Statement: semi-implicit Euler for the flow with :math:`h = 1`, the update rule

    .. math::

       m_k = (1 - \alpha)\,m_{k-1} + g_k, \qquad w_{k+1} = w_k - \eta\,u(w_k, m_k, g_k),

    and the optimizer of ``lite`` give the same bits in float64, on the same backend and unbatched. With a
    preconditioner with memory the flow's state is (w, m, k), and the same holds for SGD, heavy ball, Nesterov, RMSprop,
    Adam, AdamW, AdamW-LITE, Muon, Muon-LITE, Shampoo, Shampoo-LITE, SOAP and SOAP-LITE.

    As an integrator, with :math:`R`, it has order 1. And for :math:`E = f + \frac{\eta}{2}m^\top F^{-1}m`, constant
    :math:`F` and :math:`\beta \ge 0`, the discrete-gradient scheme has :math:`E(w_{k+1}, m_{k+1}) \le E(w_k, m_k)` at
    any step size.

    Hypotheses: :math:`R` is off for the equalities.

    Proof: all three call the same functions of riemannian_ode.flow and riemannian_ode.stages (docs/theory, C12).

    Check: simulate against lite_step, 10 steps each in numpy, with constant and state-dependent metrics and LITE's
    split. For each optimizer, 100 steps on matrices with schedules of χ, β_flat and η: the flow against the update
    rule, and the rule against the torch optimizer of ``lite``, with exact and with noisy gradients; an instance is a
    step. SGD to AdamW have no class in ``lite``, so a ``LITEOptimizer`` declares their rule. The order with
    state-dependent metrics, against DOP853: errors e at two step sizes, ‖e(h) − 2e(h/2)‖ over ‖e(h)‖. The energy over
    ten steps of 0.1, 0.5 and 2 units of time for nonconvex f.

    Source: arXiv:2602.22681, Algorithm 1.
    """
    exact = "equality to the last bit"
    constant = np.array([_constant_metric_gap(rng) for _ in range(instances)])
    varying = np.array([_state_dependent_gap(rng) for _ in range(instances)])
    paths = [
        Identity(name, np.concatenate([gaps(declared, rng, noise=noise) for noise in _PATHS]), 0.0, exact)
        for name, declared in optimizers().items()
    ]
    gain = _energy_gain(rng, instances)
    return [
        Identity("simulate = lite_step, constant metric and LITE split (numpy)", constant, 0.0, exact),
        Identity("simulate = lite_step, state-dependent metric, R off (numpy)", varying, 0.0, exact),
        *paths,
        Identity(
            "order 1 of semi-implicit Euler, R kept: e(h) = 2e(h/2), h = 1/512",
            _order_gap(rng, instances),
            0.05,
            "e is O(h)",
        ),
        Identity(
            "energy gained by a step of the discrete gradient",
            gain,
            1e-11,
            "solver",
            (Hypothesis("Newton's iteration finds the step", np.isfinite(gain)),),
        ),
    ]


def _constant_metric_gap(rng: np.random.Generator) -> float:
    p = int(rng.integers(2, 9))
    sharp_rank = int(rng.integers(0, p))
    objective = rippled_quadratics(rng, 1, p)
    basis = random_bases(rng, 1, p)
    metric = ConstantMetric(from_spectrum(basis, rng.uniform(0.5, 2.0, (1, p))))
    sharp = basis[..., :sharp_rank]
    settings: dict[str, Any] = {
        "alpha": rng.uniform(0.05, 1.0),
        "eta": rng.uniform(0.01, 0.3),
        "chi": rng.uniform(1, 3),
    }
    beta, beta_flat = np.sort(rng.uniform(0.0, 2.0, 2)).tolist()
    system = RISHD.from_optimizer(
        objective, metric, beta=beta, beta_flat=beta_flat, flat=ConstantSplit(sharp), **settings
    )
    w = rng.normal(size=(1, p))
    flow = simulate(system, w, steps=_STEPS).checked()
    m = np.zeros_like(w)
    for _ in range(_STEPS):
        w, m = lite_step(
            w,
            m,
            objective.gradient(w),
            precondition=lambda x: metric.raise_index(x, x),
            split=lambda *_: complement(sharp),
            beta_sharp=beta,
            beta_flat=beta_flat,
            **settings,
        )
    return float(np.maximum(np.abs(flow.w[-1] - w).max(), np.abs(flow.m[-1] - m).max()))  # keeps a NaN, max() may not


def _state_dependent_gap(rng: np.random.Generator) -> float:
    p = 3
    objective, metric = rippled_quadratics(rng, 1, p), curved_metric(rng, 1, p)
    alpha, eta, beta = rng.uniform(0.05, 1.0), rng.uniform(0.01, 0.3), rng.uniform(0.0, 2.0)
    system = RISHD.from_optimizer(objective, metric, alpha=alpha, eta=eta, beta=beta, correction=False)
    w = rng.normal(size=(1, p))
    flow = simulate(system, w, steps=_STEPS).checked()
    m = np.zeros_like(w)
    for _ in range(_STEPS):
        here = w
        w, m = lite_step(
            w,
            m,
            objective.gradient(w),
            eta=eta,
            alpha=alpha,
            precondition=lambda x, here=here: metric.raise_index(here, x),  # type: ignore[misc]  # binds this step's w
            nesterov=beta,
        )
    return float(np.maximum(np.abs(flow.w[-1] - w).max(), np.abs(flow.m[-1] - m).max()))  # keeps a NaN, max() may not


def _order_gap(rng: np.random.Generator, n: int) -> np.ndarray:
    p, steps, span = 2, 128, 0.25
    system = RISHD.from_optimizer(
        rippled_quadratics(rng, n, p),
        curved_metric(rng, n, p),
        alpha=rng.uniform(0.1, 1.5, n),
        beta=rng.uniform(0.0, 1.0, n),
        eta=rng.uniform(0.2, 1.0, n),
    )
    start = rng.normal(size=(n, p))
    exact = solve(system, start, phases=((span, 1),)).w[-1]
    coarse, fine = (
        simulate(system, start, h=span / k, steps=k, save_every=k, progress=False).checked().w[-1] - exact
        for k in (steps, 2 * steps)
    )
    return np.asarray(np.linalg.norm(coarse - 2.0 * fine, axis=-1) / np.linalg.norm(coarse, axis=-1))


def _energy_gain(rng: np.random.Generator, n: int) -> np.ndarray:
    """Largest energy gain in ten steps over the first energy, for several step sizes; NaN if a step is not solved."""
    p, worst = 3, np.zeros(n)
    system = RISHD.from_optimizer(
        rippled_quadratics(rng, n, p),
        ConstantMetric(from_spectrum(random_bases(rng, n, p), rng.uniform(0.5, 2.0, (n, p)))),
        alpha=rng.uniform(0.1, 1.5, n),
        beta=rng.uniform(0.0, 1.0, n),
        eta=rng.uniform(0.2, 1.0, n),
    )
    start = rng.normal(0.0, 1.5, (n, p))
    for h in _STEP_SIZES:
        flow = simulate(system, start, integrator=DiscreteGradient(), h=h, steps=_STEPS, progress=False)
        states = zip(flow.times, flow.w, flow.m, strict=True)
        energy = np.stack([total_energy(system, float(t), w, m) for t, w, m in states])
        worst = np.maximum(worst, np.diff(energy, axis=0).max(0) / energy[0])
    return worst
