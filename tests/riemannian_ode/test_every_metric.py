"""Every metric's methods against its dense matrix and the full array of Christoffel symbols, in six dimensions."""

import numpy as np
import pytest
import torch

from riemannian_ode import (
    ConstantMetric,
    DiagonalMetric,
    Euclidean,
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
from tests.riemannian_ode.problems import RankOneMetric, random_metric
from toy_landscapes import RiverValley

P = 6
VALLEY = RiverValley([2.0, 3.0, 4.0, 5.0, 6.0], amplitudes=[0.4, 0.3, 0.2, 0.5, 0.1], phases=[0.0, 1.0, 2.0, 3.0, 4.0])
RNG = np.random.default_rng(8)
METRICS = {
    "euclidean": Euclidean(),
    "constant": ConstantMetric(random_metric(P)),
    "diagonal": DiagonalMetric(RNG.uniform(0.5, 2.0, P)),
    "kronecker": KroneckerMetric(random_metric(2), random_metric(3)),
    "low rank plus diagonal": LowRankPlusDiagonalMetric(RNG.uniform(0.5, 2.0, P), RNG.normal(size=(P, 2))),
    "user's function": StateDependentMetric(
        lambda w: torch.diag(1.5 + torch.cos(w)) + torch.outer(torch.sin(w), torch.sin(w))
    ),
    "root of a user's second moment": VaryingDiagonalMetric(lambda w: torch.sqrt(0.3 + torch.sin(w).roll(1) ** 2)),
    "gram root of a matrix": GramRootMetric((2, 3), epsilon=0.5),
    "user's class": RankOneMetric(P),
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def dense(metric, w):
    """F(w), column by column."""
    return np.stack([metric.lower_index(w, np.broadcast_to(unit, w.shape)) for unit in np.eye(P)], axis=-1)


def christoffel(metric, w):
    """Γ^k_ij as [k, i, j], from differences of fourth order of F."""
    e = 1e-3
    slopes = []
    for unit in np.eye(P):
        near, far = (dense(metric, w + k * e * unit) - dense(metric, w - k * e * unit) for k in (1, 2))
        slopes.append((8 * near - far) / (12 * e))
    d = np.stack(slopes, axis=-1)  # ∂_l F_ij as [i, j, l]
    lowered = 0.5 * (d.transpose(0, 2, 1) + d - d.transpose(2, 0, 1))  # ½(∂_j F_li + ∂_i F_lj − ∂_l F_ij) as [l, i, j]
    return np.einsum("kl,lij->kij", np.linalg.inv(dense(metric, w)), lowered)


@every_metric
def test_indices_norms_and_gradient_are_those_of_the_matrix(metric, rng):
    w, v, m = rng.normal(size=(3, 4, P))
    f = dense(metric, w)
    np.testing.assert_allclose(f, np.swapaxes(f, -1, -2), atol=1e-13)
    assert np.linalg.eigvalsh(f).min() > 0
    np.testing.assert_allclose(metric.lower_index(w, v), np.einsum("nij,nj->ni", f, v), rtol=1e-12)
    np.testing.assert_allclose(metric.raise_index(w, m), np.linalg.solve(f, m[..., None])[..., 0], rtol=1e-8)
    np.testing.assert_allclose(metric.raise_index(w, metric.lower_index(w, v)), v, rtol=1e-9)
    np.testing.assert_allclose(metric.norm_squared(w, v), np.einsum("ni,nij,nj->n", v, f, v), rtol=1e-12)
    np.testing.assert_allclose(
        metric.conorm_squared(w, m), np.einsum("ni,nij,nj->n", m, np.linalg.inv(f), m), rtol=1e-9
    )
    gradient = riemannian_gradient(metric, VALLEY, w)
    np.testing.assert_allclose(metric.lower_index(w, gradient), VALLEY.gradient(w), rtol=1e-9)


@every_metric
def test_correction_and_hessian_are_those_of_the_whole_christoffel_array(metric, rng):
    w, v, m = rng.normal(size=(3, P))
    gamma = christoffel(metric, w)
    np.testing.assert_allclose(gamma, gamma.transpose(0, 2, 1), atol=1e-10)
    correction = metric.correction(w, v, m)
    expected = np.einsum("kij,j,k->i", gamma, v, m)
    if metric.variation == "constant":
        assert correction is None
        np.testing.assert_allclose(expected, 0.0, atol=1e-9)
    else:
        np.testing.assert_allclose(correction, expected, atol=1e-8)
    covariant = VALLEY.hessian(w) - np.einsum("kij,k->ij", gamma, VALLEY.gradient(w))  # ∂_i∂_j f − Γ^k_ij ∂_k f
    product = riemannian_hvp(metric, VALLEY, w, v)
    np.testing.assert_allclose(metric.lower_index(w, product), covariant @ v, atol=1e-8)


@every_metric
def test_geodesics_obey_their_equation_and_keep_their_energy(metric, rng):
    system = geodesic_system(metric)
    w0, v0 = rng.normal(size=(2, 3, P))
    run = simulate(
        system, w0, system.momentum_of(w0, v0), h=0.1, steps=10, integrator=DOP853(rtol=1e-12, atol=1e-13)
    ).checked()
    energy = metric.conorm_squared(run.w.reshape(-1, P), run.m.reshape(-1, P)).reshape(11, 3)
    np.testing.assert_allclose(energy, np.broadcast_to(energy[0], energy.shape), rtol=1e-10)
    for i in range(3):  # ẅ^k = −Γ^k_ij ẇ^i ẇ^j, ẅ by differences along the path
        v = system.velocity_of(run.w[:, i], run.m[:, i])
        acceleration = (8 * (v[6] - v[4]) - (v[7] - v[3])) / 1.2
        expected = -np.einsum("kij,i,j->k", christoffel(metric, run.w[5, i]), v[5], v[5])
        np.testing.assert_allclose(acceleration, expected, atol=0.05 * (1e-2 + np.abs(expected).max()))
    if metric.variation == "constant":
        np.testing.assert_allclose(run.w[-1], w0 + v0, atol=1e-10)
