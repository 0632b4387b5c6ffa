"""Claims C16e and C16f: published rates of Nesterov's method and heavy ball, tested with this package's update rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from discretizations.update_rule import lite_step
from rishd.claims.claim import register_claim
from rishd.claims.convex import PROFILES, ConvexRidges, convex_ridges, ridge_box
from rishd.claims.evidence import Curve, Evidence, Panel
from rishd.claims.flows import decay_tightness
from rishd.claims.trial import Box, Inequality, Parameters, Range, try_bounds

_P, _STEPS = 3, 400
_BOX: Box = {
    **ridge_box(_P, 3, profiles=len(PROFILES), strength=(1e-3, 1.0)),
    "start": Range(-3.0, 3.0, _P),
}


@register_claim("C16e", "Nesterov's method (Shi et al.)", expected="holds")
def accelerated_gradient(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The rate of Shi, Du, Jordan and Su for Nesterov's method on strongly convex f with s = 1/(4L).

    Statement: with :math:`y_0 = x_0` and :math:`\rho = \frac{1 - \sqrt{\mu s}}{1 + \sqrt{\mu s}}`,

    .. math:: y_{k+1} = x_k - s\nabla f(x_k), \qquad x_{k+1} = y_{k+1} + \rho(y_{k+1} - y_k)

    has

    .. math:: f(x_k) - f_* \le 5L\lVert x_0 - x_*\rVert^2\left(1 + \frac{1}{12}\sqrt{\mu/L}\right)^{-k} .

    Hypotheses: :math:`f` μ-strongly convex and L-smooth.

    Proof: in the paper (Theorem 3); here it is only tested.

    Check: the update rule with α = 1 − ρ, η = ρs, β = 1/ρ, which is this method (docs/theory, dictionary), on strongly
    convex ridge functions; the largest ratio over 400 steps, also with ½L instead of 5L (not in the paper), and the
    promised exponent over the measured one.

    Finding: nothing here contradicts the bound with :math:`\frac{1}{2}L` instead of :math:`5L`.

    Source: arXiv:1810.08907.
    """
    return [*try_bounds(_accelerated, _BOX, rng, instances), _panel()]


@register_claim("C16f", "heavy ball (Shi et al.)", expected="holds")
def heavy_ball(rng: np.random.Generator, instances: int) -> Sequence[Evidence | Panel]:
    r"""The rate of Shi, Du, Jordan and Su for heavy ball on strongly convex f with s = μ/(16L²).

    Statement: with the :math:`\rho` of C16e and :math:`x_1 = x_0 - \frac{2s}{1 + \sqrt{\mu s}}\nabla f(x_0)`,

    .. math:: x_{k+1} = x_k - s\nabla f(x_k) + \rho(x_k - x_{k-1})

    has

    .. math:: f(x_k) - f_* \le 5L\lVert x_0 - x_*\rVert^2\left(1 + \frac{\mu}{16L}\right)^{-k} .

    Hypotheses: :math:`f` μ-strongly convex and L-smooth.

    Proof: in the paper (Theorem 4); here it is only tested.

    Check: the update rule with α = 1 − ρ, η = s, β = 0, m_{−1} = ∇f(x_0), as in C16e.

    Source: arXiv:1810.08907.
    """
    return try_bounds(_heavy, _BOX, rng, instances)


def _accelerated(parameters: Parameters) -> dict[str, Inequality]:
    objective = convex_ridges(parameters, _P)
    mu, smooth = objective.strength, objective.smoothness
    s = 0.25 / smooth
    momentum = (1.0 - np.sqrt(mu * s)) / (1.0 + np.sqrt(mu * s))
    gaps = _gaps(objective, parameters["start"], eta=momentum * s, momentum=momentum, beta=1.0 / momentum)
    return _inequalities(objective, parameters["start"], gaps, np.log1p(np.sqrt(mu / smooth) / 12.0))


def _heavy(parameters: Parameters) -> dict[str, Inequality]:
    objective = convex_ridges(parameters, _P)
    mu, smooth = objective.strength, objective.smoothness
    s = mu / (16.0 * smooth**2)
    momentum = (1.0 - np.sqrt(mu * s)) / (1.0 + np.sqrt(mu * s))
    start = parameters["start"]
    # m_{−1} = g_0 makes the first step s(1 + ρ)g_0 = 2s/(1 + √(μs))·g_0.
    gaps = _gaps(objective, start, eta=s, momentum=momentum, beta=0.0 * s, m=objective.gradient(start))
    return _inequalities(objective, start, gaps, np.log1p(mu / (16.0 * smooth)))


def _gaps(
    objective: ConvexRidges,
    w: np.ndarray,
    *,
    eta: np.ndarray,
    momentum: np.ndarray,
    beta: np.ndarray,
    m: np.ndarray | None = None,
) -> np.ndarray:
    """f(x_k) − f* for k = 0 … steps, shape ``(steps + 1, n)``."""
    m = np.zeros_like(w) if m is None else m
    gaps = [objective.value(w)]
    for _ in range(_STEPS):
        w, m = lite_step(
            w, m, objective.gradient(w), eta=eta[:, None], alpha=1.0 - momentum[:, None], nesterov=beta[:, None]
        )
        gaps.append(objective.value(w))
    return np.stack(gaps)


def _inequalities(
    objective: ConvexRidges, start: np.ndarray, gaps: np.ndarray, rate: np.ndarray
) -> dict[str, Inequality]:
    steps = np.arange(len(gaps))
    square = objective.smoothness * (start**2).sum(-1)
    hypotheses = {
        "f μ-strongly convex and L-smooth, μ > 0": (objective.strength > 0) & (objective.weights >= 0).all(-1)
    }
    promised = np.minimum(rate * steps[:, None], 27.0)  # beyond it the bound lies within the rounding of f(x_0)
    tightest = (gaps * np.exp(promised)).max(0)
    return {
        "f(x_k) − f* over its bound, at the worst k": Inequality(tightest, 5.0 * square, hypotheses),
        "the same with ½L instead of 5L": Inequality(tightest, 0.5 * square, hypotheses),
        "promised exponent over the measured one, at the worst k": Inequality(
            decay_tightness(steps, gaps, rate, 5.0 * square), np.ones_like(rate), hypotheses
        ),
    }


def _panel() -> Panel:
    """Plot of both methods on one objective, with their bounds."""
    parameters = {
        "directions": np.array([[1.0, 0.2, 0.0, -0.3, 1.0, 0.1, 0.0, 0.2, 1.0]]),
        "weights": np.array([[1.0, 0.5, 0.2]]),
        "widths": np.array([[0.5, 0.5, 0.5]]),
        "profile": np.array([1.0]),
        "strength": np.array([0.2]),
        "start": np.array([[2.0, -2.0, 2.0]]),
    }
    objective = convex_ridges(parameters, _P)
    mu, smooth, start = objective.strength, objective.smoothness, parameters["start"]
    steps = np.arange(_STEPS + 1)
    first = 5.0 * smooth[0] * (start**2).sum()
    curves = []
    for name, s, share, nesterov in (
        ("Nesterov, s = 1/(4L)", 0.25 / smooth, np.sqrt(mu / smooth) / 12.0, True),
        ("heavy ball, s = μ/(16L²)", mu / (16.0 * smooth**2), mu / (16.0 * smooth), False),
    ):
        momentum = (1.0 - np.sqrt(mu * s)) / (1.0 + np.sqrt(mu * s))
        gaps = _gaps(
            objective,
            start,
            eta=momentum * s if nesterov else s,
            momentum=momentum,
            beta=1.0 / momentum if nesterov else 0.0 * s,
            m=None if nesterov else objective.gradient(start),
        )[:, 0]
        curves += [
            Curve(name, steps, np.maximum(gaps, 1e-16)),
            Curve(f"bound, {name.split(',')[0]}", steps, first * (1.0 + share[0]) ** -steps.astype(float), "bound"),
        ]
    return Panel("Strongly convex f (one instance)", "step k", "f(x_k) − f*", tuple(curves), log="y")
