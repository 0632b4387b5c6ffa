r"""River valleys of any dimension: a gently falling river between steep walls, straight or meandering.

The river is :math:`\{w : P(w)\nabla f(w) = 0\}` with P(w) the projector on the top eigenspace of the Hessian (Wen et
al., arXiv:2410.05192). In a curved valley it is *not* the valley floor (the minimum over the walls), so it is solved
for numerically.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import root

from riemannian_ode.arrays import like, namespace, to_numpy
from riemannian_ode.checks import require_positive
from riemannian_ode.flow import Array, Projector
from toy_landscapes.arrow import flattest_of_two, smallest_eigenvector
from toy_landscapes.landscape import Landscape


class RiverError(RuntimeError):
    """The river could not be solved for at some u; the message says where."""


class RiverValley(Landscape):
    r""":math:`f(u, s) = h(u) + \tfrac12 \sum_j \lambda_j (s_j - c_j(u_1))^2`, with :math:`w = (u, s)`.

    The floor profile is :math:`h(u) = \sum_i k_i\delta^2(\sqrt{1 + (u_i/\delta)^2} - 1)`: curvature k_i near the end of
    the river, slope k_iδ far from it (a quadratic for δ = ∞). The walls meander as
    :math:`c_j(u_1) = a_j \sin(\omega u_1 + \varphi_j)`; a_j = 0 is the straight valley.

    Args:
        wall_curvatures: λ_j > 0, shape ``(d_s,)``; must exceed the floor's curvatures.
        floor_curvatures: k_i > 0, shape ``(d_f,)``.
        floor_width: δ > 0, in units of u.
        amplitudes: a_j, shape ``(d_s,)`` or a scalar; 0 by default.
        frequency: ω, per unit of u.
        phases: φ_j, shape ``(d_s,)`` or a scalar, radians.

    Raises:
        ValueError: for curvatures that are not positive, walls flatter than the floor, or shapes that do not match.

    Source: river valleys as in arXiv:2410.05192 and arXiv:2602.22681; this family is ours (docs/theory, claim C11).
    """

    def __init__(
        self,
        wall_curvatures: Array,
        *,
        floor_curvatures: Array = (0.05,),
        floor_width: float = math.inf,
        amplitudes: Array = 0.0,
        frequency: float = 1.0,
        phases: Array = 0.0,
    ) -> None:
        self.walls = _vector("wall_curvatures", wall_curvatures)
        self.floor = _vector("floor_curvatures", floor_curvatures)
        for name, curvatures in (("wall_curvatures", self.walls), ("floor_curvatures", self.floor)):
            require_positive(f"min({name})", float(curvatures.min()), "a valley needs positive curvatures")
        if self.walls.min() <= self.floor.max():
            raise ValueError(
                f"wall_curvatures has minimum {self.walls.min():g}, floor_curvatures has maximum {self.floor.max():g}; "
                "the walls must be steeper than the floor."
            )
        if not floor_width > 0:
            raise ValueError(f"floor_width = {floor_width!r} must be positive (math.inf for a quadratic floor).")
        self.width = float(floor_width)
        try:
            self.amplitudes = np.array(np.broadcast_to(to_numpy(amplitudes), self.walls.shape), np.float64)
            self.phases = np.array(np.broadcast_to(to_numpy(phases), self.walls.shape), np.float64)
        except ValueError:
            raise ValueError(f"amplitudes and phases must be scalars or have shape {self.walls.shape}.") from None
        self.frequency = float(frequency)
        self.flat_rank, self.sharp_rank = self.floor.size, self.walls.size
        self.dimension = self.flat_rank + self.sharp_rank

    @property
    def is_straight(self) -> bool:
        """Whether the walls do not meander."""
        return bool(np.all(self.amplitudes == 0) or self.frequency == 0)

    def value(self, w: Array) -> Array:
        u, residual = self._split(w)
        return self._profile(u, 0).sum(-1) + 0.5 * (like(self.walls, w) * residual**2).sum(-1)

    def gradient(self, w: Array) -> Array:
        u, residual = self._split(w)
        along = self._profile(u, 1)
        pull = like(self.walls, w) * residual
        if self.is_straight:
            return namespace(w).concat([along, pull], axis=-1)
        bend = (pull * self._meander(u, 1)).sum(-1)[..., None]
        return namespace(w).concat([along[..., :1] - bend, along[..., 1:], pull], axis=-1)

    def hessian(self, w: Array) -> Array:
        u, residual = self._split(w)
        d, walls = self.flat_rank, like(self.walls, w)
        hessian = namespace(w).zeros_like(w)[..., None] * namespace(w).zeros_like(w)[..., None, :]
        curvature = self._profile(u, 2)
        for i in range(d):
            hessian[..., i, i] = curvature[..., i]
        slope = self._meander(u, 1)
        hessian[..., 0, 0] += (walls * (slope**2 - residual * self._meander(u, 2))).sum(-1)
        for j in range(self.sharp_rank):
            hessian[..., d + j, d + j] = walls[j]
            hessian[..., 0, d + j] = hessian[..., d + j, 0] = -walls[j] * slope[..., j]
        return hessian

    def hvp(self, w: Array, v: Array) -> Array:
        u, residual = self._split(w)
        walls, slope = like(self.walls, w), self._meander(u, 1)
        v_u, v_s = v[..., : self.flat_rank], v[..., self.flat_rank :]
        along = self._profile(u, 2) * v_u
        bend = (walls * (slope**2 - residual * self._meander(u, 2))).sum(-1) * v_u[..., 0]
        along[..., 0] += bend - (walls * slope * v_s).sum(-1)
        return namespace(w).concat([along, walls * (v_s - slope * v_u[..., :1])], axis=-1)

    def flat_projector(self, w: Array) -> Projector:
        r"""x ↦ Q(w)x in linear time.

        The Hessian couples the walls only to u_1, so the flat space is spanned by u_2, …, u_{d_f} and the smallest
        eigenvector of an arrow matrix (:func:`toy_landscapes.arrow.smallest_eigenvector`); with a single wall it has a
        closed form (:func:`toy_landscapes.arrow.flattest_of_two`).
        """
        u, residual = self._split(w)
        d, xp = self.flat_rank, namespace(w)
        if self.is_straight:
            return lambda x: xp.concat([x[..., :d], xp.zeros_like(x[..., d:])], axis=-1)
        walls, slope = like(self.walls, w), self._meander(u, 1)
        head = self._profile(u, 2)[..., 0] + (walls * (slope**2 - residual * self._meander(u, 2))).sum(-1)
        coupling = -walls * slope
        if self.sharp_rank == 1:
            on_first = flattest_of_two(head[..., None], coupling, walls)

            def project_pair(x: Array) -> Array:
                first, wall = on_first(x[..., :1], x[..., d:])
                return xp.concat([first, x[..., 1:d], wall], axis=-1)

            return project_pair
        v_head, v_walls = smallest_eigenvector(head, coupling, self.walls)

        def project(x: Array) -> Array:
            along = v_head * x[..., :1] + (v_walls * x[..., d:]).sum(-1)[..., None]
            return xp.concat([v_head * along, x[..., 1:d], v_walls * along], axis=-1)

        return project

    def valley_floor(self, u: Array) -> Array:
        """Points (u, argmin_s f(u, s)), shape ``(*batch, p)``.

        Args:
            u: Flat coordinates, shape ``(*batch, d_f)``.
        """
        return namespace(u).concat([u, self._meander(u, 0)], axis=-1)

    def river(self, u: Array, *, tolerance: float = 1e-10) -> np.ndarray:
        """Points of the river over u: solves P(w)∇f(w) = 0 for s, starting from the valley floor.

        Args:
            u: Flat coordinates, shape ``(*batch, d_f)``.
            tolerance: Largest ‖P∇f‖ accepted, in units of the gradient.

        Returns:
            Points, shape ``(*batch, p)``, numpy float64.

        Raises:
            RiverError: if no point satisfies the equation to the tolerance.

        Source: definition of the river, arXiv:2410.05192.
        """
        along = np.asarray(to_numpy(u), np.float64)
        if along.ndim == 0 or along.shape[-1] != self.flat_rank:
            raise ValueError(
                f"u has shape {along.shape}; its last axis must hold the {self.flat_rank} flat coordinates."
            )
        start = self.valley_floor(along).reshape(-1, self.dimension)
        points = np.stack([self._solve_river(point, tolerance) for point in start])
        return points.reshape(*along.shape[:-1], self.dimension)

    def known_curves(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        return {"river": self.river(x[:, None]), "floor": self.valley_floor(x[:, None])} if self.dimension == 2 else {}

    def _solve_river(self, floor_point: np.ndarray, tolerance: float) -> np.ndarray:
        d = self.flat_rank
        frame = self.sharp_basis(floor_point)  # fixed: eigenvectors at w may flip sign or rotate, P(w) does not

        def equation(s: np.ndarray) -> np.ndarray:
            w = np.concatenate([floor_point[:d], s])
            projected: np.ndarray = frame.T @ self.sharp_projection(w, self.gradient(w))
            return projected

        found: Any = root(equation, floor_point[d:], method="hybr", options={"xtol": 1e-14})
        point = np.concatenate([floor_point[:d], found.x])
        miss = float(np.linalg.norm(self.sharp_projection(point, self.gradient(point))))
        if not miss <= tolerance:
            raise RiverError(
                f"no river found at u = {floor_point[:d]}: |P∇f| = {miss:.3g} > {tolerance:g} ({found.message}); the "
                "walls may be too flat for their meander."
            )
        return point

    def _split(self, w: Array) -> tuple[Array, Array]:
        if w.shape[-1] != self.dimension:
            raise ValueError(
                f"w has shape {tuple(w.shape)}; its last axis must hold {self.dimension} coordinates (u, s)."
            )
        u, s = w[..., : self.flat_rank], w[..., self.flat_rank :]
        return u, s if self.is_straight else s - self._meander(u, 0)

    def _profile(self, u: Array, derivative: int) -> Array:
        """h_i(u_i) or its first or second derivative, shape of ``u``."""
        k = like(self.floor, u)
        if math.isinf(self.width):
            return k + 0.0 * u if derivative == 2 else k * u if derivative else 0.5 * k * u**2
        stretch = (1.0 + ((1.0 / self.width) * u) ** 2) ** 0.5
        if derivative == 0:
            return k * self.width**2 * (stretch - 1.0)
        shrink = 1.0 / stretch
        return k * u * shrink if derivative == 1 else k * (shrink * shrink * shrink)

    def _meander(self, u: Array, derivative: int) -> Array:
        """c_j(u_1) or its first or second derivative, shape ``(*batch, d_s)``."""
        xp = namespace(u)
        amplitudes, omega = like(self.amplitudes, u), self.frequency
        angle = omega * u[..., :1] + like(self.phases, u)
        if derivative == 1:
            return amplitudes * omega * xp.cos(angle)
        wave = amplitudes * xp.sin(angle)
        return wave if derivative == 0 else -(omega**2) * wave


def _vector(name: str, values: Array) -> np.ndarray:
    array = np.atleast_1d(np.asarray(to_numpy(values), dtype=np.float64))
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} has shape {array.shape}; give finite numbers of shape (d,).")
    return array
