r"""Closed forms for modes of RISHD and its update rule on a quadratic: rates, stability, speed-ups.

A mode has preconditioned curvature :math:`\kappa = \eta\lambda a` (λ Hessian eigenvalue, a eigenvalue of
:math:`A = F^{-1}(P + \chi Q)`), damping α and Hessian damping β in the theory's units (relative to a *summed*
momentum).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any  # numpy array or float; everything broadcasts


def mode_roots(kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Both roots of the characteristic equation of one flow mode.

    .. math:: s^2 + (\alpha + \beta\kappa)s + (1 + \alpha\beta)\kappa = 0

    Args:
        kappa: κ, any shape, dimensionless.
        alpha: α, broadcasts.
        beta: β, broadcasts.

    Returns:
        Complex roots, the slow (largest real part) first, shape ``(*broadcast, 2)``, per unit time.

    Source: derived in docs/theory, claim C5.
    """
    kappa, alpha, beta = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (kappa, alpha, beta)))
    half, constant = -0.5 * (alpha + beta * kappa), (1.0 + alpha * beta) * kappa
    root = np.sqrt(half**2 - constant + 0j)
    # Adding quantities of equal sign first and dividing for the other root avoids cancellation at small κ.
    far = np.where(half <= 0, half - root, half + root)
    near = constant / np.where(far == 0, 1.0, far)  # if one root is 0 here, both are
    return np.stack([np.where(near.real >= far.real, near, far), np.where(near.real >= far.real, far, near)], axis=-1)


def flat_rate(kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Slow decay rate of one flow mode: −Re of the root with the largest real part.

    For small κ it is :math:`(1/\alpha + \beta)\kappa`; on a saddle (κ < 0) it is negative and gives the rate of escape.

    Args:
        kappa: κ, any shape, dimensionless.
        alpha: α > 0, broadcasts.
        beta: β, broadcasts.

    Returns:
        Rate, broadcast shape, per unit time.

    Raises:
        ValueError: if an α is not positive.

    Source: derived in docs/theory, claim C5.
    """
    if np.any(np.asarray(alpha) <= 0):
        raise ValueError(f"alpha = {alpha!r} must be positive: an undamped mode has no decay rate.")
    rate: np.ndarray = -mode_roots(kappa, alpha, beta)[..., 0].real
    return rate


def is_overdamped(kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Whether a flow mode does not oscillate: :math:`(\alpha - \beta\kappa)^2 \ge 4\kappa`.

    Args:
        kappa: κ, any shape.
        alpha: α, broadcasts.
        beta: β, broadcasts.

    Source: derived in docs/theory, claim C5.
    """
    return np.asarray((np.asarray(alpha) - np.asarray(beta) * kappa) ** 2 >= 4.0 * np.asarray(kappa))


def asymptotic_speedup(alpha: Array, beta_sharp: Array, beta_flat: Array, chi: Array) -> np.ndarray:
    r"""LITE's speed-up of flat directions at small κ, :math:`\chi(1 + \alpha\beta_2)/(1 + \alpha\beta_1)`.

    Args:
        alpha: α > 0.
        beta_sharp: β₁ of the base method, in the theory's units.
        beta_flat: β₂ in the theory's units.
        chi: χ.

    Source: derived in docs/theory, claim C5.
    """
    alpha = np.asarray(alpha)
    return np.asarray(chi * (1.0 + alpha * beta_flat) / (1.0 + alpha * beta_sharp))


def step_matrix(kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Step of one mode of the update rule (h = 1) in the coordinates (w, ηa·m_{k−1}).

    .. math:: M = \begin{pmatrix} 1 - (1+\beta)\kappa & -(1-\alpha) \\ \kappa & 1-\alpha \end{pmatrix}

    Args:
        kappa: κ, any shape.
        alpha: α, broadcasts.
        beta: β, broadcasts.

    Returns:
        Matrices, shape ``(*broadcast, 2, 2)``.

    Source: derived in docs/theory, claims C6 and C10.
    """
    kappa, alpha, beta = np.broadcast_arrays(kappa, alpha, beta)
    top = np.stack([1.0 - (1.0 + beta) * kappa, alpha - 1.0], axis=-1)
    bottom = np.stack([kappa, 1.0 - alpha], axis=-1)
    return np.stack([top, bottom], axis=-2)


def spectral_radius(kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Largest modulus of the roots of :math:`z^2 - (2-\alpha-(1+\beta)\kappa)z + (1-\alpha)(1-\beta\kappa)`.

    Args:
        kappa: κ, any shape.
        alpha: α, broadcasts.
        beta: β, broadcasts.

    Returns:
        Contraction per step, broadcast shape; below 1 is stable.

    Source: derived in docs/theory, claim C6.
    """
    kappa, alpha, beta = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (kappa, alpha, beta)))
    half_trace = 0.5 * (2.0 - alpha - (1.0 + beta) * kappa)
    root = np.sqrt(half_trace**2 - (1.0 - alpha) * (1.0 - beta * kappa) + 0j)
    radius: np.ndarray = np.maximum(np.abs(half_trace + root), np.abs(half_trace - root))
    return radius


def check_rule_coefficients(alpha: np.ndarray, beta: np.ndarray) -> None:
    """Refuse coefficients for which no update rule converges.

    Args:
        alpha: α in (0, 1].
        beta: β > −1/α, shape of ``alpha``.

    Raises:
        ValueError: naming the coefficient that is out of range.
    """
    if not np.all((alpha > 0) & (alpha <= 1)):
        raise ValueError(f"alpha = {alpha!r} must lie in (0, 1]: it is 1 − momentum.")
    if not np.all(1.0 + alpha * beta > 0):
        raise ValueError(f"beta = {beta!r} must exceed −1/alpha: below it every step climbs the gradient.")


def stable_limit(alpha: Array, beta: Array) -> np.ndarray:
    r"""Largest stable κ of the update rule: it is stable for exactly 0 < κ < limit.

    .. math::
        \kappa < \frac{2(2-\alpha)}{1 + \beta(2-\alpha)} \quad (\text{no condition where } 1+\beta(2-\alpha) \le 0),
        \qquad \kappa < \frac{\alpha}{(1-\alpha)|\beta|} \quad (\beta < 0)

    Args:
        alpha: α in (0, 1].
        beta: β > −1/α, broadcasts.

    Returns:
        Limit on κ = ηλa, broadcast shape.

    Raises:
        ValueError: for α outside (0, 1] or β ≤ −1/α (where every κ > 0 is unstable).

    Source: derived in docs/theory, claim C6 (Jury's conditions).
    """
    alpha, beta = np.broadcast_arrays(np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64))
    check_rule_coefficients(alpha, beta)
    slope = 1.0 + beta * (2.0 - alpha)
    with np.errstate(divide="ignore", over="ignore"):  # no limit if a denominator is (nearly) 0
        oscillation = np.where(slope > 0, 2.0 * (2.0 - alpha) / slope, np.inf)
        growth = np.where(beta < 0, alpha / ((1.0 - alpha) * np.abs(beta)), np.inf)
    return np.minimum(oscillation, growth)


def descent_limit(alpha: Array, beta: Array) -> np.ndarray:
    r"""Largest κ at which an energy never increases along the update rule, for any f with bounded curvature.

    .. math:: \kappa \le \frac{2\alpha}{1 + \alpha\beta} \quad\Longrightarrow\quad
        E_k = f(w_k) + \tfrac{\eta(1-\alpha)}{2}\, m_{k-1}^\top A\, m_{k-1} \text{ never increases}

    In each block of a sharp/flat split κ is η·λ_max(A)·L with ∇²f ≼ L in that block; f need not be convex, and its
    negative curvature may be unbounded. No larger limit is possible in this case; :mod:`discretizations.certificate`
    has larger limits for f with bounded negative curvature.

    Args:
        alpha: α in (0, 1].
        beta: β > −1/(2 − α) in the theory's units; broadcasts.

    Returns:
        Limit on κ, broadcast shape.

    Raises:
        ValueError: for α outside (0, 1] or β ≤ −1/(2 − α).

    Source: derived in docs/theory, claim C9.
    """
    check_damping(alpha, beta)
    alpha, beta = np.broadcast_arrays(np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64))
    return np.asarray(2.0 * alpha / (1.0 + alpha * beta))


def check_damping(alpha: Array, beta: Array) -> None:
    """Refuse α outside (0, 1], and β ≤ −1/(2 − α), for which no energy of claim C9 decreases.

    Raises:
        ValueError: naming the argument and its value.
    """
    _check_momentum(alpha)
    if not np.all(1.0 + (2.0 - np.asarray(alpha)) * np.asarray(beta) > 0):
        raise ValueError(f"beta = {beta!r} must exceed −1/(2 − alpha), which is −1 for heavy damping, −1/2 for light.")


def _check_momentum(alpha: Array) -> None:
    if not np.all((np.asarray(alpha) > 0) & (np.asarray(alpha) <= 1)):
        raise ValueError(f"alpha = {alpha!r} must lie in (0, 1]: it is 1 − momentum.")
