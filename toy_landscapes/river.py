"""The river of any landscape, i.e. points whose gradient has no sharp part."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import root

from riemannian_ode.flow import Array
from toy_landscapes.arguments import finite_array
from toy_landscapes.landscape import Landscape
from toy_landscapes.river_valley import RiverError


def river_point(
    landscape: Landscape, start: Array, *, directions: Array | None = None, tolerance: float = 1e-10
) -> np.ndarray:
    r"""The river point near ``start``: solves :math:`P(w)\nabla f(w) = 0` in an affine slice of dimension d_s.

    Args:
        landscape: f, with P(w) the projector on the top-d_s eigenspace of its Hessian.
        start: Start of the search, shape ``(p,)``.
        directions: Basis of the slice, shape ``(p, d_s)``; the sharp basis at ``start`` by default. It must not
            contain a direction along the river.
        tolerance: Largest ‖P∇f‖ accepted, in units of the gradient.

    Returns:
        The point, shape ``(p,)``, numpy float64.

    Raises:
        RiverError: if no point of the slice satisfies the equation to the tolerance.

    Source: definition of the river, arXiv:2410.05192.
    """
    origin = finite_array("start", start, (landscape.dimension,))
    frame = landscape.sharp_basis(origin)  # fixed: eigenvectors at w may flip sign or rotate, P(w) does not
    slice_basis = frame if directions is None else finite_array("directions", directions, frame.shape)

    def sharp_gradient(w: np.ndarray) -> np.ndarray:
        projected: np.ndarray = landscape.sharp_projection(w, landscape.gradient(w))
        return projected

    def equation(c: np.ndarray) -> np.ndarray:
        components: np.ndarray = frame.T @ sharp_gradient(origin + slice_basis @ c)
        return components

    found: Any = root(equation, np.zeros(frame.shape[-1]), method="hybr", options={"xtol": 1e-14})
    point: np.ndarray = origin + slice_basis @ found.x
    miss = float(np.linalg.norm(sharp_gradient(point)))
    if not miss <= tolerance:
        raise RiverError(
            f"no river found near {origin}: |P∇f| = {miss:.3g} > {tolerance:g} ({found.message}); start closer to the "
            "valley floor, or where sharp and flat curvatures are well separated."
        )
    return point
