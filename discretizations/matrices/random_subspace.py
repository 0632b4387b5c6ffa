"""Random subspaces as a function of a number: without a generator, only the number has to be saved."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from discretizations.matrices.tracked_subspace import cholesky_orthonormalize

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as signed numbers: products wrap around.
_GOLDEN, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def random_subspace(w: Tensor, columns: int, number: Tensor) -> Tensor:
    """Orthonormal basis of a uniformly random subspace, the same for all matrices with equal number and width.

    Args:
        w: Matrices, shape ``(*batch, m, n)``; gives shape, dtype and device.
        columns: k.
        number: Number of the subspace, from 0, shape ``(*batch,)``.

    Returns:
        Shape ``(*batch, n, k)``, dtype of ``w``.
    """
    width = w.size(-1)
    count = width * columns
    place = torch.arange(count, device=w.device) + 1
    start = number.to(torch.int64).unsqueeze(-1) * (2 * count)
    radius = _uniform(start + place)
    angle = _uniform(start + place + count)
    wide = torch.promote_types(w.dtype, torch.float32)
    normals = ((-2.0 * radius.log()).sqrt() * torch.cos(2.0 * math.pi * angle)).to(wide)
    normals = normals.reshape(*number.shape, width, columns)
    basis = torch.linalg.qr(normals).Q if w.device.type == "cpu" else cholesky_orthonormalize(normals)
    return basis.to(w.dtype)


def _uniform(counter: Tensor) -> Tensor:
    """Numbers in (0, 1], one per counter."""
    x = counter * _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND  # SplitMix64's last step changes only bits below those used
    return (_shifted(x, 40) + 1).to(torch.float32) * 2.0**-24


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x shifted right without its sign."""
    kept: Tensor = (x >> bits) & (2 ** (64 - bits) - 1)
    return kept
