r"""Symbolic proofs of energies and Lyapunov functions; each function returns residuals that vanish if they are right.

Symbols stand for one coordinate of a common eigenbasis of A and B, or for vectors in an expression that is bilinear in
them; in both cases the identity between numbers implies the identity between vectors. Inequalities from convexity or
curvature bounds are replaced by their worst case, an equality.

Source: the derivations of docs/theory, claims C4, C8, C9, C15 and C16.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sympy as sp

Expr = Any  # SymPy has no usable static types


def split_energy() -> list[Expr]:
    """Energy identity with the split, two blocks (claim C4).

    Returns:
        Ė + η[αmᵀAm + gᵀABg], and gᵀABg − β₁‖Pg‖² − χβ₂‖Qg‖² in the norm of F⁻¹.
    """
    eta, alpha, chi, b1, b2 = sp.symbols("eta alpha chi beta1 beta2")
    inverse = sp.symbols("phi0:2")  # eigenvalues of F⁻¹ in the sharp and the flat block
    m, g = sp.symbols("m0:2"), sp.symbols("g0:2")
    a, b = (inverse[0], chi * inverse[1]), (b1, b2)
    rate = sum(g[i] * -eta * a[i] * (m[i] + b[i] * g[i]) + eta * m[i] * a[i] * (-alpha * m[i] + g[i]) for i in range(2))
    lost = eta * sum(alpha * a[i] * m[i] ** 2 + a[i] * b[i] * g[i] ** 2 for i in range(2))
    damping = sum(a[i] * b[i] * g[i] ** 2 for i in range(2))
    return [
        sp.expand(rate + lost),
        sp.expand(damping - b1 * inverse[0] * g[0] ** 2 - chi * b2 * inverse[1] * g[1] ** 2),
    ]


class _FlowEnergies(NamedTuple):
    """V and Ψ of claim C8 in one coordinate, with x = w − w* and gap = f − f*."""

    symbols: tuple[Expr, ...]
    v: Expr
    weighted: Expr


def _flow_energies() -> _FlowEnergies:
    symbols = sp.symbols("t eta alpha a b m g x gap")
    t, eta, alpha, a, b, m, _, x, gap = symbols
    z = x - eta / alpha * a * m
    v = z**2 / (2 * a * (b + 1 / alpha)) + eta / alpha * gap
    energy = gap + eta / 2 * a * m**2
    return _FlowEnergies(symbols, v, v + (t + 1 / (2 * alpha)) * eta * energy)


def convex_flow_bound() -> Expr:
    """The bound on f(w_t) − f* that follows from Ψ(t) ≤ Ψ(0), starting at rest (claim C8).

    Returns:
        An expression in t, alpha, eta, gap = f(w₀) − f* and distance = ‖w₀ − w*‖² in the norm of (AC)⁻¹.
    """
    (t, _, alpha, a, b, m, _, x, gap), _, weighted = _flow_energies()
    distance = sp.Symbol("distance", positive=True)
    start = weighted.subs({t: 0, m: 0}).subs(x, sp.sqrt(distance * a * (b + 1 / alpha)))
    return sp.simplify(start / sp.diff(weighted, gap))  # the other parts of Ψ(t) are nonnegative


def convex_flow() -> list[Expr]:
    """Lyapunov functions of the flow for convex f (claim C8).

    Returns:
        V̇ + η⟨g, w − w*⟩ + (η²/α)gᵀABg; and for Ψ = V + (t + 1/(2α))η(E − f*):
        Ψ̇ − η[(f − f*) − ⟨g, w − w*⟩] + η²[tα mᵀAm + (t + 3/(2α))gᵀABg].
    """
    (t, eta, alpha, a, b, m, g, x, gap), v, weighted = _flow_energies()
    x_dot, m_dot = -eta * a * (m + b * g), -alpha * m + g

    def along_flow(expression: Expr) -> Expr:
        moved = sp.diff(expression, x) * x_dot + sp.diff(expression, m) * m_dot
        return moved + sp.diff(expression, gap) * g * x_dot + sp.diff(expression, t)

    lost = eta**2 * (t * alpha * a * m**2 + (t + sp.Rational(3, 2) / alpha) * a * b * g**2)
    return [
        sp.simplify(along_flow(v) + eta * g * x + eta**2 / alpha * a * b * g**2),
        sp.simplify(along_flow(weighted) - eta * (gap - g * x) + lost),
    ]


def _step() -> dict[str, Expr]:
    """One step of the update rule in one coordinate, with the quantities that the certificates need."""
    names = "kappa negative alpha beta c phi eta a m g"
    kappa, negative, alpha, beta, c, phi, eta, a, m, g = sp.symbols(names)
    new_m = (1 - alpha) * m + g
    new_w = -eta * a * (new_m + beta * g)  # w_k = 0
    here, there = c * eta * a * m, new_w + c * eta * a * new_m  # y_k and y_{k+1}
    curvature, least = kappa / (eta * a), negative / (eta * a)
    descent = g * there + curvature / 2 * there**2 - (g * here - least / 2 * here**2)  # f(y_{k+1}) − f(y_k), worst case
    momentum = eta * a / 2 * (new_m**2 - m**2)
    return {**{str(x): x for x in (kappa, negative, alpha, beta, c, phi, eta, a, m, g)}} | {
        "new_m": new_m,
        "new_w": new_w,
        "here": here,
        "descent": descent,
        "momentum": momentum,
    }


def descent_form() -> sp.Matrix:
    """The form that bounds the energy's change, proved by :func:`descent_certificate` (claim C9).

    Returns:
        The matrix of :func:`discretizations.certificate.descent_form` in kappa, negative, alpha, beta, c and phi.
    """
    return _form(_step()) / 2


def certified_limit() -> Expr:
    """The κ at which the form's determinant vanishes for c = 0 and φ = 1 − α, in alpha and beta (claim C9)."""
    x = _step()
    (root,) = sp.solve(_form(x).subs({x["c"]: 0, x["phi"]: 1 - x["alpha"]}).det(), x["kappa"])
    return sp.simplify(root)


def noise_part() -> Expr:
    """The part of the form that is quadratic in white noise in g (claim C9)."""
    x = _step()
    return sp.expand(_form(x)[1, 1] / 2 + (1 - x["c"] + x["beta"]))  # ⟨g, y − w⟩ has the gradient without noise


def _form(x: dict[str, Expr]) -> sp.Matrix:
    """Twice the matrix of :func:`discretizations.certificate.descent_form`."""
    s, d = 1 - x["alpha"], 1 - x["c"]
    b = d + x["beta"]
    mixed = x["kappa"] * d * b * s + x["phi"] * s - d * s - x["c"]
    return sp.Matrix(
        [
            [x["kappa"] * d**2 * s**2 + x["negative"] * x["c"] ** 2 - x["phi"] * (1 - s**2), mixed],
            [mixed, x["kappa"] * b**2 - 2 * b + x["phi"]],
        ]
    )


def descent_certificate() -> list[Expr]:
    """The energy's change along the update rule, and when the form that bounds it is negative semidefinite (claim C9).

    Returns:
        1. ΔE at worst minus ηa times the form;
        2. its determinant at c = 0, φ = 1 − α, minus γ(2α − (1 + αβ)κ)(1 − α) with γ = 1 + (2 − α)β;
        3. its upper left entry there at κ = 2α/(1 + αβ), plus (1 − α)α²γ/(1 + αβ), so that it is negative;
        4. the determinant at c = 0, φ = (1 − α)² = q, minus q[(1 − q)(1 + 2β) − κ((1 + 2β) + β²(1 − q))];
        5. the determinant for any c and φ minus [h² − (φ − h)² − (ds + c)² − 2bk + κ(2bcds + kb²)], h = h₀ − κh₁.
    """
    x = _step()
    kappa, alpha, beta, c, phi, m, g = (x[k] for k in ("kappa", "alpha", "beta", "c", "phi", "m", "g"))
    form = _form(x)
    state = sp.Matrix([m, g])
    change = x["descent"] + phi * x["momentum"]
    bounded = sp.expand(change - x["eta"] * x["a"] / 2 * (state.T * form * state)[0])

    s = 1 - alpha
    gamma, q = 1 + (2 - alpha) * beta, s**2
    plain = form.subs(c, 0)
    best = plain.subs(phi, s)
    at_limit = best[0, 0].subs(kappa, 2 * alpha / (1 + alpha * beta))
    squared = plain.subs(phi, q).det()

    d, k, r = 1 - c, x["negative"] * c**2, 1 - q
    b = d + beta
    h = (2 * b * r + k + 2 * s * (d * s + c)) / 2 - kappa * (2 * d * b * q - d**2 * q + r * b**2) / 2
    parabola = h**2 - (d * s + c) ** 2 - 2 * b * k + kappa * (2 * b * c * d * s + k * b**2) - (phi - h) ** 2
    return [
        bounded,
        sp.expand(best.det() - gamma * (2 * alpha - (1 + alpha * beta) * kappa) * s),
        sp.simplify(at_limit + s * alpha**2 * gamma / (1 + alpha * beta)),
        sp.expand(squared - q * (r * (1 + 2 * beta) - kappa * ((1 + 2 * beta) + beta**2 * r))),
        sp.expand(form.det() - parabola),
    ]


def convex_step_forms() -> tuple[sp.Matrix, sp.Matrix]:
    """Matrices M and M₀ such that tM + M₀ bounds the change of Ψ, proved by :func:`convex_step` (claim C8).

    Returns:
        Matrices in kappa, alpha, beta, c, phi, and M₀ also in phi0.
    """
    x = _step()
    kappa, alpha, beta, c, phi = (x[k] for k in ("kappa", "alpha", "beta", "c", "phi"))
    phi0, s = sp.Symbol("phi0"), 1 - alpha
    mixed = s / alpha + c + phi0 * s
    rest = [[kappa * c**2 + phi - phi0 * (1 - s**2), mixed], [mixed, beta + 1 / alpha - 1 / kappa + phi0]]
    return _form(x).subs(x["negative"], 0) / 2, sp.Matrix(rest) / 2


def convex_step() -> list[Expr]:
    """The change of the time-weighted Lyapunov function along the update rule, convex f (claim C8).

    Returns:
        ΔΨ at worst minus η²a[(t+1)·form + form₀], with Ψ = ½‖z − w*‖² + ηt(f(y) − f*) + (η²/2)(φt + φ₀)mᵀAm.
    """
    x = _step()
    kappa, alpha, beta, phi, eta, a, m, g = (x[k] for k in ("kappa", "alpha", "beta", "phi", "eta", "a", "m", "g"))
    t, phi0, offset, gap = sp.symbols("t phi0 offset gap")  # offset = w_k − w*, gap = f(w_k) − f*
    z = offset - eta * (1 - alpha) / alpha * a * m
    new_z = offset + x["new_w"] - eta * (1 - alpha) / alpha * a * x["new_m"]
    distance = (new_z**2 - z**2) / (2 * a * (beta + 1 / alpha))
    # Convexity and smoothness: ⟨g, w − w*⟩ ≥ gap + g²/(2L); at worst equal. f(y_k) − f* ≤ gap + ⟨g, y − w⟩ + (L/2)…
    curvature = kappa / (eta * a)
    convexity = eta * g * offset - eta * (gap + g**2 / (2 * curvature))
    ahead = gap + g * x["here"] + curvature / 2 * x["here"] ** 2
    values = eta * ((t + 1) * x["descent"] + ahead)
    momentum = eta * ((phi * (t + 1) + phi0) * x["momentum"] + phi * eta * a / 2 * m**2)
    change = (distance + convexity + values + momentum).subs(x["negative"], 0)
    state = sp.Matrix([m, g])
    falling, rest = (2 * part for part in convex_step_forms())
    form = (t + 1) * falling + rest
    return [sp.simplify(sp.expand(change - eta**2 * a / 2 * (state.T * form * state)[0]))]


def circle_threshold() -> list[Expr]:
    """Long cycles of the update rule begin where the certificate ends (claim C9).

    Returns:
        The step along the circle with ĝ minus the rotated point; and dĝ/dθ at θ = 0 plus iα/(1 + αβ), so that
        Re ĝ − Im ĝ/tan(θ/2) tends to 2α/(1 + αβ).
    """
    theta, alpha, beta = sp.symbols("theta alpha beta", positive=True)
    turn = sp.symbols("turn")  # e^{iθ}
    s = 1 - alpha
    gradient = (1 - turn) * (1 - s / turn) / (1 + beta - s * beta / turn)
    # w_{k+1} − w_k = s(w_k − w_{k−1}) − (1 + β)g_k + sβg_{k−1} on w_k = turn^k.
    step = (turn - 1) - s * (1 - 1 / turn) + gradient * (1 + beta - s * beta / turn)
    on_circle = gradient.subs(turn, sp.cos(theta) + sp.I * sp.sin(theta))
    # ĝ = O(θ) with slope −iα/(1 + αβ), so that Re ĝ = O(θ²); and tan(θ/2) is θ/2 to this order.
    slope = sp.simplify(sp.diff(on_circle, theta).subs(theta, 0))
    return [sp.simplify(step), sp.simplify(slope + sp.I * alpha / (1 + alpha * beta))]


def exponential_rate() -> list[Expr]:
    """Decay under a Polyak–Łojasiewicz inequality (claim C15).

    Returns:
        Ė + 2α·(η/2)‖m‖² + 2μηβ(f − f*) + ηβ(‖g‖² − 2μ(f − f*)), whose last bracket is not negative.
    """
    alpha, beta, eta, mu, momentum, gradient, gap = sp.symbols("alpha beta eta mu M G gap")  # M = ‖m‖², G = ‖g‖²
    rate = -eta * alpha * momentum - eta * beta * gradient  # claim C2
    of_momentum, of_gap = _decay_rates()
    spent = of_momentum * eta / 2 * momentum + of_gap * gap + eta * beta * (gradient - 2 * mu * gap)
    return [sp.expand(rate + spent)]


def exponential_rate_bound() -> Expr:
    """ρ, the slower of the rates at which :func:`exponential_rate` proves both parts of the energy to decay (C15)."""
    return sp.Min(*_decay_rates())


def _decay_rates() -> tuple[Expr, Expr]:
    """Decay rates of (η/2)‖m‖² and of f − f*."""
    alpha, beta, eta, mu = sp.symbols("alpha beta eta mu")
    return 2 * alpha, 2 * mu * eta * beta


def strongly_convex_conditions() -> tuple[Expr, Expr]:
    """Expressions in r, beta and gamma that must be ≥ 0 for Ė ≤ −rE in :func:`strongly_convex_flow` (claim C16).

    Returns:
        u = γ − rβ − rγ, and a quantity proportional to the form's determinant.
    """
    r, beta, gamma = sp.symbols("r beta gamma")
    least = (2 * gamma - r * (1 + 2 * beta + gamma)) / 2
    schur = 4 * gamma - beta - 2 * r * gamma
    return gamma - r * beta - r * gamma, least * schur - (1 - r) ** 2 * (gamma - r * beta / 2)


def strongly_convex_flow() -> list[Expr]:
    """Lyapunov function of ẍ + 2√μ ẋ + β∇²f ẋ + γ∇f = 0 for strongly convex f, in units where μ = 1 (claim C16).

    E = γδ + ½‖y‖² with δ = f − f*, y = x − x* + ẋ + βg. Strong convexity is ⟨g, x − x*⟩ = δ + ½‖x − x*‖² + σ and
    δ = ½‖x − x*‖² + τ with σ, τ ≥ 0.

    Returns:
        1. Ė + rE plus (γ − rβ)σ + uτ + the form in (x − x*, ẋ, g), where u = γ − rβ − rγ;
        2. the form's Schur complement of g, times 4(γ − rβ/2), minus 4γ − β − 2rγ;
        3. u at γ = 1 + β and r = (1 + β)/(1 + 2β);
        4. what the form's determinant is proportional to there, minus β(1 + β)(2 + 9β + 15β² + 8β³)/(2(1 + 2β)³).
    """
    x, p, g, gap, r, beta, gamma, sigma, tau = sp.symbols("x p g gap r beta gamma sigma tau")  # p = ẋ
    y = x + p + beta * g
    rate = gamma * g * p + y * (p - 2 * p - gamma * g)  # v = ẋ + βg has v̇ = −2ẋ − γg
    energy = gamma * gap + y**2 / 2
    least = (2 * gamma - r * (1 + 2 * beta + gamma)) / 2
    spare, determinant = strongly_convex_conditions()
    schur = 4 * gamma - beta - 2 * r * gamma
    form = (
        least * x**2
        + (1 - r) * x * p
        + (1 - r / 2) * p**2
        + beta * (1 - r) * g * p
        + beta * (gamma - r * beta / 2) * g**2
    )
    total = sp.expand(rate + r * energy)
    worst = total.subs(x * g, gap + x**2 / 2 + sigma).subs(gap, x**2 / 2 + tau)
    left = sp.expand(worst + (gamma - r * beta) * sigma + spare * tau + form)
    without_g = (1 - r / 2) * 4 * (gamma - r * beta / 2) - beta * (1 - r) ** 2
    corrected = {gamma: 1 + beta, r: (1 + beta) / (1 + 2 * beta)}
    margin = determinant.subs(corrected)
    polynomial = beta * (1 + beta) * (2 + 9 * beta + 15 * beta**2 + 8 * beta**3) / (2 * (1 + 2 * beta) ** 3)
    return [
        left,
        sp.expand(without_g - schur),
        sp.simplify(spare.subs(corrected)),
        sp.simplify(margin - polynomial),
    ]


def vanishing_damping_flow() -> list[Expr]:
    """Lyapunov function of ẍ + (a/t)ẋ + β(t)∇²f ẋ + b(t)∇f = 0 for convex f (claim C16).

    E = t²w(f − f*) + ½‖(a−1)(x − x*) + t(ẋ + βg)‖² with w = b − β̇ − β/t.

    Returns:
        Ė − t[tẇ − (a−3)w](f − f*) + t²βw‖g‖² + (a−1)tw[⟨g, x − x*⟩ − (f − f*)].
    """
    t = sp.symbols("t", positive=True)
    a, x, p, g, gap = sp.symbols("a x p g gap")  # p = ẋ
    beta, b = sp.Function("beta")(t), sp.Function("b")(t)
    w = b - sp.diff(beta, t) - beta / t
    v = p + beta * g
    y = (a - 1) * x + t * v
    v_dot = -a / t * p - b * g + sp.diff(beta, t) * g
    y_dot = (a - 1) * p + v + t * v_dot
    rate = sp.diff(t**2 * w, t) * gap + t**2 * w * g * p + y * y_dot
    claimed = t * (t * sp.diff(w, t) - (a - 3) * w) * gap - t**2 * beta * w * g**2 - (a - 1) * t * w * (g * x - gap)
    return [sp.simplify(sp.expand(rate - claimed))]
