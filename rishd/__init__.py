"""The application: it validates the theory's claims, simulates flows, pre-trains models and writes reports."""

from __future__ import annotations

from riemannian_ode.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
