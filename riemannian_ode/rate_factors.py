r"""Learning rates over their peak: linear warm-up, then a cosine, or a constant and a linear decay (wsd).

Flows use them at any time, :func:`riemannian_ode.learning_rate`, and optimizers at whole steps,
:func:`lite.learning_rate_factor`; time is in optimizer steps.

Source: arXiv:2602.22681, published settings; wsd of Hu et al., arXiv:2404.06395.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

Schedule: TypeAlias = Literal["cosine", "wsd"]
STABLE_FRACTION = 0.8  # fraction of the whole at which a wsd schedule starts to decay


def warmup_cosine(t: float, peak: float, minimum: float, *, warmup: float, total: float) -> float:
    """Cosine from ``peak`` at the end of the warm-up to ``minimum`` at ``total``; constant afterwards.

    Args:
        t: Time, after the warm-up.
        peak: Value at the end of the warm-up.
        minimum: Value at ``total``.
        warmup: Length of the warm-up.
        total: Total length.
    """
    progress = min(1.0, (t - warmup) / (total - warmup))
    return minimum + 0.5 * (peak - minimum) * (1.0 + math.cos(math.pi * progress))


def rate_factor(t: float, *, schedule: Schedule, warmup: float, total: float, min_ratio: float) -> float:
    """Learning rate at time t over its peak: t/warmup, then a cosine, or 1 until 0.8 of the total and a linear decay.

    Args:
        t: Time, in optimizer steps.
        schedule: ``"cosine"`` or ``"wsd"``.
        warmup: Length of the warm-up.
        total: Total length.
        min_ratio: Last learning rate over the peak.
    """
    if t < warmup:
        return t / warmup
    if schedule == "cosine":
        return warmup_cosine(t, 1.0, min_ratio, warmup=warmup, total=total)
    stable = stable_end(warmup, total)
    if t <= stable:
        return 1.0
    return max(min_ratio, 1.0 - (1.0 - min_ratio) * (t - stable) / max(1, total - stable))


def stable_end(warmup: float, total: float) -> float:
    """When a wsd schedule starts to decay."""
    return max(int(STABLE_FRACTION * total), warmup)
