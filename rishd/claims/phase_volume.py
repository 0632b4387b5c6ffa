"""Claims C16g and C16h: the flow's contraction of phase volume, and conformal symplecticity of splitting schemes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from riemannian_ode import RISHD, OneStepIntegrator, TimeDependent, integrator, simulate
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Curve, Evidence, Identity, Measurement, Panel
from rishd.claims.flows import solve, time_integral
from rishd.claims.instances import RippledQuadratic, rippled_quadratics

_P = 3
_SPAN, _SAVES = 4.0, 128


@dataclass(frozen=True)
class TangentObjective:
    """An objective extended by tangent vectors; its flow also transports the flow's Jacobian.

    A point is (w, δ_1, …, δ_k), flattened; the "gradient" is (∇f(w), ∇²f(w)δ_1, …). Every scheme that is linear in
    gradients maps tangent vectors by its exact Jacobian.

    Args:
        inner: The objective f.
        vectors: k.
    """

    inner: RippledQuadratic
    vectors: int

    def value(self, w: np.ndarray) -> np.ndarray:
        """f at the point, shape ``(n,)``."""
        return np.asarray(self.inner.value(w[..., :_P]))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """(∇f, ∇²f δ_1, …), shape ``(n, (k+1)p)``."""
        point = w[..., :_P]
        parts = [self.inner.gradient(point)]
        parts += [self.inner.hvp(point, w[..., _P * j : _P * (j + 1)]) for j in range(1, self.vectors + 1)]
        return np.concatenate(parts, axis=-1)


@register_claim("C16g", "phase volume (Liouville)", expected="holds")
def phase_volume(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Liouville's theorem: the rate at which the flow contracts phase volume.

    Statement: in dimension :math:`d`,

    .. math::

       \log\left\lvert\det\frac{\partial(w, m)(t)}{\partial(w, m)(0)}\right\rvert
       = -\int_0^t(\alpha d + \eta\beta\operatorname{tr} H)\,dt .

    Hypotheses: Euclidean metric; :math:`\alpha`, :math:`\eta`, :math:`\beta` may vary in time.

    Proof: docs/theory, claim C16: the divergence of the right-hand side.

    Check: the variational equation of nonconvex objectives, α and η decaying in time, by DOP853; d = 3.

    Source: Liouville's theorem.
    """
    objective = rippled_quadratics(rng, instances, _P)
    alpha, eta, beta = (rng.uniform(low, high, instances) for low, high in ((0.1, 1.5), (0.1, 1.0), (0.0, 1.0)))
    times, measured, promised = _volumes(objective, alpha, eta, beta, rng.normal(0.0, 1.5, (2, instances, _P)))
    residual = np.abs(measured - promised).max(0) / np.maximum(np.abs(promised).max(0), 1.0)
    examples = range(min(3, instances))
    curves = [Curve("variational equation" if i == 0 else "", times[::8], measured[::8, i], "points") for i in examples]
    curves += [Curve("−∫(αd + ηβ tr H) dt" if i == 0 else "", times, promised[:, i], "bound") for i in examples]
    return [
        Identity("log det of the flow's Jacobian against −∫(αd + ηβ tr H), d = 3", residual, 1e-7, "integrator"),
        Panel("Phase volume along the flow (three instances)", "time t", "log det of the Jacobian", tuple(curves)),
    ]


@register_claim("C16h", "conformal symplecticity of splittings", expected="holds")
def conformal_symplecticity(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Splitting schemes keep the symplectic form up to the exact damping factor.

    Statement: at :math:`\beta = 0` the Jacobian :math:`M` of a step of size :math:`h` of the splitting schemes obeys

    .. math:: M^\top JM = e^{-\alpha h}J .

    Hypotheses: :math:`\beta = 0`, constant metric, constant :math:`\alpha` and :math:`\eta`.

    Proof: docs/theory, claim C16.

    Check: every scheme that declares "conformal-symplectic", on nonconvex objectives in dimension 3, α, η and h random;
    the exact Jacobian by transporting tangent vectors through the scheme. Other schemes are measured.

    Source: McLachlan and Perlmutter, J. Geom. Phys. 39 (2001).
    """
    objective = rippled_quadratics(rng, instances, _P)
    alpha, eta = rng.uniform(0.05, 2.0, instances), rng.uniform(0.1, 1.0, instances)
    start = rng.normal(0.0, 1.5, (2, instances, _P))
    evidence: list[Evidence | Panel] = []
    steps = np.geomspace(0.05, 1.0, 6)
    curves = []
    for name in ("strang", "strang4", "semi-implicit-euler", "heun", "rk4", "explicit-euler"):
        scheme: Any = integrator(name)
        defects = np.stack([_symplectic_defect(objective, scheme, alpha, eta, start, float(h)) for h in steps])
        if "conformal-symplectic" in scheme.structure:
            evidence.append(Identity(f"MᵀJM against e^(−αh)J, {name}", defects.max(0), 1e-12, "rounding"))
        else:
            evidence.append(Measurement(f"MᵀJM against e^(−αh)J, {name}, h from 0.05 to 1", defects.max(0)))
        curves.append(Curve(name, steps, np.maximum(np.median(defects, axis=1), 1e-17)))
    title = "Defect of conformal symplecticity (median)"
    return [*evidence, Panel(title, "step size h", "‖MᵀJM − e^(−αh)J‖", tuple(curves), log="xy")]


def _volumes(
    objective: RippledQuadratic, alpha: np.ndarray, eta: np.ndarray, beta: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, log det of the flow's Jacobian, and −∫(αd + ηβ tr H)."""
    decay = 0.2  # decay rates of α and of η
    system = RISHD.from_optimizer(
        TangentObjective(objective, 2 * _P),
        alpha=TimeDependent(lambda t: alpha * np.exp(-decay * t)),
        eta=TimeDependent(lambda t: eta * np.exp(-decay * t)),
        beta=beta,
    )
    w, m = _with_basis(start)
    flow = solve(system, w, m, phases=((_SPAN, _SAVES),))
    logarithm = np.linalg.slogdet(_jacobians(flow.w, flow.m))[1]
    trace = np.trace(objective.matrix, axis1=-2, axis2=-1) + (objective.ripple * np.cos(flow.w[..., :_P])).sum(-1)
    fade = np.exp(-decay * flow.times)[:, None]
    return flow.times, logarithm, -time_integral(flow.times, fade * (alpha * _P + eta * beta * trace))


def _symplectic_defect(
    objective: RippledQuadratic,
    scheme: OneStepIntegrator,
    alpha: np.ndarray,
    eta: np.ndarray,
    start: np.ndarray,
    h: float,
) -> np.ndarray:
    system = RISHD.from_optimizer(TangentObjective(objective, 2 * _P), alpha=alpha, eta=eta)
    w, m = _with_basis(start)
    flow = simulate(system, w, m, integrator=scheme, h=h, steps=1, progress=False).checked()
    jacobian = _jacobians(flow.w[-1], flow.m[-1])
    form = np.block([[np.zeros((_P, _P)), np.eye(_P)], [-np.eye(_P), np.zeros((_P, _P))]])
    difference = np.swapaxes(jacobian, -1, -2) @ form @ jacobian - np.exp(-alpha * h)[:, None, None] * form
    return np.asarray(np.abs(difference).max(axis=(-2, -1)))


def _with_basis(start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(w, m) followed by the 2p unit tangent vectors of phase space."""
    n = start.shape[1]
    basis = np.tile(np.eye(2 * _P)[None], (n, 1, 1))  # row j is tangent vector j = (δw, δm)
    return (
        np.concatenate([start[0], basis[..., :_P].reshape(n, -1)], axis=-1),
        np.concatenate([start[1], basis[..., _P:].reshape(n, -1)], axis=-1),
    )


def _jacobians(w: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Jacobian ∂(w, m)(t)/∂(w, m)(0) from the transported vectors, shape ``(…, 2p, 2p)``."""
    shape = (*w.shape[:-1], 2 * _P, _P)
    columns = np.concatenate([w[..., _P:].reshape(shape), m[..., _P:].reshape(shape)], axis=-1)
    return np.swapaxes(columns, -1, -2)
