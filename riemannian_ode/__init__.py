"""Riemannian inertial dynamics with Hessian damping (RISHD): geometry, dynamics and integrators.

Index conventions, everywhere in this package: ``w`` and velocities carry an upper index (tangent vectors), gradients
and momenta a lower one (covectors); the metric ``F`` is ``F_ij`` and maps vectors to covectors. The last axis of an
array is the coordinate axis; all axes before it are the ensemble.

Names are imported on first use, so that ``riemannian_ode.flow`` loads without NumPy.
"""

from __future__ import annotations

from riemannian_ode.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
