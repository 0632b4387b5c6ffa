"""Maps of the two-dimensional landscapes: heights, rivers and known critical points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from toy_landscapes import (
    BigramModel,
    ConfinedQuadratic,
    Landscape,
    MatrixFactorization,
    ProductValley,
    Quadratic,
    RiverValley,
    StraightValley,
)

_POINTS = 241  # points per grid side and per curve: smooth at the width of a text column


@dataclass(frozen=True)
class LandscapeMap:
    """A landscape over a rectangle.

    Args:
        title: Title.
        labels: Names of the two coordinates.
        x: First coordinate, shape ``(columns,)``.
        y: Second coordinate, shape ``(rows,)``.
        height: f above its infimum, shape ``(rows, columns)``.
        curves: Label to points of a curve, shape ``(points, 2)``; NaN at gaps.
        minima: Global minima, shape ``(k, 2)``.
        saddles: Saddles, shape ``(k, 2)``.
    """

    title: str
    labels: tuple[str, str]
    x: np.ndarray
    y: np.ndarray
    height: np.ndarray
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    minima: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    saddles: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))


def landscape_maps() -> tuple[LandscapeMap, ...]:
    """The six maps of the landscapes guide."""
    return (_saddle(), _straight(), _meander(), _hyperbola(), _factorization(), _bigrams())


def _grid(
    landscape: Landscape, x: tuple[float, float], y: tuple[float, float], lift: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axes and heights; ``lift`` maps the plane into the landscape's coordinates, shape ``(2, p)``."""
    columns, rows = np.linspace(*x, _POINTS), np.linspace(*y, _POINTS)
    plane = np.stack(np.meshgrid(columns, rows), axis=-1)
    return columns, rows, landscape.value(plane if lift is None else plane @ lift)


def _saddle() -> LandscapeMap:
    landscape = ConfinedQuadratic(Quadratic.random([1.5, -1.0], seed=3), confinement=0.5)
    x, y, height = _grid(landscape, (-2.4, 2.4), (-2.4, 2.4))
    found = landscape.critical_points()
    return LandscapeMap(
        "ConfinedQuadratic",
        ("w₁", "w₂"),
        x,
        y,
        height - landscape.minimum,
        minima=found.points[found.indices == 0],
        saddles=found.points[found.indices > 0],
    )


def _straight() -> LandscapeMap:
    landscape = StraightValley(Quadratic([0.15]), [4.0], variation=[3.0], frequency=1.6)
    x, y, height = _grid(landscape, (-5.0, 5.0), (-2.0, 2.0))
    return LandscapeMap(
        "StraightValley, width varies",
        ("u", "s"),
        x,
        y,
        height,
        curves=landscape.known_curves(x),
        minima=np.zeros((1, 2)),
    )


def _meander() -> LandscapeMap:
    landscape = RiverValley([2.0], floor_curvatures=[0.15], amplitudes=1.0, frequency=1.1)
    x, y, height = _grid(landscape, (-5.0, 5.0), (-3.0, 3.0))
    return LandscapeMap(
        "RiverValley",
        ("u", "s"),
        x,
        y,
        height,
        curves=landscape.known_curves(x),
        minima=np.zeros((1, 2)),
    )


def _hyperbola() -> LandscapeMap:
    landscape = ProductValley()
    x, y, height = _grid(landscape, (-1.5, 5.0), (-1.5, 4.0))
    along = np.geomspace(0.2, 5.0, _POINTS)
    return LandscapeMap(
        "ProductValley",
        ("w₁", "w₂"),
        x,
        y,
        height,
        curves={"river": landscape.river(along), "floor": landscape.valley_floor(along)},
        saddles=landscape.saddle[None],
    )


def _factorization() -> LandscapeMap:
    landscape = MatrixFactorization([[1.0]], rank=1)
    x, y, height = _grid(landscape, (-2.5, 2.5), (-2.5, 2.5))
    branch = np.geomspace(0.4, 2.5, _POINTS)
    curve = np.stack([branch, 1.0 / branch], axis=-1)
    both = np.concatenate([curve, np.full((1, 2), np.nan), -curve])
    return LandscapeMap(
        "MatrixFactorization, 1×1",
        ("U", "V"),
        x,
        y,
        height,
        curves={"curve of minima": both},
        saddles=np.zeros((1, 2)),
    )


def _bigrams() -> LandscapeMap:
    landscape = BigramModel.two_kinds(certain=1, uncertain=1, vocabulary=2, slip=0.005)
    lift = 0.5 * np.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])  # logit differences to logits
    x, y, height = _grid(landscape, (-3.0, 12.0), (-4.0, 4.0), lift)
    line = np.stack([x, np.zeros_like(x)], axis=-1)
    line[landscape.emergence(line @ lift) <= 1] = np.nan
    odds = np.log(landscape.next_token[0, 0] / landscape.next_token[0, 1])
    return LandscapeMap(
        "BigramModel, two contexts",
        ("logit difference, certain context", "the same, uncertain context"),
        x,
        y,
        height - landscape.minimum,
        curves={"river": line},
        minima=np.array([[odds, 0.0]]),
    )
