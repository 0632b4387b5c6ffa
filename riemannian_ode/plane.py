"""Planes in parameter space for plotting trajectories and landscapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.checks import shown
from riemannian_ode.flow import Array


@dataclass(frozen=True)
class Plane:
    r"""The points :math:`w = c + x\,d_1 + y\,d_2` with orthonormal directions.

    Args:
        center: c, shape ``(p,)``.
        directions: d₁ and d₂, shape ``(2, p)``; made orthonormal in this order.
        labels: Names of x and y.

    Raises:
        ValueError: for shapes that do not fit, numbers that are not finite, or directions that are parallel.
    """

    center: np.ndarray
    directions: np.ndarray
    labels: tuple[str, str] = ("x", "y")

    def __post_init__(self) -> None:
        center, directions = np.asarray(self.center, dtype=np.float64), np.asarray(self.directions, dtype=np.float64)
        if center.ndim != 1 or directions.shape != (2, center.size):
            raise ValueError(
                f"center has shape {center.shape} and directions {directions.shape}; give a point of shape (p,) and "
                "directions of shape (2, p)."
            )
        if not (np.isfinite(center).all() and np.isfinite(directions).all()):
            raise ValueError("center or directions hold numbers that are not finite.")
        columns, triangle = np.linalg.qr(directions.T)
        if center.size < 2 or np.abs(np.diag(triangle)).min() <= 1e-12 * np.abs(triangle).max():
            raise ValueError("directions are parallel or zero; give two that span a plane.")
        object.__setattr__(self, "center", center)
        object.__setattr__(self, "directions", columns.T * np.sign(np.diag(triangle))[:, None])

    @classmethod
    def of_coordinates(cls, dimension: int, first: int = 0, second: int = 1, *, center: Array | None = None) -> Plane:
        """The plane of two coordinates.

        Args:
            dimension: p.
            first: Index of the horizontal coordinate, from 0; negative indices count from the end.
            second: Index of the vertical one.
            center: Point on the plane; 0 by default. Its values in the two coordinates are ignored.

        Raises:
            ValueError: for fewer than two coordinates, or numbers that are out of range or equal.
        """
        if dimension < 2:
            raise ValueError(
                f"dimension = {dimension!r}: a plane needs two coordinates; plot the value over w instead."
            )
        for name, number in (("first", first), ("second", second)):
            if not -dimension <= number < dimension:
                raise ValueError(
                    f"{name} = {number!r} is not one of the {dimension} coordinates; take 0 to {dimension - 1}."
                )
        i, j = first % dimension, second % dimension
        if i == j:
            raise ValueError(f"first and second are both coordinate {i}; give two of them.")
        point = np.zeros(dimension) if center is None else np.array(to_numpy(center), dtype=np.float64)
        if point.shape == (dimension,):
            point[[i, j]] = 0.0
        return cls(point, np.eye(dimension)[[i, j]], (f"w{_subscript(i + 1)}", f"w{_subscript(j + 1)}"))

    @classmethod
    def random(cls, center: Array, *, seed: int = 0) -> Plane:
        """A random plane through a point.

        Args:
            center: Point, shape ``(p,)``.
            seed: Seed of the random directions.
        """
        point = to_numpy(center)
        return cls(point, np.random.default_rng(seed).standard_normal((2, point.size)), ("random 1", "random 2"))

    @classmethod
    def of_hessian(cls, landscape: Any, center: Array, *, first: int = -1, second: int = 0) -> Plane:
        """The plane of two eigenvectors of the Hessian at a point, by default the flattest and the sharpest.

        Args:
            landscape: Has ``hessian(w)``.
            center: Point, shape ``(p,)``.
            first: Index of the horizontal eigenvector, from 0 for the largest eigenvalue.
            second: Index of the vertical one.
        """
        point = to_numpy(center)
        vectors = np.linalg.eigh(to_numpy(landscape.hessian(point)))[1][:, ::-1]
        names = [f"eigenvector {k % point.size + 1}" for k in (first, second)]
        return cls(point, vectors[:, [first, second]].T, (names[0], names[1]))

    @classmethod
    def through(cls, points: Array | Sequence[Array]) -> Plane:
        """The plane closest to given points, e.g. of trajectories, spanned by their first two principal components.

        Args:
            points: Array of shape ``(…, p)``, or several arrays.

        Raises:
            ValueError: if they lie on a line.
        """
        arrays = points if isinstance(points, (list, tuple)) else [points]
        rows = np.concatenate([to_numpy(each).reshape(-1, np.shape(each)[-1]) for each in arrays])
        rows = rows[np.isfinite(rows).all(axis=1)]
        if len(rows) < 3:
            raise ValueError(f"points has {len(rows)} finite points; a plane needs three.")
        center = rows.mean(axis=0)
        components = np.linalg.svd(rows - center, full_matrices=False)[2]
        return cls(center, components[:2], ("component 1", "component 2"))

    def project(self, w: Array) -> np.ndarray:
        """Coordinates (x, y) of the closest points of the plane, shape ``(…, 2)``.

        Args:
            w: Shape ``(…, p)``.

        Raises:
            ValueError: for points of another dimension.
        """
        points = to_numpy(w)
        if points.shape[-1:] != self.center.shape:
            raise ValueError(
                f"points have shape {points.shape}, but the plane lies in {self.center.size} dimensions; make one for "
                "these points."
            )
        found: np.ndarray = (points - self.center) @ self.directions.T
        return found

    def lift(self, xy: np.ndarray) -> np.ndarray:
        """Points of the plane, shape ``(…, p)``, from coordinates of shape ``(…, 2)``."""
        points: np.ndarray = self.center + xy @ self.directions
        return points


def as_plane(plane: Plane | tuple[int, int] | None, dimension: int) -> Plane:
    """Convert an argument to a plane: a plane, two coordinate indices, or ``None`` for the first two.

    Args:
        plane: The argument.
        dimension: p.
    """
    if isinstance(plane, Plane):
        return plane
    if plane is None:
        return Plane.of_coordinates(dimension)
    if isinstance(plane, (tuple, list)) and len(plane) == 2 and all(isinstance(k, (int, np.integer)) for k in plane):
        return Plane.of_coordinates(dimension, int(plane[0]), int(plane[1]))
    raise ValueError(f"plane = {shown(plane)} must be a Plane, or the numbers of two coordinates such as (0, 1).")


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
