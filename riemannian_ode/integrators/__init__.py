"""Integrators by name, each declaring its order and structure."""

from __future__ import annotations

from riemannian_ode.errors import require_choice
from riemannian_ode.integrators.adaptive import DOP853, LSODA, RK45, Radau, SciPyAdaptive
from riemannian_ode.integrators.base import (
    Integrator,
    IntegratorError,
    Losses,
    MemberStates,
    OneStepIntegrator,
    PhaseState,
    StepLimitError,
)
from riemannian_ode.integrators.discrete_gradient import DiscreteGradient
from riemannian_ode.integrators.embedded import EnsembleDormandPrince
from riemannian_ode.integrators.euler import ExplicitEuler, PositionFirstEuler, SemiImplicitEuler
from riemannian_ode.integrators.exponential import ExponentialEuler
from riemannian_ode.integrators.implicit import ImplicitEuler, ImplicitMidpoint
from riemannian_ode.integrators.runge_kutta import ButcherTableau, ExplicitRungeKutta, Heun, RungeKutta4
from riemannian_ode.integrators.splitting import StrangSplitting, StrangSplitting4

INTEGRATORS: dict[str, type[Integrator]] = {
    cls.name: cls
    for cls in (
        ExplicitEuler,
        SemiImplicitEuler,
        PositionFirstEuler,
        Heun,
        RungeKutta4,
        ImplicitEuler,
        ImplicitMidpoint,
        StrangSplitting,
        StrangSplitting4,
        ExponentialEuler,
        DiscreteGradient,
        EnsembleDormandPrince,
        RK45,
        DOP853,
        Radau,
        LSODA,
    )
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
    "ButcherTableau",
    "DiscreteGradient",
    "EnsembleDormandPrince",
    "ExplicitEuler",
    "ExplicitRungeKutta",
    "ExponentialEuler",
    "Heun",
    "ImplicitEuler",
    "ImplicitMidpoint",
    "Integrator",
    "IntegratorError",
    "Losses",
    "MemberStates",
    "OneStepIntegrator",
    "PhaseState",
    "PositionFirstEuler",
    "Radau",
    "RungeKutta4",
    "SciPyAdaptive",
    "SemiImplicitEuler",
    "StepLimitError",
    "StrangSplitting",
    "StrangSplitting4",
    "integrator",
]
