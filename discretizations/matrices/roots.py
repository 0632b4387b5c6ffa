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


def newton_inverse_root(matrix: Tensor, order: int, *, eps: float, steps: int = 30) -> Tensor:
    r"""The same root by coupled Newton iteration: products only, so that no device waits.

    .. math:: T = \tfrac{(p+1)I - M_k}{p}, \qquad X_{k+1} = X_k T, \qquad M_{k+1} = T^p M_k

    from :math:`M_0 = zA`, :math:`X_0 = z^{1/p}I` with :math:`z = (1+p)/(2\|A\|_F)`. A step multiplies a small
    eigenvalue of M by :math:`(1 + 1/p)^p`: 2.4 for p = 4, so that 30 steps reach conditions of :math:`10^{10}`. The
    iteration diverges at negative eigenvalues, so the rounding of A is added to ε: four units of its norm.

    Args:
        matrix: A without εI, shape ``(*batch, n, n)``.
        order: p, 2 or 4.
        eps: ε > 0.
        steps: Number of steps.

    Source: Guo and Higham, *A Schur–Newton method for the matrix pth root*, SIAM J. Matrix Anal. Appl. 28 (2006); for
    Shampoo: Anil et al., arXiv:2002.09018.
    """
    identity = torch.eye(matrix.size(-1), dtype=matrix.dtype, device=matrix.device)
    size = matrix.abs().amax((-2, -1), keepdim=True).clamp(min=eps)  # by which squares neither overflow nor vanish
    matrix = matrix / size
    rounding = 4.0 * torch.finfo(matrix.dtype).eps * torch.linalg.matrix_norm(matrix, keepdim=True)
    shifted = matrix + (eps / size + rounding) * identity
    z = (1.0 + order) / (2.0 * torch.linalg.matrix_norm(shifted, keepdim=True))
    root, coupled = z ** (1.0 / order) * identity, z * shifted
    for _ in range(steps):
        factor = ((order + 1.0) * identity - coupled) / order
        root = root @ factor
        power = torch.linalg.matrix_power(factor, order)
        coupled = power @ coupled
        coupled = 0.5 * (coupled + coupled.mT)  # rounding would grow in the other part
    symmetric: Tensor = 0.5 * size ** (-1.0 / order) * (root + root.mT)
    return symmetric
