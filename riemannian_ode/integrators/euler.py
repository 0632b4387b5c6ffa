"""Explicit and semi-implicit Euler. The latter, with h = 1, is what optimizers run."""

from __future__ import annotations

from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array, momentum_step, position_step
from riemannian_ode.integrators.base import INTEGRATORS, OneStepIntegrator, PhaseState


@INTEGRATORS.register(place=10)
class ExplicitEuler(OneStepIntegrator):
    r"""Both updates use the old state, :math:`w' = w - h\eta u(w, m)`, :math:`m' = m + h(-\alpha m + cg + R)`.

    With noise it is the Euler–Maruyama scheme.

    Source: textbook scheme of order 1.
    """

    name = "explicit-euler"
    order = 1
    handles_memory = True
    stochastic, strong_order, weak_order = "ito", 1.0, 1.0

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        w, m = state
        if system.memory is not None:
            w_dot, m_dot = system.rates(t, w, m)
            return PhaseState(w + h * w_dot, m + h * m_dot)
        g = system.objective.gradient(w)
        u = system.direction(t, w, m, g)
        correction = system.riemannian_correction(w, -system.at("eta", t) * u, m) if _needs_correction(system) else None
        return PhaseState(position_step(w, u, eta=system.at("eta", t), h=h), _kick(system, t, m, g, h, correction))


@INTEGRATORS.register(place=20)
class SemiImplicitEuler(OneStepIntegrator):
    r"""Momentum first, then the position with the new momentum and the same gradient.

    .. math:: m_k = m_{k-1} + h(-\alpha m_{k-1} + c\,g_k + R_k), \qquad w_{k+1} = w_k - h\eta\, u(m_k, g_k)

    At h = 1 with R off it is LITE's Algorithm 1, to the last bit (claim C12). It uses one gradient per step. With noise
    it is a scheme of Euler–Maruyama type, and at h = 1 the optimizer with noisy gradients.

    Source: arXiv:2602.22681, Algorithm 1.
    """

    name = "semi-implicit-euler"
    order = 1
    structure = frozenset({"optimizer"})
    handles_memory = True
    stochastic, strong_order, weak_order = "ito", 1.0, 1.0

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        w, m = state
        g = system.objective.gradient(w)
        if system.memory is not None:
            return PhaseState(*system.memory.semi_implicit_step(system.coefficients(t), t, w, m, g, h))
        eta = system.at("eta", t)
        correction = None
        if _needs_correction(system):
            correction = system.riemannian_correction(w, -eta * system.direction(t, w, m, g), m)
        m = _kick(system, t, m, g, h, correction)
        return PhaseState(position_step(w, system.direction(t, w, m, g), eta=eta, h=h), m)


@INTEGRATORS.register(place=30)
class PositionFirstEuler(OneStepIntegrator):
    r"""Position first with the old momentum, then the momentum with the gradient at the new position.

    .. math:: w_{k+1} = w_k - h\eta\, u(m_k, g_k), \qquad m_{k+1} = m_k + h(-\alpha m_k + c\,g_{k+1} + R)

    The adjoint of :class:`SemiImplicitEuler`. As written here it uses two gradients per step if β ≠ 0.

    Source: the other symplectic Euler scheme; Hairer, Lubich, Wanner, *Geometric Numerical Integration*, VI.3.
    """

    name = "position-first-euler"
    order = 1

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        w, m = state
        eta = system.at("eta", t)
        w = position_step(w, system.direction(t, w, m, system.objective.gradient(w)), eta=eta, h=h)
        g = system.objective.gradient(w)
        correction = None
        if _needs_correction(system):
            correction = system.riemannian_correction(w, -eta * system.direction(t, w, m, g), m)
        return PhaseState(w, _kick(system, t, m, g, h, correction))


def _needs_correction(system: RISHD) -> bool:
    return system.correction and system.metric.variation == "state"


def _kick(system: RISHD, t: float, m: Array, g: Array, h: float, correction: Array | None) -> Array:
    return momentum_step(m, g, alpha=system.at("alpha", t), h=h, gain=system.at("gain", t), correction=correction)
