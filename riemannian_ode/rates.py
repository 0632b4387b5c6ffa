r"""Convergence rates of the flow proved with Lyapunov functions: convex, strongly convex, Polyak–Łojasiewicz.

β of :func:`polyak_lojasiewicz_rate` is in the theory's units (relative to a summed momentum). β of
:func:`strongly_convex_rate` is the coefficient of :math:`\nabla^2 f\,\dot w` in the second-order form.

Source: derived in docs/theory, claims C8, C15 and C16.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from riemannian_ode.flow import Array


def polyak_lojasiewicz_rate(mu: Array, *, alpha: Array, eta: Array, beta: Array) -> np.ndarray:
    r"""Rate ρ in :math:`E(t) - f_* \le (E(0) - f_*)e^{-\rho t}` where :math:`\|g\|^2_{F^{-1}} \ge 2\mu(f - f_*)`.

    .. math:: \rho = \min(2\alpha,\ 2\mu\eta\beta)

    Args:
        mu: μ > 0 of the inequality in the metric F.
        alpha: α, constant.
        eta: η, constant.
        beta: β, constant; the rate is 0 without Hessian damping.

    Returns:
        ρ, broadcast shape, per unit time.

    Source: derived in docs/theory, claim C15.
    """
    return np.asarray(np.minimum(2.0 * np.asarray(alpha), 2.0 * np.asarray(mu) * eta * beta))


def convex_value_bound(t: Array, *, distance: Array, gap: Array, alpha: Array, eta: Array) -> np.ndarray:
    r"""Bound on :math:`f(w_t) - f_*` for convex f, from rest (m₀ = 0).

    .. math:: f(w_t) - f_* \le \frac{\tfrac{1}{2\eta}\|w_0 - w_*\|^2_{(AC)^{-1}} + \tfrac{3}{2\alpha}(f(w_0) - f_*)}
        {t + \tfrac{3}{2\alpha}}, \qquad C = B + 1/\alpha

    Args:
        t: Time ≥ 0.
        distance: :math:`\|w_0 - w_*\|^2_{(AC)^{-1}}`.
        gap: f(w₀) − f_*.
        alpha: α > 0.
        eta: η > 0.

    Returns:
        Bound, broadcast shape, in units of f.

    Source: derived in docs/theory, claim C8.
    """
    delay = 1.5 / np.asarray(alpha)
    return np.asarray((0.5 * np.asarray(distance) / eta + delay * np.asarray(gap)) / (np.asarray(t) + delay))


def strongly_convex_rate(mu: Array, beta: Array, *, gamma: Literal["one", "corrected"]) -> np.ndarray:
    r"""Rate of :math:`\ddot w + 2\sqrt\mu\,\dot w + \beta\nabla^2 f\,\dot w + \gamma\nabla f = 0`, f μ-strongly convex.

    With :math:`b = \sqrt\mu\,\beta` and :math:`y = \sqrt\mu(w - w_*) + \dot w + \beta\nabla f`, the energy
    :math:`\gamma(f - f_*) + \tfrac12\|y\|^2` decays at least like :math:`e^{-r\sqrt\mu\,t}`:

    - γ = 1 + b ("corrected", the high-resolution ODE of Nesterov's method): :math:`r = (1 + b)/(1 + 2b) \ge 1/2`;
    - γ = 1 ("one"): r is the root of :math:`(1 - (1+b)r)(4 - b - 2r) = (1 - r)^2(1 - br/2)` in [0, 1/(1 + b)].

    Args:
        mu: μ > 0.
        beta: β ≥ 0, broadcasts; b < 3 for γ = 1.
        gamma: Which choice of γ.

    Returns:
        r√μ, broadcast shape, per unit time.

    Raises:
        ValueError: for b ≥ 3 with γ = 1, because this energy then gives no rate.

    Source: derived in docs/theory, claim C16.
    """
    root = np.sqrt(np.asarray(mu, dtype=np.float64))
    b = root * beta
    if gamma == "corrected":
        return np.asarray(root * (1.0 + b) / (1.0 + 2.0 * b))
    if not np.all(b < 3.0):
        raise ValueError(f"beta = {beta!r} makes b = √μ·β = {np.max(b):.3g}; the rate for γ = 1 needs b < 3.")
    low, high = np.zeros_like(b), 1.0 / (1.0 + b)
    for _ in range(60):  # bisection: positive at 0, not positive at 1/(1 + b)
        middle = 0.5 * (low + high)
        excess = (1.0 - (1.0 + b) * middle) * (4.0 - b - 2.0 * middle) - (1.0 - middle) ** 2 * (1.0 - 0.5 * b * middle)
        low, high = np.where(excess >= 0, middle, low), np.where(excess >= 0, high, middle)
    return np.asarray(root * low)
