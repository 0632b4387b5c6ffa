"""Integrators by name, each declaring its order and structure.

Every module here whose name has no leading underscore may register integrators (``@INTEGRATORS.register()``); they are
imported when :data:`INTEGRATORS` is first read.
"""

from __future__ import annotations

from typing import Any

from riemannian_ode.checks import require_choice
from riemannian_ode.integrators.base import (
    INTEGRATORS,
    Integrator,
    IntegratorError,
    Losses,
    MemberStates,
    OneStepIntegrator,
    PhaseState,
    StepLimitError,
)


def integrator(name: str, **settings: Any) -> Integrator:
    """The integrator called ``name``.

    Args:
        name: Of :data:`INTEGRATORS`.
        settings: What its class takes, such as ``rtol``; the defaults otherwise.

    Raises:
        ValueError: for an unknown name, listing those that exist.
        TypeError: for a setting that the integrator does not have.
    """
    require_choice("integrator", name, INTEGRATORS)
    build: Any = INTEGRATORS[name]  # every class has settings of its own
    scheme: Integrator = build(**settings)
    return scheme


__all__ = [
    "INTEGRATORS",
    "Integrator",
    "IntegratorError",
    "Losses",
    "MemberStates",
    "OneStepIntegrator",
    "PhaseState",
    "StepLimitError",
    "integrator",
]
