"""Preconditioners with memory, one file each; every one declares an optimizer's geometry.

Flow, update rule and torch optimizer follow from the same declaration, a subclass of
:class:`riemannian_ode.Preconditioner`. A new preconditioner needs only a new file in this folder with a class decorated
with ``@PRECONDITIONERS.register()``.
"""

from __future__ import annotations

from discretizations.preconditioners._registry import PRECONDITIONERS

__all__ = ["PRECONDITIONERS"]
