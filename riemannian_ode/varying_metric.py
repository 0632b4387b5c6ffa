r"""Metrics that depend on the position: any user function, Adam-like diagonals, and the root of a Gram matrix.

torch's autograd computes the derivatives, in reverse mode only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from riemannian_ode.arrays import is_torch, to_numpy
from riemannian_ode.checks import require_method, require_positive
from riemannian_ode.flow import Array
from riemannian_ode.matrix_root import matrix_root
from riemannian_ode.metric import Metric, Variation, check_fits, check_positive_definite, check_symmetric


class VaryingMetric(Metric):
    """Base of metrics F(w): subclasses give its action and its inverse on torch tensors of shape ``(members, p)``."""

    variation: ClassVar[Variation] = "state"

    @abstractmethod
    def action(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        """v ↦ F(x)v, twice differentiable in x.

        Args:
            x: Positions, shape ``(members, p)``.
            w: The positions as the caller gave them, for the ensemble's axes.
        """

    @abstractmethod
    def inverse(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        """c ↦ F(x)⁻¹c; NaN for members where F is not positive definite."""

    def raise_index(self, w: Array, covector: Array) -> Array:
        x, c = _flattened(w, covector)
        return _restored(self.inverse(x, w)(c), w)

    def lower_index(self, w: Array, vector: Array) -> Array:
        x, v = _flattened(w, vector)
        return _restored(self.action(x, w)(v), w)

    def correction(self, w: Array, velocity: Array, momentum: Array) -> Array | None:
        x, v, m = _flattened(w, velocity, momentum)
        n = self.inverse(x, w)(m)
        # R must be differentiable if anything that enters it requires gradients, including F's own parameters.
        is_tracked = is_torch(w) and torch.is_grad_enabled() and (n.requires_grad or v.requires_grad)
        with torch.enable_grad():
            # Reverse mode only: D_vF n is linear in v, so it is the gradient in y of (∇_w yᵀF n)·v. One evaluation of F
            # and four small backward passes are several times faster than torch.func's forward mode. A copy of x: v and
            # n also depend on x, but R needs derivatives at fixed v and n.
            x = x.clone() if is_tracked else x.detach()
            if not x.requires_grad:
                x.requires_grad_()
            if not is_tracked:
                n = n.detach()
            y = torch.zeros_like(x, requires_grad=True)
            lower = self.action(x, w)
            along_n = lower(n)
            if not along_n.requires_grad:  # a function that ignores w: the metric is constant
                return None
            slope = torch.autograd.grad(
                (v * along_n).sum(), x, retain_graph=True, create_graph=is_tracked, allow_unused=True
            )[0]
            if slope is None:
                return None
            toward_n = torch.autograd.grad((y * along_n).sum(), x, create_graph=True)[0]
            toward_v = torch.autograd.grad((y * lower(v)).sum(), x, create_graph=True)[0]
            turning = torch.autograd.grad((toward_n * v - toward_v * n).sum(), y, create_graph=is_tracked)[0]
        return _restored(0.5 * (turning + slope), w)

    def matrix(self, w: Array) -> Array:
        """F(w), shape ``(*ensemble, p, p)``; used by checks in small dimensions."""
        (x,) = _flattened(w)
        lower = self.action(x, w)
        columns = [lower(unit.expand_as(x)) for unit in torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)]
        return _restored(torch.stack(columns, dim=-1), w)


class StateDependentMetric(VaryingMetric):
    r"""Any user function :math:`w \mapsto F(w)`.

    Args:
        function: ``F(w, *parameters)`` for one member, written with torch: ``w`` of shape ``(p,)`` to a tensor of shape
            ``(p, p)``. numpy ensembles are passed through it without a copy.
        parameters: Arrays with the ensemble's leading axes; each member's call of ``function`` gets one slice.

    If F(w) loses positive definiteness during a run, the member becomes NaN and ``simulate`` reports it.
    """

    def __init__(self, function: Callable[..., Any], parameters: Sequence[Array] = ()) -> None:
        require_method("function", function, "w ↦ F(w), (p,) to (p, p), written with torch")
        self.function = function
        self.parameters = tuple(parameters)

    def action(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        matrix = self._matrices(x, w)
        return lambda v: (matrix @ v[..., None])[..., 0]

    def inverse(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        factor, info = torch.linalg.cholesky_ex(self._matrices(x, w))
        sound = (info == 0)[..., None]
        return lambda c: torch.where(sound, torch.cholesky_solve(c[..., None], factor)[..., 0], torch.nan)

    def matrix(self, w: Array) -> Array:
        """F(w), shape ``(*ensemble, p, p)``."""
        return _restored(self._matrices(_flattened(w)[0], w), w)

    def check(self, w: Array) -> None:
        matrix = self.matrix(w)
        check_fits("F(w)", matrix, w, 2)
        check_positive_definite(matrix, name="F(w) at the start")

    def check_symmetry(self, w: Array) -> None:
        check_symmetric(to_numpy(self.matrix(w)), name="F(w)")

    def _matrices(self, x: Tensor, w: Array) -> Tensor:
        """F of every member, shape ``(members, p, p)``, vectorised over members."""
        return _vectorised(self.function, x, self.parameters, w)


class VaryingDiagonalMetric(VaryingMetric):
    r"""A diagonal that varies, :math:`F = \mathrm{diag}(d(w))`: Adam's :math:`\sqrt v` for a user's second moment v(w).

    Args:
        function: ``d(w, *parameters)`` for one member, written with torch: ``w`` of shape ``(p,)`` to positive entries
            of the same shape.
        parameters: Arrays with the ensemble's leading axes.
    """

    def __init__(self, function: Callable[..., Any], parameters: Sequence[Array] = ()) -> None:
        require_method("function", function, "w ↦ d(w), (p,) to (p,), written with torch")
        self.function = function
        self.parameters = tuple(parameters)

    def action(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        diagonal = _vectorised(self.function, x, self.parameters, w)
        return lambda v: diagonal * v

    def inverse(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        diagonal = _vectorised(self.function, x, self.parameters, w)
        sound = (diagonal > 0).all(-1, keepdim=True)
        return lambda c: torch.where(sound, c / diagonal, torch.nan)

    def check(self, w: Array) -> None:
        diagonal = _vectorised(self.function, _flattened(w)[0], self.parameters, w)
        if diagonal.shape[-1] != w.shape[-1]:
            raise ValueError(f"d(w) has {diagonal.shape[-1]} entries, but w has {w.shape[-1]} coordinates.")
        smallest = float(to_numpy(diagonal).min())
        if not smallest > 0:
            raise ValueError(
                f"d(w) at the start has smallest entry {smallest:.6g}, F's smallest eigenvalue; a metric needs it "
                "positive: take roots of second moments and add an epsilon."
            )


class GramRootMetric(VaryingMetric):
    r"""Muon-like metric of a matrix variable W: :math:`F(W)V = V(W^\top W + \epsilon I)^{1/2}`.

    Muon's preconditioner is the same root of its momentum's Gram matrix; here it is a function of the position, which
    gives the flow a geometry with curvature to study (arXiv:2602.22681 sets R = 0 for Muon).

    Args:
        shape: (m, n) of W; ``w`` holds it row by row, p = m·n.
        epsilon: ε > 0, the square of F's smallest eigenvalue where W is singular.

    Raises:
        ValueError: for ε that is not positive.
    """

    def __init__(self, shape: tuple[int, int], *, epsilon: float = 1.0) -> None:
        require_positive("epsilon", epsilon, "it keeps F positive definite where W is singular")
        self.shape, self.epsilon = shape, epsilon

    def _root(self, x: Tensor) -> Tensor:
        matrix = x.reshape(-1, *self.shape)
        identity = torch.eye(self.shape[1], dtype=x.dtype, device=x.device)
        return matrix_root(matrix.mT @ matrix + self.epsilon * identity)

    def action(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        root = self._root(x)
        return lambda v: (v.reshape(-1, *self.shape) @ root).reshape(v.shape)

    def inverse(self, x: Tensor, w: Array) -> Callable[[Tensor], Tensor]:
        root = self._root(x)
        return lambda c: torch.linalg.solve(root, c.reshape(-1, *self.shape), left=False).reshape(c.shape)

    def check(self, w: Array) -> None:
        if w.shape[-1] != self.shape[0] * self.shape[1]:
            raise ValueError(f"w has {w.shape[-1]} coordinates, but the metric is for {self.shape} matrices.")


def _vectorised(function: Callable[..., Any], x: Tensor, parameters: Sequence[Array], w: Array) -> Tensor:
    thetas = []
    for theta in parameters:
        tensor = torch.as_tensor(theta).to(x)
        if tuple(tensor.shape[: w.ndim - 1]) != tuple(w.shape[:-1]):
            raise ValueError(
                f"a metric parameter has shape {tuple(tensor.shape)}, but the ensemble has axes "
                f"{tuple(w.shape[:-1])}; its leading axes must be the ensemble's."
            )
        thetas.append(tensor.reshape(-1, *tensor.shape[w.ndim - 1 :]))
    if len(x) == 1:  # vmap costs more than one small evaluation
        single = function(x[0], *(theta[0] for theta in thetas))
        if not isinstance(single, Tensor):
            raise ValueError(
                f"the metric's function returned a {type(single).__name__}; write it with torch operations."
            )
        return single[None]
    batched: Tensor = torch.func.vmap(function)(x, *thetas)
    return batched


def _flattened(w: Array, *others: Array) -> list[Tensor]:
    """The arrays as torch tensors of shape ``(members, p)``, sharing memory with numpy ones."""
    return [torch.as_tensor(x).expand(tuple(w.shape)).reshape(-1, w.shape[-1]) for x in (w, *others)]


def _restored(result: Tensor, w: Array) -> Array:
    """A result of shape ``(members, …)`` with the ensemble axes of ``w``, numpy where ``w`` is."""
    result = result.reshape(*w.shape[:-1], *result.shape[1:])
    return result if is_torch(w) else result.detach().numpy()
