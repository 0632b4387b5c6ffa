"""Implicit schemes: implicit Euler and the implicit midpoint rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from riemannian_ode.checks import require_positive
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.integrators.base import INTEGRATORS, Losses, MemberStates, OneStepIntegrator, PhaseState
from riemannian_ode.integrators.linearisation import linearised
from riemannian_ode.integrators.newton import Equations, solve


class ImplicitScheme(OneStepIntegrator):
    """Base of schemes that solve equations by Newton's method.

    If the equations of an ensemble member are not solved, it becomes NaN and ``simulate`` reports it; the others
    continue.

    Args:
        tolerance: Largest error of the solution accepted, relative to 1 + the state's largest entry.

    Raises:
        ValueError: for a tolerance that is not positive.
        IntegratorError: (in ``step``, and from ``simulate`` as a status) if Newton's method does not converge.
    """

    implicit = True
    _losses: Losses | None = None  # losses of one run; without them a failure is an error

    def __init__(self, *, tolerance: float = 1e-13) -> None:
        require_positive("tolerance", tolerance)
        self.tolerance = tolerance

    def states(
        self, system: RISHD, state: PhaseState, *, t0: float, h: float, steps: int, first: int = 0
    ) -> Iterator[PhaseState]:
        losses, scheme = Losses(tuple(state.w.shape[:-1])), copy.copy(self)
        scheme._losses = losses if losses.causes.ndim else None
        one_by_one = super(ImplicitScheme, scheme).states(system, state, t0=t0, h=h, steps=steps, first=first)
        return _Solved(one_by_one, losses)

    def solved(self, equations: Equations, guess: PhaseState, t: float) -> PhaseState:
        """The state that solves a step's equations.

        Args:
            equations: Residual and derivative.
            guess: Start of Newton's method.
            t: Time, for messages.
        """
        where = f"{self.name} at t = {t:.6g}"
        return solve(equations, guess, tolerance=self.tolerance, where=where, losses=self._losses)

    def midpoint(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        """One step of the implicit midpoint rule for ``system``.

        Args:
            system: The dynamics, or a part of it.
            t: Time.
            state: State at t.
            h: Step size; may be negative (composition schemes).
        """

        def middle(new: PhaseState) -> PhaseState:
            return PhaseState(0.5 * (state.w + new.w), 0.5 * (state.m + new.m))

        def residual(new: PhaseState) -> PhaseState:
            w_dot, m_dot = system.rates(t + h / 2, *middle(new))
            return PhaseState(new.w - state.w - h * w_dot, new.m - state.m - h * m_dot)

        def derivative(new: PhaseState) -> Callable[[PhaseState], PhaseState]:
            return less_rates(linearised(system, t + h / 2, *middle(new)), 0.5 * h)

        return self.solved(Equations(residual, derivative), state, t)


def less_rates(
    derivative: Callable[[Array, Array], tuple[Array, Array]], h: float
) -> Callable[[PhaseState], PhaseState]:
    """δ ↦ δ − h times the derivative of the rates along δ."""

    def product(change: PhaseState) -> PhaseState:
        w_dot, m_dot = derivative(*change)
        return PhaseState(change.w - h * w_dot, change.m - h * m_dot)

    return product


class _Solved(MemberStates):
    """States of a run, and the members whose equations were not solved."""

    def __init__(self, states: Iterator[PhaseState], losses: Losses) -> None:
        self.states, self.losses = states, losses

    def __next__(self) -> PhaseState:
        return next(self.states)


@INTEGRATORS.register(place=60)
class ImplicitEuler(ImplicitScheme):
    r"""Right-hand side at the new state, :math:`y' = y + hf(t+h, y')`; stiff walls are damped at any h.

    Source: Hairer and Wanner, *Solving ODEs II*, IV.3.
    """

    name = "implicit-euler"
    order = 1
    structure = frozenset({"l-stable"})

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        def residual(new: PhaseState) -> PhaseState:
            w_dot, m_dot = system.rates(t + h, *new)
            return PhaseState(new.w - state.w - h * w_dot, new.m - state.m - h * m_dot)

        def derivative(new: PhaseState) -> Callable[[PhaseState], PhaseState]:
            return less_rates(linearised(system, t + h, *new), h)

        return self.solved(Equations(residual, derivative), state, t)


@INTEGRATORS.register(place=70)
class ImplicitMidpoint(ImplicitScheme):
    r"""Right-hand side at the midpoint, :math:`y' = y + hf(t + h/2, (y+y')/2)`: symmetric, symplectic at α = β = 0.

    Source: Hairer, Lubich, Wanner, *Geometric Numerical Integration*, II.1 and VI.4.
    """

    name = "implicit-midpoint"
    order = 2
    structure = frozenset({"symmetric", "symplectic"})

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        return self.midpoint(system, t, state, h)
