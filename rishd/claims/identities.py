"""Claims C1, C2, C3 and C7: identities of the flow and of the update rule, and the integral bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from discretizations.proofs import dynamics
from riemannian_ode import RISHD, TimeDependent, Trajectory, dissipation, energy_identity_residual, total_energy
from riemannian_ode.arrays import matvec
from riemannian_ode.flow import momentum_step, position_step
from rishd.claims import constants
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Bound, Evidence, Identity, Measurement, Proof
from rishd.claims.flows import solve, time_integral
from rishd.claims.geometry import geometry_box, split_geometry
from rishd.claims.instances import (
    ConformalMetric,
    RippledQuadratic,
    curved_metric,
    from_spectrum,
    relative,
    rippled_quadratics,
    rotations,
)
from rishd.claims.trial import Box, Inequality, Parameters, Range, draw, try_bounds

_PHASES = ((0.5, 56), (3.5, 384))  # spans and save points: dense enough for the spline where a metric changes fast
_CLOSE_PHASES = ((0.5, 112), (3.5, 768))  # dense enough for C7's tolerance, a thousandth of the others'
_CONFORMAL_BOX: Box = {
    "axes": Range(-2.0, 2.0),
    "spectrum": Range(0.05, 3.0, 2, log=True),
    "ripple": Range(0.0, 1.5, 2),
    "tilt": Range(-2.0, 2.0),
    "metric": Range(0.5, 2.0, 2, log=True),
    "swing": Range(-1.0, 1.0),
    "wave": Range(-1.5, 1.5, 2),
    "start": Range(-3.0, 3.0, 2),
    "momentum": Range(-1.0, 1.0, 2),
    "alpha": Range(0.1, 1.5),
    "beta": Range(0.0, 1.0),
    "eta": Range(0.2, 1.0),
    "decay": Range(-0.03, 0.25),  # decay rates of η; negative rates grow
}


@register_claim("C1", "phase-space identity", seconds=2)
def phase_space_identity(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    r"""The phase-space system satisfies RISHD exactly.

    Statement: the phase-space system

    .. math:: \dot w = -\eta F^{-1}(m + \beta g), \qquad \dot m = -\alpha m + c\,g + R

    is RISHD,

    .. math::

       \nabla_{\dot w}\dot w + \alpha_t\dot w + \beta_t\operatorname{Hess} f[\dot w]
       + \gamma_t\operatorname{grad} f = 0,

    with :math:`\alpha_t = \alpha - \dot\eta/\eta`, :math:`\beta_t = \eta\beta` and
    :math:`\gamma_t = \eta(c + \alpha\beta + \dot\beta)`.

    Hypotheses: :math:`F(w)` symmetric positive definite and differentiable, :math:`f` twice differentiable,
    :math:`\eta > 0` and :math:`\beta` differentiable in time.

    Proof: docs/theory, claim C1; symbolic in dimension 2 from the definitions (c = 1, β constant) and in dimension 3
    from jets.

    Check: on random points, the residual of RISHD for this package's own right-hand side, with the full array of
    Christoffel symbols and derivatives by forward-mode differentiation.

    Source: arXiv:2602.22681.
    """
    import torch
    from torch.func import jacfwd, jvp, vmap

    p = 3
    objective, metric = rippled_quadratics(rng, instances, p), curved_metric(rng, instances, p)
    alpha, beta, eta0, decay = (rng.uniform(low, high, instances) for low, high in ((0.1, 2), (0, 2), (0.1, 2), (0, 1)))
    slope, gain = rng.uniform(-1, 1, instances), rng.uniform(0, 2, instances)
    system = RISHD.from_optimizer(
        objective,
        metric,
        alpha=alpha,
        gain=gain,
        beta=TimeDependent(lambda t: beta + slope * t, lambda t: slope),
        eta=_decaying(eta0, decay),
    )
    w, m = (torch.as_tensor(rng.normal(size=(instances, p))) for _ in range(2))
    system = system.for_arrays(w)
    at_zero = system.second_order_coefficients(0.0)

    velocity, force = system.rates(0.0, w, m)
    eta, eta_dot = (torch.as_tensor(x)[:, None] for x in (eta0, -decay * eta0))
    moved = jvp(lambda w, m: system.direction(0.0, w, m, objective.gradient(w)), (w, m), (velocity, force))[1]
    raised = metric.raise_index(w, objective.gradient(w))
    # With ∂_t of ẇ = −η(t)F⁻¹(m + β(t)g).
    acceleration = -eta * (moved + torch.as_tensor(slope)[:, None] * raised) + eta_dot / eta * velocity

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
            dynamics.phase_space_identity_from_definitions(),
        ),
        Proof("dimension 3, any metric, by jets", dynamics.phase_space_identity_jets(3)),
        Identity("RISHD residual of the right-hand side at random points, p = 3", residual, 1e-11, "rounding of F⁻¹"),
    ]


@register_claim("C2", "energy identity", seconds=7)
def energy_identity(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    r"""The energy identity along trajectories, with R, and how it breaks without R.

    Statement: in the norm of :math:`F^{-1}`, the energy :math:`E = f + \frac{\eta}{2}\lVert m\rVert^2` obeys

    .. math:: \dot E = -\eta\alpha\lVert m\rVert^2 - \eta\beta\lVert g\rVert^2 + \frac{\dot\eta}{2}\lVert m\rVert^2 .

    Hypotheses: any metric, with :math:`R`; no convexity.

    Proof: docs/theory, claim C2; symbolic in dimensions 2 and 3 from jets.

    Check: random metrics, objectives and coefficients, η decaying, integrated by DOP853: :math:`E(t) - E(0)` against
    its integrated rate, relative to :math:`\lvert E(0)\rvert` and the energy dissipated.

    Finding: without :math:`R`, which every optimizer drops, the balance does not close; the evidence shows by how much.

    Source: derived in docs/theory.
    """
    with_r = _random_trajectory(rng, instances, correction=True)
    without_r = _random_trajectory(rng, instances, correction=False)
    return [
        Proof("dimension 2, any metric, by jets", [dynamics.energy_identity_jets(2)]),
        Proof("dimension 3, any metric, by jets", [dynamics.energy_identity_jets(3)]),
        Identity(
            "energy balance along DOP853 trajectories, R kept, p = 2",
            energy_identity_residual(*with_r).residual,
            1e-6,
            "integrator and quadrature",
        ),
        Measurement(
            "energy balance with R dropped, as in the optimizers", energy_identity_residual(*without_r).residual
        ),
    ]


@register_claim("C3", "integral bound", seconds=7)
def integral_bound(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    r"""The integral bound on momentum and gradient.

    Statement: in the norm of :math:`F^{-1}`,

    .. math::

       \int_0^\infty \eta\left(\alpha\lVert m\rVert^2 + \beta\lVert g\rVert^2\right) dt
       \le f(w_0) - \inf f + \frac{\eta_0}{2}\lVert m_0\rVert^2 .

    Hypotheses: :math:`\beta \ge 0`, :math:`\dot\eta \le 0`, :math:`\inf f > -\infty`; any metric, with :math:`R`.

    Proof: integrate C2 and drop :math:`\frac{\dot\eta}{2}\lVert m\rVert^2 \le 0` and :math:`E(T) \ge \inf f`.

    Check: the random trajectories of C2, and conformal metrics φ(w)M, which are cheap enough for an adversary; their
    inf f is 0. One instance in nine has a growing η, for which the claim is not applicable.

    Sharpness: at constant :math:`\eta` every flow that ends in a minimum attains the bound; quadratics are checked
    exactly.

    Source: derived in docs/theory.
    """
    general = _dissipated(*_random_trajectory(rng, instances, correction=True))
    return [
        Proof("the energy identity that it integrates (C2), dimension 3", [dynamics.energy_identity_jets(3)]),
        Bound("∫η(α‖m‖² + β‖g‖²) over its bound, any metric, p = 2", *general, slack=1e-7),
        *try_bounds(_conformal_bound, _CONFORMAL_BOX, rng, instances, slack=1e-6),
        *constants.energy_bound(rng),
    ]


@register_claim("C7", "shadow gradient identity")
def shadow_identity(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    r"""The shadow gradient identity, of the flow and of the update rule.

    Statement: along the flow, :math:`z = w - \frac{\eta}{\alpha}Am` obeys

    .. math:: \dot z = -\eta A\left(B + \frac{1}{\alpha}\right)\nabla f(w) .

    Along the update rule, :math:`z_k = w_k - \frac{\eta(1 - \alpha)}{\alpha}Am_{k-1}` obeys

    .. math:: z_{k+1} = z_k - \eta A\left(B + \frac{1}{\alpha}\right)g_k .

    With steps of size :math:`h`, :math:`m_k = m_{k-1} + h(-\alpha m_{k-1} + g_k)` and
    :math:`w_{k+1} = w_k - h\eta A(m_k + Bg_k)`, the same holds with
    :math:`z_k = w_k - \frac{\eta(1 - \alpha h)}{\alpha}Am_{k-1}` and :math:`h\eta` instead of :math:`\eta`.

    Hypotheses: :math:`A`, :math:`B` and :math:`\eta` constant; any :math:`f` or sequence :math:`g_k`. LITE's
    :math:`A = F^{-1}(P + \chi Q)` and :math:`B = \beta_1P + \beta_2Q` commute, which is not needed.

    Proof: docs/theory, claim C7; symbolic in one block, to which commuting reduces the problem.

    Check: random metrics and splits with a common eigenbasis, nonconvex f in another basis: the flow by DOP853, the
    update rule over 50 steps. Random matrices A and B that neither commute nor are symmetric, random g_k and h: 50
    steps of the semi-implicit scheme.

    Source: derived in docs/theory.
    """
    p, steps = 5, 50
    objective = rippled_quadratics(rng, instances, p)
    geometry = split_geometry(draw(geometry_box(p), rng, instances), sharp_rank=2)
    alpha, eta = rng.uniform(0.05, 1.0, instances), rng.uniform(0.01, 0.1, instances)
    a, rate = geometry.matrix(geometry.a), geometry.a * (geometry.b + 1.0 / alpha[:, None])
    force = geometry.matrix(eta[:, None] * rate)
    w0, m0 = rng.normal(size=(2, instances, p))

    flow = solve(geometry.flow(objective, alpha=alpha, eta=eta), w0, m0, phases=_CLOSE_PHASES, rtol=1e-10)
    shadow = flow.w - (eta / alpha)[:, None] * matvec(a, flow.m)
    push = time_integral(flow.times, matvec(force, objective.gradient(flow.w)))[-1]
    continuous = relative(shadow[-1] - shadow[0] + push, shadow[-1], shadow[0], push)

    weight = (eta * (1.0 - alpha) / alpha)[:, None]
    worst = np.zeros(instances)
    for step in geometry.run(objective, w0, alpha=alpha, eta=eta, steps=steps):
        before = step.w - weight * matvec(a, step.m)
        after = step.new_w - weight * matvec(a, step.new_m)
        pull = matvec(force, step.g)
        worst = np.maximum(worst, relative(after - before + pull, after, before, pull))
    return [
        Proof("one block, flow and update rule", dynamics.shadow_identity()),
        Identity("flow (DOP853), p = 5", continuous, 1e-9, "integrator and quadrature"),
        Identity("update rule, worst of 50 steps, p = 5", worst, 1e-13, "rounding"),
        Identity("any A, B, g_k and h, worst of 50 steps, p = 5", _general_shadow(rng, instances), 1e-12, "rounding"),
    ]


def _general_shadow(rng: np.random.Generator, n: int, p: int = 5, steps: int = 50) -> np.ndarray:
    a, b = rng.normal(size=(2, n, p, p))
    alpha, eta, h = (rng.uniform(low, 1.0, (n, 1)) for low in (0.05, 0.01, 0.1))
    w, m = rng.normal(size=(2, n, p))
    weight, worst = eta * (1.0 - alpha * h) / alpha, np.zeros(n)
    for _ in range(steps):
        g = rng.normal(size=(n, p))
        before = w - weight * matvec(a, m)
        m = momentum_step(m, g, alpha=alpha, h=h)
        w = position_step(w, matvec(a, m + matvec(b, g)), eta=eta, h=h)
        after = w - weight * matvec(a, m)
        pull = h * eta * matvec(a, matvec(b, g) + g / alpha)
        worst = np.maximum(worst, relative(after - before + pull, after, before, pull, weight * matvec(a, m)))
    return worst


def _dissipated(system: RISHD, trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """∫η(α‖m‖² + β‖g‖²) to the end, and the energy at the start."""
    rates = [
        dissipation(system, float(t), w, m)
        for t, w, m in zip(trajectory.times, trajectory.w, trajectory.m, strict=True)
    ]
    spent = time_integral(trajectory.times, np.stack([rate.momentum + rate.damping for rate in rates]))[-1]
    return spent, total_energy(system, float(trajectory.times[0]), trajectory.w[0], trajectory.m[0])


def _conformal_bound(parameters: Parameters) -> dict[str, Inequality]:
    objective = RippledQuadratic(
        from_spectrum(rotations(parameters["axes"][:, None], 2), parameters["spectrum"]), parameters["ripple"]
    )
    matrix = from_spectrum(rotations(parameters["tilt"][:, None], 2), parameters["metric"])
    decay = parameters["decay"]
    system = RISHD.from_optimizer(
        objective,
        ConformalMetric(matrix, parameters["swing"], parameters["wave"]),
        alpha=parameters["alpha"],
        beta=parameters["beta"],
        eta=_decaying(parameters["eta"], decay),
    )
    flow = solve(system, parameters["start"], parameters["momentum"], phases=((1.0, 112), (11.0, 224)), rtol=1e-10)
    hypotheses = {"η̇ ≤ 0": decay >= 0, "β ≥ 0": parameters["beta"] >= 0}
    return {"∫η(α‖m‖² + β‖g‖²) over its bound, conformal metrics": Inequality(*_dissipated(system, flow), hypotheses)}


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
    return system, solve(system, w0, m0, phases=_PHASES, rtol=1e-10)
