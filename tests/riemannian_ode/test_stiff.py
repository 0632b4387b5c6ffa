"""Implicit schemes on linear flows of any stiffness: the closed form of their step, in one Newton correction."""

import mpmath as mp
import numpy as np
import pytest
import torch

from riemannian_ode import RISHD, simulate
from riemannian_ode.integrators import IntegratorError, PhaseState
from riemannian_ode.integrators.newton import Equations, solve
from toy_landscapes import Quadratic

ALPHA, BETA, ETA = 0.4, 0.5, 0.3
START, MOMENTUM = np.array([1.0, -2.0, 0.7]), np.array([0.3, 0.2, -1.0])
SCHEMES = ["implicit-euler", "implicit-midpoint", "discrete-gradient", "strang", "strang4"]
STIFFNESS = [1.0, 1e4, 1e8, 1e10, 1e12]


class Counted(Quadratic):
    """Counts gradients, and hides its curvature if asked to."""

    gradients = 0

    def gradient(self, w):
        self.gradients += 1
        return super().gradient(w)


class Bare:
    """The same function without Hessian-vector products."""

    def __init__(self, landscape):
        self.value, self.gradient = landscape.value, landscape.gradient


def closed_form(name, matrix, h):
    """(w, m) after a step, with 60 digits."""
    with mp.workdps(60):
        k, p = mp.matrix(matrix.tolist()), len(matrix)
        alpha, beta, eta, h = (mp.mpf(x) for x in (ALPHA, BETA, ETA, h))
        one = mp.eye(2 * p)

        def generator(alpha):
            a = mp.zeros(2 * p)
            a[:p, :p], a[p:, :p] = -eta * beta * k, k
            a[:p, p:], a[p:, p:] = -eta * mp.eye(p), -alpha * mp.eye(p)
            return a

        def midpoint(a, h, y):
            return mp.lu_solve(one - h / 2 * a, (one + h / 2 * a) * y)

        def strang(h, y):
            damping = mp.diag([1] * p + [mp.exp(-alpha * h / 2)] * p)
            return damping * midpoint(generator(0), h, damping * y)

        y = mp.matrix([*START, *MOMENTUM])
        if name == "implicit-euler":
            y = mp.lu_solve(one - h * generator(alpha), y)
        elif name == "strang":
            y = strang(h, y)
        elif name == "strang4":
            q = 1 / (4 - mp.cbrt(4))
            for share in (q, q, 1 - 4 * q, q, q):
                y = strang(share * h, y)
        else:
            y = midpoint(generator(alpha), h, y)
        return np.array([float(x) for x in y])


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("curvature", STIFFNESS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_linear_step_is_its_closed_form_at_any_stiffness(name, curvature, turned):
    values = [curvature, 1.0, 0.3]
    landscape = Counted.random(values, seed=2) if turned else Counted(values)
    system = RISHD.from_optimizer(landscape, alpha=ALPHA, eta=ETA, beta=BETA)
    # Rounding of the rotated matrix, or of an energy difference, reaches the flat directions.
    rounds = turned or name == "discrete-gradient"
    for h in (1e-3, 0.02, 1.0):
        before = landscape.gradients
        run = simulate(system, START, MOMENTUM, integrator=name, h=h, steps=1)
        assert run.ok, run.message
        if name != "discrete-gradient":  # the start is checked with one gradient, a solve begins with one
            solves = 5 if name == "strang4" else 1
            assert landscape.gradients - before <= 1 + 3 * solves
        expected = closed_form(name, landscape.matrix, h)
        tolerance = 1e-13 + (4e-16 * curvature * min(h, 1.0) if rounds else 0.0)
        for got, wanted in zip((run.w[-1], run.m[-1]), (expected[:3], expected[3:]), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=20 * tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("size", [3, 40])
def test_long_stiff_runs_of_many_scales_end(name, size):
    landscape = Quadratic.random(np.geomspace(1e12, 0.1, size), seed=1)
    system = RISHD.from_optimizer(landscape, alpha=ALPHA, eta=ETA, beta=BETA)
    start = np.random.default_rng(0).normal(size=(2, size))
    run = simulate(system, start, integrator=name, h=0.02, steps=10).checked()
    assert np.all(landscape.value(run.w[-1]) < 1.1 * landscape.value(run.w[0]))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("name", SCHEMES)
def test_curvature_comes_from_autograd_or_differences_where_none_is_offered(name, kind):
    landscape = Quadratic([1e8, 1.0, 0.3])
    start = START if kind == "numpy" else torch.tensor(START)
    ends = [
        simulate(
            RISHD.from_optimizer(objective, alpha=ALPHA, eta=ETA, beta=BETA), start, integrator=name, h=0.02, steps=5
        ).checked()
        for objective in (landscape, Bare(landscape))
    ]
    np.testing.assert_allclose(ends[1].w, ends[0].w, rtol=0, atol=1e-6)


def test_rounding_excuses_no_equation_without_a_solution():
    state = PhaseState(np.ones(1), np.ones(1))
    rootless = Equations(lambda y: PhaseState(y.w**2 + 1e-6, y.m), lambda y: lambda d: PhaseState(2.0 * y.w * d.w, d.m))
    with pytest.raises(IntegratorError, match="did not converge"):
        solve(rootless, state, tolerance=1e-13, where="here")
