"""Matrix factorisation, the simplest nonconvex landscape of matrix variables, with all global minima known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from riemannian_ode.arrays import like, namespace
from riemannian_ode.flow import Array
from toy_landscapes.arguments import checked_sharp_rank, finite_array
from toy_landscapes.curvature import hessian_from_products
from toy_landscapes.finite_sum import FiniteSum, gather
from toy_landscapes.layout import Layout


class MatrixFactorization(FiniteSum):
    r""":math:`f(U, V) = \tfrac12\lVert UV^\top - M\rVert_F^2`, with U of shape (m, r) and V of shape (n, r).

    w holds U row by row, then V row by row, p = (m + n)r; ``layout`` has the blocks ``"left"`` (U) and ``"right"`` (V).

    Global minima (Eckart and Young): with the singular values :math:`M = \sum_i\sigma_ip_iq_i^\top`, all
    :math:`UV^\top` that keep the r largest terms; :math:`f_* = \tfrac12\sum_{i>r}\sigma_i^2`. They form orbits of
    :math:`(UG, VG^{-\top})`, G invertible, so :math:`r^2` directions of the Hessian are flat there if σ_r > 0. For
    distinct singular values every local minimum is global (Baldi and Hornik, 1989); the origin is a saddle.

    As a finite sum, a sample is one entry of M: :math:`f_{ij} = \tfrac{mn}2((UV^\top)_{ij} - M_{ij})^2`, N = mn.

    Args:
        target: M, shape ``(m, n)``.
        rank: r, between 1 and min(m, n).
        sharp_rank: d_s; by default p − r², i.e. all directions except the flat ones at a minimum.

    Raises:
        ValueError: for a rank outside 1 … min(m, n).

    Source: Eckart and Young (1936); Baldi and Hornik (1989).
    """

    def __init__(self, target: Array, *, rank: int, sharp_rank: int | None = None) -> None:
        self.target = finite_array("target", target, (None, None))
        m, n = self.target.shape
        if not 1 <= rank <= min(m, n):
            raise ValueError(f"rank = {rank!r} must lie between 1 and min(m, n) = {min(m, n)}.")
        self.rank, self.samples = rank, m * n
        self.layout = Layout({"left": (m, rank), "right": (n, rank)})
        self.dimension = self.layout.dimension
        self.sharp_rank = checked_sharp_rank(
            self.dimension - rank**2 if sharp_rank is None else sharp_rank, self.dimension
        )
        p, singular_values, q = np.linalg.svd(self.target, full_matrices=False)
        roots = np.sqrt(singular_values[:rank])
        self.singular_values = singular_values
        self.minimum = 0.5 * float((singular_values[rank:] ** 2).sum())
        #: The balanced global minimum, UᵀU = VᵀV, shape ``(p,)``.
        self.minimizer = np.asarray(self.layout.pack({"left": p[:, :rank] * roots, "right": q[:rank].T * roots}))

    def value(self, w: Array) -> Array:
        return 0.5 * (self._residual(w) ** 2).sum((-2, -1))

    def gradient(self, w: Array) -> Array:
        xp, (u, v) = namespace(w), self._factors(w)
        residual = self._residual(w)
        return self.layout.pack({"left": residual @ v, "right": xp.matrix_transpose(residual) @ u})

    def hvp(self, w: Array, v: Array) -> Array:
        xp = namespace(w)
        (left, right), (dleft, dright) = self._factors(w), self._factors(v)
        residual = self._residual(w)
        change = dleft @ xp.matrix_transpose(right) + left @ xp.matrix_transpose(dright)
        return self.layout.pack(
            {
                "left": change @ right + residual @ dright,
                "right": xp.matrix_transpose(change) @ left + xp.matrix_transpose(residual) @ dleft,
            }
        )

    def hessian(self, w: Array) -> Array:
        return hessian_from_products(self.hvp, w)

    def batch_gradient(self, w: Array, indices: Array) -> Array:
        # A batch is the full gradient with each residual weighted by how often its entry was drawn.
        xp, (u, v) = namespace(w), self._factors(w)
        drawn = gather(np.eye(self.samples), indices, w).sum(-2) * (self.samples / indices.shape[-1])
        residual = self._residual(w) * drawn.reshape(*w.shape[:-1], *self.target.shape)
        return self.layout.pack({"left": residual @ v, "right": xp.matrix_transpose(residual) @ u})

    def known_curves(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        if self.dimension != 2:
            return {}
        product = float(self.target.reshape(-1)[0])
        with np.errstate(divide="ignore"):
            curve = np.stack([x, product / x], axis=-1)
        curve[~np.isfinite(curve).all(axis=-1)] = np.nan
        return {"curve of minima": curve}

    def _factors(self, w: Array) -> tuple[Array, Array]:
        blocks = self.layout.unpack(w)
        return blocks["left"], blocks["right"]

    def _residual(self, w: Array) -> Array:
        u, v = self._factors(w)
        return u @ namespace(w).matrix_transpose(v) - like(self.target, w)
