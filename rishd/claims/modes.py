"""Claims C5 and C6: modes of a quadratic under the flow and under the update rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from discretizations.proofs import dynamics
from discretizations.stability import flat_rate, is_overdamped, mode_roots, stable_limit
from discretizations.update_rule import lite_step
from riemannian_ode import RISHD, ConstantMetric, ConstantSplit
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Attained, Evidence, Identity, Proof
from rishd.claims.instances import RippledQuadratic, from_spectrum, random_bases
from rishd.claims.trial import Box, Inequality, Parameters, Range, draw, try_bounds

_STABILITY_BOX: Box = {"alpha": Range(0.01, 1.0), "beta": Range(-0.95, 5.0)}


@register_claim("C5", "modes of a quadratic")
def flow_modes(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    r"""Modes of the flow on a quadratic and their rates.

    Statement: each eigen-direction, with :math:`\kappa = \eta\lambda a`, has the characteristic equation

    .. math:: s^2 + (\alpha + \beta\kappa)\,s + (1 + \alpha\beta)\,\kappa = 0 .

    It is overdamped iff :math:`(\alpha - \beta\kappa)^2 \ge 4\kappa`. Its slow root is
    :math:`-(\frac{1}{\alpha} + \beta)\kappa` for small :math:`\kappa`. For :math:`\kappa < 0` the escape rate grows
    with :math:`\beta` and :math:`\chi`. LITE's flat speed-up is

    .. math:: \chi\,\frac{1 + \alpha\beta_2}{1 + \alpha\beta_1} .

    Hypotheses: :math:`F`, :math:`P` and :math:`H` commute, constant coefficients, :math:`1 + \alpha\beta > 0`.

    Proof: docs/theory, claim C5; symbolic.

    Check: the Jacobian of this package's right-hand side on random quadratics (including saddles) with metric and split
    in the same basis; trace and determinant of every mode's 2×2 block against the polynomial.

    Source: derived in docs/theory.
    """
    p, sharp_rank = 4, 1
    basis = random_bases(rng, instances, p)
    hessian = rng.uniform(-1.0, 5.0, (instances, p))
    metric = rng.uniform(0.3, 3.0, (instances, p))
    alpha, eta = rng.uniform(0.05, 2.0, instances), rng.uniform(0.05, 1.0, instances)
    chi, beta_sharp = rng.uniform(1.0, 4.0, instances), rng.uniform(0.0, 1.0, instances)
    beta_flat = beta_sharp + rng.uniform(0.0, 2.0, instances)
    system = RISHD.from_optimizer(
        RippledQuadratic(from_spectrum(basis, hessian), np.zeros((instances, p))),
        ConstantMetric(from_spectrum(basis, metric)),
        alpha=alpha,
        beta=beta_sharp,
        beta_flat=beta_flat,
        chi=chi,
        eta=eta,
        flat=ConstantSplit(basis[..., :sharp_rank]),
    )
    is_sharp = np.arange(p) < sharp_rank
    beta = np.where(is_sharp, beta_sharp[:, None], beta_flat[:, None])
    kappa = eta[:, None] * hessian / metric * np.where(is_sharp, 1.0, chi[:, None])

    blocks = np.empty((instances, p, 2, 2))
    columns = np.swapaxes(basis, -1, -2)  # row i is eigenvector i
    for i in range(p):
        direction = columns[:, i]
        for j, (w, m) in enumerate(((direction, np.zeros_like(direction)), (np.zeros_like(direction), direction))):
            w_dot, m_dot = system.rates(0.0, w, m)
            blocks[:, i, 0, j] = (w_dot * direction).sum(-1)
            blocks[:, i, 1, j] = (m_dot * direction).sum(-1)
    trace, determinant = np.trace(blocks, axis1=-2, axis2=-1), np.linalg.det(blocks)
    expected_trace, expected_determinant = -(alpha[:, None] + beta * kappa), (1.0 + alpha[:, None] * beta) * kappa
    scale = np.abs(blocks).max(axis=(-2, -1))
    polynomial = np.maximum(
        np.abs(trace - expected_trace) / scale, np.abs(determinant - expected_determinant) / scale**2
    )

    roots = mode_roots(kappa, alpha[:, None], beta)
    value = roots**2 - expected_trace[..., None] * roots + expected_determinant[..., None]
    root_error = np.abs(value) / (np.abs(roots) ** 2 + np.abs(expected_determinant)[..., None])
    oscillates = np.abs(roots[..., 0].imag) > 0
    wrong_damping = (is_overdamped(kappa, alpha[:, None], beta) == oscillates).any(axis=-1).astype(float)

    small = 1e-7
    slow = np.abs(flat_rate(small, alpha, beta_flat) / ((1.0 / alpha + beta_flat) * small) - 1.0)
    base, fast = flat_rate(small, alpha, beta_sharp), flat_rate(small * chi, alpha, beta_flat)
    speedup = np.abs(fast / base / (chi * (1.0 + alpha * beta_flat) / (1.0 + alpha * beta_sharp)) - 1.0)
    saddle = -rng.uniform(0.01, 2.0, instances)
    escape = -flat_rate(saddle, alpha, beta_sharp)
    more_beta = -flat_rate(saddle, alpha, beta_sharp + 0.1)
    more_chi = -flat_rate(saddle * 1.1, alpha, beta_sharp)
    not_faster = ((more_beta <= escape) | (more_chi <= escape)).astype(float)
    return [
        Proof("characteristic polynomial, discriminant, slow root, speed-up", dynamics.mode_equation()),
        Proof("escape from a saddle grows with β and χ", dynamics.saddle_escape()),
        Identity(
            "mode blocks of the right-hand side against the polynomial, p = 4", polynomial.max(-1), 1e-12, "rounding"
        ),
        Identity("closed-form roots in the polynomial", root_error.max(axis=(-2, -1)), 1e-12, "rounding"),
        Identity("overdamped exactly where the roots are real (share of exceptions)", wrong_damping, 0.0, "yes or no"),
        Identity("slow rate over (1/α + β)κ at κ = 1e−7, minus 1", slow, 1e-3, "next order, O(κ/α²)"),
        Identity("flat speed-up at κ = 1e−7 over its closed form, minus 1", speedup, 1e-3, "next order, O(χκ/α²)"),
        Identity("escape faster with β + 0.1 and with 1.1χ (share of exceptions)", not_faster, 0.0, "yes or no"),
    ]


@register_claim("C6", "discrete stability")
def discrete_stability(rng: np.random.Generator, instances: int) -> Sequence[Evidence]:
    r"""Stability region of the update rule on a quadratic.

    Statement: a step in an eigen-direction has the characteristic equation

    .. math:: z^2 - (2 - \alpha - (1 + \beta)\kappa)\,z + (1 - \alpha)(1 - \beta\kappa) = 0

    and is stable iff

    .. math:: 0 < \kappa < \frac{2(2 - \alpha)}{1 + \beta(2 - \alpha)}

    (no upper limit if the denominator is not positive) and, for :math:`\beta < 0`, also
    :math:`\kappa < \frac{\alpha}{(1 - \alpha)\lvert\beta\rvert}`.

    Hypotheses: :math:`0 < \alpha \le 1`, :math:`\beta > -1/\alpha`.

    Proof: docs/theory, claim C6 (Jury); symbolic.

    Check: the update rule itself applied to unit vectors gives the step matrix; the κ at which its spectral radius
    crosses 1, by bisection, against the closed form from both sides, and no stable κ beyond it.

    Sharpness: every instance attains the limit.

    Source: derived in docs/theory.
    """
    parameters = draw(_STABILITY_BOX, rng, instances)
    alpha, beta = parameters["alpha"], _damping(parameters)
    limit = stable_limit(alpha, beta)
    inside = np.max([_radius(limit * share, alpha, beta) >= 1.0 for share in np.linspace(0.01, 0.999, 25)], axis=0)
    outside = np.max([_radius(limit * share, alpha, beta) < 1.0 for share in np.geomspace(1.001, 100.0, 25)], axis=0)
    return [
        Proof("step polynomial and Jury's conditions", dynamics.stability_region()),
        *try_bounds(_crossings, _STABILITY_BOX, rng, instances, slack=1e-6),  # √ε at double roots
        _attained(parameters),
        Identity("unstable anywhere inside (share of exceptions)", inside.astype(float), 0.0, "yes or no"),
        Identity("stable anywhere beyond (share of exceptions)", outside.astype(float), 0.0, "yes or no"),
    ]


def _damping(parameters: Parameters) -> np.ndarray:
    """β over its whole range; negative numbers of the box are fractions of the most negative value, −1/α."""
    beta = parameters["beta"]
    return np.where(beta < 0, beta / parameters["alpha"], beta)


def _crossings(parameters: Parameters) -> dict[str, Inequality]:
    alpha, beta = parameters["alpha"], _damping(parameters)
    limit = stable_limit(alpha, beta)
    low, high = limit * 0.5, limit * 2.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        stable = _radius(middle, alpha, beta) < 1.0
        low, high = np.where(stable, middle, low), np.where(stable, high, middle)
    return {
        "closed form over the κ where the update rule loses stability": Inequality(limit, low),
        "the κ where the update rule loses stability over the closed form": Inequality(low, limit),
    }


def _attained(parameters: Parameters) -> Attained:
    (tried, _) = _crossings(parameters).values()
    residual = np.abs(tried.value / tried.limit - 1.0)
    return Attained(
        "closed form over the κ where the update rule loses stability", residual, 1e-6, "√ε at double roots"
    )


def _radius(kappa: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Spectral radius of the update rule's step on one mode."""
    columns = []
    for w, m in ((1.0, 0.0), (0.0, 1.0)):
        new_w, new_m = lite_step(
            np.full(kappa.shape, w), np.full(kappa.shape, m), kappa * w, eta=1.0, alpha=alpha, nesterov=beta
        )
        columns.append(np.stack([new_w, new_m], axis=-1))
    return np.asarray(np.abs(np.linalg.eigvals(np.stack(columns, axis=-1))).max(-1))
