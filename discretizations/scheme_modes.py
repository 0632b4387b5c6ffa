r"""Closed forms for discretisations of one quadratic mode: step matrix, stability limit and decay rate.

In the coordinates :math:`(w, \eta a\,m)` a step of h = 1 is a 2×2 matrix whose eigenvalues z solve

.. math:: p_2 z^2 + p_1 z + p_0 = 0, \qquad p_i = p_i^{(0)} + p_i^{(1)}\kappa

with coefficients affine in the preconditioned curvature κ = ηλa, for every scheme except the exponential one, which has
:math:`z = e^s` with the flow's exponents s. So Jury's conditions are affine in κ, and the largest stable κ is the first
zero of one of them. Source of all formulas: derived in docs/guides/schemes, proved in
:mod:`discretizations.proofs.schemes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from discretizations.curvature_schemes import CURVATURE_SCHEMES, CurvatureScheme, Polynomial, two_by_two
from discretizations.schemes import ONE_GRADIENT_SCHEMES, OneGradientScheme
from discretizations.stability import check_rule_coefficients, mode_roots
from riemannian_ode.checks import require_choice

Array: TypeAlias = Any  # numpy array, float or SymPy expression


def all_schemes() -> tuple[str, ...]:
    """Names of all schemes, those with one gradient first."""
    return (*ONE_GRADIENT_SCHEMES, *CURVATURE_SCHEMES)


def _scheme(name: str) -> OneGradientScheme | CurvatureScheme:
    require_choice("scheme", name, sorted(all_schemes()))
    return ONE_GRADIENT_SCHEMES[name] if name in ONE_GRADIENT_SCHEMES else CURVATURE_SCHEMES[name]


def step_polynomial(scheme: str, alpha: Array, beta: Array, *, expm1: Callable[[Any], Any] = np.expm1) -> Polynomial:
    r"""Coefficients :math:`(p_i^{(0)}, p_i^{(1)})` of a step's characteristic polynomial for i = 2, 1, 0.

    Args:
        scheme: Name of any scheme except ``exponential-euler``, whose step is exact.
        alpha: α > 0.
        beta: β in the theory's units.
        expm1: x ↦ eˣ − 1 for the type of ``alpha``.

    Raises:
        ValueError: for an unknown scheme, or one whose step is exact.
    """
    polynomial = _polynomial(_scheme(scheme), alpha, beta, expm1)
    if polynomial is None:
        raise ValueError(f"scheme = {scheme!r} has no polynomial that is affine in κ: its step is the exact flow.")
    return polynomial


def _polynomial(
    scheme: OneGradientScheme | CurvatureScheme, alpha: Array, beta: Array, expm1: Callable[[Any], Any] = np.expm1
) -> Polynomial | None:
    if isinstance(scheme, CurvatureScheme):
        return scheme.mode_polynomial(alpha, beta, expm1=expm1)
    share, gain, weight = scheme.kick(alpha, expm1=expm1)
    one, keep, pull = 1.0 + 0 * alpha * beta, 1 - share, weight * gain
    if scheme.old_momentum:
        return (one, 0 * one), (-(1 + keep) * one, beta * one), (keep * one, pull - keep * beta)
    return (one, 0 * one), (-(1 + keep) * one, pull + beta), (keep * one, -keep * beta)


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
    found = _scheme(scheme)
    kappa, alpha, beta = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (kappa, alpha, beta)))
    if isinstance(found, CurvatureScheme):
        return found.mode_matrix(kappa, alpha, beta)
    share, gain, weight = found.kick(alpha, expm1=np.expm1)
    keep = 1 - share
    drift = weight if found.old_momentum else weight * keep
    pull = 0.0 * kappa if found.old_momentum else weight * gain * kappa
    return two_by_two(1 - pull - beta * kappa, -drift, gain * kappa, keep)


def spectral_radius(scheme: str, kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    """Contraction factor of a mode per step; stable if below 1.

    Args:
        scheme: Name.
        kappa: κ, any shape.
        alpha: α > 0, broadcasts.
        beta: β, broadcasts.

    Raises:
        ValueError: for an unknown scheme.
    """
    kappa, alpha, beta = (np.asarray(x, dtype=np.float64) for x in (kappa, alpha, beta))
    polynomial = _polynomial(_scheme(scheme), alpha, beta)
    if polynomial is None:
        return np.asarray(np.exp(mode_roots(kappa, alpha, beta)[..., 0].real))
    p2, p1, p0 = (constant + slope * kappa for constant, slope in polynomial)
    middle, product = -0.5 * p1 / p2, p0 / p2
    root = np.sqrt(middle**2 - product + 0j)
    return np.asarray(np.maximum(np.abs(middle + root), np.abs(middle - root)))


def decay_rate(scheme: str, kappa: Array, alpha: Array, beta: Array) -> np.ndarray:
    r"""Asymptotic rate of a mode, :math:`-\ln\rho` per step; negative if it is unstable.

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

    It is the flow's :math:`1/\alpha + \beta`. Schemes that split off the damping (leapfrog, Strang) have
    :math:`1/(2\tanh(\alpha/2)) + \beta`, larger by about α/12, because half of the damping acts on the momentum before
    its kick.

    Args:
        scheme: Name.
        alpha: α > 0.
        beta: β in the theory's units.
        tanh: Hyperbolic tangent for the type of ``alpha``.

    Raises:
        ValueError: for an unknown scheme.
    """
    return (1 / (2 * tanh(alpha / 2)) if _scheme(scheme).splits_damping else 1 / alpha) + beta


def stable_limit(scheme: str, alpha: Array, beta: Array) -> np.ndarray:
    r"""Largest stable κ: the scheme is stable for exactly 0 < κ < limit.

    For β ≥ 0 the schemes with one gradient and a new momentum have

    .. math:: \frac1\kappa = \frac\beta2 + s(\alpha)

    with s = 1/(2(2−α)) for semi-implicit Euler, 1/4 for leapfrog, tanh(α/2)/(2α) for exponential damping and
    1/(2(2+α)) for implicit damping. Explicit Euler has κ < α/(1 − (1−α)β) if (1−α)β < 1, and 1/κ > β/2 − 1/(2(2−α)) if
    the right side is positive. The implicit, Strang and exponential schemes have no limit.

    Args:
        scheme: Name.
        alpha: α in (0, 1], broadcasts.
        beta: β > −1/α, broadcasts.

    Raises:
        ValueError: for an unknown scheme, α outside (0, 1] or β ≤ −1/α (where every κ > 0 is unstable).
    """
    found = _scheme(scheme)
    alpha, beta = np.broadcast_arrays(np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64))
    check_rule_coefficients(alpha, beta)
    polynomial = _polynomial(found, alpha, beta)
    if polynomial is None:  # stable whenever the flow is, like the midpoint rule
        polynomial = step_polynomial("implicit-midpoint", alpha, beta)
    p2, p1, p0 = (np.array(np.broadcast_arrays(*pair, alpha)[:2]) for pair in polynomial)
    rounding = 1e-14 * (np.abs(p2[1]) + np.abs(p1[1]) + np.abs(p0[1]))  # a slope below this is zero up to rounding
    limit = np.full(alpha.shape, np.inf)
    for constant, slope in (p2 + p1 + p0, p2 - p1 + p0, p2 - p0):  # Jury: all must be positive
        falling = slope < -rounding
        limit = np.minimum(limit, np.where(falling, constant / np.where(falling, -slope, 1.0), np.inf))
    return limit
