"""The application: validate the theory's claims, simulate flows, pre-train models, write reports."""

from __future__ import annotations

from riemannian_ode.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
