r"""Closed forms for the stationary noise of the update rule and its flow on a quadratic.

Stochastic gradients :math:`g_k + \sigma\xi_k` with white ξ of unit variance keep a mode from converging: its state
:math:`(w_k,\ \eta a\,m_{k-1})` has a stationary covariance S, and its loss has a floor. κ = ηλa is the preconditioned
curvature, ηa the *rate*: learning rate times the eigenvalue of :math:`A = F^{-1}(P + \chi Q)`. β is in the theory's
units.

The flow has the gradient g + σ dB/dt: :func:`riemannian_ode.simulate` with ``noise``.

Source: derived in docs/theory, claims C10 and C20.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from discretizations.stability import Array, stable_limit, step_matrix


def noise_input(beta: Array) -> np.ndarray:
    r"""Effect of gradient noise on the state (w, ηa·m) in one step: :math:`b = (-(1+\beta), 1)`, times ηaσ.

    Args:
        beta: β, any shape.

    Returns:
        Vectors, shape ``(*batch, 2)``.

    Source: derived in docs/theory, claim C10.
    """
    beta = np.asarray(beta, dtype=np.float64)
    return np.stack([-(1.0 + beta), np.ones_like(beta)], axis=-1)


def lyapunov_covariance(kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Stationary covariance by solving :math:`S = MSM^\top + bb^\top` numerically, mode by mode.

    Args:
        kappa: κ inside the stability region of claim C6, any shape.
        alpha: α in (0, 1], broadcasts.
        beta: β > −1/α, broadcasts.

    Returns:
        S in units of (ηaσ)², shape ``(*broadcast, 2, 2)``.

    Raises:
        ValueError: if κ is not stable, because there is no stationary state.

    Source: ``scipy.linalg.solve_discrete_lyapunov``.
    """
    _check_stable(kappa, alpha, beta)
    kappa, alpha, beta = np.broadcast_arrays(kappa, alpha, beta)
    steps, inputs = step_matrix(kappa, alpha, beta), noise_input(beta)
    solved = [
        solve_discrete_lyapunov(step, np.outer(b, b))
        for step, b in zip(steps.reshape(-1, 2, 2), inputs.reshape(-1, 2), strict=True)
    ]
    return np.stack(solved).reshape(steps.shape)


def stationary_covariance(kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Stationary covariance of a mode in closed form.

    With :math:`\gamma = 1 + (2-\alpha)\beta`, :math:`D_1 = \alpha + (1-\alpha)\beta\kappa` and
    :math:`D_2 = 2(2-\alpha) - \gamma\kappa`,

    .. math::
        S = \frac{1}{D_1D_2}\begin{pmatrix}
        \frac{(2-\alpha)(1+\alpha\beta) + (1-\alpha)\beta\kappa\gamma}{\kappa} & -\gamma \\ -\gamma & 2 \end{pmatrix}

    Args:
        kappa: κ inside the stability region of claim C6, any shape.
        alpha: α in (0, 1], broadcasts.
        beta: β > −1/α, broadcasts.

    Returns:
        S in units of (ηaσ)², shape ``(*broadcast, 2, 2)``.

    Raises:
        ValueError: if κ is not stable, because there is no stationary state.

    Source: derived in docs/theory, claim C10.
    """
    _check_stable(kappa, alpha, beta)
    kappa, alpha, beta = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (kappa, alpha, beta)))
    gamma = 1.0 + (2.0 - alpha) * beta
    scale = (alpha + (1.0 - alpha) * beta * kappa) * (2.0 * (2.0 - alpha) - gamma * kappa)
    position = ((2.0 - alpha) * (1.0 + alpha * beta) + (1.0 - alpha) * beta * kappa * gamma) / kappa
    top = np.stack([position, -gamma], axis=-1)
    bottom = np.stack([-gamma, np.full_like(gamma, 2.0)], axis=-1)
    return np.asarray(np.stack([top, bottom], axis=-2) / scale[..., None, None])


def loss_floor(kappa: Array, alpha: Array, beta: Array, *, rate: Array, sigma: Array) -> np.ndarray:
    r"""Stationary loss of one mode, :math:`\tfrac12\lambda\,\mathrm E[w^2]`.

    .. math:: \sigma^2\eta a\,\frac{(2-\alpha)(1+\alpha\beta) + (1-\alpha)\beta\kappa\gamma}{2D_1D_2}
        \;\longrightarrow\; \frac{\sigma^2\eta a}{4}\left(\frac1\alpha + \beta\right) \quad (\kappa \ll 1,\
        \beta\kappa \ll \alpha)

    Args:
        kappa: κ inside the stability region of claim C6, any shape.
        alpha: α in (0, 1], broadcasts.
        beta: β > −1/α, broadcasts.
        rate: ηa, learning rate times the eigenvalue of A, broadcasts.
        sigma: σ, standard deviation of the mode's gradient noise, in units of the gradient, broadcasts.

    Returns:
        Loss, broadcast shape, in units of f.

    Raises:
        ValueError: if κ is not stable, because there is no stationary state.

    Source: derived in docs/theory, claim C10.
    """
    variance = stationary_covariance(kappa, alpha, beta)[..., 0, 0]
    return np.asarray(0.5 * np.asarray(kappa) * variance * np.asarray(rate) * np.asarray(sigma) ** 2)


def flat_loss_floor(alpha: Array, beta: Array, *, rate: Array, sigma: Array) -> np.ndarray:
    r"""Stationary loss of a mode in the limit of small curvature, :math:`\sigma^2\eta a(1/\alpha + \beta)/4`.

    It does not depend on the curvature and is proportional to the speed of the mode (claim C5): LITE raises the noise
    of flat directions by the same factor as their speed.

    Args:
        alpha: α > 0, any shape.
        beta: β, broadcasts.
        rate: ηa, broadcasts.
        sigma: σ, broadcasts.

    Source: derived in docs/theory, claim C10.
    """
    return np.asarray(np.asarray(sigma) ** 2 * np.asarray(rate) * (1.0 / np.asarray(alpha) + np.asarray(beta)) / 4.0)


class FloorRatio(NamedTuple):
    """Lower and upper bound of the ratio of the update rule's loss floor to the flow's, each of broadcast shape."""

    lower: np.ndarray
    upper: np.ndarray


def flow_covariance(kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Stationary covariance of a mode (w, ηa·m) of the flow.

    .. math:: S = \frac{1}{2(\alpha + \beta\kappa)}\begin{pmatrix}
        \frac{1 + \alpha\beta + \beta^2\kappa}{\kappa} & -\beta \\ -\beta & 1 \end{pmatrix}

    Args:
        kappa: κ > 0, any shape.
        alpha: α > 0, broadcasts.
        beta: β with 1 + αβ > 0 and α + βκ > 0, broadcasts.

    Returns:
        S in units of (ηaσ)², shape ``(*broadcast, 2, 2)``.

    Raises:
        ValueError: if the mode is not stable, because there is no stationary state.

    Source: derived in docs/theory, claim C20.
    """
    kappa, alpha, beta = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (kappa, alpha, beta)))
    damping = alpha + beta * kappa
    if not np.all((kappa > 0) & (damping > 0) & (1.0 + alpha * beta > 0)):
        raise ValueError(
            f"kappa = {kappa.min():.4g}, alpha + beta * kappa = {damping.min():.4g} and 1 + alpha * beta = "
            f"{(1.0 + alpha * beta).min():.4g} (the smallest of each) must be positive: an unstable mode has no "
            "stationary noise; take a smaller |β|."
        )
    top = np.stack([(1.0 + alpha * beta + beta**2 * kappa) / kappa, -beta], axis=-1)
    bottom = np.stack([-beta, np.ones_like(beta)], axis=-1)
    return np.asarray(np.stack([top, bottom], axis=-2) / (2.0 * damping)[..., None, None])


def flow_loss_floor(kappa: Array, alpha: Array, beta: Array, *, rate: Array, sigma: Array) -> np.ndarray:
    r"""Stationary loss of one mode of the flow, :math:`\tfrac12\lambda\,\mathrm E[w^2]`.

    .. math:: \sigma^2\eta a\,\frac{1 + \alpha\beta + \beta^2\kappa}{4(\alpha + \beta\kappa)}

    Args:
        kappa: κ > 0, any shape.
        alpha: α > 0, broadcasts.
        beta: β, as in :func:`flow_covariance`, broadcasts.
        rate: ηa, broadcasts.
        sigma: σ, gradient noise per square root of time, broadcasts.

    Returns:
        Loss, broadcast shape, in units of f.

    Raises:
        ValueError: if the mode is not stable.

    Source: derived in docs/theory, claim C20.
    """
    variance = flow_covariance(kappa, alpha, beta)[..., 0, 0]
    return np.asarray(0.5 * np.asarray(kappa) * variance * np.asarray(rate) * np.asarray(sigma) ** 2)


def floor_ratio_bounds(kappa: Array, alpha: Array, beta: Array) -> FloorRatio:
    r"""Bounds of the ratio :func:`loss_floor` / :func:`flow_loss_floor`, i.e. of the noise that steps of h = 1 add.

    With the stability limit κ* of claim C6,

    .. math:: \frac{1}{1 - \kappa/\kappa_*} \le \frac{\text{rule}}{\text{flow}} \le \frac{1}{1 - \kappa/\kappa_*}
        \left[1 + \frac{3 - 2\alpha}{2 - \alpha}\,\frac{\beta\kappa}{1 + \alpha\beta + \beta^2\kappa}\right]

    The lower one is attained at β = 0, the upper one at α = 1.

    Args:
        kappa: κ in (0, κ*), any shape.
        alpha: α in (0, 1], broadcasts.
        beta: β ≥ 0, broadcasts.

    Raises:
        ValueError: if κ is not stable, or β < 0.

    Source: derived in docs/theory, claim C20.
    """
    _check_stable(kappa, alpha, beta)
    kappa, alpha, beta = (np.asarray(x, dtype=np.float64) for x in (kappa, alpha, beta))
    if np.any(beta < 0):
        raise ValueError(f"beta = {beta.min():.6g} must be at least 0: the bounds do not hold for β < 0.")
    lower = 1.0 / (1.0 - kappa / stable_limit(alpha, beta))
    more = (3.0 - 2.0 * alpha) / (2.0 - alpha) * beta * kappa / (1.0 + alpha * beta + beta**2 * kappa)
    return FloorRatio(np.asarray(lower + 0.0 * more), np.asarray(lower * (1.0 + more)))


def _check_stable(kappa: Array, alpha: Array, beta: Array) -> None:
    limit = stable_limit(alpha, beta)
    if not np.all((np.asarray(kappa) > 0) & (np.asarray(kappa) < limit)):
        raise ValueError(
            f"kappa = {kappa!r} is outside (0, {np.min(limit):.4g}), where the update rule is stable; an unstable mode "
            "has no stationary noise: take a smaller learning rate."
        )
