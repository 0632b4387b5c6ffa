r"""Symbolic proofs about the dynamics; each function returns simplified residuals that vanish if the claim is true.

There are two styles. ``*_from_definitions`` works with undetermined functions F_ij(w), f(w), η(t) of two variables and
takes every derivative, including Christoffel symbols, from its definition. ``*_jets`` works at one point with the
values and derivatives of F and f as free symbols; in the unknowns n = F⁻¹m and γ = F⁻¹g every identity is polynomial,
so expanding it proves it in any dimension.

Source: the derivations of docs/theory, which these functions check.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sympy as sp

Expr = Any  # SymPy has no usable static types


def phase_space_identity_from_definitions() -> list[Expr]:
    """Residual of RISHD along the phase-space system, dimension 2, any metric, any f, any η(t) (claim C1).

    Returns:
        Both components of ∇_ẇẇ + α_tẇ + β_t Hess f[ẇ] + γ_t grad f, simplified.
    """
    t, alpha, beta = sp.symbols("t alpha beta")
    w = sp.symbols("w0:2")
    m = sp.Matrix(sp.symbols("m0:2"))
    a, b, c, f = (sp.Function(name)(*w) for name in ("a", "b", "c", "f"))
    eta = sp.Function("eta")(t)
    metric = sp.Matrix([[a, b], [b, c]])
    inverse = sp.Matrix([[c, -b], [-b, a]]) / (a * c - b**2)
    g = sp.Matrix([sp.diff(f, x) for x in w])

    def christoffel(k: int, i: int, j: int) -> Expr:
        return (
            sum(
                inverse[k, x]
                * (sp.diff(metric[x, i], w[j]) + sp.diff(metric[x, j], w[i]) - sp.diff(metric[i, j], w[x]))
                for x in range(2)
            )
            / 2
        )

    gamma = [[[christoffel(k, i, j) for j in range(2)] for i in range(2)] for k in range(2)]
    velocity = -eta * inverse * (m + beta * g)
    correction = sp.Matrix(
        [sum(gamma[k][i][j] * velocity[j] * m[k] for j in range(2) for k in range(2)) for i in range(2)]
    )
    force = -alpha * m + g + correction

    def along_flow(x: Expr) -> Expr:
        moved = sum(sp.diff(x, w[i]) * velocity[i] + sp.diff(x, m[i]) * force[i] for i in range(2))
        return moved + sp.diff(x, t)

    gradient = inverse * g
    alpha_t, beta_t, gamma_t = alpha - sp.diff(eta, t) / eta, eta * beta, eta * (1 + alpha * beta)

    def covariant(field: Expr, k: int) -> Expr:  # ∇_ẇ of a vector field given along the flow
        turning = sum(gamma[k][i][j] * velocity[i] * field[j] for i in range(2) for j in range(2))
        return along_flow(field[k]) + turning

    return [
        _is_zero(
            covariant(velocity, k) + alpha_t * velocity[k] + beta_t * covariant(gradient, k) + gamma_t * gradient[k]
        )
        for k in range(2)
    ]


class _Jets(NamedTuple):
    """Values at one point: F, ∂_kF, H, and the vectors n = F⁻¹m, γ = F⁻¹g."""

    metric: sp.Matrix
    slopes: list[sp.Matrix]
    hessian: sp.Matrix
    n: sp.Matrix
    gamma: sp.Matrix

    def along(self, v: sp.Matrix) -> sp.Matrix:
        """D_vF."""
        return sum((s * v[k] for k, s in enumerate(self.slopes)), sp.zeros(*self.metric.shape))

    def lowered_christoffel(self, u: sp.Matrix, v: sp.Matrix) -> sp.Matrix:
        """Γ_{l,ij}u^iv^j = ½[(D_vF)u + (D_uF)v − ∂_l(uᵀFv)]."""
        slope = sp.Matrix([(u.T * s * v)[0] for s in self.slopes])
        return (self.along(v) * u + self.along(u) * v - slope) / 2

    def correction(self, v: sp.Matrix) -> sp.Matrix:
        """R_i = Γ^k_ij v^j m_k = ½[(D_vF)n − (D_nF)v + ∂_i(vᵀFn)]."""
        slope = sp.Matrix([(v.T * s * self.n)[0] for s in self.slopes])
        return (self.along(v) * self.n - self.along(self.n) * v + slope) / 2


def _jets(p: int) -> _Jets:
    def symmetric(name: str) -> sp.Matrix:
        return sp.Matrix(p, p, lambda i, j: sp.Symbol(f"{name}_{min(i, j)}{max(i, j)}"))

    return _Jets(
        symmetric("F"),
        [symmetric(f"dF{k}") for k in range(p)],
        symmetric("H"),
        sp.Matrix(sp.symbols(f"n0:{p}")),
        sp.Matrix(sp.symbols(f"y0:{p}")),
    )


def phase_space_identity_jets(p: int) -> list[Expr]:
    """Lowered residual F·[∇_ẇẇ + α_tẇ + β_t Hess f[ẇ] + γ_t grad f] in dimension p (claim C1).

    Args:
        p: Dimension.

    Returns:
        p expanded polynomials.
    """
    alpha, beta, beta_dot, c, eta, eta_dot = sp.symbols("alpha beta beta_dot c eta eta_dot")
    jet = _jets(p)
    v = -eta * (jet.n + beta * jet.gamma)
    g = jet.metric * jet.gamma
    m_dot = -alpha * jet.metric * jet.n + c * g + jet.correction(v)
    # Fẅ from differentiating Fẇ = −η(m + βg); F d(grad f)/dt from differentiating F·grad f = g.
    turned = m_dot + beta_dot * g + beta * jet.hessian * v
    acceleration = eta_dot / eta * jet.metric * v - eta * turned - jet.along(v) * v
    inertia = acceleration + jet.lowered_christoffel(v, v)
    damping = jet.hessian * v - jet.along(v) * jet.gamma + jet.lowered_christoffel(v, jet.gamma)
    damped = inertia + (alpha - eta_dot / eta) * jet.metric * v + eta * beta * damping
    residual = damped + eta * (c + alpha * beta + beta_dot) * g
    return [sp.expand(x) for x in residual]


def energy_identity_jets(p: int, *, correction: bool = True) -> Expr:
    """Ė + ηα‖m‖² + ηβ‖g‖² − (η̇/2)‖m‖² in dimension p (claim C2).

    Args:
        p: Dimension.
        correction: Whether R is kept; without it the residual is −ηnᵀR, not zero.

    Returns:
        An expanded polynomial.
    """
    alpha, beta, eta, eta_dot = sp.symbols("alpha beta eta eta_dot")
    jet = _jets(p)
    v = -eta * (jet.n + beta * jet.gamma)
    m, g = jet.metric * jet.n, jet.metric * jet.gamma
    m_dot = -alpha * m + g
    if correction:
        m_dot += jet.correction(v)
    momentum = (jet.n.T * m)[0]
    metric_rate = (jet.n.T * jet.along(v) * jet.n)[0]  # mᵀ(dF⁻¹/dt)m = −nᵀ(D_vF)n
    rate = (g.T * v)[0] + eta_dot / 2 * momentum + eta * (jet.n.T * m_dot)[0] - eta / 2 * metric_rate
    return sp.expand(rate + eta * alpha * momentum + eta * beta * (jet.gamma.T * g)[0] - eta_dot / 2 * momentum)


def correction_power_jets(p: int) -> Expr:
    """n·R − ½nᵀ(D_ẇF)n in dimension p: the power of R equals that of the metric's motion (claim C13b).

    Args:
        p: Dimension.

    Returns:
        An expanded polynomial in F's slopes, n, γ = F⁻¹g, η and β.
    """
    beta, eta = sp.symbols("beta eta")
    jet = _jets(p)
    v = -eta * (jet.n + beta * jet.gamma)
    return sp.expand((jet.n.T * jet.correction(v))[0] - (jet.n.T * jet.along(v) * jet.n)[0] / 2)


def mode_equation() -> list[Expr]:
    """Residuals for flow modes (claim C5): characteristic polynomial, discriminant, slow root and LITE's speed-up.

    Returns:
        Residuals of the four statements.
    """
    s, alpha, beta, kappa, eta, lam = sp.symbols("s alpha beta kappa eta lambda", positive=True)
    beta2, chi = sp.symbols("beta2 chi", positive=True)
    # (w, m) of ẇ = −ηa(m + βλw), ṁ = −αm + λw with κ = ηλa.
    a = kappa / (eta * lam)
    system = sp.Matrix([[-eta * a * beta * lam, -eta * a], [lam, -alpha]])
    polynomial = s**2 + (alpha + beta * kappa) * s + (1 + alpha * beta) * kappa
    characteristic = sp.expand((s * sp.eye(2) - system).det() - polynomial)
    discriminant = sp.expand(sp.discriminant(polynomial, s) - ((alpha - beta * kappa) ** 2 - 4 * kappa))
    slow = (-(alpha + beta * kappa) + sp.sqrt((alpha - beta * kappa) ** 2 - 4 * kappa)) / 2
    first_order = sp.simplify(sp.diff(slow, kappa).subs(kappa, 0) + 1 / alpha + beta)
    lite_slow = slow.subs(beta, beta2).subs(kappa, chi * kappa)
    ratio = sp.simplify(sp.diff(lite_slow, kappa).subs(kappa, 0) / sp.diff(slow, kappa).subs(kappa, 0))
    speedup = sp.simplify(ratio - chi * (1 + alpha * beta2) / (1 + alpha * beta))
    return [characteristic, discriminant, first_order, speedup]


def saddle_escape() -> list[Expr]:
    """On a saddle (κ < 0) the positive root s grows with β and with χ (claim C5).

    Implicit differentiation of the characteristic equation with κ = −q, q > 0, gives
    ds/dβ = q(s + α)/(2s + α − βq) and ds/dq = (βs + 1 + αβ)/(2s + α − βq); the denominator is the distance between the
    two roots, positive. Both numerators are positive for s, q > 0 and 1 + αβ > 0: at the root
    q(βs + 1 + αβ) = s(s + α).

    Returns:
        Four residuals: of both derivatives, of "denominator = difference of the roots", and of the last identity modulo
        the characteristic equation.
    """
    s, alpha, q = sp.symbols("s alpha q", positive=True)
    beta = sp.symbols("beta", real=True)
    equation = s**2 + (alpha - beta * q) * s - (1 + alpha * beta) * q
    denominator = 2 * s + alpha - beta * q
    by_beta = sp.simplify(-sp.diff(equation, beta) / sp.diff(equation, s) - q * (s + alpha) / denominator)
    by_q = sp.simplify(-sp.diff(equation, q) / sp.diff(equation, s) - (beta * s + 1 + alpha * beta) / denominator)
    other = -(alpha - beta * q) - s  # the sum of the roots is −(α − βq)
    at_the_root = sp.expand(q * (beta * s + 1 + alpha * beta) - s * (s + alpha) + equation)
    return [by_beta, by_q, sp.expand(denominator - (s - other)), at_the_root]


def stability_region() -> list[Expr]:
    """Step polynomial of the update rule and Jury's conditions (claim C6).

    The fourth condition, D > −1, follows from the first two: (1 − T + D) + (1 + T + D) = 2(1 + D).

    Returns:
        Four residuals, of the polynomial of the step matrix, of 1 − T + D = (1 + αβ)κ, of
        1 + T + D = 2(2 − α) − (1 + β(2 − α))κ, and of 1 − D = α + (1 − α)βκ.
    """
    z, alpha, beta, kappa = sp.symbols("z alpha beta kappa")
    step = sp.Matrix([[1 - (1 + beta) * kappa, -(1 - alpha)], [kappa, 1 - alpha]])
    trace = 2 - alpha - (1 + beta) * kappa
    determinant = (1 - alpha) * (1 - beta * kappa)
    return [
        sp.expand((z * sp.eye(2) - step).det() - (z**2 - trace * z + determinant)),
        sp.expand(1 - trace + determinant - (1 + alpha * beta) * kappa),
        sp.expand(1 + trace + determinant - (2 * (2 - alpha) - (1 + beta * (2 - alpha)) * kappa)),
        sp.expand(1 - determinant - (alpha + (1 - alpha) * beta * kappa)),
    ]


def shadow_identity() -> list[Expr]:
    """Shadow gradient identity in one block, flow and update rule (claim C7).

    Returns:
        ż + ηa(b + 1/α)g and z_{k+1} − z_k + ηa(b + 1/α)g_k, expanded.
    """
    alpha, eta, a, b, m, g, w = sp.symbols("alpha eta a b m g w")
    w_dot, m_dot = -eta * a * (m + b * g), -alpha * m + g
    flow = w_dot - eta / alpha * a * m_dot + eta * a * (b + 1 / alpha) * g
    new_m = (1 - alpha) * m + g
    new_w = w - eta * a * (new_m + b * g)

    def shadow(position: Expr, previous_momentum: Expr) -> Expr:
        return position - eta * (1 - alpha) / alpha * a * previous_momentum

    update = shadow(new_w, new_m) - shadow(w, m) + eta * a * (b + 1 / alpha) * g
    return [sp.simplify(sp.expand(flow)), sp.simplify(sp.expand(update))]


def _is_zero(expression: Expr) -> Expr:
    """The numerator over a common denominator, expanded: 0 exactly when the rational expression vanishes."""
    return sp.expand(sp.numer(sp.together(expression)))
