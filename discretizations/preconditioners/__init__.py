"""Preconditioners with memory, one file each: an optimizer's geometry, declared once.

Flow, update rule and torch optimizer follow from the same declaration (:class:`riemannian_ode.Preconditioner`). A new
file in this folder with a subclass that has a ``name`` is all that a new preconditioner needs.
"""

from __future__ import annotations

from discretizations.preconditioners.eigenbasis_moment import EigenbasisMoment
from discretizations.preconditioners.identity import Identity
from discretizations.preconditioners.kronecker_root import KroneckerRoot
from discretizations.preconditioners.masks import CoordinateMask, ExactSubspace, ThresholdMask, TrackedSubspace
from discretizations.preconditioners.polar_factor import PolarFactor
from discretizations.preconditioners.second_moment import SecondMoment
from discretizations.preconditioners.sign import Sign

__all__ = [
    "CoordinateMask",
    "EigenbasisMoment",
    "ExactSubspace",
    "Identity",
    "KroneckerRoot",
    "PolarFactor",
    "SecondMoment",
    "Sign",
    "ThresholdMask",
    "TrackedSubspace",
]
