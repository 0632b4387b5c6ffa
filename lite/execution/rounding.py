"""Unbiased stochastic rounding to bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded_stochastically(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Round ``x`` to bfloat16 up or down at random, so that the mean is exact.

    A float32 lies between two neighbouring bfloat16 numbers; the probability of rounding up is its distance from the
    lower one. Small updates of large weights then survive on average, whereas rounding to nearest would lose them.

    Args:
        x: float32 or wider (rounded to float32 first), any shape.
        generator: Source of random numbers; by default the device's generator.

    Source: Zamirai et al., arXiv:2010.06192.
    """
    wide = x.float().contiguous()
    bits = wide.view(torch.int32)
    noise = torch.randint(1 << 16, bits.shape, dtype=bits.dtype, device=bits.device, generator=generator)
    rounded = ((bits + noise) & -0x10000).view(torch.float32)  # bfloat16 is the upper half of a float32
    return torch.where(wide.isfinite(), rounded, wide).to(torch.bfloat16)
