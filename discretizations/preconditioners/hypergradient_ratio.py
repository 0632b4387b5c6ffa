r"""A χ that sets itself: it follows the hypergradient of the loss.

A step moves flat directions by :math:`-\eta\chi Qu_k`, so the loss after it changes with χ by

.. math:: \frac{\partial f(w_{k+1})}{\partial\log\chi} = -\eta\langle\nabla f(w_{k+1}), \chi Qu_k\rangle

The next gradient estimates it without bias, whatever the mask has chosen, because its noise has no part in the step
before. The step's own gradient would not do: momentum and mask have seen its noise. χ rises while the next gradient
still points the way of the last flat step, and falls when flat directions overshoot or only follow noise.

The rule looks one step ahead. That favours small learning rates while noise or oscillation holds the loss up (Wu et
al.), so χ stays near its lower end at large learning rates and rises as the schedule lowers them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from riemannian_ode.preconditioner import Memory, spread

CHI: Literal["chi"] = "chi"  # keys of the memory
FLAT_STEP: Literal["flat_step"] = "flat_step"


@dataclass(frozen=True, kw_only=True)
class HypergradientRatio:
    r"""χ of each matrix by the cosine between its gradient and the flat part of its last step.

    .. math:: \log\chi \leftarrow \mathrm{clip}\Bigl(\log\chi + \kappa\,
        \frac{\langle g_{k+1}, Qu_k\rangle}{\|g_{k+1}\|\,\|Qu_k\|},\ \log\chi_{\min},\ \log\chi_{\max}\Bigr)

    Args:
        rate: κ > 0. Cosines are a few hundredths in training, so κ = ½ doubles χ in some tens of steps.
        smallest: χ_min > 0; 1 never moves flat directions less than the base optimizer does.
        largest: χ_max, at least χ_min.

    Source: Baydin et al., *Online Learning Rate Adaptation with Hypergradient Descent*, arXiv:1703.04782, which has the
    rule for learning rates; for χ it is ours. Wu et al., arXiv:1803.02021, on its short horizon.
    """

    rate: float = 0.5
    smallest: float = 1.0
    largest: float = 4.0

    def initial(self, w: Tensor, *, batch: int = 0) -> Memory:
        """χ = χ_min of every matrix, and no step yet.

        Args:
            w: Parameters, shape ``(*batch, *shape)``.
            batch: Number of batch axes.
        """
        wide = torch.promote_types(w.dtype, torch.float32)
        return {CHI: w.new_full(w.shape[:batch], self.smallest, dtype=wide), FLAT_STEP: torch.zeros_like(w)}

    def followed(self, memory: Memory, g: Tensor) -> Memory:
        """Memory whose χ has seen the gradient after its last flat step.

        Args:
            memory: With χ and the flat step.
            g: Gradient, shape ``(*batch, *shape)``.
        """
        chi, step = memory[CHI], memory[FLAT_STEP]
        axes = tuple(range(chi.ndim, g.ndim))
        cosine = (_unit(g, axes, chi.dtype) * _unit(step, axes, chi.dtype)).sum(axes)
        low, high = math.log(self.smallest), math.log(self.largest)
        return memory | {CHI: (chi.log() + self.rate * cosine).clamp(low, high).exp()}

    def of(self, memory: Memory, x: Tensor) -> Tensor:
        """χ, with axes of length 1 behind so that it broadcasts against ``x``."""
        chi: Tensor = spread(memory[CHI], x)
        return chi


def _unit(x: Tensor, axes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """x over its norm, 0 where it is 0; scaled first, so that squares neither over- nor underflow."""
    tiny = torch.finfo(dtype).tiny
    x = x.to(dtype)
    x = x / x.abs().amax(axes, keepdim=True).clamp(min=tiny)
    return x / x.square().sum(axes, keepdim=True).sqrt().clamp(min=tiny)
