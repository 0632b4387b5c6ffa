"""Inverse roots of symmetric positive-semidefinite matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def inverse_root(matrix: Tensor, order: int, *, eps: float) -> Tensor:
    """(A + εI)^{−1/order} of a symmetric positive-semidefinite matrix, by its eigenvectors.

    It has its derivatives, forward and backward, also where eigenvalues coincide and torch's ``eigh`` has none.

    Args:
        matrix: A, shape ``(*batch, n, n)``.
        order: 1, 2, 4, …
        eps: ε > 0; rounding may leave eigenvalues slightly below zero, which count as zero.

    Source: Higham, *Functions of Matrices*, chapter 7; derivative: theorem 3.11 (Daleckii and Krein).
    """
    root: Tensor = _InverseRoot.apply(matrix, order, eps)[0]  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return root


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
