"""Hessians from Hessian–vector products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from riemannian_ode.arrays import like, namespace
from riemannian_ode.flow import Array


def hessian_from_products(hvp: Callable[[Array, Array], Array], w: Array) -> Array:
    """The matrix of v ↦ ∇²f(w)v, one product per column, all columns at once.

    Args:
        hvp: (w, v) ↦ ∇²f(w)v, batched over leading axes.
        w: Points, shape ``(*ensemble, p)``.

    Returns:
        Shape ``(*ensemble, p, p)``, symmetric to rounding.
    """
    units = like(np.eye(w.shape[-1]), w)
    columns = hvp(w[..., None, :], units + 0.0 * w[..., None, :])
    return 0.5 * (columns + namespace(w).matrix_transpose(columns))
