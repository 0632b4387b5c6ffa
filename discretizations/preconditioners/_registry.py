"""The registry of preconditioners."""

from __future__ import annotations

from riemannian_ode.preconditioner import Preconditioner
from riemannian_ode.registry import Registry

PRECONDITIONERS: Registry[type[Preconditioner]] = Registry(
    "preconditioner", "discretizations.preconditioners", entry=lambda cls: (cls.name, cls)
)
