"""Learning rates of flows as functions of time."""

from __future__ import annotations

import math
from typing import get_args

from riemannian_ode.checks import require_choice, require_positive
from riemannian_ode.coefficients import TimeDependent
from riemannian_ode.rate_factors import Schedule, rate_factor, stable_end


def learning_rate(
    peak: float, *, schedule: Schedule = "cosine", total: float, warmup: float = 0.0, min_ratio: float | None = None
) -> TimeDependent:
    """η(t) for :meth:`riemannian_ode.RISHD.from_optimizer`, with its derivative.

    Args:
        peak: Largest learning rate.
        schedule: ``"cosine"``, or ``"wsd"``: warm-up, stable, decay.
        total: Total length, in optimizer steps.
        warmup: Length of the warm-up, below ``total``.
        min_ratio: Last learning rate over the peak; ``None`` is 0.1 for the cosine and 0 for wsd, as published.

    Returns:
        The learning rate as a function of time. At a corner of the schedule the derivative is the one from the right.

    Raises:
        ValueError: for numbers out of range or an unknown schedule.
    """
    require_positive("peak", peak)
    require_choice("schedule", schedule, get_args(Schedule))
    require_positive("total", total)
    if not 0.0 <= warmup < total:
        raise ValueError(f"warmup = {warmup!r} must be at least 0 and below total = {total!r}.")
    ratio = (0.1 if schedule == "cosine" else 0.0) if min_ratio is None else min_ratio
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"min_ratio = {min_ratio!r} must lie between 0 and 1: it is a fraction of the peak.")

    def value(t: float) -> float:
        return peak * rate_factor(t, schedule=schedule, warmup=warmup, total=total, min_ratio=ratio)

    def derivative(t: float) -> float:
        if t < warmup:
            return peak / warmup
        if t >= total:
            return 0.0
        if schedule == "cosine":
            span = total - warmup
            return -0.5 * peak * (1.0 - ratio) * math.pi / span * math.sin(math.pi * (t - warmup) / span)
        stable = stable_end(warmup, total)
        return 0.0 if t < stable else -peak * (1.0 - ratio) / max(1, total - stable)

    return TimeDependent(value, derivative)
