"""Integrators by name; each declares its order and structure.

Every module here whose name has no leading underscore may register integrators (``@INTEGRATORS.register()``). The
modules are imported when :data:`INTEGRATORS` is first read.
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
        name: A key of :data:`INTEGRATORS`.
        settings: Arguments of its class, such as ``rtol``.

    Raises:
        ValueError: for an unknown name, listing the known ones.
        TypeError: for a setting that the integrator does not have.
    """
    require_choice("integrator", name, INTEGRATORS)
    build: Any = INTEGRATORS[name]  # each class has its own settings
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
