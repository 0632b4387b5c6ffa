r"""A two-dimensional valley along a hyperbola, whose river falls forever."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from riemannian_ode.arrays import inner, namespace, to_numpy
from riemannian_ode.flow import Array
from toy_landscapes.activation import sigmoid, softplus
from toy_landscapes.arguments import check_coordinates
from toy_landscapes.landscape import Landscape
from toy_landscapes.river import river_point


class ProductValley(Landscape):
    r""":math:`f(w) = \tfrac12(w_1w_2 - 1)^2 + \log(1 + e^{-w_1})`.

    The valley floor of the first term is the hyperbola :math:`w_1w_2 = 1`; the second term pushes w₁ > 0 along it with
    a vanishing force, so the infimum 0 is approached only at infinity (w₁ → ∞, w₂ = 1/w₁). The only critical point is
    the saddle :math:`(0, -\tfrac12)` with value :math:`\tfrac12 + \log 2`.

    Source: the formula is known as a toy river valley of Song et al., but was not checked against their paper. Floor,
    infimum and saddle follow from the formula.
    """

    dimension = 2
    sharp_rank = 1
    infimum = 0.0
    saddle = np.array([0.0, -0.5])
    saddle_value = 0.5 + math.log(2.0)

    def value(self, w: Array) -> Array:
        w1, _, product = self._parts(w)
        return 0.5 * (product - 1.0) ** 2 + softplus(-w1)

    def gradient(self, w: Array) -> Array:
        w1, w2, product = self._parts(w)
        residual = product - 1.0
        return namespace(w).stack([residual * w2 - sigmoid(-w1), residual * w1], axis=-1)

    def hessian(self, w: Array) -> Array:
        w1, w2, product = self._parts(w)
        xp = namespace(w)
        mixed = 2.0 * product - 1.0
        drive = sigmoid(w1) * sigmoid(-w1)
        rows = [xp.stack([w2**2 + drive, mixed], axis=-1), xp.stack([mixed, w1**2], axis=-1)]
        return xp.stack(rows, axis=-2)

    def hvp(self, w: Array, v: Array) -> Array:
        return inner(self.hessian(w), v[..., None, :])  # two numbers per row: the matrix costs nothing

    def valley_floor(self, w1: Array) -> Array:
        """Points (w₁, 1/w₁) of the hyperbola, shape ``(*batch, 2)``.

        Args:
            w1: w₁ ≠ 0, shape ``(*batch,)``.
        """
        return namespace(w1).stack([w1, 1.0 / w1], axis=-1)

    def river(self, w1: Array, *, tolerance: float = 1e-10) -> np.ndarray:
        """Points of the river over w₁ > 0: solves P(w)∇f(w) = 0 for w₂, from the floor.

        Args:
            w1: Shape ``(*batch,)``.
            tolerance: Largest ‖P∇f‖ accepted.

        Returns:
            Points, shape ``(*batch, 2)``, numpy float64.

        Raises:
            ValueError: for w₁ that is not positive.
            RiverError: if the equation is not solved to the tolerance.
        """
        along = np.asarray(to_numpy(w1), np.float64)
        if not (np.isfinite(along).all() and along.size and along.min() > 0):
            raise ValueError(f"w1 = {along!r} must be positive: the river lies on the branch w₁ > 0.")
        across = np.array([[0.0], [1.0]])
        floor = self.valley_floor(along.reshape(-1))
        points = np.stack([river_point(self, start, directions=across, tolerance=tolerance) for start in floor])
        return points.reshape(*along.shape, 2)

    def known_curves(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        along = x[x > 0.0]
        return {"river": self.river(along), "floor": self.valley_floor(along)} if len(along) else {}

    def _parts(self, w: Array) -> tuple[Array, Array, Array]:
        check_coordinates(w, 2)
        return w[..., 0], w[..., 1], w[..., 0] * w[..., 1]
