r"""Straight river valleys whose width varies along the river (claim C11)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from riemannian_ode.arrays import inner, like, matvec, namespace, to_numpy
from riemannian_ode.flow import Array
from toy_landscapes.arguments import check_coordinates, finite_array, symmetric
from toy_landscapes.landscape import Landscape
from toy_landscapes.quadratic import Quadratic


class StraightValley(Landscape):
    r""":math:`f(u, s) = h(u) + \tfrac12 s^\top\Lambda(u)s`, with :math:`w = (u, s)`.

    The walls are :math:`\Lambda(u) = \Lambda_0 + \sin(\omega\cdot u + \varphi)\,\Lambda_1`: their curvatures, and their
    axes if Λ₀ and Λ₁ do not commute, change along the river. As :math:`\lambda_{\min}(\Lambda_0 + t\Lambda_1)` is
    concave in t, its minimum over −1 ≤ t ≤ 1 lies at an end, so

    .. math:: \mathrm{gap} = \min_\pm\lambda_{\min}(\Lambda_0\pm\Lambda_1) - \sup_u\lambda_{\max}(\nabla^2h(u)) > 0

    makes the walls steeper than the floor everywhere. Then on s = 0 the top-d_s eigenspace of the Hessian is exactly
    the s-coordinates, the river is s = 0, and with a metric that is block-diagonal in (u, s) the flow on it is the
    flow on h.

    Args:
        floor: h, any landscape; a :class:`Quadratic` needs no ``floor_curvature``.
        walls: Λ₀, symmetric, shape ``(d_s, d_s)``, or its diagonal, shape ``(d_s,)``.
        variation: Λ₁, the same shapes; 0 by default.
        frequency: ω, shape ``(d_f,)`` or a scalar for every coordinate, radians per unit of u.
        phase: φ, radians.
        floor_curvature: Upper bound of λ_max(∇²h) in the region of interest; needed for floors other than a Quadratic.

    Raises:
        ValueError: if the gap is not positive, for shapes that do not match, or a floor without known curvature.

    Source: the straight river of claim C11(a); this Λ(u) is ours, and the gap is derived here.
    """

    def __init__(
        self,
        floor: Landscape,
        walls: Array,
        *,
        variation: Array | None = None,
        frequency: Array = 1.0,
        phase: float = 0.0,
        floor_curvature: float | None = None,
    ) -> None:
        self.floor, self.phase = floor, float(phase)
        self.walls = symmetric("walls", _as_matrix(walls))
        self.variation = (
            np.zeros_like(self.walls) if variation is None else symmetric("variation", _as_matrix(variation))
        )
        if self.variation.shape != self.walls.shape:
            raise ValueError(f"variation has shape {self.variation.shape}; it must fit walls, {self.walls.shape}.")
        self.flat_rank, self.sharp_rank = floor.dimension, len(self.walls)
        self.dimension = self.flat_rank + self.sharp_rank
        self.frequency = finite_array("frequency", np.broadcast_to(frequency, self.flat_rank), (self.flat_rank,))
        if floor_curvature is None:
            if not isinstance(floor, Quadratic):
                raise ValueError(
                    f"floor is a {type(floor).__name__}, whose largest curvature is unknown; give floor_curvature, an "
                    "upper bound of λ_max(∇²h)."
                )
            floor_curvature = float(floor.eigenvalues[0])
        steepness = min(np.linalg.eigvalsh(self.walls + sign * self.variation)[0] for sign in (-1.0, 1.0))
        self.gap = float(steepness - floor_curvature)
        if not (self.gap > 0 and steepness > 0):
            raise ValueError(
                f"walls ± variation has smallest eigenvalue {steepness:g}, the floor has curvature up to "
                f"{floor_curvature:g}; the walls must be steeper than the floor and positive."
            )

    @property
    def separated_radius(self) -> float:
        r"""Radius r: for ‖s‖ < r the d_s largest Hessian eigenvalues are separated from the others; ∞ if Λ is constant.

        .. math:: r = \frac{\sqrt{1 + 2\,\mathrm{gap}/\lVert\Lambda_1\rVert} - 1}{\lVert\omega\rVert}

        Cauchy's interlacing bounds the d_s-th eigenvalue below by λ_min(Λ); Weyl's inequality bounds the next one above
        by :math:`\sup\lambda_{\max}(\nabla^2h) + \tfrac12\lVert\omega\rVert^2\lVert\Lambda_1\rVert\lVert s\rVert^2 +
        \lVert\omega\rVert\lVert\Lambda_1\rVert\lVert s\rVert`.

        Source: derived here.
        """
        scale, rate = np.linalg.norm(self.variation, 2), np.linalg.norm(self.frequency)
        return float(np.inf if scale * rate == 0 else (np.sqrt(1 + 2 * self.gap / scale) - 1) / rate)

    def river(self, u: Array) -> Array:
        """Points (u, 0) of the river, shape ``(*batch, p)``.

        Args:
            u: Flat coordinates, shape ``(*batch, d_f)``.
        """
        return namespace(u).concat([u, u @ like(np.zeros((self.flat_rank, self.sharp_rank)), u)], axis=-1)

    def known_curves(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        return {"river": self.river(x[:, None])} if self.dimension == 2 else {}

    def wall_matrix(self, u: Array) -> Array:
        """Λ(u), shape ``(*batch, d_s, d_s)``."""
        wave = namespace(u).sin(self._angle(u))
        return like(self.walls, u) + wave[..., None, None] * like(self.variation, u)

    def value(self, w: Array) -> Array:
        u, s = self._split(w)
        return self.floor.value(u) + 0.5 * inner(s, matvec(self.wall_matrix(u), s))

    def gradient(self, w: Array) -> Array:
        u, s = self._split(w)
        along = self.floor.gradient(u) + self._widening(u, s)[..., None] * like(self.frequency, w)
        return namespace(w).concat([along, matvec(self.wall_matrix(u), s)], axis=-1)

    def hessian(self, w: Array) -> Array:
        u, s = self._split(w)
        xp, omega = namespace(w), like(self.frequency, w)
        bend = self._bend(u, s)[..., None, None] * (omega[:, None] * omega)
        corner = omega[:, None] * self._turn(u, s)[..., None, :]
        upper = xp.concat([self.floor.hessian(u) + bend, corner], axis=-1)
        lower = xp.concat([xp.matrix_transpose(corner), self.wall_matrix(u)], axis=-1)
        return xp.concat([upper, lower], axis=-2)

    def hvp(self, w: Array, v: Array) -> Array:
        u, s = self._split(w)
        v_u, v_s = self._split(v)
        omega, turn = like(self.frequency, w), self._turn(u, s)
        rate = inner(omega, v_u)
        along = (self._bend(u, s) * rate + inner(turn, v_s))[..., None] * omega
        across = matvec(self.wall_matrix(u), v_s) + rate[..., None] * turn
        return namespace(w).concat([self.floor.hvp(u, v_u) + along, across], axis=-1)

    def _split(self, w: Array) -> tuple[Array, Array]:
        check_coordinates(w, self.dimension)
        return w[..., : self.flat_rank], w[..., self.flat_rank :]

    def _angle(self, u: Array) -> Array:
        return inner(u, like(self.frequency, u)) + self.phase

    def _turn(self, u: Array, s: Array) -> Array:
        """cos(ω·u + φ) Λ₁s, the mixed derivative of the gradient over ω."""
        return namespace(u).cos(self._angle(u))[..., None] * matvec(like(self.variation, s), s)

    def _widening(self, u: Array, s: Array) -> Array:
        """½ cos(ω·u + φ) sᵀΛ₁s."""
        return 0.5 * inner(s, self._turn(u, s))

    def _bend(self, u: Array, s: Array) -> Array:
        """−½ sin(ω·u + φ) sᵀΛ₁s."""
        return -0.5 * namespace(u).sin(self._angle(u)) * inner(s, matvec(like(self.variation, s), s))


def _as_matrix(values: Array) -> Array:
    array = to_numpy(values)
    return np.diag(array) if array.ndim == 1 else array
