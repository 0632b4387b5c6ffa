r"""Derivatives of the solution of an implicit step, by the implicit function theorem.

With :math:`r(y, \theta) = 0` solved for y, :math:`dy = -J^{-1}\,\partial_\theta r\,d\theta`, :math:`J = \partial_y r`:
one linear solve with :math:`J^\top` per step, however many iterations Newton's method took.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from riemannian_ode.arrays import like, to_numpy
from riemannian_ode.integrators.base import PhaseState

_DIRECT_SIZE = 48  # unknowns per member up to which Jᵀ is built and factorised
_ACCURACY = 1e-12  # relative tolerance of GMRES beyond that


def attached(residual: Callable[[PhaseState], PhaseState], solution: PhaseState) -> PhaseState:
    """The solution, differentiable with respect to everything that its equations depend on.

    Args:
        residual: State ↦ residual, zero at the solution.
        solution: Tensors of shape ``(*ensemble, p)``, without a graph.

    Returns:
        The same numbers, with a graph if the residual requires gradients.
    """
    value = residual(solution)
    if not (value.w.requires_grad or value.m.requires_grad):
        return solution
    w, m = _Solution.apply(residual, *solution, *value)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return PhaseState(w, m)


class _Solution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Any, w: Tensor, m: Tensor, *value: Tensor) -> tuple[Tensor, Tensor]:
        ctx.residual = residual
        ctx.save_for_backward(w, m)
        return w.clone(), m.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, Tensor, Tensor]:
        if torch.is_grad_enabled():
            raise RuntimeError("implicit steps can be differentiated once only; leave create_graph=False.")
        w, m = ctx.saved_tensors
        shape, p = tuple(w.shape), w.shape[-1]
        with torch.enable_grad():
            at = PhaseState(w.detach().requires_grad_(), m.detach().requires_grad_())
            value = ctx.residual(at)

        def transposed(x: Tensor) -> Tensor:
            """Jᵀx, shape ``(members, 2p)``."""
            parts = [part.reshape(shape) for part in (x[:, :p], x[:, p:])]
            return _packed(torch.autograd.grad(value, at, parts, retain_graph=True))

        right = -_packed(grads)
        sound = torch.isfinite(_packed((w, m))).all(1, keepdim=True)
        solve = _direct if 2 * p <= _DIRECT_SIZE else _by_gmres
        answer = solve(transposed, right, sound)
        return None, None, None, answer[:, :p].reshape(shape), answer[:, p:].reshape(shape)


def _packed(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts], dim=1)


def _direct(transposed: Callable[[Tensor], Tensor], right: Tensor, sound: Tensor) -> Tensor:
    units = torch.diag(torch.ones_like(right[0]))
    matrix = torch.stack([transposed(unit.expand_as(right)) for unit in units], dim=-1)
    matrix = torch.where(sound[..., None], matrix, units)  # a lost member has no equations
    answer: Tensor = torch.linalg.solve(matrix, right)
    return answer


def _by_gmres(transposed: Callable[[Tensor], Tensor], right: Tensor, sound: Tensor) -> Tensor:
    def product(x: np.ndarray) -> np.ndarray:
        direction = like(x.reshape(right.shape), right)
        return to_numpy(torch.where(sound, transposed(direction), direction)).ravel()

    operator = scipy.sparse.linalg.LinearOperator((right.numel(),) * 2, matvec=product, dtype=np.float64)
    accuracy, b = max(_ACCURACY, 8.0 * torch.finfo(right.dtype).eps), to_numpy(right).ravel()
    answer, failed = scipy.sparse.linalg.gmres(operator, b, rtol=accuracy, restart=100, maxiter=20)
    if failed:  # stiff equations: GMRES may not converge
        return _direct(transposed, right, sound)
    solution: Tensor = like(answer.reshape(right.shape), right)
    return solution
