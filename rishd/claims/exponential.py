"""Claim C15: exponential decay under a Polyak–Łojasiewicz inequality, and an exact solution for testing integrators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from discretizations.proofs import lyapunov
from riemannian_ode import RISHD, ConstantMetric, Metric, TimeDependent, simulate, total_energy
from riemannian_ode.arrays import matvec
from riemannian_ode.integrators.adaptive import DOP853
from riemannian_ode.rates import polyak_lojasiewicz_rate
from rishd.claims import constants
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Curve, Evidence, Hypothesis, Identity, Panel, Proof
from rishd.claims.flows import decay_tightness, solve
from rishd.claims.instances import (
    ConformalMetric,
    RippledQuadratic,
    curved_metric,
    from_spectrum,
    random_bases,
    relative,
    rippled_quadratics,
    rotations,
)
from rishd.claims.trial import Box, Inequality, Parameters, Range, try_bounds

_P = 3
_PHASES = ((12.0, 192),)
_BOX: Box = {
    "rotation": Range(-2.0, 2.0, _P * (_P - 1) // 2),
    "scales": Range(0.3, 1.5, _P, log=True),
    "wiggle": Range(-0.9, 0.9, _P),
    "metric": Range(0.5, 2.0, _P, log=True),
    "axes": Range(-2.0, 2.0, _P * (_P - 1) // 2),
    "start": Range(-3.0, 3.0, _P),
    "momentum": Range(-1.0, 1.0, _P),
    "alpha": Range(0.05, 2.0, log=True),
    "eta": Range(0.1, 1.0, log=True),
    "beta": Range(0.0, 3.0),
}
_CONFORMAL_BOX: Box = {**_BOX, "swing": Range(-1.0, 1.0), "wave": Range(-1.5, 1.5, _P)}


@dataclass(frozen=True)
class WigglyResiduals:
    r"""A nonconvex objective per member that satisfies a Polyak–Łojasiewicz inequality, with minimum f(0) = 0.

    .. math:: f(w) = \tfrac12\|h(Uw)\|^2, \qquad h_i(x) = c_i(x + a_i\sin x), \quad |a_i| < 1

    Args:
        basis: U, orthogonal, shape ``(n, p, p)``.
        scales: c > 0, shape ``(n, p)``.
        wiggle: a, shape ``(n, p)``.
    """

    basis: np.ndarray
    scales: np.ndarray
    wiggle: np.ndarray

    def value(self, w: np.ndarray) -> np.ndarray:
        """f(w), shape ``(…, n)``."""
        x = matvec(self.basis, w)
        return np.asarray(0.5 * ((self.scales * (x + self.wiggle * np.sin(x))) ** 2).sum(-1))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """∇f(w), shape ``(…, n, p)``."""
        x = matvec(self.basis, w)
        pull = self.scales**2 * (x + self.wiggle * np.sin(x)) * (1.0 + self.wiggle * np.cos(x))
        return np.asarray(matvec(np.swapaxes(self.basis, -1, -2), pull))

    def constant(self, inverse_metric: np.ndarray) -> np.ndarray:
        r"""Constant μ in ‖g‖²_{F⁻¹} ≥ 2μf; g is Uᵀh with entries multiplied by slopes of h.

        .. math:: \mu = \lambda_{\min}(F^{-1}) \min_i c_i^2 (1 - |a_i|)^2

        Args:
            inverse_metric: F⁻¹, shape ``(n, p, p)``.
        """
        slope = self.scales * (1.0 - np.abs(self.wiggle))
        return np.asarray(np.linalg.eigvalsh(inverse_metric)[:, 0] * (slope**2).min(-1))


@register_claim("C15", "rate under a Polyak–Łojasiewicz inequality", seconds=5)
def exponential_rate(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Exponential decay of the energy under a Polyak–Łojasiewicz inequality, and a closed-form solution.

    Statement: if :math:`\lVert g\rVert^2_{F^{-1}} \ge 2\mu(f - f_*)`, then

    .. math:: E(t) - f_* \le (E(0) - f_*)\,e^{-\rho t}, \qquad \rho = \min(2\alpha,\ 2\mu\eta\beta) .

    And :math:`\gamma = \alpha\beta + \dot\beta` with :math:`v(0) = 0` makes RISHD the flow
    :math:`\dot w = -\beta\operatorname{grad} f` exactly.

    Hypotheses: any metric with :math:`R`; for the rate, constant :math:`\eta`, :math:`\alpha > 0` and
    :math:`\beta \ge 0`, and the inequality with :math:`\mu > 0` along the solution.

    Proof: docs/theory, claim C15; symbolic: the remainder of the energy's rate.

    Check: nonconvex f = ½‖h(Uw)‖² with monotone wiggly h, constant and conformal metrics, by DOP853: ρt over the
    measured exponent log((E(0) − f*)/(E(t) − f*)), the largest over all save times. The exact solution on quadratics
    against the matrix exponential, and with F(w) and β(t) against gradient flow.

    Sharpness: :math:`f = \frac{\mu}{2}\lVert w\rVert_F^2` with :math:`\mu\eta\beta = \alpha` decays at exactly
    :math:`\rho`.

    Source: derived in docs/theory.
    """
    return [
        Proof("rate of the energy", lyapunov.exponential_rate()),
        *try_bounds(_bounds, _BOX, rng, instances, slack=1e-6),
        *constants.exponential_constants(rng),
        *_oracle(rng, instances),
        *try_bounds(_conformal_bounds, _CONFORMAL_BOX, rng, instances, slack=1e-6),
        *_curved_oracle(rng, instances),
        _panel(),
    ]


def _bounds(parameters: Parameters) -> dict[str, Inequality]:
    system, mu = _system(parameters)
    alpha, eta, beta = (parameters[name] for name in ("alpha", "eta", "beta"))
    flow = solve(system, parameters["start"], parameters["momentum"], phases=_PHASES, rtol=1e-10)
    energy = np.stack([total_energy(system, t, w, m) for t, w, m in zip(flow.times, flow.w, flow.m, strict=True)])
    gradient = system.objective.gradient(flow.w)
    holds = system.metric.conorm_squared(flow.w, gradient) >= 2.0 * mu * system.objective.value(flow.w) * (1.0 - 1e-12)
    rate = polyak_lojasiewicz_rate(mu, alpha=alpha, eta=eta, beta=beta)
    return {
        "ρt over log((E(0) − f*)/(E(t) − f*)), at the worst time": Inequality(
            decay_tightness(flow.times, energy, rate),
            np.ones_like(rate),
            {"Polyak–Łojasiewicz along the solution": holds.all(0), "β ≥ 0": beta >= 0},
        )
    }


def _conformal_bounds(parameters: Parameters) -> dict[str, Inequality]:
    return {f"{name}, conformal metrics": tried for name, tried in _bounds(parameters).items()}


def _system(parameters: Parameters) -> tuple[RISHD, np.ndarray]:
    objective = WigglyResiduals(rotations(parameters["rotation"], _P), parameters["scales"], parameters["wiggle"])
    matrix = from_spectrum(rotations(parameters["axes"], _P), parameters["metric"])
    mu = objective.constant(np.linalg.inv(matrix))
    metric: Metric = ConstantMetric(matrix)
    if "swing" in parameters:
        metric = ConformalMetric(matrix, parameters["swing"], parameters["wave"])
        mu = mu * np.exp(-np.abs(parameters["swing"]))  # F is larger by at most this factor
    system = RISHD.from_optimizer(
        objective, metric, alpha=parameters["alpha"], eta=parameters["eta"], beta=parameters["beta"]
    )
    return system, mu


def _oracle(rng: np.random.Generator, instances: int) -> list[Evidence]:
    hessian = from_spectrum(random_bases(rng, instances, _P), rng.uniform(0.1, 2.0, (instances, _P)))
    metric = ConstantMetric(from_spectrum(random_bases(rng, instances, _P), rng.uniform(0.5, 2.0, (instances, _P))))
    alpha, beta = rng.uniform(0.1, 2.0, instances), rng.uniform(0.1, 2.0, instances)
    objective = RippledQuadratic(hessian, np.zeros((instances, _P)))
    system = RISHD.from_coefficients(objective, metric, alpha=alpha, beta=beta, gamma=alpha * beta)
    w0, span = rng.normal(size=(instances, _P)), 3.0
    scheme = DOP853(rtol=1e-12, atol=1e-14)
    flow = simulate(system, w0, integrator=scheme, h=span, steps=1, progress=False).checked()
    exact = matvec(expm(-span * beta[:, None, None] * np.asarray(metric.inverse) @ hessian), w0)
    constant = Hypothesis("γ = αβ", np.abs(np.asarray(system.gain).ravel()) <= 1e-15 * np.ones(instances))
    return [
        Identity(
            "flow with γ = αβ against exp(−βtF⁻¹H), p = 3",
            relative(flow.w[-1] - exact, w0),
            1e-10,
            "integrator",
            (constant,),
        ),
        Identity(
            "its momentum, which stays zero", np.abs(flow.m[-1]).max(-1), 1e-14, "αβ − αβ in rounding", (constant,)
        ),
    ]


def _curved_oracle(rng: np.random.Generator, instances: int) -> list[Evidence]:
    """The exact solution with F(w) and β(t), against gradient flow solved separately."""
    p, span = 2, 3.0
    objective, metric = rippled_quadratics(rng, instances, p), curved_metric(rng, instances, p)
    alpha, level, swing, pace = (rng.uniform(low, 1.0, instances) for low in (0.1, 0.3, 0.0, 0.2))

    def beta(t: float) -> np.ndarray:
        return np.asarray(level * (1.0 + 0.9 * swing * np.sin(pace * t)))

    def beta_rate(t: float) -> np.ndarray:
        return np.asarray(level * 0.9 * swing * pace * np.cos(pace * t))

    system = RISHD.from_coefficients(
        objective,
        metric,
        alpha=alpha,
        beta=TimeDependent(beta, beta_rate),
        gamma=TimeDependent(lambda t: alpha * beta(t) + beta_rate(t)),
    )
    w0 = rng.normal(size=(instances, p))
    flow = solve(system, w0, phases=((span, 1),), rtol=1e-10)

    def slope(t: float, x: np.ndarray) -> np.ndarray:
        w = x.reshape(w0.shape)
        return np.asarray(-beta(t)[:, None] * metric.raise_index(w, objective.gradient(w))).ravel()

    alone = solve_ivp(slope, (0.0, span), w0.ravel(), method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    return [
        Identity(
            "flow with γ = αβ + β̇ against gradient flow, F(w) and β(t), p = 2",
            relative(flow.w[-1] - alone.reshape(w0.shape), w0),
            1e-7,
            "integrators",
        ),
        Identity("its momentum, which stays zero", np.abs(flow.m[-1]).max(-1), 1e-14, "γ − αβ − β̇ in rounding"),
    ]


def _panel() -> Panel:
    """Plot of one objective's energies for three β, with their bounds."""
    beta = np.array([0.25, 1.0, 4.0])
    n = len(beta)
    parameters = {
        "rotation": np.tile([0.3, -0.5, 0.2], (n, 1)),
        "scales": np.tile([0.8, 1.0, 1.2], (n, 1)),
        "wiggle": np.tile([0.3, -0.3, 0.2], (n, 1)),
        "metric": np.ones((n, _P)),
        "axes": np.zeros((n, _P)),
        "start": np.tile([2.0, -2.0, 1.5], (n, 1)),
        "momentum": np.zeros((n, _P)),
        "alpha": np.full(n, 0.5),
        "eta": np.full(n, 0.5),
        "beta": beta,
    }
    system, mu = _system(parameters)
    flow = solve(system, parameters["start"], phases=_PHASES)
    energy = np.stack([total_energy(system, t, w, m) for t, w, m in zip(flow.times, flow.w, flow.m, strict=True)])
    rate = polyak_lojasiewicz_rate(mu, alpha=0.5, eta=0.5, beta=beta)
    curves = []
    for i, value in enumerate(beta):
        curves += [
            Curve(f"E, β = {value:g}", flow.times, energy[:, i]),
            Curve(f"bound, β = {value:g}", flow.times, energy[0, i] * np.exp(-rate[i] * flow.times), "bound"),
        ]
    return Panel("Energy under a Polyak–Łojasiewicz inequality", "time t", "E(t) − f*", tuple(curves), log="y")
