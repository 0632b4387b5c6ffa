"""Structured and varying metrics against dense ones, and geodesics against closed forms."""

import numpy as np
import pytest
import torch

from riemannian_ode import (
    GramRootMetric,
    KroneckerMetric,
    LowRankPlusDiagonalMetric,
    StateDependentMetric,
    VaryingDiagonalMetric,
    geodesic_system,
    riemannian_gradient,
    riemannian_hvp,
    simulate,
)
from riemannian_ode.integrators.adaptive import DOP853
from riemannian_ode.matrix_root import matrix_root
from rishd.claims.instances import rippled_quadratics


def _spd(rng, n, batch=()):
    root = rng.normal(size=(*batch, n, n))
    return root @ np.swapaxes(root, -1, -2) + np.eye(n)


def polar_coordinates(w):
    return torch.diag(torch.stack([torch.ones_like(w[0]), w[0] ** 2]))


def half_plane(w):
    return torch.eye(2, dtype=w.dtype) / w[1] ** 2


def sphere_chart(w):
    return torch.diag(torch.stack([torch.ones_like(w[0]), torch.sin(w[0]) ** 2]))


@pytest.mark.parametrize("batch", [(), (4,)])
def test_kronecker_is_the_dense_product(batch, rng):
    left, right = _spd(rng, 3, batch), _spd(rng, 2, batch)
    metric = KroneckerMetric(left, right)
    w, x = rng.normal(size=(2, *batch, 6))
    dense = np.einsum("...ij,...kl->...ikjl", left, right).reshape(*batch, 6, 6)
    np.testing.assert_allclose(metric.lower_index(w, x), (dense @ x[..., None])[..., 0], rtol=1e-12)
    np.testing.assert_allclose(metric.raise_index(w, metric.lower_index(w, x)), x, rtol=1e-10)
    assert metric.correction(w, x, x) is None
    with pytest.raises(ValueError, match=r"3×2 matrices, 6 coordinates, but w has 5"):
        metric.check(np.zeros((*batch, 5)))


@pytest.mark.parametrize("batch", [(), (4,)])
def test_low_rank_plus_diagonal_is_the_dense_sum(batch, rng):
    d, u = rng.uniform(0.5, 2.0, (*batch, 5)), rng.normal(size=(*batch, 5, 2))
    metric = LowRankPlusDiagonalMetric(d, u)
    dense = d[..., None] * np.eye(5) + u @ np.swapaxes(u, -1, -2)
    w, x = rng.normal(size=(2, *batch, 5))
    np.testing.assert_allclose(metric.lower_index(w, x), (dense @ x[..., None])[..., 0], rtol=1e-12)
    np.testing.assert_allclose(metric.raise_index(w, x), np.linalg.solve(dense, x[..., None])[..., 0], rtol=1e-9)


def test_bad_structure_is_refused():
    with pytest.raises(ValueError, match="right is not positive definite"):
        KroneckerMetric(np.eye(2), np.diag([1.0, -1.0]))
    with pytest.raises(ValueError, match="smallest entry 0"):
        LowRankPlusDiagonalMetric(np.zeros(3), np.ones((3, 1)))
    with pytest.raises(ValueError, match="factor has shape"):
        LowRankPlusDiagonalMetric(np.ones(3), np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"epsilon = 0\.0"):
        GramRootMetric((2, 3), epsilon=0.0)
    with pytest.raises(ValueError, match=r"w has 5 coordinates"):
        GramRootMetric((2, 3)).check(np.zeros(5))
    with pytest.raises(ValueError, match="smallest entry -1"):
        VaryingDiagonalMetric(lambda w: w).check(np.array([1.0, -1.0]))


def varying_metrics():
    def dense_root(w):
        matrix = w.reshape(2, 3)
        values, vectors = torch.linalg.eigh(matrix.T @ matrix + 0.5 * torch.eye(3, dtype=w.dtype))
        return torch.kron(torch.eye(2, dtype=w.dtype), (vectors * values.sqrt()) @ vectors.T)

    def second_moment(w):
        return torch.sqrt(0.3 + torch.sin(w).roll(1) ** 2)

    return {
        "gram root": (GramRootMetric((2, 3), epsilon=0.5), dense_root),
        "diagonal": (VaryingDiagonalMetric(second_moment), lambda w: torch.diag(second_moment(w))),
    }


@pytest.mark.parametrize("name", varying_metrics())
def test_varying_metrics_equal_the_dense_function(name, rng):
    metric, function = varying_metrics()[name]
    dense = StateDependentMetric(function)
    w, v, m = rng.normal(size=(3, 4, 6))
    for method, arguments in {
        "raise_index": (w, m),
        "lower_index": (w, v),
        "correction": (w, v, m),
        "matrix": (w,),
    }.items():
        np.testing.assert_allclose(getattr(metric, method)(*arguments), getattr(dense, method)(*arguments), atol=1e-10)


def test_matrix_root_has_derivatives_where_eigenvalues_coincide():
    torch.manual_seed(0)
    a = (2.0 * torch.eye(3, dtype=torch.float64)).expand(2, 3, 3).clone()
    a[1] += torch.diag(torch.tensor([0.0, 0.0, 1.0]))
    direction = torch.randn(3, 3, dtype=torch.float64)

    def along(t):
        return matrix_root(a + t[:, None, None] * (direction + direction.T))

    t = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, t)
    assert torch.autograd.gradgradcheck(along, t)
    torch.testing.assert_close(along(t) @ along(t), a)


@pytest.mark.parametrize(
    ("function", "start", "velocity", "invariant"),
    [
        # straight lines: position and velocity in Cartesian coordinates
        (
            polar_coordinates,
            [1.0, 0.3],
            [0.4, 0.7],
            lambda r, theta: np.stack([r * np.cos(theta), r * np.sin(theta)], axis=-1),
        ),
    ],
)
def test_geodesics_of_polar_coordinates_are_straight_lines(function, start, velocity, invariant):
    run = _geodesic(function, start, velocity)
    points = invariant(run.w[:, 0], run.w[:, 1])
    np.testing.assert_allclose(np.diff(points, n=2, axis=0), 0.0, atol=1e-9)


def test_geodesics_of_the_half_plane_are_semicircles():
    run = _geodesic(half_plane, [0.2, 1.0], [0.6, 0.5])
    x, y = run.w.T
    # (x − c)² + y² = r²: the centre follows from the initial velocity, x' (x − c) + y y' = 0.
    centre = 0.2 + 1.0 * 0.5 / 0.6
    np.testing.assert_allclose((x - centre) ** 2 + y**2, (0.2 - centre) ** 2 + 1.0, rtol=1e-9)


def test_geodesics_of_the_sphere_are_great_circles():
    run = _geodesic(sphere_chart, [1.1, 0.2], [0.3, 0.8])
    theta, phi = run.w.T
    points = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
    normal = np.cross(points[0], points[1])
    np.testing.assert_allclose(points @ normal, 0.0, atol=1e-10)


@pytest.mark.parametrize("function", [polar_coordinates, half_plane, sphere_chart])
def test_geodesics_keep_their_speed(function):
    metric = StateDependentMetric(function)
    run = _geodesic(function, [1.1, 0.9], [0.3, 0.5])
    speed = metric.conorm_squared(run.w, run.m)
    np.testing.assert_allclose(speed, speed[0], rtol=1e-10)


def _geodesic(function, start, velocity):
    system = geodesic_system(StateDependentMetric(function))
    w0 = np.array(start)
    m0 = system.momentum_of(w0, np.array(velocity))
    return simulate(system, w0, m0, h=0.1, steps=12, integrator=DOP853(rtol=1e-12, atol=1e-13))


def test_riemannian_hessian_is_self_adjoint_and_the_derivative_of_the_gradient(rng):
    """Hess f[u] = ∇_u grad f with the full array of Christoffel symbols, by finite differences."""
    metric = StateDependentMetric(sphere_chart)
    basic = rippled_quadratics(rng, 1, 2)

    class Objective:
        def value(self, w):
            return basic.value(w[None])[0]

        def gradient(self, w):
            return basic.gradient(w[None])[0]

        def hvp(self, w, v):
            return basic.matrix[0] @ v + basic.ripple[0] * np.cos(w) * v

    objective = Objective()
    w, u, v = np.array([0.9, 0.4]), *rng.normal(size=(2, 2))
    ours = riemannian_hvp(metric, objective, w, u)
    h = 1e-5
    slope = (riemannian_gradient(metric, objective, w + h * u) - riemannian_gradient(metric, objective, w - h * u)) / (
        2 * h
    )
    g = riemannian_gradient(metric, objective, w)
    turning = np.array([-np.sin(0.9) * np.cos(0.9) * u[1] * g[1], (u[0] * g[1] + u[1] * g[0]) / np.tan(0.9)])
    np.testing.assert_allclose(ours, slope + turning, atol=1e-8)
    other = riemannian_hvp(metric, objective, w, v)
    assert metric.lower_index(w, v) @ ours == pytest.approx(metric.lower_index(w, u) @ other)
