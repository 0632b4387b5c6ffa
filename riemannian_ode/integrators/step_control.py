"""Tolerances and limits of adaptive schemes, and their checks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.checks import require_positive
from riemannian_ode.flow import Array

MAX_STEPS = 100_000  # steps between two outputs: about half a minute for a small problem
_RESOLVED = 64.0  # a step's error is visible above this many units of rounding of the state's dtype


class Tolerances(NamedTuple):
    """Relative and absolute tolerance of a step."""

    rtol: float
    atol: float


def tolerances(rtol: float | None, atol: float | None, w: Array, *, default: Tolerances) -> Tolerances:
    """The tolerances for a state's dtype: rates in float32 have errors that no step size reduces.

    Args:
        rtol: The user's value; ``None`` is the default, raised to 64 units of the dtype's rounding.
        atol: Absolute tolerance; its default grows with that of ``rtol``.
        w: The state.
        default: Default tolerances in float64.

    Raises:
        ValueError: for an ``rtol`` below the dtype's rounding.
    """
    kind = to_numpy(w).dtype
    rounding = float(np.finfo(kind).eps)
    if rtol is not None and rtol < rounding and kind != np.float64:  # in float64 the scheme itself checks
        raise ValueError(
            f"rtol = {rtol:g} is below the resolution of {kind} ({rounding:.2g}): start from float64, or leave rtol "
            f"out for {_RESOLVED * rounding:.2g}."
        )
    least = max(default.rtol, _RESOLVED * rounding)
    return Tolerances(least if rtol is None else rtol, default.atol * (least / default.rtol) if atol is None else atol)


def check_step_control(rtol: float | None, atol: float | None, max_step: float, max_steps: int) -> None:
    """Refuse settings of an adaptive scheme that are out of range.

    Raises:
        ValueError: naming the setting and its value.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None:
            require_positive(name, value)
    if not max_step > 0:
        raise ValueError(f"max_step = {max_step!r} must be positive; leave it out for no limit.")
    if isinstance(max_steps, bool) or not isinstance(max_steps, (int, np.integer)) or max_steps < 1:
        raise ValueError(f"max_steps = {max_steps!r} must be a whole number of at least 1.")


def step_limit_message(name: str, steps: int, *, target: float, at: float) -> str:
    """Message of a scheme that used up its steps before an output time."""
    return (
        f"{name} took {steps} steps without reaching t = {target:.6g} (it is at t = {at:.6g}); the flow is stiff for "
        "it: take 'radau' or 'lsoda', a looser rtol, or raise max_steps"
    )
