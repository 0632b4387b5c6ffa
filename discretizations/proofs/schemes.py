"""Symbolic proofs about discretisations of one mode. Residuals vanish if the statement is true.

Source: the derivations of docs/guides/schemes, which these functions check.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from discretizations.scheme_modes import slow_rate, step_polynomial
from discretizations.schemes import ONE_GRADIENT_SCHEMES, OneGradientScheme

Expr = Any  # SymPy has no usable static types

_ALPHA, _BETA, _KAPPA, _Z = sp.symbols("alpha beta kappa z", positive=True)


def step_polynomial_residual(scheme: str) -> Expr:
    """Characteristic polynomial computed from the step itself, minus the closed form (up to a factor).

    The schemes with one gradient run their own :meth:`OneGradientScheme.advance` on symbols; the others are built from
    the flow's matrix J according to their definitions.

    Args:
        scheme: Any name except ``exponential-euler``.
    """
    matrix = _one_gradient_matrix(ONE_GRADIENT_SCHEMES[scheme]) if scheme in ONE_GRADIENT_SCHEMES else _matrix(scheme)
    p2, p1, p0 = _polynomial(scheme)
    return _simplified(p2 * (_Z * sp.eye(2) - matrix).det() - (p2 * _Z**2 + p1 * _Z + p0))


def equivalent_rule_residuals(scheme: str) -> list[Expr]:
    """Step polynomial of a scheme with one gradient minus claim C6's for its equivalent rule, by coefficient.

    Args:
        scheme: Name of a scheme with one gradient.
    """
    rule = ONE_GRADIENT_SCHEMES[scheme].equivalent_rule(_ALPHA, _BETA, expm1=_expm1)
    kappa = rule.eta_ratio * _KAPPA
    _, p1, p0 = _polynomial(scheme)
    return [
        _simplified(p1 + 2 - rule.alpha - (1 + rule.beta) * kappa),
        _simplified(p0 - (1 - rule.alpha) * (1 - rule.beta * kappa)),
    ]


def stable_limit_residual(scheme: str) -> Expr:
    """1/κ at which z = −1 minus β/2 + s(α), for the schemes with one gradient (explicit Euler: s < 0).

    Args:
        scheme: Name of a scheme with one gradient.
    """
    p2, p1, p0 = _polynomial(scheme)
    (limit,) = sp.solve(p2 - p1 + p0, _KAPPA)
    return _simplified((1 / limit - _BETA / 2 - _SHIFTS[scheme]).rewrite(sp.exp))


def slow_rate_residual(scheme: str) -> Expr:
    """Derivative of the root z near 1 by κ at κ = 0, plus the closed form of :func:`scheme_modes.slow_rate`.

    Args:
        scheme: Any name except ``exponential-euler``.
    """
    p2, p1, p0 = _polynomial(scheme)
    polynomial = p2 * _Z**2 + p1 * _Z + p0
    slope = -sp.diff(polynomial, _KAPPA) / sp.diff(polynomial, _Z)
    return _simplified(
        (slope.subs({_Z: 1, _KAPPA: 0}) + slow_rate(scheme, _ALPHA, _BETA, tanh=sp.tanh)).rewrite(sp.exp)
    )


# s(α) in 1/κ = β/2 + s(α).
_SHIFTS = {
    "semi-implicit-euler": 1 / (2 * (2 - _ALPHA)),
    "position-first-euler": 1 / (2 * (2 - _ALPHA)),
    "explicit-euler": -1 / (2 * (2 - _ALPHA)),
    "implicit-damping": 1 / (2 * (2 + _ALPHA)),
    "exponential-damping": sp.tanh(_ALPHA / 2) / (2 * _ALPHA),
    "leapfrog": sp.Rational(1, 4),
}


def _expm1(x: Expr) -> Expr:
    return sp.exp(x) - 1


def _polynomial(scheme: str) -> list[Expr]:
    pairs = step_polynomial(scheme, _ALPHA, _BETA, expm1=_expm1)
    return [sp.nsimplify(constant + slope * _KAPPA) for constant, slope in pairs]


def _one_gradient_matrix(scheme: OneGradientScheme) -> sp.Matrix:
    w, mu = sp.symbols("w mu")
    # In the coordinates (w, ηa·m) the learning rate is 1 and the gradient κw.
    step = scheme.advance(w, mu, _KAPPA * w, scheme.kick(_ALPHA, sp.Integer(1), expm1=_expm1), eta=1, beta=_BETA)
    return sp.Matrix([[sp.diff(sp.nsimplify(x), y) for y in (w, mu)] for x in step])


def _matrix(scheme: str) -> sp.Matrix:
    def rational(alpha: Expr, implicitness: Expr) -> sp.Matrix:
        jacobian = sp.Matrix([[-_BETA * _KAPPA, -1], [_KAPPA, -alpha]])
        return (sp.eye(2) - implicitness * jacobian).inv() * (sp.eye(2) + (1 - implicitness) * jacobian)

    if scheme == "implicit-euler":
        return rational(_ALPHA, sp.Integer(1))
    half = sp.Rational(1, 2)
    if scheme == "implicit-midpoint":
        return rational(_ALPHA, half)
    damping = sp.diag(1, sp.exp(-_ALPHA / 2))
    return damping * rational(sp.Integer(0), half) * damping


def _simplified(expression: Expr) -> Expr:
    return sp.simplify(sp.numer(sp.together(sp.expand(sp.nsimplify(expression)))))
