"""Preconditioners with memory, one file each: an optimizer's geometry, declared once.

Flow, update rule and torch optimizer follow from the same declaration, a subclass of
:class:`riemannian_ode.Preconditioner`. A new file in this folder whose class is decorated with
``@PRECONDITIONERS.register()`` is all that a new preconditioner needs.
"""

from __future__ import annotations

from discretizations.preconditioners._registry import PRECONDITIONERS

__all__ = ["PRECONDITIONERS"]
