r"""Noise of mini-batch gradients in sharp and in flat directions of an optimizer's mask.

By claim C10 the loss floor of a direction under noise grows by the factor by which LITE speeds the direction up. So
LITE gains if the batch is large compared with the noise scale of the flat directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rishd.probing.frozen import Geometry


@dataclass(frozen=True)
class NoiseScale:
    r"""Batch size at which the gradient and its noise are equal, in whitened coordinates :math:`F^{-1/2}g`.

    Args:
        optimizer: Optimizer with the metric and mask, or operator whose top eigenvectors are sharp.
        sharp: Noise scale of the sharp part over the size of a mini-batch; infinite if mini-batches have no common
            gradient.
        flat: The same for the flat part.
        sharp_share: Sharp share of the squared gradient without noise.
    """

    optimizer: str
    sharp: float
    flat: float
    sharp_share: float


def noise_scale(optimizer: str, gradients: Sequence[Tensor], geometry: Geometry) -> NoiseScale:
    r"""Noise scale tr Σ/‖g‖² of mini-batches, with gradients g + noise of covariance Σ.

    Unbiased from K independent mini-batches: :math:`\|g\|^2 \approx (\|\sum_k g_k\|^2 - \sum_k\|g_k\|^2)/(K(K-1))`, and
    :math:`\operatorname{tr}\Sigma` is the excess of the mean of :math:`\|g_k\|^2` over it. The mask comes from a
    momentum and should use other mini-batches, because its noise would otherwise count as signal in sharp directions.

    Args:
        optimizer: Name, for the record.
        gradients: One per mini-batch, at least 2, all of one shape.
        geometry: Metric and mask.

    Source: McCandlish et al., arXiv:1812.06162, equation 2.8 and Appendix A.1.
    """
    flat = torch.stack([geometry.flat(geometry.root(g)) for g in gradients]).flatten(1).double()
    sharp = torch.stack([geometry.root(g) for g in gradients]).flatten(1).double() - flat
    return parts_noise(optimizer, sharp, flat)


def parts_noise(name: str, sharp: Tensor, flat: Tensor) -> NoiseScale:
    """:func:`noise_scale` for gradients that are already split.

    Args:
        name: Name, for the record.
        sharp: Sharp part of each mini-batch's gradient in any orthonormal coordinates, shape ``(K, ...)``.
        flat: Flat part of each gradient.
    """
    (sharp_signal, sharp_scale), (flat_signal, flat_scale) = (_signal_and_scale(x) for x in (sharp, flat))
    total = sharp_signal + flat_signal
    return NoiseScale(name, sharp_scale, flat_scale, sharp_signal / total if total > 0 else float("nan"))


def _signal_and_scale(x: Tensor) -> tuple[float, float]:
    """‖g‖² and tr Σ/‖g‖² of rows g + noise."""
    count = len(x)
    squares = float((x**2).sum())
    signal = max(0.0, (float((x.sum(0) ** 2).sum()) - squares) / (count * (count - 1)))
    return signal, (squares / count - signal) / signal if signal > 0 else float("inf")
