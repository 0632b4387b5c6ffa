r"""Discretisations of the flow on one quadratic mode: step matrix, stability limit and rate, in closed form.

In the coordinates :math:`(w, \eta a\,m)` a step of h = 1 is a 2×2 matrix whose eigenvalues z solve

.. math:: p_2 z^2 + p_1 z + p_0 = 0, \qquad p_i = p_i^{(0)} + p_i^{(1)}\kappa

with coefficients affine in the preconditioned curvature κ = ηλa, for every scheme but the exponential one, whose
:math:`z = e^s` with the flow's exponents s. So Jury's conditions are affine in κ, and the largest stable κ is the first
zero of one of them. Source of all formulas: derived in docs/guides/schemes, proved in
:mod:`discretizations.proofs.schemes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from discretizations.curvature_schemes import CURVATURE_SCHEMES
from discretizations.schemes import ONE_GRADIENT_SCHEMES
from discretizations.stability import check_rule_coefficients, mode_roots
from riemannian_ode.errors import require_choice

Array: TypeAlias = Any  # numpy array, float or SymPy expression
ALL_SCHEMES = (*ONE_GRADIENT_SCHEMES, *CURVATURE_SCHEMES)


def step_polynomial(
    scheme: str, alpha: Array, beta: Array, *, expm1: Callable[[Any], Any] = np.expm1
) -> tuple[tuple[Array, Array], ...]:
    r"""Coefficients :math:`(p_i^{(0)}, p_i^{(1)})` of a step's characteristic polynomial for i = 2, 1, 0.

    Args:
        scheme: Name of a scheme with an affine polynomial: any but ``exponential-euler``.
        alpha: α > 0.
        beta: β, theory's units.
        expm1: x ↦ eˣ − 1 for the type of ``alpha``.

    Raises:
        ValueError: for an unknown scheme, or the exponential one.
    """
    require_choice("scheme", scheme, (name for name in ALL_SCHEMES if name != "exponential-euler"))
    one, gamma = 1.0 + 0 * alpha * beta, 1 + alpha * beta
    if scheme in ONE_GRADIENT_SCHEMES:
        rule = ONE_GRADIENT_SCHEMES[scheme]
        share, gain, weight = rule.kick(alpha, expm1=expm1)
        keep = 1 - share
        pull = weight * gain
        if rule.old_momentum:
            return (one, 0 * one), (-(1 + keep) * one, beta * one), (keep * one, pull - keep * beta)
        return (one, 0 * one), (-(1 + keep) * one, pull + beta), (keep * one, -keep * beta)
    if scheme == "implicit-euler":
        return (1 + alpha, beta + gamma), (-(2 + alpha), -beta * one), (one, 0 * one)
    if scheme == "implicit-midpoint":
        return (4 + 2 * alpha, 2 * beta + gamma), (-8 * one, 2 * gamma), (4 - 2 * alpha, gamma - 2 * beta)
    keep = 1 + expm1(-alpha)
    return (
        (one, beta / 2 + one / 4),
        (-(1 + keep) * one, (1 - keep) * beta / 2 + (1 + keep) / 4),
        (keep * one, keep * (one / 4 - beta / 2)),
    )


def step_matrix(scheme: str, kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Step of one mode in the coordinates (w, ηa·m) that the scheme stores.

    Args:
        scheme: Name.
        kappa: κ, any shape.
        alpha: α > 0, broadcasts.
        beta: β, broadcasts.

    Returns:
        Matrices, shape ``(*broadcast, 2, 2)``.

    Raises:
        ValueError: for an unknown scheme.
    """
    require_choice("scheme", scheme, ALL_SCHEMES)
    kappa, alpha, beta = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (kappa, alpha, beta)))
    if scheme in ONE_GRADIENT_SCHEMES:
        rule = ONE_GRADIENT_SCHEMES[scheme]
        share, gain, weight = rule.kick(alpha, expm1=np.expm1)
        keep = 1 - share
        drift = weight if rule.old_momentum else weight * keep
        pull = 0.0 * kappa if rule.old_momentum else weight * gain * kappa
        return _matrix(1 - pull - beta * kappa, -drift, gain * kappa, keep)
    if scheme == "exponential-euler":
        return _exponential(kappa, alpha, beta)
    if scheme == "strang":
        keep = 1 + np.expm1(-alpha)
        middle = _implicit_step(kappa, 0.0 * alpha, beta, 0.5)
        half = np.sqrt(keep)
        return np.asarray(middle * _matrix(1.0, half, half, keep))
    return _implicit_step(kappa, alpha, beta, 1.0 if scheme == "implicit-euler" else 0.5)


def spectral_radius(scheme: str, kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    """Contraction of a mode per step; below 1 is stable.

    Args:
        scheme: Name.
        kappa: κ, any shape.
        alpha: α > 0, broadcasts.
        beta: β, broadcasts.

    Raises:
        ValueError: for an unknown scheme.
    """
    require_choice("scheme", scheme, ALL_SCHEMES)
    kappa, alpha, beta = (np.asarray(x, dtype=np.float64) for x in (kappa, alpha, beta))
    if scheme == "exponential-euler":
        return np.asarray(np.exp(mode_roots(kappa, alpha, beta)[..., 0].real))
    p2, p1, p0 = (constant + slope * kappa for constant, slope in step_polynomial(scheme, alpha, beta))
    middle, product = -0.5 * p1 / p2, p0 / p2
    root = np.sqrt(middle**2 - product + 0j)
    return np.asarray(np.maximum(np.abs(middle + root), np.abs(middle - root)))


def decay_rate(scheme: str, kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Asymptotic rate of a mode, :math:`-\ln\rho` per step; negative where it is unstable.

    For κ → 0 it is :func:`slow_rate` times κ.

    Args:
        scheme: Name.
        kappa: κ, any shape.
        alpha: α > 0, broadcasts.
        beta: β, broadcasts.
    """
    return np.asarray(-np.log(spectral_radius(scheme, kappa, alpha, beta)))


def slow_rate(scheme: str, alpha: Array, beta: Array, *, tanh: Callable[[Any], Any] = np.tanh) -> Array:
    r"""Rate of a slow mode over its curvature, :math:`\lim_{\kappa \to 0} -\ln\rho/\kappa`.

    It is the flow's :math:`1/\alpha + \beta`. Schemes that split the damping off (leapfrog, Strang) have
    :math:`1/(2\tanh(\alpha/2)) + \beta`, larger by about α/12: half of the damping meets a momentum without its kick.

    Args:
        scheme: Name.
        alpha: α > 0.
        beta: β, theory's units.
        tanh: Hyperbolic tangent for the type of ``alpha``.

    Raises:
        ValueError: for an unknown scheme.
    """
    require_choice("scheme", scheme, ALL_SCHEMES)
    return (1 / (2 * tanh(alpha / 2)) if scheme in ("leapfrog", "strang") else 1 / alpha) + beta


def stable_limit(scheme: str, alpha: Array, beta: Array) -> np.ndarray:
    r"""Largest stable κ: the scheme is stable for exactly 0 < κ < limit.

    For β ≥ 0 the schemes with one gradient and a new momentum have

    .. math:: \frac1\kappa = \frac\beta2 + s(\alpha)

    with s = 1/(2(2−α)) for semi-implicit Euler, 1/4 for leapfrog, tanh(α/2)/(2α) for exponential damping and
    1/(2(2+α)) for implicit damping. Explicit Euler has κ < α/(1 − (1−α)β) while (1−α)β < 1, and, where its
    right side is positive, 1/κ > β/2 − 1/(2(2−α)). The implicit, Strang and exponential schemes have no limit.

    Args:
        scheme: Name.
        alpha: α in (0, 1], broadcasts.
        beta: β > −1/α, broadcasts.

    Raises:
        ValueError: for an unknown scheme, α outside (0, 1] or β ≤ −1/α (where every κ > 0 is unstable).
    """
    require_choice("scheme", scheme, ALL_SCHEMES)
    alpha, beta = np.broadcast_arrays(np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64))
    check_rule_coefficients(alpha, beta)
    if scheme == "exponential-euler":  # stable where the flow is, and so is the midpoint rule
        scheme = "implicit-midpoint"
    p2, p1, p0 = (np.array(np.broadcast_arrays(*pair, alpha)[:2]) for pair in step_polynomial(scheme, alpha, beta))
    rounding = 1e-14 * (np.abs(p2[1]) + np.abs(p1[1]) + np.abs(p0[1]))  # a slope below it is zero, rounded
    limit = np.full(alpha.shape, np.inf)
    for constant, slope in (p2 + p1 + p0, p2 - p1 + p0, p2 - p0):  # Jury: all positive
        falling = slope < -rounding
        limit = np.minimum(limit, np.where(falling, constant / np.where(falling, -slope, 1.0), np.inf))
    return limit


def _matrix(top_left: Array, top_right: Array, bottom_left: Array, bottom_right: Array) -> np.ndarray:
    a, b, c, d = np.broadcast_arrays(top_left, top_right, bottom_left, bottom_right)
    matrix: np.ndarray = np.stack([np.stack([a, b], axis=-1), np.stack([c, d], axis=-1)], axis=-2)
    return matrix


def _implicit_step(kappa: Array, alpha: Array, beta: Array, implicitness: float) -> np.ndarray:
    """(I − ϑJ)⁻¹(I + (1 − ϑ)J) with J = [[−βκ, −1], [κ, −α]]."""
    part, rest = implicitness, 1.0 - implicitness
    identity = np.eye(2)
    jacobian = _matrix(-beta * kappa, -1.0, kappa, -alpha)
    return np.asarray(np.linalg.solve(identity - part * jacobian, identity + rest * jacobian))


def _exponential(kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    import scipy.linalg

    return np.asarray(scipy.linalg.expm(_matrix(-beta * kappa, -1.0, kappa, -alpha)))
