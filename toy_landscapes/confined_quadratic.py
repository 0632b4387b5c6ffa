"""Saddles confined by a quartic: indefinite quadratics with known minima."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from riemannian_ode.arrays import inner, like
from riemannian_ode.checks import require_positive
from riemannian_ode.flow import Array
from toy_landscapes.arguments import check_coordinates
from toy_landscapes.landscape import Landscape
from toy_landscapes.quadratic import Quadratic


class CriticalPoints(NamedTuple):
    """Zeros of the gradient, by ascending value.

    Attributes:
        points: Shape ``(k, p)``.
        values: f at the points, shape ``(k,)``.
        indices: Number of negative Hessian eigenvalues at the points, shape ``(k,)``; 0 is a minimum.
    """

    points: np.ndarray
    values: np.ndarray
    indices: np.ndarray


class ConfinedQuadratic(Landscape):
    r""":math:`f(w) = \tfrac12 x^\top Hx + \tfrac\kappa4\lVert x\rVert^4`, :math:`x = w - w_*`, with indefinite H.

    The gradient :math:`(H + \kappa\lVert x\rVert^2)x` vanishes at the center and, for each negative eigenvalue λ_i
    with eigenvector e_i, at :math:`x = \pm\sqrt{-\lambda_i/\kappa}\,e_i` with value :math:`-\lambda_i^2/(4\kappa)`.
    The Hessian there has eigenvalue :math:`-2\lambda_i` along e_i and :math:`\lambda_j - \lambda_i` along e_j: the two
    points of the most negative eigenvalue are the global minima, all others are saddles. (An m-fold eigenvalue has a
    sphere S^{m−1} of critical points, which contains the ± e_i.) Without negative eigenvalues the center is the
    minimum.

    Args:
        quadratic: H, its frame, w_* and d_s; ``Quadratic.random(indefinite_spectrum(p, negative=2), seed=0)``.
        confinement: κ > 0.

    Raises:
        ValueError: if κ is not positive.

    Source: ours; the critical points follow from the two formulas above.
    """

    def __init__(self, quadratic: Quadratic, *, confinement: float = 1.0) -> None:
        require_positive("confinement", confinement, "f is bounded below for κ > 0")
        self.quadratic, self.confinement = quadratic, float(confinement)
        self.dimension, self.sharp_rank = quadratic.dimension, quadratic.sharp_rank

    @property
    def minimum(self) -> float:
        """The smallest value, −min(λ_p, 0)²/(4κ)."""
        return -(min(float(self.quadratic.eigenvalues[-1]), 0.0) ** 2) / (4 * self.confinement)

    @property
    def minimizers(self) -> np.ndarray:
        """The global minima, shape ``(2, p)``, or ``(1, p)`` if H has no negative eigenvalue."""
        return self.critical_points().points[: 2 if self.minimum < 0 else 1]

    def critical_points(self) -> CriticalPoints:
        """The center and ±√(−λ_i/κ) e_i for every negative eigenvalue."""
        values, frame = self.quadratic.eigenvalues, self.quadratic.basis
        points, heights, indices = [], [], []
        for i in np.flatnonzero(values < 0)[::-1]:  # eigenvalues are sorted: the most negative is last
            x = np.sqrt(-values[i] / self.confinement) * frame[:, i]
            points += [self.quadratic.minimizer + x, self.quadratic.minimizer - x]
            heights += [-(values[i] ** 2) / (4 * self.confinement)] * 2
            indices += [int((values < values[i]).sum())] * 2
        points.append(self.quadratic.minimizer)
        heights.append(0.0)
        indices.append(int((values < 0).sum()))
        return CriticalPoints(np.stack(points), np.array(heights), np.array(indices))

    def value(self, w: Array) -> Array:
        x = self._offset(w)
        return self.quadratic.value(w) + 0.25 * self.confinement * inner(x, x) ** 2

    def gradient(self, w: Array) -> Array:
        x = self._offset(w)
        return self.quadratic.gradient(w) + self.confinement * inner(x, x)[..., None] * x

    def hessian(self, w: Array) -> Array:
        x = self._offset(w)
        identity = like(np.eye(self.dimension), w)
        confining = inner(x, x)[..., None, None] * identity + 2.0 * x[..., :, None] * x[..., None, :]
        return self.quadratic.hessian(w) + self.confinement * confining

    def hvp(self, w: Array, v: Array) -> Array:
        x = self._offset(w)
        confining = inner(x, x)[..., None] * v + 2.0 * inner(x, v)[..., None] * x
        return self.quadratic.hvp(w, v) + self.confinement * confining

    def _offset(self, w: Array) -> Array:
        check_coordinates(w, self.dimension)
        return w - like(self.quadratic.minimizer, w)
