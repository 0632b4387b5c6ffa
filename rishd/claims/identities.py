"""Claims C1, C2, C3 and C7: identities of the flow and of the update rule, and the integral bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.interpolate import make_interp_spline

from discretizations import symbolic
from discretizations.update_rule import lite_step
from riemannian_ode import (
    RISHD,
    ConstantMetric,
    ConstantSplit,
    TimeDependent,
    Trajectory,
    energy_identity_residual,
    simulate,
)
from riemannian_ode.arrays import matvec
from riemannian_ode.integrators import DOP853
from rishd.claims.claim import Bound, Evidence, Identity, Measurement, Proof
from rishd.claims.instances import curved_metric, from_spectrum, random_bases, relative, rippled_quadratics

_SAVES = 768  # save points of a trajectory: the quintic spline's error is then below the integrator's
_SPAN = 6.0  # units of time
_OUTPUT_SPACING = _SPAN / _SAVES


def phase_space_identity(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    """The phase-space system satisfies RISHD exactly.

    Statement: ẇ = −ηF⁻¹(m + βg), ṁ = −αm + g + R is ∇_ẇẇ + α_tẇ + β_t Hess f[ẇ] + γ_t grad f = 0 with
    α_t = α − η̇/η, β_t = ηβ, γ_t = η(1 + αβ).

    Hypotheses: F(w) symmetric positive definite and differentiable, f twice differentiable, α and β constant.

    Proof: docs/theory, claim C1; symbolic in dimension 2 from the definitions and in dimension 3 from jets.

    Check: on random points, the residual of RISHD for this package's own right-hand side, with the full array of
    Christoffel symbols and derivatives by forward-mode differentiation.

    Source: arXiv:2602.22681.
    """
    import torch
    from torch.func import jacfwd, jvp, vmap

    p = 3
    objective, metric = rippled_quadratics(rng, instances, p), curved_metric(rng, instances, p)
    alpha, beta, eta0, decay = (rng.uniform(low, high, instances) for low, high in ((0.1, 2), (0, 2), (0.1, 2), (0, 1)))
    system = RISHD.from_optimizer(objective, metric, alpha=alpha, beta=beta, eta=_decaying(eta0, decay))
    w, m = (torch.as_tensor(rng.normal(size=(instances, p))) for _ in range(2))
    system = system.for_arrays(w)
    at_zero = system.second_order_coefficients(0.0)

    velocity, force = system.rates(0.0, w, m)
    eta, eta_dot = (torch.as_tensor(x)[:, None] for x in (eta0, -decay * eta0))
    moved = jvp(lambda w, m: system.direction(0.0, w, m, objective.gradient(w)), (w, m), (velocity, force))[1]
    acceleration = -eta * moved + eta_dot / eta * velocity  # ∂_t of ẇ = −η(t)(…)

    parameters = [torch.as_tensor(x) for x in metric.parameters]
    slopes = vmap(jacfwd(metric.function))(w, *parameters)  # ∂_k F_ij as [i, j, k]
    lowered = 0.5 * (slopes.permute(0, 1, 3, 2) + slopes - slopes.permute(0, 3, 1, 2))  # Γ_{l,ij} as [l, i, j]
    gamma = torch.linalg.solve(metric.matrix(w), lowered.flatten(2)).reshape(lowered.shape)

    def turn(u: Any, v: Any) -> Any:
        return torch.einsum("nkij,ni,nj->nk", gamma, u, v)

    along = jvp(lambda x: metric.raise_index(x, objective.gradient(x)), (w,), (velocity,))
    gradient, gradient_rate = along[0], along[1]
    terms = [
        acceleration + turn(velocity, velocity),
        torch.as_tensor(at_zero.alpha) * velocity,
        torch.as_tensor(at_zero.beta) * (gradient_rate + turn(velocity, gradient)),
        torch.as_tensor(at_zero.gamma) * gradient,
    ]
    residual = relative(sum(terms).numpy(), *(term.numpy() for term in terms))
    return [
        Proof(
            "dimension 2, undetermined F, f, η(t), from the definitions",
            symbolic.phase_space_identity_from_definitions(),
        ),
        Proof("dimension 3, any metric, by jets", symbolic.phase_space_identity_jets(3)),
        Identity("RISHD residual of the right-hand side at random points, p = 3", residual, 1e-11, "rounding of F⁻¹"),
    ]


def energy_identity(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    """The energy identity along trajectories, with R, and how it breaks without R.

    Statement: E = f + (η/2)‖m‖²_{F⁻¹} obeys Ė = −ηα‖m‖² − ηβ‖g‖² + (η̇/2)‖m‖², norms of F⁻¹.

    Hypotheses: any metric, R included; no convexity.

    Proof: docs/theory, claim C2; symbolic in dimensions 2 and 3 from jets.

    Check: random metrics, objectives and coefficients, η decaying, integrated by DOP853; E(t) − E(0) + ∫−Ė over
    ‖E(0)‖ + max ∫−Ė.

    Source: derived in docs/theory.
    """
    with_r = _random_trajectory(rng, instances, correction=True)
    without_r = _random_trajectory(rng, instances, correction=False)
    return [
        Proof("dimension 2, any metric, by jets", [symbolic.energy_identity_jets(2)]),
        Proof("dimension 3, any metric, by jets", [symbolic.energy_identity_jets(3)]),
        Identity(
            "energy balance along DOP853 trajectories, R kept, p = 2",
            energy_identity_residual(*with_r).residual,
            1e-8,
            "integrator and quadrature",
        ),
        Measurement(
            "energy balance with R dropped: what the optimizers give up", energy_identity_residual(*without_r).residual
        ),
    ]


def integral_bound(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    """The integral bound on momentum and gradient.

    Statement: ∫η(α‖m‖² + β‖g‖²)_{F⁻¹} dt ≤ f(w_0) − inf f + (η_0/2)‖m_0‖²_{F⁻¹}.

    Hypotheses: β ≥ 0, η̇ ≤ 0, inf f > −∞; any metric, R included.

    Proof: integrate C2 and drop (η̇/2)‖m‖² ≤ 0 and E(T) ≥ inf f.

    Check: tightness (measured/bound) on the random trajectories of C2; inf f = 0 is known there.

    Source: derived in docs/theory.
    """
    system, trajectory = _random_trajectory(rng, instances, correction=True)
    balance = energy_identity_residual(system, trajectory)
    # dissipated = ∫η(α‖m‖² + β‖g‖²) − ∫(η̇/2)‖m‖²: take the schedule's part off again.
    from riemannian_ode import dissipation

    schedule = np.stack(
        [
            dissipation(system, float(t), w, m).schedule
            for t, w, m in zip(trajectory.times, trajectory.w, trajectory.m, strict=True)
        ]
    )
    lost = make_interp_spline(trajectory.times, schedule, k=5, axis=0).integrate(
        trajectory.times[0], trajectory.times[-1]
    )
    integral = balance.dissipated[-1] - lost
    return [
        Proof("the energy identity that it integrates (C2), dimension 3", [symbolic.energy_identity_jets(3)]),
        Bound("∫η(α‖m‖² + β‖g‖²) over its bound, p = 2", integral / balance.energy[0], slack=1e-8),
    ]


def shadow_identity(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    """The shadow gradient identity, of the flow and of the update rule.

    Statement: z = w − (η/α)Am obeys ż = −ηA(B + 1/α)∇f(w); z_k = w_k − (η(1−α)/α)Am_{k−1} obeys
    z_{k+1} = z_k − ηA(B + 1/α)g_k.

    Hypotheses: A = F⁻¹(P + χQ) and B = β₁P + β₂Q constant and commuting, η constant; any f.

    Proof: docs/theory, claim C7; symbolic in one block, which commuting reduces to.

    Check: random metrics and splits with a common eigenbasis, nonconvex f in another basis: the flow by DOP853, the
    update rule over 50 steps.

    Source: derived in docs/theory.
    """
    p, sharp_rank, steps = 5, 2, 50
    objective = rippled_quadratics(rng, instances, p)
    basis = random_bases(rng, instances, p)
    f_eigenvalues = rng.uniform(0.5, 2.0, (instances, p))
    chi, beta_sharp = rng.uniform(1.0, 4.0, instances), rng.uniform(0.0, 1.0, instances)
    beta_flat = beta_sharp + rng.uniform(0.0, 2.0, instances)
    alpha, eta = rng.uniform(0.05, 1.0, instances), rng.uniform(0.01, 0.1, instances)
    metric, split = ConstantMetric(from_spectrum(basis, f_eigenvalues)), ConstantSplit(basis[..., :sharp_rank])
    system = RISHD.from_optimizer(
        objective, metric, alpha=alpha, beta=beta_sharp, beta_flat=beta_flat, chi=chi, eta=eta, flat=split
    )
    ratio = np.where(np.arange(p) < sharp_rank, 1.0, chi[:, None])
    damping = np.where(np.arange(p) < sharp_rank, beta_sharp[:, None], beta_flat[:, None])
    a = from_spectrum(basis, ratio / f_eigenvalues)
    force = from_spectrum(basis, eta[:, None] * ratio / f_eigenvalues * (damping + 1.0 / alpha[:, None]))
    w0, m0 = rng.normal(size=(2, instances, p))

    flow = simulate(system, w0, m0, integrator=DOP853(rtol=1e-11), h=_OUTPUT_SPACING, steps=_SAVES).checked()
    shadow = flow.w - (eta / alpha)[:, None] * matvec(a, flow.m)
    push = make_interp_spline(flow.times, matvec(force, objective.gradient(flow.w)), k=5, axis=0).integrate(0.0, _SPAN)
    continuous = relative(shadow[-1] - shadow[0] + push, shadow[-1], shadow[0], push)

    w, m = w0, np.zeros_like(w0)
    weight = (eta * (1.0 - alpha) / alpha)[:, None]
    worst = np.zeros(instances)
    for _ in range(steps):
        g = objective.gradient(w)
        before = w - weight * matvec(a, m)
        w, m = lite_step(
            w,
            m,
            g,
            eta=eta[:, None],
            alpha=alpha[:, None],
            precondition=lambda x: metric.raise_index(w0, x),
            split=lambda covector, _: _flat(basis[..., sharp_rank:]),
            chi=chi[:, None],
            beta_sharp=beta_sharp[:, None],
            beta_flat=beta_flat[:, None],
        )
        after = w - weight * matvec(a, m)
        worst = np.maximum(worst, relative(after - before + matvec(force, g), after, before, matvec(force, g)))
    return [
        Proof("one block, flow and update rule", symbolic.shadow_identity()),
        Identity("flow (DOP853), p = 5", continuous, 1e-9, "integrator and quadrature"),
        Identity("update rule, worst of 50 steps, p = 5", worst, 1e-13, "rounding"),
    ]


def _flat(basis: np.ndarray) -> Any:
    transposed = np.swapaxes(basis, -1, -2)
    return lambda x: matvec(basis, matvec(transposed, x))


def _decaying(eta0: np.ndarray, decay: np.ndarray) -> TimeDependent:
    """η(t) = η_0 e^{−dt}, one member each."""
    return TimeDependent(lambda t: eta0 * np.exp(-decay * t), lambda t: -decay * eta0 * np.exp(-decay * t))


def _random_trajectory(rng: np.random.Generator, n: int, *, correction: bool) -> tuple[RISHD, Trajectory]:
    p = 2
    eta = _decaying(rng.uniform(0.2, 1.0, n), rng.uniform(0.0, 0.5, n))
    system = RISHD.from_optimizer(
        rippled_quadratics(rng, n, p),
        curved_metric(rng, n, p),
        alpha=rng.uniform(0.1, 1.5, n),
        beta=rng.uniform(0.0, 1.0, n),
        eta=eta,
        correction=correction,
    )
    w0, m0 = rng.normal(0.0, 1.5, (n, p)), rng.normal(0.0, 0.5, (n, p))
    flow = simulate(system, w0, m0, integrator=DOP853(rtol=1e-11), h=_OUTPUT_SPACING, steps=_SAVES)
    return system, flow.checked()
