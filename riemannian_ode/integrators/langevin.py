r"""The UBU splitting: momentum, damping and noise are solved exactly, and the gradient is a kick in the middle.

Source: Zapatero, PhD thesis, Universidad de Valladolid (2017); Sanz-Serna and Zygalakis, JMLR 22 (2021), no. 242. The
treatment of Hessian damping is ours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from riemannian_ode.arrays import namespace
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array, momentum_step, position_step
from riemannian_ode.integrators.base import INTEGRATORS, OneStepIntegrator, PhaseState
from riemannian_ode.noise import GradientNoise
from riemannian_ode.split import ConstantSplit

# Below this ατ the closed forms lose digits to cancellation, and the Taylor polynomials are exact to rounding.
_SMALL, _SMALL_OF_FLOAT32 = 0.05, 0.5
_PHI = tuple((-1) ** k / math.factorial(k + 1) for k in range(9))
_MEAN = tuple((-1) ** k / math.factorial(k + 2) for k in range(9))
_SPREAD = (1 / 12, -1 / 12, 17 / 360, -7 / 360, 43 / 6720, -107 / 60480, 769 / 1814400, -163 / 1814400)


@INTEGRATORS.register(place=95)
class UBU(OneStepIntegrator):
    r"""Half of U, B, half of U; order 2, with one gradient per step at β = 0, else two.

    .. math::
        U:\ \mathrm dw = -\eta Am\,\mathrm dt - \eta A\beta\sigma\,\mathrm dB,\ \
        \mathrm dm = -\alpha m\,\mathrm dt + c\sigma\,\mathrm dB, \qquad
        B:\ \dot w = -\eta A\beta g,\ \ \dot m = cg

    U is linear and is solved exactly, including its Gaussian integrals: m is an Ornstein–Uhlenbeck process, and w is
    its integral. B is a kick at β = 0, else a step of the explicit midpoint rule. Coefficients are evaluated at the
    middle of each part. The strong order is 2 at β = 0.

    Raises (in ``step``):
        ValueError: for a metric that varies, or a split that is not a :class:`ConstantSplit`.
    """

    name = "ubu"
    order = 2
    structure = frozenset({"exact-damping"})
    stochastic, strong_order, weak_order = "additive", 1.0, 2.0
    normals = 4

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        _check(system)
        state = _glide(system, t + h / 4, state, h / 2)
        state = _kick(system, t + h / 2, state, h)
        return _glide(system, t + 3 * h / 4, state, h / 2)

    def noisy_step(
        self, system: RISHD, t: float, state: PhaseState, h: float, *, noise: GradientNoise, normals: Array
    ) -> PhaseState:
        _check(system)
        r = normals.shape[-1] // 4

        def glide(state: PhaseState, middle: float, first: int) -> PhaseState:
            pairs = (normals[..., k * r : (k + 1) * r] for k in (first, first + 1))
            white = tuple(noise.of_white(middle, state.w, xi) for xi in pairs)
            return _glide(system, middle, state, h / 2, white)

        state = glide(state, t + h / 4, 0)
        state = _kick(system, t + h / 2, state, h)
        return glide(state, t + 3 * h / 4, 2)


def _check(system: RISHD) -> None:
    if system.metric.variation != "constant" or not (system.flat is None or isinstance(system.flat, ConstantSplit)):
        raise ValueError(
            "ubu needs a constant metric, and a ConstantSplit if there is a split; this system has "
            f"{type(system.metric).__name__} and {type(system.flat).__name__}: take 'implicit-midpoint' instead, or "
            "'semi-implicit-euler' with noise."
        )


def _kick(system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
    """Advance B by h, with coefficients at t."""
    (w, m), eta = state, system.at("eta", t)
    still = 0.0 * m
    g = system.objective.gradient(w)
    if system.is_damped:
        g = system.objective.gradient(position_step(w, system.direction(t, w, still, g), eta=eta, h=h / 2))
        w = position_step(w, system.direction(t, w, still, g), eta=eta, h=h)
    return PhaseState(w, momentum_step(m, g, alpha=0.0, h=h, gain=system.at("gain", t)))


def _glide(
    system: RISHD, t: float, state: PhaseState, tau: float, white: tuple[Array, ...] | None = None
) -> PhaseState:
    r"""Advance U by τ, with coefficients at t.

    With :math:`\varphi(s) = (1 - e^{-\alpha s})/\alpha`, :math:`I = \int\mathrm dB` and
    :math:`J = \int\varphi(\tau - s)\,\mathrm dB_s`, the position moves by :math:`-\eta A[\varphi(\tau)m + c\sigma J +
    \beta\sigma I]`, and :math:`m' = e^{-\alpha\tau}m + c\sigma(I - \alpha J)`.

    Args:
        system: The dynamics.
        t: Time at which coefficients are evaluated.
        state: State before.
        tau: τ.
        white: σξ₁ and σξ₂, with independent normal ξ; ``None`` without noise.
    """
    (w, m), alpha = state, system.at("alpha", t)
    phi, of_both, own = _ornstein_uhlenbeck(alpha, tau, m)
    eta, gain = system.at("eta", t), system.at("gain", t)
    path, moved, kicked = phi * m, 0.0 * m, m - alpha * (phi * m)
    if white is not None:
        root = math.sqrt(tau)
        moved = root * white[0]
        integral = (of_both / root) * white[0] + own * white[1]
        path = path + gain * integral
        kicked = kicked + gain * (moved - alpha * integral)
    return PhaseState(position_step(w, system.direction(t, w, path, moved), eta=eta), kicked)


def _ornstein_uhlenbeck(alpha: Any, tau: float, m: Array) -> tuple[Any, Any, Any]:
    r"""φ(τ), Cov(I, J) = ∫φ, and the standard deviation of J given I: the root of ∫φ² − (∫φ)²/τ."""
    xp = np if isinstance(alpha, float) else namespace(m)
    x = alpha * tau
    is_small = x < (_SMALL_OF_FLOAT32 if "float32" in str(getattr(x, "dtype", "")) else _SMALL)
    safe = xp.where(is_small, 1.0, x)
    e = xp.expm1(-safe)
    phi = xp.where(is_small, _polynomial(_PHI, x), -e / safe)
    mean = xp.where(is_small, _polynomial(_MEAN, x), (safe + e) / safe**2)
    closed = (safe + 2.0 * e - 0.5 * e * (2.0 + e)) / safe**3 - ((safe + e) / safe**2) ** 2
    spread = xp.where(is_small, _polynomial(_SPREAD, x), closed)
    parts = tau * phi, tau**2 * mean, tau**1.5 * spread**0.5
    return tuple(map(float, parts)) if isinstance(alpha, float) else parts  # type: ignore[return-value]


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    value = 0.0 * x
    for coefficient in reversed(coefficients):
        value = coefficient + x * value
    return value
