"""Explicit Runge–Kutta schemes of fixed step."""

from __future__ import annotations

from riemannian_ode.dynamics import RISHD
from riemannian_ode.integrators.base import OneStepIntegrator, PhaseState


class RungeKutta4(OneStepIntegrator):
    r"""The classical scheme of order 4, four gradients a step.

    Source: Kutta (1901); Hairer, Nørsett, Wanner, *Solving ODEs I*, table II.1.2.
    """

    name = "rk4"
    order = 4

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:  # noqa: D102
        w, m = state
        w1, m1 = system.rates(t, w, m)
        w2, m2 = system.rates(t + h / 2, w + h / 2 * w1, m + h / 2 * m1)
        w3, m3 = system.rates(t + h / 2, w + h / 2 * w2, m + h / 2 * m2)
        w4, m4 = system.rates(t + h, w + h * w3, m + h * m3)
        return PhaseState(w + h / 6 * (w1 + 2 * w2 + 2 * w3 + w4), m + h / 6 * (m1 + 2 * m2 + 2 * m3 + m4))
