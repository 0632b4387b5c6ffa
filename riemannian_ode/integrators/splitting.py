r"""Splitting schemes that solve the damping :math:`\dot m = -\alpha m` exactly and the rest symmetrically.

At β = 0 the rest is Hamiltonian, and the step contracts phase volume by exactly :math:`e^{-\alpha h d}`: its
Jacobian obeys :math:`M^\top J M = e^{-\alpha h} J` (conformal symplecticity).

Source: McLachlan and Perlmutter, *Conformal Hamiltonian systems*, J. Geom. Phys. 39 (2001); Hairer, Lubich, Wanner,
*Geometric Numerical Integration*, II.4–II.5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from riemannian_ode.arrays import namespace
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array, momentum_step, position_step
from riemannian_ode.integrators.base import INTEGRATORS, PhaseState
from riemannian_ode.integrators.implicit import ImplicitScheme


@INTEGRATORS.register(place=80)
class StrangSplitting(ImplicitScheme):
    r"""Half the damping, the undamped flow, half the damping; order 2.

    The undamped flow uses the leapfrog scheme if β = 0 and the metric is constant (one gradient per step, at the middle
    position), else the implicit midpoint rule.
    """

    name = "strang"
    order = 2
    structure = frozenset({"symmetric", "exact-damping", "conformal-symplectic"})

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        w, m = state
        m = _damped(system, t + h / 4, m, h / 2)
        w, m = self._undamped(system, t, PhaseState(w, m), h)
        return PhaseState(w, _damped(system, t + 3 * h / 4, m, h / 2))

    def _undamped(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        conservative = replace(system, alpha=0.0)
        if not _is_separable(system):
            return self.midpoint(conservative, t, state, h)
        w, m = state
        eta = system.at("eta", t + h / 2)
        w = position_step(w, system.metric.raise_index(w, m), eta=eta, h=h / 2)
        g = system.objective.gradient(w)
        m = momentum_step(m, g, alpha=0.0, h=h, gain=system.at("gain", t + h / 2))
        return PhaseState(position_step(w, system.metric.raise_index(w, m), eta=eta, h=h / 2), m)


@INTEGRATORS.register(place=90)
class StrangSplitting4(StrangSplitting):
    r"""Suzuki's composition of five Strang steps :math:`p, p, 1-4p, p, p` with :math:`p = 1/(4 - 4^{1/3})`; order 4.

    Source: Suzuki, Phys. Lett. A 146 (1990); *Geometric Numerical Integration*, II.4, example 4.3.
    """

    name = "strang4"
    order = 4

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        p = 1.0 / (4.0 - 4.0 ** (1.0 / 3.0))
        for share in (p, p, 1.0 - 4.0 * p, p, p):
            state = super().step(system, t, state, share * h)
            t += share * h
        return state


def _damped(system: RISHD, t: float, m: Array, h: float) -> Array:
    alpha: Any = system.at("alpha", t)
    # numpy's exponential for scalars too: the C library's may differ from an ensemble's in the last bit.
    return (float(np.exp(-alpha * h)) if isinstance(alpha, float) else namespace(m).exp(-alpha * h)) * m


def _is_separable(system: RISHD) -> bool:
    """Whether positions and momenta can be updated in turn: β = 0, F constant, and any split independent of w."""
    return not system.is_damped and system.metric.variation == "constant" and system.flat is None
