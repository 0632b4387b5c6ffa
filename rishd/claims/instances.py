"""Random instances for testing claims: objectives, metrics and coefficients, one per ensemble member."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.stats import ortho_group

from riemannian_ode.arrays import inner, like, matvec, namespace
from riemannian_ode.flow import Array
from riemannian_ode.metric import Metric, Variation
from riemannian_ode.varying_metric import StateDependentMetric


@dataclass(frozen=True)
class RippledQuadratic:
    r"""A nonconvex objective per member with minimum f(0) = 0.

    .. math:: f(w) = \tfrac12 w^\top H w + \sum_i c_i(1 - \cos w_i)

    Args:
        matrix: H, positive semidefinite, shape ``(n, p, p)``.
        ripple: c ≥ 0, shape ``(n, p)``.
    """

    matrix: np.ndarray
    ripple: np.ndarray

    def value(self, w: Array) -> Array:
        """f(w), shape ``(n,)``."""
        wave = like(self.ripple, w) * (1.0 - namespace(w).cos(w))
        return 0.5 * inner(w, matvec(like(self.matrix, w), w)) + wave.sum(-1)

    def gradient(self, w: Array) -> Array:
        """∇f(w), shape ``(n, p)``."""
        return matvec(like(self.matrix, w), w) + like(self.ripple, w) * namespace(w).sin(w)

    def hvp(self, w: Array, v: Array) -> Array:
        """∇²f(w)v, shape ``(n, p)``."""
        return matvec(like(self.matrix, w), v) + like(self.ripple, w) * namespace(w).cos(w) * v


def rippled_quadratics(rng: np.random.Generator, n: int, p: int) -> RippledQuadratic:
    """n objectives of dimension p with eigenvalues spread log-uniformly over [0.05, 3] and ripples up to 1.5."""
    basis = random_bases(rng, n, p)
    spectrum = np.exp(rng.uniform(np.log(0.05), np.log(3.0), (n, p)))
    return RippledQuadratic(from_spectrum(basis, spectrum), rng.uniform(0.0, 1.5, (n, p)))


def curved_metric(rng: np.random.Generator, n: int, p: int) -> StateDependentMetric:
    r"""n state-dependent metrics.

    .. math:: F(w) = \tfrac12 I + B(w)B(w)^\top, \qquad B_{ij} = a_{ij} + b_{ij}\sin(c_i^\top w)
    """
    import torch

    constant = rng.normal(0.0, 0.6, (n, p, p))
    swing = rng.normal(0.0, 0.6, (n, p, p))
    waves = rng.normal(0.0, 0.8, (n, p, p))

    def function(w: Any, a: Any, b: Any, c: Any) -> Any:
        root = a + b * torch.sin(c @ w)[:, None]
        return 0.5 * torch.eye(p, dtype=w.dtype) + root @ root.T

    return StateDependentMetric(function, (constant, swing, waves))


class ConformalMetric(Metric):
    r"""A constant matrix with a position-dependent scale, with its correction in closed form.

    .. math:: F(w) = e^{a\sin(c^\top w)}M, \qquad
        R = \tfrac12\left[(u\cdot v)\,m - (u\cdot n)\,Fv + (v\cdot m)\,u\right], \quad u = a\cos(c^\top w)\,c

    Args:
        matrix: M, shape ``(n, p, p)``.
        swing: a, shape ``(n,)``.
        wave: c, shape ``(n, p)``.

    Source: docs/theory, the correction without Christoffel symbols, with ∂_kF = u_kF.
    """

    variation: ClassVar[Variation] = "state"

    def __init__(self, matrix: np.ndarray, swing: np.ndarray, wave: np.ndarray) -> None:
        self.matrix, self.inverse = matrix, np.linalg.inv(matrix)
        self.swing, self.wave = swing[:, None], wave

    def _scale(self, w: Array) -> Array:
        return np.exp(self.swing * np.sin(inner(self.wave, w)[..., None]))

    def raise_index(self, w: Array, covector: Array) -> Array:
        return matvec(self.inverse, covector) / self._scale(w)

    def lower_index(self, w: Array, vector: Array) -> Array:
        return matvec(self.matrix, vector) * self._scale(w)

    def correction(self, w: Array, velocity: Array, momentum: Array) -> Array:
        slope = self.swing * np.cos(inner(self.wave, w)[..., None]) * self.wave
        raised = self.raise_index(w, momentum)
        turning = inner(slope, velocity)[..., None] * momentum
        turning = turning - inner(slope, raised)[..., None] * self.lower_index(w, velocity)
        return 0.5 * (turning + inner(velocity, momentum)[..., None] * slope)


def random_bases(rng: np.random.Generator, n: int, p: int) -> np.ndarray:
    """n orthogonal matrices, uniform (Haar), shape ``(n, p, p)``."""
    return np.asarray(ortho_group.rvs(p, size=n, random_state=rng)).reshape(n, p, p)


def rotations(entries: np.ndarray, p: int) -> np.ndarray:
    """Rotations (I − S)⁻¹(I + S) from skew matrices S with these entries, which vary smoothly (Cayley).

    Args:
        entries: Upper triangle of S, shape ``(n, p(p−1)/2)``.
        p: Dimension.
    """
    skew = np.zeros((len(entries), p, p))
    rows, columns = np.triu_indices(p, 1)
    skew[:, rows, columns], skew[:, columns, rows] = entries, -entries
    return np.asarray(np.linalg.solve(np.eye(p) - skew, np.eye(p) + skew))


def from_spectrum(basis: np.ndarray, eigenvalues: np.ndarray) -> np.ndarray:
    """U diag(λ) Uᵀ for each member, shape ``(n, p, p)``."""
    product = (basis * eigenvalues[:, None, :]) @ np.swapaxes(basis, -1, -2)
    return np.asarray(0.5 * (product + np.swapaxes(product, -1, -2)))


def relative(difference: np.ndarray, *terms: np.ndarray) -> np.ndarray:
    """‖difference‖ over the sum of the terms' norms, along the last axis: 1e−16 is rounding, 1 is clearly wrong."""
    scale = sum(np.linalg.norm(term, axis=-1) for term in terms)
    return np.asarray(np.linalg.norm(difference, axis=-1) / np.maximum(scale, np.finfo(np.float64).tiny))
