r"""Symbolic proofs about energies of flows with norms and with memory (claims C18 and C19).

Each function returns simplified residuals that vanish if the claim is true. Potentials and objectives are undetermined
functions, differentiated from their definitions.

Source: the derivations of docs/theory, which these functions check.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

Expr = Any  # SymPy has no usable static types

_P = 2  # dimension; sums over coordinates have no further structure
_W, _M, _D = (sp.Matrix(sp.symbols(f"{name}0:{_P}")) for name in "wmd")
_ALPHA, _GAIN, _DECAY, _T = sp.symbols("alpha c lambda t")


def norm_energy() -> list[Expr]:
    """Ė of E = cf + ηφ(m) + ηλ⟨w, m⟩ with any potential φ, any d, η(t) and decay λ, minus the claim's.

    Returns:
        The residual, dimension 2.
    """
    f, phi = sp.Function("f")(*_W), sp.Function("phi")(*_M)
    eta = sp.Function("eta")(_T)
    g, direction = _gradient(f, _W), _gradient(phi, _M)
    w_dot = -eta * (direction + _D + _DECAY * _W)
    m_dot = -_ALPHA * _M + _GAIN * g
    energy = _GAIN * f + eta * phi + eta * _DECAY * _W.dot(_M)
    claimed = (
        -eta * (_ALPHA + eta * _DECAY) * _M.dot(direction + _DECAY * _W)
        - eta * (_GAIN * g + eta * _DECAY * _M).dot(_D)
        + sp.diff(eta, _T) * (phi + _DECAY * _W.dot(_M))
    )
    return [_is_zero(_along(energy, w_dot, m_dot) - claimed)]


def decay_energy() -> list[Expr]:
    """Ė of the energy with the conjugate ψ(−λw) of φ that decay adds, minus the claim's; any φ and ψ, constant η.

    Returns:
        The residual, dimension 2, with n = ∇ψ(y) and y = −λw: Ė = −η(α + ηλ)⟨m − n, ∇φ(m) − y⟩.
    """
    f, phi = sp.Function("f")(*_W), sp.Function("phi")(*_M)
    y = sp.Matrix(sp.symbols(f"y0:{_P}"))
    psi = sp.Function("psi")(*y)
    eta = sp.Symbol("eta")
    g, direction, n = _gradient(f, _W), _gradient(phi, _M), _gradient(psi, y)
    at_y = dict(zip(y, -_DECAY * _W, strict=True))
    w_dot = -eta * (direction + _DECAY * _W)
    m_dot = -_ALPHA * _M + _GAIN * g
    rate = _ALPHA + eta * _DECAY
    base = _GAIN * f + eta * (phi + _DECAY * _W.dot(_M))
    of_conjugate = rate / _DECAY * n.dot(-_DECAY * w_dot)  # d/dt of (rate/λ)ψ(−λw)
    claimed = -eta * rate * (_M - n).dot(direction + _DECAY * _W)
    return [_is_zero((_along(base, w_dot, m_dot) + of_conjugate - claimed).subs(at_y))]


def norm_descent() -> list[Expr]:
    """Weights of the discrete inequality: p − (1 − α)(p − 1) = 1 + α(p − 1), and g_k = m_k − (1 − α)m_{k−1}."""
    p, before, now, g = sp.symbols("p m_1 m_0 g")
    weight = p - (1 - _ALPHA) * (p - 1) - (1 + _ALPHA * (p - 1))
    return [_is_zero(weight), _is_zero((now - (1 - _ALPHA) * before).subs(now, (1 - _ALPHA) * before + g) - g)]


def memory_energy() -> list[Expr]:
    """Ė of one coordinate with Adam's metric and time-dependent masses, minus the claim's.

    Returns:
        The residual for E = cf + (η/2c₁)m²/F with F = √(v/c₂) + ε, and that of what −(η/2c₁)m²Ḟ/F² keeps below
        (α₂/4c₂)(η/c₁)m²/F: the share ε/F + (1 − ε/F)·s·c₂/v of it, which is not negative.
    """
    eta, epsilon, rate, beta = sp.symbols("eta epsilon alpha_2 beta")
    v, s, c1, c2 = sp.symbols("v s c_1 c_2", positive=True)
    w, m = sp.symbols("w m")
    f = sp.Function("f")(w)
    g = sp.diff(f, w)
    metric = sp.sqrt(v / c2) + epsilon
    rates = {
        w: -eta / c1 * (m + beta * g) / metric,
        m: -_ALPHA * m + _GAIN * g,
        v: rate * (s - v),
        c1: _ALPHA * (1 - c1),
        c2: rate * (1 - c2),
    }

    def along(x: Expr) -> Expr:
        return sum(sp.diff(x, name) * dot for name, dot in rates.items())

    energy = _GAIN * f + eta / (2 * c1) * m**2 / metric
    turning = -eta / (2 * c1) * m**2 / metric**2 * along(metric)
    claimed = (
        -eta / c1 * _ALPHA * m**2 / metric
        - _GAIN * eta / c1 * beta * g**2 / metric
        - eta / (2 * c1) * _ALPHA * (1 - c1) / c1 * m**2 / metric
        + turning
    )
    root = sp.sqrt(v / c2)
    bound = eta / (2 * c1) * m**2 / metric * rate / (2 * c2)
    remainder = bound * (epsilon / metric + root / metric * s * c2 / v)
    return [_is_zero(along(energy) - claimed), _is_zero(bound - remainder - turning)]


def corrected_condition() -> list[Expr]:
    """With both of Adam's bias corrections, α₂ = 4α suffices at all times.

    With q = e^{−αt} in [0, 1], 2α(1 + 1/c₁) − α₂/c₂ = 2α[q + q² + q³(1 − q)]/(1 − q⁴), which is not negative.
    """
    q = sp.Symbol("q")
    rate = 4 * _ALPHA
    c1, c2 = 1 - q, 1 - q**4
    left = 2 * _ALPHA * (1 + 1 / c1) - rate / c2
    return [_is_zero(left - 2 * _ALPHA * (q + q**2 + q**3 * (1 - q)) / (1 - q**4))]


def plateau() -> list[Expr]:
    """On a plateau (g = 0, ε = 0) the energy is e^{−(2α − α₂/2)t}, and a step multiplies it by θ₁²/√θ₂."""
    rate, theta1, theta2 = sp.symbols("alpha_2 theta_1 theta_2", positive=True)
    m, v = sp.exp(-_ALPHA * _T), sp.exp(-rate * _T)
    energy = m**2 / sp.sqrt(v)
    step = (theta1**2 / sp.sqrt(theta2)) - (theta1 * m) ** 2 / sp.sqrt(theta2 * v) / energy
    return [_is_zero(sp.diff(energy, _T) / energy + 2 * _ALPHA - rate / 2), _is_zero(step)]


def mask_energy() -> list[Expr]:
    """Rate of ln A, A = (1 + (χ − 1)q(ℓ))/√v with ℓ = v/v̄, minus α₂[½(1 − s/v) + e(s̄/v̄ − s/v)].

    e is the elasticity −d ln(1 + (χ − 1)q)/d ln ℓ of the mask.
    """
    rate, chi = sp.symbols("alpha_2 chi")
    v, mean, s, s_mean = sp.symbols("v vbar s sbar", positive=True)
    level = sp.Symbol("l", positive=True)
    q = sp.Function("q")
    factor = 1 + (chi - 1) * q(level)
    elasticity = -level * sp.diff(sp.log(factor), level)
    rates = {v: rate * (s - v), mean: rate * (s_mean - mean)}
    level_rate = sum(sp.diff(v / mean, x) * dot for x, dot in rates.items())
    log_rate = sp.diff(sp.log(factor), level) * level_rate - rates[v] / (2 * v)
    claimed = rate * ((1 - s / v) / 2 + elasticity * (s_mean / mean - s / v))
    return [_is_zero((log_rate - claimed).subs(level, v / mean).doit())]


def refresh_in_a_plane() -> list[Expr]:
    """Turning a plane by θ between metrics diag(κ, 1): trace and determinant of SᵀS, S = D^{−1/2}KD^{1/2}.

    The trace is 2 + sin²θ(κ + 1/κ − 2) and the determinant 1, so that the largest singular value σ obeys
    σ − 1/σ = ±sin θ·(√κ − 1/√κ).
    """
    theta = sp.Symbol("theta", real=True)
    kappa = sp.Symbol("kappa", positive=True)
    turn = sp.Matrix([[sp.cos(theta), -sp.sin(theta)], [sp.sin(theta), sp.cos(theta)]])
    root = sp.diag(sp.sqrt(kappa), 1)
    form = root.inv() * turn * root
    gram = form.T * form
    return [
        _is_zero(gram.trace() - 2 - sp.sin(theta) ** 2 * (kappa + 1 / kappa - 2)),
        _is_zero(gram.det() - 1),
    ]


def _gradient(function: Expr, at: sp.Matrix) -> sp.Matrix:
    return sp.Matrix([sp.diff(function, x) for x in at])


def _along(x: Expr, w_dot: sp.Matrix, m_dot: sp.Matrix) -> Expr:
    moved = sum(sp.diff(x, _W[i]) * w_dot[i] + sp.diff(x, _M[i]) * m_dot[i] for i in range(_P))
    return moved + sp.diff(x, _T)


def _is_zero(expression: Expr) -> Expr:
    return sp.simplify(sp.expand(expression))
