"""Smooth activation functions with two derivatives, safe against overflow, for numpy and torch."""

from __future__ import annotations

from typing import Any, Literal

from riemannian_ode.arrays import namespace
from riemannian_ode.checks import require_choice
from riemannian_ode.flow import Array

ActivationName = Literal["tanh", "softplus"]


def sigmoid(z: Array) -> Array:
    """1/(1 + e^{−z}), shape of ``z``."""
    return 0.5 * (1.0 + namespace(z).tanh(0.5 * z))  # exp(−z) would overflow


def softplus(z: Array) -> Array:
    """log(1 + e^z), shape of ``z``."""
    return namespace(z).logaddexp(z, 0.0 * z)


def activate(name: ActivationName, z: Array) -> tuple[Array, Array, Array]:
    """φ(z), φ′(z) and φ″(z), each of the shape of ``z``.

    Raises:
        ValueError: for an unknown name.
    """
    require_choice("activation", name, ("softplus", "tanh"))
    if name == "tanh":
        value: Any = namespace(z).tanh(z)
        slope = 1.0 - value**2
        return value, slope, -2.0 * value * slope
    slope = sigmoid(z)
    return softplus(z), slope, slope * (1.0 - slope)
