"""Plots show their input: axes, curves and points are checked as data; errors name bad input."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from riemannian_ode import RISHD, Plane, simulate
from toy_landscapes import (
    MatrixFactorization,
    ProductValley,
    Quadratic,
    RiverValley,
    StraightValley,
    animate,
    plot_flows,
    plot_landscape,
    plot_spectrum,
)


class Mine:
    """A user's objective without a dimension."""

    def value(self, w):
        return np.sum(w**2, axis=-1) + w[..., 0] * w[..., -1]

    def gradient(self, w):
        return 2.0 * w


class NoNumber(Mine):
    dimension = 2

    def value(self, w):
        return np.full(w.shape[:-1], np.nan)


VALLEY = RiverValley([8.0], floor_curvatures=[0.05], floor_width=2.0, amplitudes=0.8, frequency=0.7)
FLOW = RISHD.from_optimizer(VALLEY, alpha=0.5, eta=0.05)
RUN = simulate(FLOW, np.array([-9.0, 1.6]), h=1.0, steps=60)


def drawn(axes):
    axes.figure.canvas.draw()
    return axes


@pytest.mark.parametrize(
    "landscape",
    [
        VALLEY,
        ProductValley(),
        MatrixFactorization([[1.0]], rank=1),
        Quadratic.random([1.5, -1.0], seed=3),
        StraightValley(Quadratic([0.15]), [4.0], variation=[3.0], frequency=1.6),
        Quadratic([0.0, 0.0]),
        Quadratic.random(np.ones(5), seed=0),
    ],
    ids=lambda each: type(each).__name__,
)
def test_landscapes_are_drawn(landscape):
    axes = drawn(landscape.plot(extent=((-2.0, 3.0), (-1.0, 1.5)), points=41))
    assert axes.get_xlim() == (-2.0, 3.0) and axes.get_ylim() == (-1.0, 1.5)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("w₁", "w₂")


def test_rivers_and_floors_are_where_the_landscape_says():
    lines = {line.get_label(): line for line in VALLEY.plot(points=31).get_lines()}
    np.testing.assert_allclose(lines["river"].get_xydata(), VALLEY.river(np.linspace(-3, 3, 31)[:, None]))
    np.testing.assert_allclose(lines["floor"].get_xydata(), VALLEY.valley_floor(np.linspace(-3, 3, 31)[:, None]))


def test_known_curves_lie_where_they_should():
    """The hyperbola of minima has value 0; the river of a product valley is a river."""
    x = np.linspace(-2.0, 2.0, 9)
    minima = MatrixFactorization([[1.5]], rank=1)
    curve = minima.known_curves(x)["curve of minima"]
    kept = np.isfinite(curve).all(axis=-1)
    assert kept.sum() == 8
    np.testing.assert_allclose(minima.value(curve[kept]), 0.0, atol=1e-12)
    floor = ProductValley().known_curves(x)["floor"]
    np.testing.assert_allclose(floor[:, 0] * floor[:, 1], 1.0)
    assert ProductValley().known_curves(-np.ones(3)) == {}
    assert RiverValley([8.0, 9.0], floor_curvatures=[0.05]).known_curves(x) == {}


def test_planes_of_a_point():
    """Lifting and projecting gives the same coordinates, and the centre is the point itself."""
    center = np.array([1.0, 2.0, 3.0, 4.0])
    for plane in (Plane.random(center, seed=1), Plane.of_coordinates(4, 2, 0, center=center)):
        xy = np.random.default_rng(0).normal(size=(7, 2))
        np.testing.assert_allclose(plane.project(plane.lift(xy)), xy, atol=1e-12)
        np.testing.assert_allclose(plane.directions @ plane.directions.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(plane.lift(np.array([7.0, 8.0])), [8.0, 2.0, 7.0, 4.0])
    drawn(plot_landscape(Quadratic.random(np.ones(4), seed=0), plane=plane, points=21))


def test_objectives_of_ones_own_and_own_axes():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_landscape(Mine(), left, plane=Plane.of_coordinates(6, 1, -1), points=21) is left
    assert left.get_ylabel() == "w₆"
    VALLEY.plot(right, points=21)
    figure.canvas.draw()


def test_no_plot_touches_pyplot():
    before = plt.get_fignums(), dict(matplotlib.rcParams)
    VALLEY.plot(points=21), RUN.plot(), plot_spectrum(VALLEY, np.zeros(2)), plot_flows(VALLEY, {"base": RUN}, points=21)
    assert (plt.get_fignums(), dict(matplotlib.rcParams)) == before


def test_paths_are_the_saved_states():
    axes = VALLEY.plot(points=21, extent=((-10.0, 3.0), (-2.0, 2.0)))
    RUN.plot(axes, label="base", color="red")
    line = next(line for line in axes.get_lines() if line.get_label() == "base")
    np.testing.assert_allclose(line.get_xydata(), RUN.w)
    ensemble = simulate(FLOW, np.random.default_rng(0).normal(size=(3, 2)), h=1.0, steps=5)
    assert len(ensemble.plot().get_lines()) == 9
    assert len(ensemble.plot(members=[(1,)]).get_lines()) == 3


def test_high_dimensional_landscapes_in_planes_of_their_own():
    bowl = Quadratic.random(np.geomspace(1.0, 1e-3, 12), seed=0)
    start = np.ones(12)
    run = simulate(RISHD.from_optimizer(bowl, alpha=0.2, eta=0.1), start, h=1.0, steps=40)
    plane = Plane.through(run.w)
    inside = plane.lift(plane.project(run.w))
    rest = run.w - inside
    assert np.linalg.norm(rest) < np.linalg.norm(run.w - run.w.mean(0))
    drawn(run.plot(bowl.plot(plane=plane, points=21), plane=plane))
    line = plot_flows(bowl, {"run": run}, points=21).get_lines()[0]
    np.testing.assert_allclose(np.abs(line.get_xydata()), np.abs(plane.project(run.w)), atol=1e-9)
    eigen = Plane.of_hessian(bowl, np.zeros(12))
    curvature = [float(d @ bowl.hessian(np.zeros(12)) @ d) for d in eigen.directions]
    np.testing.assert_allclose(curvature, [1e-3, 1.0], rtol=1e-9)


def test_spectra_are_the_hessian_s():
    saddle = Quadratic.random([3.0, 0.5, -2.0], seed=0)
    positive, negative = plot_spectrum(saddle, np.zeros(3)).get_lines()[:2]
    np.testing.assert_allclose(positive.get_ydata(), [3.0, 0.5])
    np.testing.assert_allclose(negative.get_ydata(), [2.0])


@pytest.mark.parametrize("suffix", [".gif", ".html"])
def test_animations_are_written(tmp_path, suffix):
    short = {"seconds": 0.3, "frames_per_second": 10}
    path = animate(VALLEY, {"base": RUN, "again": RUN}, tmp_path / f"flow{suffix}", **short)
    assert path.stat().st_size > 10_000
    if suffix == ".gif":
        from PIL import Image

        with Image.open(path) as image:
            assert image.n_frames == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Quadratic([1.0]).plot(), "a plane needs two coordinates"),
        (lambda: VALLEY.plot(plane=(0, 0)), "both coordinate 0"),
        (lambda: VALLEY.plot(plane=(0, 2)), "second = 2 is not one of the 2 coordinates"),
        (lambda: VALLEY.plot(plane="xy"), "must be a Plane, or the numbers of two coordinates"),
        (lambda: VALLEY.plot(extent=((1.0, 0.0), (0.0, 1.0))), "must have finite ranges"),
        (lambda: VALLEY.plot(extent=3.0), "must be two ranges"),
        (lambda: VALLEY.plot(points=1), "points = 1 must be a whole number of at least 2"),
        (lambda: plot_landscape(NoNumber()), "finite nowhere"),
        (lambda: plot_landscape(Mine()), "has no dimension; give plane="),
        (lambda: Plane(np.zeros(2), np.ones((2, 2))), "parallel or zero"),
        (lambda: Plane(np.zeros(3), np.ones((2, 2))), "directions has shape|give a point"),
        (lambda: Plane(np.full(2, np.nan), np.eye(2)), "not finite"),
        (lambda: Plane.through(np.zeros((2, 3))), "has 2 finite points"),
        (lambda: Plane.random(np.zeros(3)).project(np.zeros(2)), "lies in 3 dimensions"),
        (lambda: animate(VALLEY, {}, "x.gif"), "trajectories is empty"),
        (lambda: plot_flows(VALLEY, {}), "trajectories is empty"),
        (lambda: animate(VALLEY, {"a": RUN}, "x.avi"), r"must end in \.gif"),
        (lambda: plot_spectrum(VALLEY, np.zeros((3, 2))), "give one point"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_trajectories_without_two_finite_states_are_refused():
    one = simulate(FLOW, np.array([-9.0, 1.6]), h=1.0, steps=1)
    single = type(one)(**{**vars(one), "w": one.w[:1], "m": one.m[:1], "times": one.times[:1]})
    with pytest.raises(ValueError, match="has 1 finite saved state; a line needs two"):
        single.plot()
    lost = type(one)(**{**vars(one), "w": np.full_like(one.w, np.nan)})
    with pytest.raises(ValueError, match="0 finite saved states"):
        lost.plot()
    with pytest.raises(ValueError, match="trajectory 'a' has 0 finite saved states"):
        animate(VALLEY, {"a": lost}, "x.gif")
