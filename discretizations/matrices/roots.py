"""Inverse roots of symmetric positive-semidefinite matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_root(matrix: Tensor, order: int, *, eps: float) -> Tensor:
    """(A + εI)^{−1/order} of a symmetric positive-semidefinite matrix, by its eigenvectors.

    Args:
        matrix: A, shape ``(*batch, n, n)``.
        order: 1, 2, 4, …
        eps: ε > 0; rounding may leave eigenvalues slightly below zero, which count as zero.

    Source: Higham, *Functions of Matrices*, chapter 7.
    """
    values, vectors = torch.linalg.eigh(matrix)
    powers = (values.clamp(min=0.0) + eps) ** (-1.0 / order)
    root: Tensor = (vectors * powers[..., None, :]) @ vectors.mT
    return root
