r"""Symbolic proofs about river valleys (claim C11); each function returns residuals that vanish if it is true.

Expansions are in ε, the inverse of the walls' curvature λ. Jets stand for the derivatives of floor, walls and metric at
one point, so these are arbitrary.

Source: the derivations of docs/theory, claim C11, which these functions check.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from riemannian_ode.flow import lite_velocity, momentum_rate

Expr = Any  # SymPy has no usable static types


def straight_river() -> list[Expr]:
    """On s = 0 of f = h(u) + ½sᵀΛ(u)s with F block-diagonal in (u, s), LITE is RISHD on h with step χη (claim C11a).

    Two flat and two sharp coordinates; h, Λ and both blocks of F are undetermined functions, F's of all coordinates.

    Returns:
        On s = 0: ẇ_s; ṁ_s with m_s = 0, minus ½ v_uᵀ(∂_sF_uu)n_u, the contribution of a block F_uu that depends on s;
            ∂_u∂_sf; u̇ minus that of RISHD on h; and ṁ_u minus that of RISHD on h with the metric F_uu(u, 0).
    """
    u, s, m_u, b = sp.symbols("u0:2"), sp.symbols("s0:2"), sp.Matrix(sp.symbols("m0:2")), sp.symbols("beta1:3")
    alpha, eta, chi = sp.symbols("alpha eta chi", positive=True)
    w = (*u, *s)
    flat_metric, sharp_metric = _symmetric("a", w), _symmetric("b", w)
    metric = sp.diag(flat_metric, sharp_metric)
    walls, h = _symmetric("l", u), sp.Function("h")(*u)
    f = h + (sp.Matrix(s).T * walls * sp.Matrix(s))[0] / 2
    g = sp.Matrix([sp.diff(f, x) for x in w])
    m = sp.Matrix([*m_u, 0, 0])
    inverse = sp.diag(flat_metric.inv(), sharp_metric.inv())
    n = inverse * m

    def flat(x: sp.Matrix) -> sp.Matrix:  # Q on s = 0: walls are steeper than the floor there
        return sp.diag(1, 1, 0, 0) * x

    # Integers replace the flow's float defaults, so that the algebra is exact.
    v = -eta * lite_velocity(n, inverse * g, flat=flat, chi=chi, beta_sharp=b[0], beta_flat=b[1], chi_sharp=1)
    force = momentum_rate(m, g, alpha=alpha, gain=1, correction=_correction(metric, w, v, n))

    inner_v = -chi * eta * flat_metric.inv() * (m_u + b[1] * sp.Matrix([sp.diff(h, x) for x in u]))
    inner_n = flat_metric.inv() * m_u
    inner_force = -alpha * m_u + sp.Matrix([sp.diff(h, x) for x in u]) + _correction(flat_metric, u, inner_v, inner_n)
    left_over = [(inner_v.T * sp.diff(flat_metric, x) * inner_n)[0] / 2 for x in s]
    residuals = [
        *v[2:],
        *(force[2 + i] - left_over[i] for i in range(2)),
        *(sp.diff(f, x, y) for x in u for y in s),
        *(v[i] - inner_v[i] for i in range(2)),
        *(force[i] - inner_force[i] for i in range(2)),
    ]
    on_river = dict.fromkeys(s, 0)
    return [_is_zero(x.subs(on_river).doit()) for x in residuals]


def graph_offset() -> list[Expr]:
    """Offset of the river from the floor of h(u) + ½λ(s − c(u))², with x = λ(s − c) (claim C11b).

    Returns:
        The eigenvector condition det(∇f, ε∇²f∇f) = 0 minus its form in docs/theory; its orders ε⁰ and ε¹ at x = x₀ +
            εx₁; and, for several walls and floor directions, the remaining sharp gradient at order ε⁰.
    """
    x, eps, h1, h2, c1, c2 = sp.symbols("x epsilon h1 h2 c1 c2")
    u, s, lam = sp.symbols("u s lambda")
    jets = _jet(sp.Function("h")(u), (h1, h2), u) + _jet(sp.Function("c")(u), (c1, c2), u)
    c = sp.Function("c")(u)
    f = sp.Function("h")(u) + lam * (s - c) ** 2 / 2
    g = sp.Matrix([sp.diff(f, y) for y in (u, s)])
    hessian = sp.hessian(f, (u, s))
    condition = sp.Matrix.hstack(g, hessian * g / lam).det().subs(jets).subs(s, x / lam + c).subs(lam, 1 / eps)
    stated = h1 * ((1 + c1**2) * x - c1 * h1) - eps * (h2 - x * c2) * (h1 - x * c1) * x
    x0 = c1 * h1 / (1 + c1**2)
    x1 = x0 * (h2 - x0 * c2) / (1 + c1**2) ** 2
    short = (1 + c1**2) * x - c1 * h1 - eps / h1 * (h2 - x * c2) * (h1 - x * c1) * x
    series = sp.expand(short.subs(x, x0 + eps * x1))

    slope = sp.Matrix(2, 2, sp.symbols("c:2:2"))  # ∂c_j/∂u_i
    along = sp.Matrix(sp.symbols("h:2"))
    pull = (sp.eye(2) + slope * slope.T).inv() * slope * along  # Λ(s − c)
    across = sp.Matrix.vstack(-slope.T, sp.eye(2))  # spans the top eigenspace as λ → ∞
    gradient = sp.Matrix.vstack(along - slope.T * pull, pull)
    return [
        _is_zero(condition - stated),
        *(_is_zero(series.coeff(eps, k)) for k in range(2)),
        *map(_is_zero, across.T * gradient),
    ]


def normal_offset() -> list[Expr]:
    r"""Offset of the river from the floor of h(u) + ½λn² in the normal coordinates of a plane curve (claim C11b).

    The curve has curvature k(u), arc length u and normal N; w = γ(u) + nN(u), J = 1 − kn, x = λn.

    Returns:
        The Jacobian of (u, n) ↦ w times its inverse, minus I; ∇f and ∇²f in the frame of tangent and normal, taken from
        their definitions in the plane, minus (h'/J, λn) and ((h'/J)'/J − kλn/J, kh'/J², λ); and the orders ε⁰ and ε¹ of
        det(∇f, ε∇²f∇f) at n = −kh'²ε².
    """
    u, n, lam, eps = sp.symbols("u n lambda epsilon", positive=True)
    angle, h = sp.Function("phi")(u), sp.Function("h")(u)
    tangent = sp.Matrix([sp.cos(angle), sp.sin(angle)])
    normal = sp.Matrix([-sp.sin(angle), sp.cos(angle)])
    k = sp.diff(angle, u)
    stretch = 1 - k * n
    jacobian = sp.Matrix.hstack(stretch * tangent, normal)  # of (u, n) ↦ w
    frame = sp.Matrix.hstack(tangent, normal)
    f = h + lam * n**2 / 2
    inverse = sp.diag(1 / stretch, 1) * frame.T
    g = inverse.T * sp.Matrix([sp.diff(f, y) for y in (u, n)])
    hessian = g.jacobian([u, n]) * inverse
    slope = sp.diff(h, u)
    bend = sp.diff(slope / stretch, u) / stretch - k * lam * n / stretch
    stated = sp.Matrix([[bend, k * slope / stretch**2], [k * slope / stretch**2, lam]])
    residuals = [
        *(jacobian * inverse - sp.eye(2)),
        *(frame.T * g - sp.Matrix([slope / stretch, lam * n])),
        *(frame.T * hessian * frame - stated),
    ]

    h1, h2, k0, k1 = sp.symbols("h1 h2 k0 k1")
    along, across = slope / stretch, lam * n
    force = sp.Matrix([along, across])
    condition = sp.Matrix.hstack(force, stated * force / lam).det().doit()
    at_point = condition.subs(sp.diff(angle, u, 2), k1).subs(k, k0).subs(sp.diff(h, u, 2), h2).subs(slope, h1)
    series = sp.cancel(at_point.subs(n, -k0 * h1**2 * eps**2).subs(lam, 1 / eps))
    orders = [series.subs(eps, 0), sp.diff(series, eps).subs(eps, 0)]
    sine = sp.sin(angle)
    circle = sine**2 + sp.cos(angle) ** 2 - 1  # a polynomial in sine and cosine may be a multiple of this
    return [*(sp.rem(_is_zero(y), circle, sine) for y in residuals), *(_is_zero(y) for y in orders)]


def _symmetric(name: str, at: tuple[Expr, ...]) -> sp.Matrix:
    a, b, c = (sp.Function(f"{name}{i}")(*at) for i in range(3))
    return sp.Matrix([[a, b], [b, c]])


def _correction(metric: sp.Matrix, at: tuple[Expr, ...], v: sp.Matrix, n: sp.Matrix) -> sp.Matrix:
    """R = ½[(D_vF)n − (D_nF)v + ∇(vᵀFn)]."""
    slopes = [sp.diff(metric, x) for x in at]
    zero = sp.zeros(*metric.shape)
    along_v, along_n = (sum((s * x[k] for k, s in enumerate(slopes)), zero) for x in (v, n))
    return (along_v * n - along_n * v + sp.Matrix([(v.T * s * n)[0] for s in slopes])) / 2


def _jet(function: Expr, values: tuple[Expr, ...], variable: Expr) -> list[tuple[Expr, Expr]]:
    """Substitutions for a function's derivatives, the highest first."""
    return [(sp.diff(function, variable, k + 1), value) for k, value in reversed(list(enumerate(values)))]


def _is_zero(expression: Expr) -> Expr:
    """The numerator over a common denominator, expanded: 0 exactly when the rational expression vanishes."""
    return sp.expand(sp.numer(sp.together(expression)))
