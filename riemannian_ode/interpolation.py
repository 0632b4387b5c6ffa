"""Dense output: the cubic through two states and their rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from riemannian_ode.flow import Array


def hermite(before: Sequence[Array], after: Sequence[Array], rates: Sequence[Sequence[Array]], h: Any, s: Any) -> Any:
    r"""Cubic Hermite interpolation between two points of phase space, error :math:`O(h^4)` in a smooth flow.

    .. math:: y(t+sh) = (2s^3-3s^2+1)\,y_0 + (3s^2-2s^3)\,y_1 + h(s^3-2s^2+s)\,\dot y_0 + h(s^3-s^2)\,\dot y_1

    Args:
        before: (w, m) at t.
        after: (w, m) at t + h.
        rates: (ẇ, ṁ) at t and at t + h.
        h: Time between the two points.
        s: Position between them, from 0 to 1.

    Returns:
        (w, m) at t + sh, as arrays of the same type as ``before``.

    Source: Hairer, Nørsett, Wanner, *Solving ODEs I*, II.6, eq. (6.7).
    """
    old, new = 2 * s**3 - 3 * s**2 + 1, 3 * s**2 - 2 * s**3
    first, second = h * (s**3 - 2 * s**2 + s), h * (s**3 - s**2)
    parts = zip(before, after, *rates, strict=True)
    return tuple(old * x + new * y + first * dx + second * dy for x, y, dx, dy in parts)
