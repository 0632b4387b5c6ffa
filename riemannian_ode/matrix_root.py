r"""The square root of symmetric positive-definite matrices, differentiable any number of times.

torch's ``eigh`` has no derivative if eigenvalues coincide, but the root does. The derivative solves the Sylvester
equation :math:`G\,dG + dG\,G = dA`; differentiating it again gives another Sylvester equation.

Source: Higham, *Functions of Matrices*, section 6.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riemannian_ode.arrays import eigh


def matrix_root(a: Tensor) -> Tensor:
    """G with G² = A, symmetric positive definite.

    Args:
        a: A, shape ``(*batch, n, n)``.
    """
    root: Tensor = _Root.apply(a)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return root


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        values, vectors = eigh(a)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        solution: Tensor = _Sylvester.apply(root, grads[0])  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return solution


class _Sylvester(torch.autograd.Function):
    """Solve GX + XG = Y for X, with G symmetric positive definite."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor) -> Tensor:
        values, vectors = eigh(g)
        turned = vectors.mT @ y @ vectors
        x: Tensor = vectors @ (turned / (values[..., :, None] + values[..., None, :])) @ vectors.mT
        ctx.save_for_backward(g, x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        of_y: Tensor = _Sylvester.apply(g, grads[0])  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return -(of_y @ x.mT + x.mT @ of_y), of_y
