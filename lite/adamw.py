r"""The AdamW-LITE rule: elementwise, for embeddings, norms, heads and biases.

.. math::
    u = \frac{m_1}{1-\theta_a^t}\frac{\sqrt{1-b_2^t}}{\sqrt v+\epsilon}, \qquad
    W \leftarrow W - \eta\,[u + \lambda W + (\chi-1)(1-p)\odot(u + \lambda W)]

with p the soft sharp mask of :func:`discretizations.matrices.sharp_masks.coordinate_mask`.

Source: arXiv:2602.22681, AdamW-LITE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discretizations.matrices.eigenbases import adam_direction, second_moment_step
from discretizations.matrices.sharp_masks import (
    PUBLISHED_WIDTH_FLOOR,
    CoordinateThresholds,
    adapt_coordinate_thresholds,
    coordinate_mask,
    passing_fractions,
)
from lite.tensor_settings import acts
from riemannian_ode.flow import Projector, lite_velocity, momentum_step, position_step

ADAMW_KEYS = ("first_moment", "second_moment", "step", "hi", "lo")  # of AdamWState, in an optimizer's state
_NO_SHARP, _ALL_SHARP = 1e-5, 1.0 - 1e-5  # beyond these fractions the mask is constant (published code)
_INITIAL_HI, _INITIAL_LO = 1.0, 0.5  # thresholds before the first step (published code)


@dataclass(frozen=True, kw_only=True)
class AdamWRule:
    """Hyperparameters of one group at one step.

    Args:
        lr: η.
        betas: θ_a and b₂, EMA coefficients of the moments.
        eps: ε, added before bias correction as published.
        weight_decay: λ, decoupled.
        chi: χ ≥ 1.
        sharp_fraction: r in [0, 1]; 1 has no flat part.
        mask_floor: Floor of the mask's width, see :func:`discretizations.matrices.sharp_masks.coordinate_mask`.
    """

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    chi: float
    sharp_fraction: float
    mask_floor: float = 0.0

    @property
    def is_split(self) -> bool:
        """Whether some coordinates move faster than others."""
        return acts(self.chi, 1.0) and self.sharp_fraction <= _ALL_SHARP

    @property
    def has_mask(self) -> bool:
        """Whether the mask depends on v; with r = 0 every coordinate is flat."""
        return self.is_split and self.sharp_fraction >= _NO_SHARP


def group_rule(group: Mapping[str, Any]) -> AdamWRule:
    """Hyperparameters of a parameter group."""
    names = ("lr", "eps", "weight_decay", "chi", "sharp_fraction")
    floor = PUBLISHED_WIDTH_FLOOR if group.get("mask") == "threshold" else 0.0
    return AdamWRule(betas=group["adamw_betas"], mask_floor=floor, **{name: group[name] for name in names})


class AdamWState(NamedTuple):
    """First and second moment (shape of the parameter), step count and mask thresholds (0-dimensional, or a batch)."""

    m: Tensor
    v: Tensor
    step: Tensor
    hi: Tensor
    lo: Tensor


def initial_adamw_state(w: Tensor) -> AdamWState:
    """State before the first step: moments 0; v, count and thresholds in at least float32."""
    count = torch.float32 if w.device.type == "mps" else torch.float64  # θᵗ wants double; MPS has none
    wide = torch.promote_types(w.dtype, torch.float32)
    return AdamWState(
        m=torch.zeros_like(w),
        v=torch.zeros_like(w, dtype=wide),
        step=torch.zeros((), dtype=count, device=w.device),
        hi=torch.full((), _INITIAL_HI, dtype=wide, device=w.device),
        lo=torch.full((), _INITIAL_LO, dtype=wide, device=w.device),
    )


def adamw_update(
    rule: AdamWRule, w: Tensor, g: Tensor, state: AdamWState, *, dims: int | None = None
) -> tuple[Tensor, AdamWState]:
    """One step for one tensor, or a batch of equal shape; nothing is changed in place.

    Args:
        rule: Hyperparameters.
        w: Parameter, any shape.
        g: Gradient, shape of ``w``.
        state: State before the step.
        dims: Dimensions of one tensor; those before are a batch, which count and thresholds have too. ``None`` is all.

    Returns:
        New parameter and state.

    Source: arXiv:2602.22681, AdamW-LITE.
    """
    m, v = adamw_moments(rule, g, state)
    dim = None if dims is None or dims == w.ndim else tuple(range(-dims, 0))
    w = adamw_position(rule, w, m, v, state, dim=dim)
    hi, lo = thresholds = CoordinateThresholds(state.hi, state.lo)
    if rule.has_mask:
        passing = passing_fractions(v, thresholds, dim=dim)
        hi, lo = adapt_coordinate_thresholds(thresholds, passing, sharp_fraction=rule.sharp_fraction)
    return w, AdamWState(m, v, state.step + 1, hi, lo)


def adamw_moments(rule: AdamWRule, g: Tensor, state: AdamWState) -> tuple[Tensor, Tensor]:
    """First and second moment after a step, dtype of the second; elementwise, so any part of a tensor will do.

    Args:
        rule: Hyperparameters.
        g: Gradient.
        state: State before the step.
    """
    beta1, beta2 = rule.betas
    wide = g.to(state.v.dtype)
    m = momentum_step(state.m.to(state.v.dtype), wide, alpha=1.0 - beta1, gain=1.0 - beta1)
    return m, second_moment_step(state.v, wide, beta2=beta2)


def adamw_position(
    rule: AdamWRule,
    w: Tensor,
    m: Tensor,
    v: Tensor,
    state: AdamWState,
    *,
    dim: tuple[int, ...] | None = None,
    mean: Tensor | None = None,
) -> Tensor:
    """Parameter after a step; elementwise once the mean of ``v`` is known.

    Args:
        rule: Hyperparameters.
        w: Parameter.
        m: First moment after the step.
        v: Second moment after the step.
        state: State before the step, for its step count and thresholds.
        dim: Last dimensions, which belong to one tensor; those before are a batch. ``None`` is all of them.
        mean: mean(v) of the whole tensor where ``w`` is only a part of it.
    """
    beta1, beta2 = rule.betas
    step = (state.step + 1)[(..., *(None for _ in dim or ()))]
    u = adam_direction(m, v, beta1=beta1, beta2=beta2, step=step, eps=rule.eps)
    decay = rule.weight_decay * w if acts(rule.weight_decay, 0.0) else None
    flat: Projector | None = None
    if rule.has_mask:
        thresholds = CoordinateThresholds(state.hi, state.lo)
        flat = partial(mul, 1.0 - coordinate_mask(v, thresholds, dim=dim, mean=mean, floor=rule.mask_floor))
    elif rule.is_split:
        flat = partial(mul, 1.0)
    position: Tensor = position_step(w, lite_velocity(u, flat=flat, chi=rule.chi, decay=decay), eta=rule.lr)
    return position
