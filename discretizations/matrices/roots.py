"""Inverse roots of symmetric positive-semidefinite matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def inverse_root(matrix: Tensor, order: int, *, eps: float) -> Tensor:
    """(A + εI)^{−1/order} of a symmetric positive-semidefinite matrix, by its eigenvectors.

    It is differentiable, forward and backward, even if eigenvalues coincide, where torch's ``eigh`` is not.

    Args:
        matrix: A, shape ``(*batch, n, n)``.
        order: 1, 2, 4, …
        eps: ε > 0; eigenvalues slightly below zero due to rounding count as zero.

    Source: Higham, *Functions of Matrices*, chapter 7; derivative: theorem 3.11 (Daleckii and Krein).
    """
    root: Tensor = _InverseRoot.apply(matrix, order, eps)[0]  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return root


def newton_inverse_root(matrix: Tensor, order: int, *, eps: float, steps: int = 30) -> Tensor:
    r"""Inverse root by coupled Newton iteration, which uses products only and never syncs with the device.

    .. math:: T = \tfrac{(p+1)I - M_k}{p}, \qquad X_{k+1} = X_k T, \qquad M_{k+1} = T^p M_k

    from :math:`M_0 = zA`, :math:`X_0 = z^{1/p}I` with :math:`z = (1+p)/(2\|A\|_F)`. A step multiplies a small
    eigenvalue of M by :math:`(1 + 1/p)^p`: 2.4 for p = 4, so 30 steps are enough for condition numbers of
    :math:`10^{10}`. The iteration diverges at negative eigenvalues, so four units of rounding of the norm of A are
    added to ε.

    Args:
        matrix: A without εI, shape ``(*batch, n, n)``.
        order: p, 2 or 4.
        eps: ε > 0.
        steps: Number of steps.

    Source: Guo and Higham, *A Schur–Newton method for the matrix pth root*, SIAM J. Matrix Anal. Appl. 28 (2006); for
    Shampoo: Anil et al., arXiv:2002.09018.
    """
    identity = torch.eye(matrix.size(-1), dtype=matrix.dtype, device=matrix.device)
    size = matrix.abs().amax((-2, -1), keepdim=True).clamp(min=eps)  # scale at which squares stay in range
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
        coupled = 0.5 * (coupled + coupled.mT)  # rounding would grow in the antisymmetric part
    symmetric: Tensor = 0.5 * size ** (-1.0 / order) * (root + root.mT)
    return symmetric


class _InverseRoot(torch.autograd.Function):
    @staticmethod
    def forward(matrix: Tensor, order: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        powers = (values.clamp(min=0.0) + eps) ** (-1.0 / order)
        return (vectors * powers[..., None, :]) @ vectors.mT, powers, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, powers, vectors = output
        ctx.order = inputs[1]
        ctx.mark_non_differentiable(powers, vectors)
        ctx.save_for_backward(powers, vectors)
        ctx.save_for_forward(powers, vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _derivative(ctx, grads[0]), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, None, None]:
        return _derivative(ctx, tangents[0]), None, None


def _derivative(ctx: Any, change: Tensor) -> Tensor:
    """V(Φ∘(Vᵀ dA V))Vᵀ with the divided differences Φ of x ↦ x^{−1/q}, in a form without cancellation.

    With a, b the eigenvalues of the root they are −(ab)^q / Σ_r a^r b^{q−1−r}.
    """
    powers, vectors = ctx.saved_tensors
    a, b = powers[..., :, None], powers[..., None, :]
    differences = -((a * b) ** ctx.order) / sum(a**r * b ** (ctx.order - 1 - r) for r in range(ctx.order))
    change = 0.5 * (change + change.mT)
    result: Tensor = vectors @ (differences * (vectors.mT @ change @ vectors)) @ vectors.mT
    return result
