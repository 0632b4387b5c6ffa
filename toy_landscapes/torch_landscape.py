"""Any torch function as a landscape, with derivatives by torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from riemannian_ode.arrays import is_torch
from riemannian_ode.checks import require_method
from riemannian_ode.flow import Array
from toy_landscapes.arguments import check_coordinates, checked_sharp_rank
from toy_landscapes.landscape import Landscape

# Hessian columns computed at once, which bounds memory to this many gradients' worth.
_COLUMNS = 128


class TorchLandscape(Landscape):
    """A landscape from a scalar torch function of one member, vectorised over members by ``torch.func.vmap``.

    Points may be numpy arrays, which are passed through torch without a copy, or tensors on any device.

    Args:
        function: ``f(w)`` for one member, written with torch: ``w`` of shape ``(p,)`` to a scalar tensor. It must be
            twice differentiable in forward-over-reverse mode.
        dimension: p.
        sharp_rank: d_s; a tenth of p by default, at least 1.

    Raises:
        ValueError: for a function that is not callable, a dimension below 1 or a rank outside 0 … p.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], *, dimension: int, sharp_rank: int | None = None) -> None:
        require_method("function", function, "w ↦ f(w), (p,) to a scalar tensor, written with torch")
        if dimension < 1:
            raise ValueError(f"dimension = {dimension!r} must be at least 1.")
        self.function, self.dimension = function, dimension
        self.sharp_rank = checked_sharp_rank(sharp_rank, dimension)

    def value(self, w: Array) -> Array:
        return self.mapped(self.function, w)

    def gradient(self, w: Array) -> Array:
        return self.mapped(grad(self.function), w)

    def hvp(self, w: Array, v: Array) -> Array:
        slope = grad(self.function)
        return self.mapped(lambda x, y: jvp(slope, (x,), (y,))[1], w, v)

    def hessian(self, w: Array) -> Array:
        slope = grad(self.function)

        def matrix(x: Tensor) -> Tensor:
            units = torch.eye(self.dimension, dtype=x.dtype, device=x.device)
            columns: Tensor = vmap(lambda unit: jvp(slope, (x,), (unit,))[1], chunk_size=_COLUMNS)(units)
            return 0.5 * (columns + columns.mT)

        return self.mapped(matrix, w, chunk_size=1)  # the columns of one member already fill the machine

    def mapped(self, function: Callable[..., Any], w: Array, *others: Array, chunk_size: int | None = None) -> Array:
        """Apply a function of one member to all members.

        Args:
            function: Function of w and the others, one member of each.
            w: Points, shape ``(*ensemble, p)``.
            others: Arrays of shape ``(*ensemble, n)``; leading axes broadcast against those of w.
            chunk_size: Members per batch; all by default.

        Returns:
            Shape ``(*ensemble, *result)``, numpy if w is numpy.
        """
        check_coordinates(w, self.dimension)
        arrays = [_tensor(x) for x in (w, *others)]
        ensemble = np.broadcast_shapes(*(tuple(x.shape[:-1]) for x in arrays))
        flat = [x.expand(*ensemble, x.shape[-1]).reshape(-1, x.shape[-1]) for x in arrays]
        # vmap costs more than one small evaluation.
        stacked = (
            function(*(x[0] for x in flat))[None] if len(flat[0]) == 1 else vmap(function, chunk_size=chunk_size)(*flat)
        )
        result: Tensor = stacked.reshape((*ensemble, *stacked.shape[1:]))
        return result if is_torch(w) else result.detach().numpy()


def _tensor(x: Array) -> Tensor:
    return x if is_torch(x) else torch.from_numpy(np.require(x, requirements=["C", "W"]))  # no copy if already both
