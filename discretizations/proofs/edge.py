"""Symbolic proofs of the edge of stability and its central flow (claim C21): residuals vanish if the claim is true."""

from __future__ import annotations

from typing import Any

import sympy as sp

from discretizations.update_rule import lite_step

Expr = Any  # SymPy has no usable static types


def period_two() -> list[Expr]:
    r"""A mode oscillates with period 2 exactly if :math:`\eta a\lambda(\beta + \frac1{2-\alpha}) = 2`.

    The update rule itself maps (x, μ) to (−x, −μ) with μ = −λx/(2 − α) before the step.

    Returns:
        Residuals of position and momentum at that λ, and of the momentum at any λ.
    """
    alpha, eta, a, beta, curvature, x = sp.symbols("alpha eta a beta lambda x", positive=True)
    at_edge = 2 / (eta * a * (beta + 1 / (2 - alpha)))
    before = -curvature * x / (2 - alpha)
    step = lite_step(
        x, before, curvature * x, eta=eta, alpha=alpha, nesterov=beta, precondition=lambda covector: a * covector
    )
    return [
        sp.simplify((step.w + x).subs(curvature, at_edge)),
        sp.simplify((step.m + before).subs(curvature, at_edge)),
        sp.simplify(step.m + before),
    ]


def averaged_motion() -> list[Expr]:
    r"""Mean gradient over an oscillation, the shadow's motion, and the variance that keeps the sharpness constant.

    For f of third degree, two coordinates: the mean of ∇f over :math:`\bar w \pm xu` is
    :math:`\nabla f + \frac12x^2\nabla^3f(u, u)`. With :math:`\dot w = -\eta C[\nabla f + \frac12x^2\nabla S]` the
    rate of S vanishes at :math:`x^2 = -2\langle\nabla S, C\nabla f\rangle/\langle\nabla S, C\nabla S\rangle`.

    Returns:
        Residuals.
    """
    w, u = sp.Matrix(sp.symbols("w0:2")), sp.Matrix(sp.symbols("u0:2"))
    x, eta, a, b, c = sp.symbols("x eta a b c")
    coefficients = iter(sp.symbols("k0:10"))
    f = sum(next(coefficients) * w[0] ** i * w[1] ** j for i in range(4) for j in range(4 - i))
    g = sp.Matrix([sp.diff(f, y) for y in w])

    def moved(sign: int) -> Expr:
        return g.subs({w[i]: w[i] + sign * x * u[i] for i in range(2)}, simultaneous=True)

    third = sp.Matrix([sp.diff((u.T * sp.hessian(f, list(w)) * u)[0], y) for y in w])
    mean = (moved(1) + moved(-1)) / 2 - g - x**2 * third / 2

    clock = sp.Matrix([[a, b], [b, c]])
    variance = -2 * (third.T * clock * g)[0] / (third.T * clock * third)[0]
    rate = (third.T * (-eta * clock * (g + variance * third / 2)))[0]
    return [*(sp.expand(y) for y in mean), sp.simplify(rate)]
