"""Metrics: index raising, the correction R against Christoffel symbols, and errors."""

import numpy as np
import pytest
import torch

from riemannian_ode import ConstantMetric, DiagonalMetric, Euclidean, PreconditionerMetric, StateDependentMetric
from tests.riemannian_ode.problems import RankOneMetric


def curved(w):
    wave = torch.sin(w)
    return torch.eye(w.shape[0], dtype=w.dtype) + 0.5 * torch.outer(wave, wave) + 0.3 * torch.diag(torch.cos(w))


def polar_coordinates(w):
    return torch.diag(torch.stack([torch.ones_like(w[0]), w[0] ** 2]))


def half_plane(w):
    return torch.eye(2, dtype=w.dtype) / w[1] ** 2


def sphere_chart(w):
    return torch.diag(torch.stack([torch.ones_like(w[0]), torch.sin(w[0]) ** 2]))


def _positive_definite(rng):
    root = rng.normal(size=(3, 3))
    return root @ root.T + np.eye(3)


METRICS = {
    "euclidean": lambda rng: Euclidean(),
    "constant": lambda rng: ConstantMetric(_positive_definite(rng)),
    "diagonal": lambda rng: DiagonalMetric(rng.uniform(0.5, 2.0, 3)),
    "state": lambda rng: StateDependentMetric(curved),
}


@pytest.mark.parametrize("name", METRICS)
def test_raising_undoes_lowering_and_norms_agree(name, rng):
    metric = METRICS[name](rng)
    w, v = rng.normal(size=(2, 4, 3))
    covector = metric.lower_index(w, v)
    np.testing.assert_allclose(metric.raise_index(w, covector), v, rtol=1e-12)
    np.testing.assert_allclose(metric.norm_squared(w, v), metric.conorm_squared(w, covector), rtol=1e-12)


def test_metric_of_the_integrators_tests_is_what_autograd_makes_of_its_matrix(rng):
    ours = RankOneMetric(3)
    d, a, c = (torch.as_tensor(x) for x in (ours.diagonal, ours.a, ours.c))
    theirs = StateDependentMetric(lambda w: torch.diag(d) + (1.3 + torch.sin(c @ w)) * torch.outer(a, a))
    w, v, m = rng.normal(size=(3, 5, 3))
    for name in ("raise_index", "lower_index"):
        np.testing.assert_allclose(getattr(ours, name)(w, v), getattr(theirs, name)(w, v), rtol=1e-12)
    np.testing.assert_allclose(ours.correction(w, v, m), theirs.correction(w, v, m), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["euclidean", "constant", "diagonal"])
def test_constant_metrics_have_no_correction(name, rng):
    metric = METRICS[name](rng)
    w, v, m = rng.normal(size=(3, 3))
    assert metric.variation == "constant"
    assert metric.correction(w, v, m) is None


@pytest.mark.parametrize("p", [1, 2, 4])
def test_correction_is_the_christoffel_contraction(p, rng):
    """R_i = Γ^k_ij v^j m_k with the whole p³ array, by finite differences of F (fourth order)."""
    w, v, m = rng.normal(size=(3, p))
    step = 1e-3
    stencil = {1: 8 / 12, -1: -8 / 12, 2: -1 / 12, -2: 1 / 12}
    slopes = np.stack(
        [
            sum(c * curved(torch.as_tensor(w + k * step * e)).numpy() for k, c in stencil.items()) / step
            for e in np.eye(p)
        ],
        axis=-1,
    )  # ∂_k F_ij as [i, j, k]
    lowered = 0.5 * (slopes.transpose(0, 2, 1) + slopes - slopes.transpose(2, 0, 1))
    gamma = np.einsum("kl,lij->kij", np.linalg.inv(curved(torch.as_tensor(w)).numpy()), lowered)
    expected = np.einsum("kij,j,k->i", gamma, v, m)
    np.testing.assert_allclose(StateDependentMetric(curved).correction(w, v, m), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("function", "point", "symbols"),
    [
        # Γ^r_θθ = −r, Γ^θ_rθ = 1/r
        (polar_coordinates, [1.7, 0.4], {(0, 1, 1): -1.7, (1, 0, 1): 1 / 1.7, (1, 1, 0): 1 / 1.7}),
        # Γ^x_xy = −1/y, Γ^y_xx = 1/y, Γ^y_yy = −1/y
        (half_plane, [0.3, 2.0], {(0, 0, 1): -0.5, (0, 1, 0): -0.5, (1, 0, 0): 0.5, (1, 1, 1): -0.5}),
        # Γ^θ_φφ = −sin θ cos θ, Γ^φ_θφ = cot θ
        (
            sphere_chart,
            [0.8, 1.0],
            {(0, 1, 1): -np.sin(0.8) * np.cos(0.8), (1, 0, 1): 1 / np.tan(0.8), (1, 1, 0): 1 / np.tan(0.8)},
        ),
    ],
)
def test_correction_in_closed_form(function, point, symbols, rng):
    v, m = rng.normal(size=(2, 2))
    expected = np.zeros(2)
    for (k, i, j), value in symbols.items():
        expected[i] += value * v[j] * m[k]
    np.testing.assert_allclose(StateDependentMetric(function).correction(np.array(point), v, m), expected, atol=1e-14)


def test_ensembles_with_parameters_equal_single_members(rng):
    scale = rng.uniform(0.5, 2.0, (5, 1))

    def scaled(w, s):
        return s * curved(w)

    w, v, m = rng.normal(size=(3, 5, 3))
    together = StateDependentMetric(scaled, (scale,))
    for i in range(5):
        alone = StateDependentMetric(lambda x, i=i: float(scale[i, 0]) * curved(x))
        np.testing.assert_allclose(together.raise_index(w, m)[i], alone.raise_index(w[i], m[i]), rtol=1e-13)
        np.testing.assert_allclose(together.correction(w, v, m)[i], alone.correction(w[i], v[i], m[i]), rtol=1e-12)


def test_indefinite_matrix_is_refused_with_its_smallest_eigenvalue():
    with pytest.raises(ValueError, match=r"not positive definite.*-1"):
        ConstantMetric(np.diag([2.0, -1.0]))


def test_asymmetric_matrix_is_refused():
    with pytest.raises(ValueError, match="not symmetric"):
        ConstantMetric(np.array([[1.0, 0.5], [0.0, 1.0]]))


@pytest.mark.parametrize("matrix", [np.ones(3), np.ones((2, 3))])
def test_shapes_that_are_no_metric_are_refused(matrix):
    with pytest.raises(ValueError, match="square"):
        ConstantMetric(matrix)


def test_nonfinite_metrics_are_refused():
    with pytest.raises(ValueError, match="non-finite"):
        ConstantMetric(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="smallest entry"):
        DiagonalMetric(np.array([1.0, 0.0]))


def test_history_metric_has_no_lower_index():
    metric = PreconditionerMetric(np.sign)
    np.testing.assert_array_equal(metric.raise_index(np.zeros(2), np.array([2.0, -3.0])), [1.0, -1.0])
    with pytest.raises(ValueError, match="depends on history"):
        metric.lower_index(np.zeros(2), np.zeros(2))


def test_metric_that_loses_definiteness_gives_nan_for_that_member_only():
    metric = StateDependentMetric(lambda w: torch.diag(1.0 - w**2))
    raised = metric.raise_index(np.array([[0.5], [2.0]]), np.ones((2, 1)))
    assert np.isfinite(raised[0]).all()
    assert np.isnan(raised[1]).all()
