"""What a view can be made of: landscapes, metrics and ranges, each declared once as the Python text that builds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from riemannian_ode import INTEGRATORS


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A landscape, where flows start on it, and the part of it that is drawn.

    Args:
        title: For people.
        landscape: Python expression.
        start: Python expression of w₀.
        shape: Shape of the parameter, for preconditioners of matrices.
        extent: Ranges of x and y in the plane.
        minimum: Python expression of the place whose curvature is measured; of a landscape that falls forever, one on
            its floor.
        plane: Python expression of the plane; empty for the two coordinates.
    """

    title: str
    landscape: str
    start: str
    shape: tuple[int, int]
    extent: tuple[tuple[float, float], tuple[float, float]]
    minimum: str
    plane: str = ""

    @property
    def dimension(self) -> int:
        """p."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A metric or preconditioner.

    Args:
        title: For people.
        code: Python expression, with ``{sharp}`` for the number of sharp directions and ``{of}`` for that of all.
        counts: What ``of`` counts: coordinates, columns, or singular directions.
        remembers: Whether it is a preconditioner with memory, whose mask is its own.
        shaped: Whether it is one of matrices.
    """

    title: str
    code: str
    counts: Literal["coordinates", "columns", "singular directions"] = "coordinates"
    remembers: bool = True
    shaped: bool = False

    def directions(self, scene: Scene) -> int:
        """How many directions can be sharp on a landscape."""
        return {"coordinates": scene.dimension, "columns": scene.shape[1], "singular directions": min(scene.shape)}[
            self.counts
        ]


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number that a slider sets.

    Args:
        label: For people.
        low: Smallest value.
        high: Largest value.
        step: Of the slider; 0 for a logarithmic one.
    """

    label: str
    low: float
    high: float
    step: float


_EIGENPLANE = "Plane.of_hessian(landscape, landscape.minimizer)"

SCENES: Mapping[str, Scene] = {
    "river": Scene(
        title="River valley, curved",
        landscape="RiverValley([8.0], floor_curvatures=[0.05], floor_width=2.0, amplitudes=0.8, frequency=0.7)",
        start="np.array([-9.0, 1.6])",
        shape=(1, 2),
        extent=((-10.5, 3.0), (-2.4, 2.4)),
        minimum="np.zeros(2)",
    ),
    "widening": Scene(
        title="Straight valley of varying width",
        landscape="StraightValley(Quadratic([0.15]), [4.0], variation=[3.0], frequency=1.6)",
        start="np.array([-4.5, 1.4])",
        shape=(1, 2),
        extent=((-5.2, 2.2), (-2.0, 2.0)),
        minimum="np.zeros(2)",
    ),
    "hyperbola": Scene(
        title="Hyperbola valley, falling forever",
        landscape="ProductValley()",
        start="np.array([0.4, 3.4])",
        shape=(1, 2),
        extent=((-1.0, 7.0), (-1.0, 4.0)),
        minimum="landscape.valley_floor(np.array(2.0))",
    ),
    "saddle": Scene(
        title="Saddle held by a quartic",
        landscape="ConfinedQuadratic(Quadratic.random([1.5, -1.0], seed=3), confinement=0.5)",
        start="np.array([2.0, -0.62])",
        shape=(1, 2),
        extent=((-2.4, 2.4), (-2.4, 2.4)),
        minimum="landscape.minimizers[0]",
    ),
    "factorization": Scene(
        title="Matrix factorisation, 1×1",
        landscape="MatrixFactorization([[1.0]], rank=1)",
        start="np.array([2.2, -0.4])",
        shape=(1, 2),
        extent=((-1.0, 2.5), (-1.5, 2.5)),
        minimum="np.ones(2)",
    ),
    "quadratic": Scene(
        title="Quadratic, 16 dimensions, λₖ = 1/k",
        landscape="Quadratic.random(power_law_spectrum(16), seed=0)",
        start="2.0 * np.random.default_rng(0).standard_normal(16)",
        shape=(4, 4),
        extent=((-5.0, 5.0), (-5.0, 5.0)),
        minimum="landscape.minimizer",
        plane=_EIGENPLANE,
    ),
    "regression": Scene(
        title="Linear regression of a 4×4 matrix",
        landscape="LinearRegression.synthetic(power_law_spectrum(4), power_law_spectrum(4), samples=64, seed=0)",
        start="np.zeros(16)",
        shape=(4, 4),
        extent=((-3.0, 3.0), (-3.0, 3.0)),
        minimum="landscape.minimizer",
        plane=_EIGENPLANE,
    ),
}

GEOMETRIES: Mapping[str, Geometry] = {
    "euclidean": Geometry(title="Euclidean (momentum SGD)", code="Euclidean()", remembers=False),
    "diagonal": Geometry(
        title="Diagonal, root of the curvature at the start",
        code="DiagonalMetric(0.1 + np.sqrt(np.abs(np.diagonal(landscape.hessian(start)))))",
        remembers=False,
    ),
    "second-moment": Geometry(
        title="Second moment (Adam)",
        code="SecondMoment(beta2=0.95, mask=CoordinateMask(sharp_fraction={sharp} / {of}))",
    ),
    "sign": Geometry(title="Sign (Lion)", code="Sign(sharp_fraction={sharp} / {of})"),
    "polar-factor": Geometry(
        title="Polar factor (Muon)",
        code='PolarFactor(iteration="svd", mask=ExactSubspace(sharp_fraction={sharp} / {of}))',
        counts="singular directions",
        shaped=True,
    ),
    "kronecker-root": Geometry(
        title="Kronecker root (Shampoo)",
        code="KroneckerRoot(beta2=0.95, eps=1e-6, sharp_fraction={sharp} / {of})",
        counts="columns",
        shaped=True,
    ),
    "eigenbasis-moment": Geometry(
        title="Second moment in the eigenbasis (SOAP)",
        code="EigenbasisMoment(beta2=0.95, mask=CoordinateMask(sharp_fraction={sharp} / {of}))",
        shaped=True,
    ),
}

RANGES: Mapping[str, Range] = {
    "chi": Range(label="χ, learning-rate ratio of flat directions", low=0.0, high=20.0, step=0.1),
    "beta_flat": Range(label="β♭, Hessian damping of flat directions", low=-0.9, high=10.0, step=0.05),
    "beta_sharp": Range(label="β♯, Hessian damping of sharp directions", low=-0.9, high=5.0, step=0.05),
    "eta": Range(label="η, learning rate", low=1e-4, high=10.0, step=0.0),
    "alpha": Range(label="α, damping (1 − momentum)", low=0.01, high=1.0, step=0.01),
    "sharp": Range(label="r, number of sharp directions", low=0, high=16, step=1),
    "noise": Range(label="σ, noise in the gradient", low=0.0, high=3.0, step=0.05),
    "h": Range(label="h, step of the integrator", low=0.05, high=2.0, step=0.05),
    "steps": Range(label="number of steps", low=10, high=1000, step=10),
}


_REFUSE_SPLITS = ("ubu", "discrete-gradient")  # theirs is another theory: a constant split, or none


def integrators(*, geometry: Geometry, noisy: bool) -> tuple[str, ...]:
    """Integrators of fixed steps that take a split, a metric, and noise if there is some.

    Args:
        geometry: The metric.
        noisy: Whether the gradient is noisy.
    """
    return tuple(
        name
        for name, scheme in INTEGRATORS.items()
        if not scheme.adaptive
        and name not in _REFUSE_SPLITS
        and (scheme.handles_memory or not geometry.remembers)
        and (scheme.stochastic is not None or not noisy)
    )
