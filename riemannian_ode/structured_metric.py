"""Structured constant metrics, never formed as matrices: Kronecker products, low rank plus diagonal."""

from __future__ import annotations

import numpy as np

from riemannian_ode.arrays import as_float_array, is_torch, like, matvec, namespace, to_numpy
from riemannian_ode.flow import Array
from riemannian_ode.metric import Metric, check_fits, check_positive_definite


class KroneckerMetric(Metric):
    r"""Shampoo's form for a matrix variable W ∈ R^{m×n}: :math:`F = L \otimes R`, i.e. :math:`V \mapsto L V R`.

    ``w`` holds W row by row, p = m·n, so the matrix of F is ``kron(L, R)``; it is never formed.

    Args:
        left: L, symmetric positive definite, shape ``(m, m)`` or ``(*ensemble, m, m)``.
        right: R, symmetric positive definite, shape ``(n, n)`` or ``(*ensemble, n, n)``.

    Raises:
        ValueError: for factors that are not symmetric positive definite, naming the smallest eigenvalue.

    Source: Gupta, Koren, Singer, arXiv:1802.09568 (there L^{1/4} ⊗ R^{1/4} of the gradient's statistics).
    """

    def __init__(self, left: Array, right: Array) -> None:
        check_positive_definite(left, name="left")
        check_positive_definite(right, name="right")
        self.left, self.right = left, right
        self._left_inverse, self._right_inverse = (namespace(x).linalg.inv(x) for x in (left, right))

    def _sandwich(self, left: Array, right: Array, x: Array) -> Array:
        matrix = x.reshape(*x.shape[:-1], left.shape[-1], right.shape[-1])
        return (like(left, x) @ matrix @ like(right, x)).reshape(x.shape)

    def raise_index(self, w: Array, covector: Array) -> Array:
        return self._sandwich(self._left_inverse, self._right_inverse, covector)

    def lower_index(self, w: Array, vector: Array) -> Array:
        return self._sandwich(self.left, self.right, vector)

    def check(self, w: Array) -> None:
        m, n = self.left.shape[-1], self.right.shape[-1]
        if w.shape[-1] != m * n:
            raise ValueError(f"left and right are for {m}×{n} matrices, {m * n} coordinates, but w has {w.shape[-1]}.")


class LowRankPlusDiagonalMetric(Metric):
    r""":math:`F = \mathrm{diag}(d) + U U^\top`, raised by Woodbury's identity at cost O(pr).

    Args:
        diagonal: d > 0, shape ``(p,)`` or ``(*ensemble, p)``.
        factor: U, shape ``(p, r)`` or ``(*ensemble, p, r)``.

    Raises:
        ValueError: for entries of d that are not positive and finite, or a factor that does not fit.

    Source: Woodbury (1950); Golub and Van Loan, *Matrix Computations*, 2.1.4.
    """

    def __init__(self, diagonal: Array, factor: Array) -> None:
        d, u = to_numpy(diagonal), to_numpy(factor)
        if u.ndim < 2 or u.shape[-2] != d.shape[-1]:
            raise ValueError(f"factor has shape {u.shape}, diagonal {d.shape}; give (p, r) beside (p,).")
        if not (np.isfinite(u).all() and np.isfinite(d).all() and d.min() > 0):
            raise ValueError(
                f"diagonal has smallest entry {d.min():.3g}, a lower bound of F's smallest eigenvalue; a metric needs "
                "it positive and all entries finite."
            )
        diagonal, factor = as_float_array("diagonal", diagonal), as_float_array("factor", factor)
        if is_torch(diagonal):
            factor = like(factor, diagonal)
        elif is_torch(factor):
            diagonal = like(diagonal, factor)
        self.diagonal, self.factor = diagonal, factor
        xp, scaled = namespace(factor), factor / diagonal[..., None]
        capacitance = like(np.eye(u.shape[-1]), factor) + xp.matrix_transpose(factor) @ scaled
        # F⁻¹ = D⁻¹ − (D⁻¹U)(I + UᵀD⁻¹U)⁻¹(D⁻¹U)ᵀ, and the middle factor is split evenly between both sides.
        root = xp.linalg.inv(xp.linalg.cholesky(capacitance))
        self._inverse_factor = scaled @ xp.matrix_transpose(root)

    def raise_index(self, w: Array, covector: Array) -> Array:
        factor = like(self._inverse_factor, covector)
        inside = matvec(namespace(factor).matrix_transpose(factor), covector)
        return covector / like(self.diagonal, covector) - matvec(factor, inside)

    def lower_index(self, w: Array, vector: Array) -> Array:
        factor = like(self.factor, vector)
        inside = matvec(namespace(factor).matrix_transpose(factor), vector)
        return like(self.diagonal, vector) * vector + matvec(factor, inside)

    def check(self, w: Array) -> None:
        check_fits("diagonal", self.diagonal, w, 1)
