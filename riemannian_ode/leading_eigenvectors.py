r"""Eigenvectors of the largest eigenvalues of symmetric matrices, whose span has a derivative.

The derivative of torch's ``eigh`` divides by all differences of eigenvalues, and is NaN if two of them coincide. The
span depends only on the differences across the gap:

.. math:: dV_s = V_f K, \qquad K_{fs} = \frac{v_f^\top\,dA\,v_s}{\lambda_s - \lambda_f}

Source: Kato, *Perturbation Theory for Linear Operators*, II.2 (first-order perturbation of an eigenprojection).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from riemannian_ode.arrays import eigh


def leading_eigenvectors(a: Tensor, rank: int) -> Tensor:
    """Orthonormal eigenvectors in order of descending eigenvalue; derivatives are correct for functions of their span.

    Args:
        a: Symmetric matrices, shape ``(*batch, n, n)``.
        rank: Number of eigenvectors.

    Returns:
        Shape ``(*batch, n, rank)``.
    """
    vectors: Tensor = _Leading.apply(a, rank)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return vectors


class _Leading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, rank: int) -> Tensor:
        values, vectors = (x.flip(-1) for x in eigh(a))
        ctx.rank = rank
        ctx.save_for_backward(values, vectors)
        leading: Tensor = vectors[..., :rank].clone()
        return leading

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("eigenvectors of a split can be differentiated once only; leave create_graph=False.")
        values, vectors = ctx.saved_tensors
        sharp, flat = vectors[..., : ctx.rank], vectors[..., ctx.rank :]
        gaps = values[..., None, : ctx.rank] - values[..., ctx.rank :, None]
        of_a = flat @ ((flat.mT @ grads[0]) / gaps) @ sharp.mT
        return 0.5 * (of_a + of_a.mT), None
