"""Integrators by name, each declaring its order and structure."""

from __future__ import annotations

from riemannian_ode.errors import require_choice
from riemannian_ode.integrators.adaptive import DOP853, LSODA, RK45, Radau, SciPyAdaptive
from riemannian_ode.integrators.base import Integrator, IntegratorError, OneStepIntegrator, PhaseState
from riemannian_ode.integrators.euler import ExplicitEuler, SemiImplicitEuler
from riemannian_ode.integrators.runge_kutta import RungeKutta4

INTEGRATORS: dict[str, type[Integrator]] = {
    cls.name: cls for cls in (ExplicitEuler, SemiImplicitEuler, RungeKutta4, RK45, DOP853, Radau, LSODA)
}


def integrator(name: str) -> Integrator:
    """The integrator called ``name``, with its default settings.

    Raises:
        ValueError: for an unknown name, listing those that exist.
    """
    require_choice("integrator", name, INTEGRATORS)
    return INTEGRATORS[name]()


__all__ = [
    "DOP853",
    "INTEGRATORS",
    "LSODA",
    "RK45",
    "ExplicitEuler",
    "Integrator",
    "IntegratorError",
    "OneStepIntegrator",
    "PhaseState",
    "Radau",
    "RungeKutta4",
    "SciPyAdaptive",
    "SemiImplicitEuler",
    "integrator",
]
