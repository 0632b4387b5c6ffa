"""The base class of landscapes: value, gradient, curvature, and the sharp/flat split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from riemannian_ode.arrays import eigh, namespace, tracks
from riemannian_ode.flow import Array, Projector
from riemannian_ode.split import PhasePoint, complement

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Landscape(ABC):
    """A smooth objective f on R^p with analytic derivatives, batched over leading axes.

    Attributes:
        dimension: Dimension p.
        sharp_rank: d_s, dimension of the sharp subspace.
    """

    dimension: int
    sharp_rank: int

    @abstractmethod
    def value(self, w: Array) -> Array:
        """f(w), shape ``(*ensemble,)``."""

    @abstractmethod
    def gradient(self, w: Array) -> Array:
        """∇f(w), shape ``(*ensemble, p)``."""

    @abstractmethod
    def hessian(self, w: Array) -> Array:
        """∇²f(w), shape ``(*ensemble, p, p)``."""

    @abstractmethod
    def hvp(self, w: Array, v: Array) -> Array:
        """∇²f(w)v without the matrix, shape ``(*ensemble, p)``."""

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Plot the landscape's heights over a plane; see :func:`toy_landscapes.plot_landscape`.

        Args:
            ax: matplotlib axes; by default those of a new figure, ``ax.figure``.
            options: ``plane``, ``extent`` and ``points``.
        """
        from toy_landscapes.plotting import plot_landscape

        return plot_landscape(self, ax, **options)

    def known_curves(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        """Curves of a two-dimensional landscape for plots, by name: points of shape ``(n, 2)``, NaN at gaps.

        Args:
            x: First coordinates at which to evaluate graphs, ascending, shape ``(n,)``.
        """
        return {}

    def sharp_basis(self, w: Array) -> Array:
        """Orthonormal top-d_s eigenvectors of ∇²f(w), by descending eigenvalue, shape ``(*ensemble, p, d_s)``."""
        hessian = self.hessian(w)
        if tracks(hessian):
            from riemannian_ode.leading_eigenvectors import leading_eigenvectors  # loads torch

            return leading_eigenvectors(hessian, self.sharp_rank)
        vectors = eigh(hessian)[1]  # ascending eigenvalues
        return namespace(w).flip(vectors, axis=-1)[..., : self.sharp_rank]

    def flat_projector(self, w: Array) -> Projector:
        """x ↦ Q(w)x, the projector off the sharp basis, for x of shape ``(*ensemble, p)``."""
        return complement(self.sharp_basis(w))

    def sharp_projection(self, w: Array, x: Array) -> Array:
        """P(w)x, shape ``(*ensemble, p)``."""
        return x - self.flat_projector(w)(x)

    def flat_split(self, point: PhasePoint) -> Projector:
        """x ↦ Q(w)x at a point of phase space: pass it as ``flat=`` to :meth:`RISHD.from_optimizer`."""
        return self.flat_projector(point.w)
