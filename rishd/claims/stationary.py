"""Claim C10: the stationary noise of the update rule on a quadratic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from discretizations.noise import flat_loss_floor, loss_floor, lyapunov_covariance, stationary_covariance
from discretizations.proofs import noise as proofs
from discretizations.stability import asymptotic_speedup, spectral_radius, stable_limit
from discretizations.update_rule import lite_step
from rishd.claims.claim import register_claim
from rishd.claims.evidence import Curve, Evidence, Identity, Measurement, Panel, Proof

_CHAINS, _STEPS = 32, 1500  # independent runs per instance, and averaged steps per run
_SLOWEST = 0.98  # largest spectral radius of the Monte-Carlo instances, which forget a start at 0 to 1e−9 in 512 steps
_BURN_IN = 512
_FALSE_ALARM = 1e-6  # probability that a correct formula fails the Monte-Carlo check


@register_claim("C10", "stationary noise", seconds=2)
def stationary_noise(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""Stationary covariance and loss floor of a mode under gradient noise.

    Statement: white gradient noise of variance :math:`\sigma^2` gives the covariance that solves
    :math:`S = MSM^\top + (\eta a\sigma)^2bb^\top`, with the loss floor

    .. math::

       \sigma^2\eta a\,\frac{(2 - \alpha)(1 + \alpha\beta) + (1 - \alpha)\beta\kappa\gamma}
       {2\,[\alpha + (1 - \alpha)\beta\kappa]\,[2(2 - \alpha) - \gamma\kappa]},
       \qquad \gamma = 1 + (2 - \alpha)\beta .

    It tends to :math:`\frac{\sigma^2\eta a}{4}(\frac{1}{\alpha} + \beta)` for :math:`\kappa \ll 1` and
    :math:`\beta\kappa \ll \alpha`. So LITE raises the flat floor by the same factor as its flat speed.

    Hypotheses: :math:`\kappa` in the stability region of C6; noise white, independent of :math:`w`.

    Proof: docs/theory, claim C10; symbolic: the closed form solves the equation, its limit and LITE's factor.

    Check: SciPy's solution of the Lyapunov equation; and 32 independent noisy runs of the update rule per instance,
    whose mean losses are compared with the floor by Student's t (a correct formula fails with probability 1e−6).

    Finding: small :math:`\kappa` is not enough for the limit. With Hessian damping the floor first falls as
    :math:`\kappa` grows, and the limit requires :math:`\beta\kappa \ll \alpha`.

    Source: derived in docs/theory.
    """
    alpha = rng.uniform(0.01, 1.0, instances)
    beta = np.where(rng.random(instances) < 0.8, rng.uniform(0.0, 5.0, instances), rng.uniform(-0.5, 0.0, instances))
    kappa = stable_limit(alpha, beta) * rng.uniform(1e-3, 0.99, instances)
    exact, solved = stationary_covariance(kappa, alpha, beta), lyapunov_covariance(kappa, alpha, beta)
    difference = np.abs(exact - solved).max(axis=(-2, -1)) / np.abs(exact).max(axis=(-2, -1))

    small = 1e-9
    flat = loss_floor(small, alpha, beta, rate=1.0, sigma=1.0)
    limit = np.abs(flat / flat_loss_floor(alpha, beta, rate=1.0, sigma=1.0) - 1.0)
    chi, beta_flat = rng.uniform(1.0, 5.0, instances), beta + rng.uniform(0.0, 3.0, instances)
    lifted = loss_floor(chi * small, alpha, beta_flat, rate=chi, sigma=1.0) / flat
    factor = np.abs(lifted / asymptotic_speedup(alpha, beta, beta_flat, chi) - 1.0)
    return [
        Proof("the closed form solves the Lyapunov equation; limit; LITE's factor", proofs.stationary_noise()),
        Identity(
            "closed form against SciPy's discrete Lyapunov solver", difference, 1e-9, "conditioning near stability"
        ),
        _monte_carlo(rng, instances),
        Identity("floor at κ = 1e−9 over σ²ηa(1/α + β)/4, minus 1", limit, 1e-5, "next order, O(βκ/α)"),
        Identity("LITE's flat floor over the base method's, over its speed-up, minus 1", factor, 1e-5, "next order"),
        Measurement(
            "floor at βκ = α over its limit for small κ, α ≤ 0.1, β ≥ 1: κ ≪ α is not enough",
            _where_damped(0.1 * alpha, 1.0 + np.abs(beta)),
        ),
        _panel(rng),
    ]


def _where_damped(alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    floor = loss_floor(alpha / beta, alpha, beta, rate=1.0, sigma=1.0)
    return np.asarray(floor / flat_loss_floor(alpha, beta, rate=1.0, sigma=1.0))


def _monte_carlo(rng: np.random.Generator, instances: int) -> Identity:
    alpha, beta = rng.uniform(0.05, 0.98, instances), rng.uniform(0.0, 4.0, instances)
    limit = stable_limit(alpha, beta)
    # Redraw modes that forget their start too slowly; at half the stability limit every such mode is fast.
    share = rng.uniform(0.02, 0.95, (20, instances))
    quick = spectral_radius(share * limit, alpha, beta) < _SLOWEST
    first = np.where(quick.any(0), quick.argmax(0), 0)
    kappa = limit * np.where(quick.any(0), share[first, np.arange(instances)], 0.5)
    rate, sigma = np.exp(rng.uniform(-4.0, 0.0, instances)), np.exp(rng.uniform(-1.0, 1.0, instances))
    losses = _mean_losses(rng, kappa, alpha, beta, rate, sigma)
    expected = loss_floor(kappa, alpha, beta, rate=rate, sigma=sigma)
    error = losses.std(0, ddof=1) / np.sqrt(_CHAINS)
    quantile = float(student.ppf(1.0 - 0.5 * _FALSE_ALARM / instances, _CHAINS - 1))
    return Identity(
        "mean loss of noisy runs of the update rule minus the floor, in standard errors",
        np.abs(losses.mean(0) - expected) / error,
        quantile,
        f"Student's t with {_CHAINS - 1} degrees of freedom, false alarm {_FALSE_ALARM:g} over all instances",
    )


def _mean_losses(
    rng: np.random.Generator,
    kappa: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    rate: np.ndarray,
    sigma: np.ndarray,
) -> np.ndarray:
    """Time averages of λw²/2 over independent runs of the update rule, shape ``(chains, instances)``."""
    curvature = kappa / rate
    w = m = total = np.zeros((_CHAINS, len(kappa)))
    for k in range(_BURN_IN + _STEPS):
        g = curvature * w + sigma * rng.standard_normal(w.shape)
        w, m = lite_step(w, m, g, eta=rate, alpha=alpha, nesterov=beta)
        if k >= _BURN_IN:
            total = total + 0.5 * curvature * w**2
    return total / _STEPS


def _panel(rng: np.random.Generator) -> Panel:
    """Plot of the floor against κ at α = 0.05, with Monte-Carlo points."""
    curves = []
    for beta in (0.0, 1.0, 5.0):
        limit = stable_limit(0.05, beta)
        kappa = np.geomspace(1e-4, 0.98 * limit, 200)
        curves.append(Curve(f"closed form, β = {beta:g}", kappa, loss_floor(kappa, 0.05, beta, rate=1.0, sigma=1.0)))
        points = np.geomspace(2e-3, 0.9 * limit, 7)
        one = np.ones_like(points)
        losses = _mean_losses(rng, points, 0.05 * one, beta * one, one, one)
        curves.append(Curve("update rule, mean of 32 runs" if beta == 0 else "", points, losses.mean(0), "points"))
    return Panel("Noise floor of one mode, α = 0.05", "κ = ηλa", "loss floor / (σ²ηa)", tuple(curves), log="xy")
