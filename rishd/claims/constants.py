"""Checks of proved bounds in the code: numbers in the code against the proofs', and instances that attain bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import sympy as sp
from scipy.linalg import eigh, solve_continuous_lyapunov
from scipy.optimize import minimize_scalar

from discretizations.certificate import convex_offset, descent_form, lookahead_certificate, noise_growth
from discretizations.proofs import lyapunov
from discretizations.stability import descent_limit
from discretizations.update_rule import lite_step
from riemannian_ode import RISHD, ConstantMetric, ConstantSplit, dissipation, total_energy
from riemannian_ode.energy import Dissipation
from riemannian_ode.flow import Array
from riemannian_ode.rates import convex_value_bound, polyak_lojasiewicz_rate, strongly_convex_rate
from rishd.claims.evidence import Attained, Constant, Evidence
from rishd.claims.instances import RippledQuadratic

_MEMBERS = 16  # closed forms need only a few hand-picked instances
_ROUNDING = "rounding"


def evaluated(expression: Any, **values: Array) -> np.ndarray:
    """Evaluate a SymPy expression or matrix at numbers given by symbol name.

    Args:
        expression: Expression from a proof.
        values: Arrays of equal shape ``(n,)``; a missing symbol is an error.

    Returns:
        Shape ``(n,)``, or ``(n, rows, columns)`` for a matrix.
    """
    names = sorted(symbol.name for symbol in expression.free_symbols)
    function = sp.lambdify(names, expression, "numpy")
    rows = zip(
        *(np.broadcast_to(values[name], np.broadcast_shapes(*map(np.shape, values.values()))) for name in names),
        strict=True,
    )
    return np.array([function(*row) for row in rows], dtype=np.float64)


def energy_bound(rng: np.random.Generator) -> list[Evidence]:
    """For C3: energy and dissipation in the code; quadratics dissipate all of their initial energy."""
    settings: dict[str, Any] = {"alpha": rng.uniform(0.1, 1.5, _MEMBERS), "beta": rng.uniform(0.0, 1.0, _MEMBERS)}
    metric = np.exp(rng.uniform(-0.7, 0.7, (_MEMBERS, 2)))
    eta = rng.uniform(0.2, 1.0, _MEMBERS)
    system = _quadratic_flow(rng, metric, eta=eta, **settings)
    w, m = rng.normal(size=(2, _MEMBERS, 2))
    g = system.objective.gradient(w)
    norms = [(x**2 / metric).sum(-1) for x in (m, g)]
    energy = system.objective.value(w) + 0.5 * eta * norms[0]
    lost = eta * (settings["alpha"] * norms[0] + settings["beta"] * norms[1])
    spent = _spent(system, w, m, lambda rates: rates.momentum + rates.damping)
    return [
        Constant(
            "energy in the code over f + (η/2)‖m‖², minus 1",
            _off(total_energy(system, 0.0, w, m), energy),
            1e-13,
            _ROUNDING,
        ),
        Constant(
            "its loss in the code over η(α‖m‖² + β‖g‖²), minus 1",
            _off(dissipation(system, 0.0, w, m).total, lost),
            1e-13,
            _ROUNDING,
        ),
        Attained(
            "∫η(α‖m‖² + β‖g‖²) over its bound, quadratics at constant η, exactly",
            _off(spent, energy),
            1e-9,
            "Lyapunov equation",
        ),
    ]


def split_bound(rng: np.random.Generator) -> list[Evidence]:
    """For C4: parts of the dissipation in the code; flat quadratics without momentum damping attain the bound."""
    chi, beta = rng.uniform(1.0, 6.0, _MEMBERS), rng.uniform(0.1, 2.0, _MEMBERS)
    beta_flat = beta + rng.uniform(0.0, 3.0, _MEMBERS)
    eta, alpha = rng.uniform(0.1, 0.5, _MEMBERS), rng.uniform(0.1, 1.5, _MEMBERS)
    metric = np.exp(rng.uniform(-0.7, 0.7, (_MEMBERS, 2)))
    split: dict[str, Any] = {"beta": beta, "beta_flat": beta_flat, "chi": chi, "flat": ConstantSplit(np.eye(2)[:, :1])}
    system = _quadratic_flow(rng, metric, alpha=alpha, eta=eta, **split)
    w, m = rng.normal(size=(2, _MEMBERS, 2))
    g = system.objective.gradient(w)
    a = np.stack([np.ones_like(chi), chi], axis=-1) / metric
    b = np.stack([beta, beta_flat], axis=-1)
    parts = dissipation(system, 0.0, w, m)
    energy = system.objective.value(w) + 0.5 * eta * (a * m**2).sum(-1)
    lost = eta * (alpha * (a * m**2).sum(-1) + (a * b * g**2).sum(-1))
    flat = eta * chi * beta_flat * g[:, 1] ** 2 / metric[:, 1]

    only_flat = w * np.array([0.0, 1.0])
    undamped = _quadratic_flow(rng, metric, alpha=1e-10, eta=eta, diagonal=True, **split)
    spent = _spent(undamped, only_flat, 0.0 * m, lambda rates: rates.flat)
    return [
        Constant(
            "energy in the code over f + (η/2)mᵀAm, minus 1",
            _off(total_energy(system, 0.0, w, m), energy),
            1e-13,
            _ROUNDING,
        ),
        Constant("its loss in the code over η[αmᵀAm + gᵀABg], minus 1", _off(parts.total, lost), 1e-13, _ROUNDING),
        Constant("its flat part in the code over ηχβ₂‖Qg‖², minus 1", _off(parts.flat, flat), 1e-13, _ROUNDING),
        Attained(
            "∫ηχβ₂‖Qg‖² over its bound, flat quadratics at α = 1e−10",
            _off(spent, total_energy(undamped, 0.0, only_flat, 0.0 * m)),
            1e-6,
            "α",
        ),
    ]


def convex_flow_bound(rng: np.random.Generator) -> list[Evidence]:
    """For C8: the code's bound on f − f* against the bound from the Lyapunov function."""
    t, distance, gap = (rng.uniform(0.0, high, _MEMBERS) for high in (30.0, 5.0, 5.0))
    settings = {
        "distance": distance,
        "gap": gap,
        "alpha": rng.uniform(0.1, 2.0, _MEMBERS),
        "eta": rng.uniform(0.02, 1.0, _MEMBERS),
    }
    proved = evaluated(lyapunov.convex_flow_bound(), t=t, **settings)
    return [
        Constant(
            "bound in the code over Ψ(0)/(∂Ψ/∂f at t), minus 1",
            _off(convex_value_bound(t, **settings), proved),
            1e-12,
            _ROUNDING,
        )
    ]


def convex_step_offset(rng: np.random.Generator) -> list[Evidence]:
    """For C8b: the code's n₀ against the smallest for which tM + M₀ is negative semidefinite for all t ≥ n₀ + 1."""
    alpha, beta = rng.uniform(0.02, 0.9, _MEMBERS), rng.uniform(-0.4, 4.0, _MEMBERS)
    certificate = lookahead_certificate(alpha, beta)
    kappa = rng.uniform(0.1, 0.9, _MEMBERS) * certificate.limit
    shipped = convex_offset(kappa, alpha, beta, certificate)
    values = {"kappa": kappa, "alpha": alpha, "beta": beta, "c": certificate.lookahead, "phi": certificate.weight}
    falling, rest = lyapunov.convex_step_forms()
    at_zero = evaluated(rest, **values, phi0=np.zeros(_MEMBERS))
    slope = evaluated(rest, **values, phi0=np.ones(_MEMBERS)) - at_zero
    parts = zip(evaluated(falling, **values), at_zero, slope, certificate.weight, alpha, strict=True)
    least = np.array([_least_offset(*part) for part in parts])
    excess = (shipped - least) / np.maximum(least, 1.0)  # fractions of a step do not matter
    return [
        Constant(
            "shortfall of n₀ in the code below the proof's minimum",
            np.maximum(-excess, 0.0),
            1e-6,
            "minimiser",
        ),
        Constant(
            "excess of n₀ in the code over the proof's minimum, relative to it",
            np.maximum(excess, 0.0),
            5e-3,
            "grid of φ₀ in the code",
        ),
    ]


def _least_offset(falling: np.ndarray, at_zero: np.ndarray, slope: np.ndarray, weight: float, alpha: float) -> float:
    """Minimum over φ₀ of max(τ − 1, −φ₀/φ, 0), τ the largest t with det(tM + M₀) = 0; convex in φ₀."""

    def offset(share: float) -> float:
        shift = share * weight / alpha
        ratio = eigh(at_zero + shift * slope, -falling, eigvals_only=True)[-1]
        return max(float(ratio) - 1.0, -shift / weight if weight > 0 else 0.0, 0.0)

    return float(minimize_scalar(offset, bounds=(-1.5, 1.5), method="bounded", options={"xatol": 1e-9}).fun)


def descent_constants(rng: np.random.Generator) -> list[Evidence]:
    """For C9: form, limits and noise in the code against the proof; quadratics attain the decrease and the noise."""
    n = _MEMBERS
    alpha, beta = rng.uniform(0.02, 0.98, n), rng.uniform(-0.45, 5.0, n)
    share = np.exp(rng.uniform(-5.0, 5.0, n))
    c, weight, kappa, negative = (rng.uniform(0.0, 1.0, n) for _ in range(4))
    form = lyapunov.descent_form()
    any_form = evaluated(form, kappa=kappa, negative=negative, alpha=alpha, beta=beta, c=c, phi=weight)
    own_form = descent_form(kappa, alpha, beta, lookahead=c, weight=weight, negative=negative)
    limit, ahead = descent_limit(alpha, beta), lookahead_certificate(alpha, beta, share)
    at_limit = evaluated(
        form,
        kappa=ahead.limit,
        negative=share * ahead.limit,
        alpha=alpha,
        beta=beta,
        c=ahead.lookahead,
        phi=ahead.weight,
    )
    noise = evaluated(lyapunov.noise_part(), kappa=kappa, beta=beta, c=c, phi=weight)
    decrease, added = _quadratic_steps(rng, rng.uniform(0.1, 1.0, n) * limit, alpha, beta)
    return [
        Constant("form in the code minus the proof's", np.abs(own_form - any_form).max((-2, -1)), 1e-12, _ROUNDING),
        Constant(
            "limit without lookahead in the code over the root of the determinant, minus 1",
            _off(limit, evaluated(lyapunov.certified_limit(), alpha=alpha, beta=beta)),
            1e-12,
            _ROUNDING,
        ),
        Constant(
            "largest eigenvalue of the proof's form at the code's limit with lookahead",
            np.abs(np.linalg.eigvalsh(at_limit)[:, -1]),
            1e-7,
            "√ε where the limit is a double root",
        ),
        Constant(
            "noise's growth in the code over the proof's, minus 1",
            _off(noise_growth(kappa, beta, lookahead=c, weight=weight), noise),
            1e-12,
            _ROUNDING,
        ),
        Attained("guaranteed over actual decrease, no lookahead, quadratics with ∇²f = L", decrease, 1e-9, _ROUNDING),
        Attained("effect of noise over its bound, no lookahead, quadratics with ∇²f = L", added, 1e-9, _ROUNDING),
    ]


def _quadratic_steps(
    rng: np.random.Generator, kappa: np.ndarray, alpha: np.ndarray, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """1 − tightness of decrease and of noise for f = κw²/2 at ηa = 1, c = 0, φ = 1 − α."""
    w, m, sigma = rng.normal(size=(3, len(kappa)))
    weight, g = 1.0 - alpha, kappa * w

    def energy(noise: np.ndarray) -> np.ndarray:
        new_w, new_m = lite_step(w, m, g + noise, eta=1.0, alpha=alpha, nesterov=beta)
        return np.asarray(0.5 * kappa * new_w**2 + 0.5 * weight * new_m**2)

    state = np.stack([m, g], axis=-1)
    form = descent_form(kappa, alpha, beta, lookahead=0.0, weight=weight)
    promised = -np.einsum("ni,nij,nj->n", state, form, state)
    actual = 0.5 * kappa * w**2 + 0.5 * weight * m**2 - energy(0.0 * w)
    added = 0.5 * (energy(sigma) + energy(-sigma)) - energy(0.0 * w)
    return _off(promised, actual), _off(added, sigma**2 * noise_growth(kappa, beta, lookahead=0.0, weight=weight))


def exponential_constants(rng: np.random.Generator) -> list[Evidence]:
    """For C15: the code's ρ against the proof's; f = (μ/2)‖w‖²_F with μηβ = α decays at exactly ρ."""
    mu, alpha, eta = (rng.uniform(0.1, 2.0, _MEMBERS) for _ in range(3))
    beta = rng.uniform(0.0, 3.0, _MEMBERS)
    rate = polyak_lojasiewicz_rate(mu, alpha=alpha, eta=eta, beta=beta)
    proved = evaluated(lyapunov.exponential_rate_bound(), alpha=alpha, beta=beta, eta=eta, mu=mu)

    metric = np.exp(rng.uniform(-0.7, 0.7, (_MEMBERS, 2)))
    objective = RippledQuadratic((mu[:, None] * metric)[..., None] * np.eye(2), np.zeros((_MEMBERS, 2)))
    balanced = alpha / (mu * eta)
    system = RISHD.from_optimizer(
        objective, ConstantMetric(metric[..., None] * np.eye(2)), alpha=alpha, eta=eta, beta=balanced
    )
    w, m = rng.normal(size=(2, _MEMBERS, 2))
    # E(t) = E(0)e^{−ρt} exactly if Ė = −ρE at every state.
    measured = dissipation(system, 0.0, w, m).total / total_energy(system, 0.0, w, m)
    attained = _off(polyak_lojasiewicz_rate(mu, alpha=alpha, eta=eta, beta=balanced), measured)
    return [
        Constant("ρ in the code over the proof's, minus 1", _off(rate, proved), 1e-13, _ROUNDING),
        Attained("ρ over −Ė/E for f = (μ/2)‖w‖²_F with μηβ = α", attained, 1e-12, _ROUNDING),
    ]


def strongly_convex_constants(rng: np.random.Generator, gamma: Literal["one", "corrected"]) -> list[Evidence]:
    """For C16a and C16d: at the code's r the first of the proof's conditions is an equality."""
    b, mu = rng.uniform(0.0, 2.9 if gamma == "one" else 10.0, _MEMBERS), rng.uniform(0.1, 4.0, _MEMBERS)
    r = strongly_convex_rate(mu, b / np.sqrt(mu), gamma=gamma) / np.sqrt(mu)
    weight = np.ones(_MEMBERS) if gamma == "one" else 1.0 + b
    margins = [evaluated(x, r=r, beta=b, gamma=weight) for x in lyapunov.strongly_convex_conditions()]
    return [Constant("least of the proof's margins at r of the code", np.abs(np.minimum(*margins)), 1e-9, _ROUNDING)]


def _quadratic_flow(rng: np.random.Generator, metric: np.ndarray, *, diagonal: bool = False, **settings: Any) -> RISHD:
    """A flow on random quadratics with a diagonal metric, shape ``(n, 2)``."""
    curvature = np.exp(rng.uniform(-1.0, 1.0, metric.shape))
    turn = np.zeros(len(metric)) if diagonal else rng.uniform(0.0, np.pi, len(metric))
    basis = np.stack([np.stack([np.cos(turn), -np.sin(turn)], -1), np.stack([np.sin(turn), np.cos(turn)], -1)], -2)
    matrix = (basis * curvature[:, None, :]) @ np.swapaxes(basis, -1, -2)
    objective = RippledQuadratic(matrix, np.zeros(metric.shape))
    return RISHD.from_optimizer(objective, ConstantMetric(metric[..., None] * np.eye(2)), **settings)


def _spent(system: RISHD, w: np.ndarray, m: np.ndarray, part: Callable[[Dissipation], Array]) -> np.ndarray:
    """∫₀^∞ of a part of the dissipation along a linear flow, as yᵀXy with AᵀX + XA = −Q, without an integrator."""
    n, p = w.shape
    units = np.eye(2 * p)

    def at(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tuple(np.broadcast_to(x, (n, p)).copy() for x in (state[:p], state[p:]))  # type: ignore[return-value]

    flow = np.stack([np.concatenate(system.rates(0.0, *at(unit)), axis=-1) for unit in units], axis=-1)
    value = {
        (i, j): part(dissipation(system, 0.0, *at(units[i] + units[j]))) for i in range(2 * p) for j in range(i + 1)
    }
    form = np.empty((n, 2 * p, 2 * p))
    for (i, j), pair in value.items():
        form[:, i, j] = form[:, j, i] = 0.5 * (pair - 0.25 * (value[i, i] + value[j, j])) if i != j else 0.25 * pair
    state = np.concatenate([w, m], axis=-1)
    solved = [solve_continuous_lyapunov(a.T, -q) for a, q in zip(flow, form, strict=True)]
    return np.asarray(np.einsum("ni,nij,nj->n", state, np.array(solved), state))


def _off(value: Array, reference: Array) -> np.ndarray:
    """|value/reference − 1|."""
    return np.asarray(np.abs(np.asarray(value) / np.asarray(reference) - 1.0))
