"""Coefficients of a flow (floats, one value per ensemble member, or functions of time) and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from riemannian_ode.arrays import is_torch, like, to_numpy, tracks
from riemannian_ode.checks import require_method, shown
from riemannian_ode.flow import Array


@dataclass(frozen=True)
class TimeDependent:
    """A coefficient that varies in time, with its derivative.

    Args:
        value: t ↦ coefficient, a float or an array over the ensemble.
        derivative: t ↦ its time derivative; needed by the energy identity (η̇) and the second-order form (β̇).
        lower: Smallest value allowed. RISHD's constructors set it, and ``simulate`` checks it at every step.

    Raises:
        ValueError: for a value or a derivative that is not a function.
    """

    value: Callable[[float], Any]
    derivative: Callable[[float], Any] | None = None
    lower: float = -math.inf

    def __post_init__(self) -> None:
        require_method("TimeDependent's value", self.value, "of time, t ↦ number")
        if self.derivative is not None:
            require_method("TimeDependent's derivative", self.derivative, "of time, t ↦ number")

    def __call__(self, t: float) -> Any:
        """Coefficient at time t."""
        return self.value(t)

    def map(self, function: Callable[[Any], Any]) -> TimeDependent:
        """The coefficient with a linear function applied to its values and its derivatives."""
        value, derivative = self.value, self.derivative
        slope = None if derivative is None else lambda t: function(derivative(t))
        return TimeDependent(lambda t: function(value(t)), slope, self.lower)


Coefficient: TypeAlias = float | Array | TimeDependent | Callable[[float], Any]


# Names of RISHD's coefficients, each a float, an array over the ensemble or TimeDependent.
COEFFICIENTS = ("alpha", "eta", "nesterov", "beta_sharp", "beta_flat", "chi", "gain")


def expand(coefficient: Coefficient, *, lower: float = -math.inf) -> Any:
    """Add a trailing axis to a per-member array, so that it broadcasts against ``(*ensemble, p)``.

    Args:
        coefficient: The user's value.
        lower: Smallest value allowed for a coefficient that varies in time.
    """
    if isinstance(coefficient, TimeDependent):
        return replace(coefficient, lower=lower).map(_expanded)
    return _expanded(coefficient)


def _expanded(value: Any) -> Any:
    if isinstance(value, (float, int, np.number)):
        return float(value)
    if isinstance(value, str) or not hasattr(value, "ndim"):
        try:
            value = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(
                f"a coefficient is {shown(value)}; give a number, one value per member, or TimeDependent."
            ) from None
    if value.ndim:
        return value[..., None]
    return value if getattr(value, "requires_grad", False) else float(value)


def as_coefficient(name: str, coefficient: Any) -> Any:
    """Wrap a plain function of time in :class:`TimeDependent`; return any other coefficient unchanged.

    Raises:
        ValueError: naming a coefficient that is not a number, an array of numbers or a function.
    """
    if isinstance(coefficient, (float, int, TimeDependent)) and not isinstance(coefficient, bool):
        return coefficient
    if callable(coefficient) and not isinstance(coefficient, type):
        return TimeDependent(coefficient)
    try:
        kind = None if coefficient is None else to_numpy(coefficient).dtype.kind
        is_numeric = kind is not None and kind in "fiu" and to_numpy(coefficient).size > 0
    except (TypeError, ValueError):  # a ragged list
        is_numeric = False
    if not is_numeric:
        raise ValueError(
            f"{name} = {shown(coefficient)} must be a number, one value per member, or a function of time "
            "(TimeDependent if its derivative is needed)."
        )
    return np.asarray(coefficient, dtype=np.float64) if isinstance(coefficient, (list, tuple)) else coefficient


def add(x: Any, y: Any) -> Any:
    """Sum of two coefficients; it has a derivative if both have."""
    if not is_time_dependent(x, y):
        return x + y
    known = all(c.derivative is not None for c in (x, y) if isinstance(c, TimeDependent))
    return TimeDependent(lambda t: at(x, t) + at(y, t), (lambda t: rate(x, t) + rate(y, t)) if known else None)


def at(coefficient: Coefficient, t: float) -> Any:
    """Value at time t."""
    return coefficient.value(t) if isinstance(coefficient, TimeDependent) else coefficient


def rate(coefficient: Coefficient, t: float, *, name: str = "a coefficient", missing: float | None = None) -> Any:
    """Time derivative at time t, 0 for a constant.

    Args:
        coefficient: The coefficient.
        t: Time.
        name: Name used in errors.
        missing: Used instead of a missing derivative; with ``None`` a missing derivative is an error.

    Raises:
        ValueError: if it varies in time and no derivative was given.
    """
    if not isinstance(coefficient, TimeDependent):
        return 0.0
    if coefficient.derivative is not None:
        return coefficient.derivative(t)
    if missing is None:
        raise ValueError(f"{name} varies in time and its derivative is needed: give TimeDependent(value, derivative).")
    return missing


def fitted(name: str, value: Any, *, reference: Array) -> Any:
    """An expanded value as an array of the kind, dtype and device of ``reference``; a float stays a float.

    Raises:
        ValueError: if its ensemble axes do not fit those of ``reference``, or it requires gradients and ``reference``
            is a numpy array.
    """
    if isinstance(value, float):
        return value
    if tracks(value):
        if not is_torch(reference):
            raise ValueError(
                f"{name} requires gradients, which a numpy w0 cannot carry; pass w0 as a torch tensor, or "
                f"{name}.detach()."
            )
    elif value.ndim == 0:
        return float(value)
    array = like(value, reference)
    try:
        fits = np.broadcast_shapes(tuple(array.shape), tuple(reference.shape)) == tuple(reference.shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has one value for each of {tuple(array.shape[:-1])} members, but the ensemble has shape "
            f"{tuple(reference.shape[:-1])}; give a scalar or one value per member."
        )
    return array


def is_time_dependent(*coefficients: Coefficient) -> bool:
    """Whether any coefficient varies in time."""
    return any(isinstance(c, TimeDependent) for c in coefficients)


def check_finite(name: str, value: Coefficient) -> None:
    """Refuse a constant coefficient that is not a finite number."""
    if isinstance(value, TimeDependent):
        return
    try:
        finite = bool(np.isfinite(to_numpy(value)).all())
    except TypeError:
        raise ValueError(f"{name} = {shown(value)} must be a number, one value per member, or TimeDependent.") from None
    if not finite:
        raise ValueError(f"{name} = {shown(value)} must be finite.")


def check_range(name: str, value: Coefficient, lower: float, reason: str, *, strict: bool) -> None:
    """Refuse a constant coefficient below ``lower`` (or equal to it, if ``strict``), saying why."""
    check_finite(name, value)
    if isinstance(value, TimeDependent):
        return
    smallest = float(to_numpy(value).min())
    if smallest < lower or (strict and smallest == lower):
        sign = ">" if strict else "≥"
        raise ValueError(f"{name} = {shown(value)} must be {sign} {lower:g}: {reason}.")
