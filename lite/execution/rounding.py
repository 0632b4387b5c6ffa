"""Rounding to bfloat16 without bias."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded_stochastically(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Bfloat16 numbers near ``x``, rounded up or down at random so that the mean is exact.

    A float32 lies between two neighbours in bfloat16; it goes up with the probability of its distance from the lower
    one. Small updates of large weights then arrive on average, where rounding to nearest would lose them.

    Args:
        x: float32 or wider (rounded to float32 first), any shape.
        generator: Where random numbers come from; by default the device's generator.

    Source: Zamirai et al., arXiv:2010.06192.
    """
    wide = x.float().contiguous()
    bits = wide.view(torch.int32)
    noise = torch.randint(1 << 16, bits.shape, dtype=bits.dtype, device=bits.device, generator=generator)
    rounded = ((bits + noise) & -0x10000).view(torch.float32)  # bfloat16 is the upper half of a float32
    return torch.where(wide.isfinite(), rounded, wide).to(torch.bfloat16)
