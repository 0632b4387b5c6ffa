"""The identity: gradient descent, heavy ball and Nesterov's method."""

from __future__ import annotations

from dataclasses import dataclass

from discretizations.preconditioners._registry import PRECONDITIONERS
from riemannian_ode.flow import Array
from riemannian_ode.preconditioner import Memory, Preconditioner


@PRECONDITIONERS.register(place=1)
@dataclass(frozen=True)
class Identity(Preconditioner):
    """F = I, without memory."""

    name = "identity"

    def raise_index(self, memory: Memory, covector: Array) -> Array:
        return covector
