"""The flattest eigenvector of an arrow matrix, against the dense eigensolver, where that can be trusted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toy_landscapes import RiverValley
from toy_landscapes.arrow import flattest_of_two, smallest_eigenvector


def arrow(head, coupling, shaft):
    matrix = np.diag([head, *shaft])
    matrix[0, 1:] = matrix[1:, 0] = coupling
    return matrix


@settings(max_examples=200, deadline=None)
@given(
    d=st.integers(1, 12),
    spread=st.floats(0, 4),
    weak=st.floats(-8, 1),
    head=st.floats(-1e3, 1e3),
    seed=st.integers(0, 10_000),
)
def test_it_is_an_eigenvector_of_the_smallest_eigenvalue(d, spread, weak, head, seed):
    rng = np.random.default_rng(seed)
    shaft = 10.0 ** rng.uniform(0, spread, d)
    coupling = shaft * rng.normal(size=d) * 10.0**weak
    v = np.concatenate(smallest_eigenvector(np.asarray(head), coupling, shaft))
    matrix = arrow(head, coupling, shaft)
    scale = np.abs(matrix).max()
    assert np.linalg.norm(v) == pytest.approx(1.0, rel=1e-12)
    smallest = v @ matrix @ v
    assert np.linalg.norm(matrix @ v - smallest * v) <= 1e-12 * scale
    assert smallest <= np.linalg.eigvalsh(matrix)[0] + 1e-12 * scale


@pytest.mark.parametrize("head, expected", [(0.5, [1.0, 0.0, 0.0]), (7.0, [0.0, 0.0, 1.0])])
def test_without_coupling_the_flattest_axis_is_taken(head, expected):
    v = np.concatenate(smallest_eigenvector(np.asarray(head), np.zeros(2), np.array([4.0, 2.0])))
    np.testing.assert_allclose(np.abs(v), expected, atol=1e-15)


@settings(max_examples=50, deadline=None)
@given(d_flat=st.integers(1, 4), d_sharp=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_the_valleys_flat_projector_is_that_of_the_eigensolver(d_flat, d_sharp, seed):
    rng = np.random.default_rng(seed)
    valley = RiverValley(
        rng.uniform(2.0, 50.0, d_sharp),
        floor_curvatures=rng.uniform(0.01, 0.5, d_flat),
        floor_width=2.0,
        amplitudes=rng.uniform(0.2, 1.0, d_sharp),
        phases=rng.uniform(0, 6, d_sharp),
    )
    w, x = rng.normal(size=(2, 5, valley.dimension))
    values = np.linalg.eigvalsh(valley.hessian(w))
    distinct = values[:, d_flat] - values[:, d_flat - 1] > 1e-3  # at a tie the sharp subspace is not defined
    sharp = np.einsum("npi,nqi->npq", *(2 * [valley.sharp_basis(w)]))
    truth = x - np.einsum("npq,nq->np", sharp, x)
    np.testing.assert_allclose(valley.flat_projector(w)(x)[distinct], truth[distinct], atol=1e-9)
    on_torch = valley.flat_projector(torch.as_tensor(w))(torch.as_tensor(x)).numpy()
    np.testing.assert_allclose(on_torch[distinct], valley.flat_projector(w)(x)[distinct], atol=1e-11)


@settings(max_examples=200, deadline=None)
@given(head=st.floats(-1e3, 1e3), coupling=st.floats(-1e3, 1e3), wall=st.floats(1e-3, 1e3))
def test_the_closed_form_of_two_is_the_eigenvectors_projector(head, coupling, wall):
    project = flattest_of_two(np.asarray(head), np.asarray(coupling), np.asarray(wall))
    q = np.array([project(1.0, 0.0), project(0.0, 1.0)])
    v = np.concatenate(smallest_eigenvector(np.asarray(head), np.array([coupling]), np.array([wall])))
    np.testing.assert_allclose(q, np.outer(v, v), atol=1e-12)
    np.testing.assert_allclose(q @ q, q, atol=1e-14)


def test_the_closed_form_of_a_multiple_of_the_identity_is_the_walls_own_axis():
    project = flattest_of_two(np.asarray(2.0), np.asarray(0.0), np.asarray(2.0))
    assert project(3.0, 5.0) == (0.0, 5.0)
