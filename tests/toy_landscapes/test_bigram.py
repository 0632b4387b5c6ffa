"""The bigram model: closed forms, and the river valley that emerges while it is learned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from riemannian_ode import RISHD, simulate
from toy_landscapes import BigramModel


def two_kinds(**changes):
    return BigramModel.two_kinds(**{"certain": 3, "uncertain": 2, "vocabulary": 5, "slip": 0.02} | changes)


def test_value_is_the_expected_cross_entropy_and_its_minimum_the_entropy(rng):
    q, pi = rng.dirichlet(np.ones(4), size=3), rng.dirichlet(np.ones(3))
    model = BigramModel(q, context=pi)
    w = rng.normal(size=12)
    expected = -sum(pi[c] * q[c] @ log_softmax(w.reshape(3, 4)[c]) for c in range(3))
    assert model.value(w) == pytest.approx(expected, rel=1e-13)
    assert model.minimum == pytest.approx(-(pi[:, None] * q * np.log(q)).sum())
    assert model.value(model.minimizer) == pytest.approx(model.minimum, rel=1e-13)
    np.testing.assert_allclose(model.gradient(model.minimizer), 0.0, atol=1e-16)
    assert (model.value(rng.normal(size=(500, 12))) > model.minimum).all()


def test_hessian_at_the_minimum_is_the_covariance_of_the_sampled_gradient():
    """A drawn pair has gradient e_c ⊗ (p_c − e_j): at the minimum its covariance, the Fisher matrix, is the Hessian."""
    model = two_kinds()
    fisher = np.zeros((model.dimension,) * 2)
    for c, row in enumerate(model.next_token):
        for j, q in enumerate(row):
            gradient = np.zeros(model.matrix_shape)
            gradient[c] = row - np.eye(5)[j]
            fisher += model.context[c] * q * np.outer(gradient, gradient)
    np.testing.assert_allclose(model.hessian(model.minimizer), fisher, atol=1e-15)


@given(slip=st.floats(1e-3, 0.3), vocabulary=st.integers(2, 8))
def test_two_kinds_have_the_stated_curvatures_at_the_minimum(slip, vocabulary):
    model = BigramModel.two_kinds(certain=1, uncertain=1, vocabulary=vocabulary, slip=slip)
    pi, v = 0.5, vocabulary
    certain, uncertain = np.linalg.eigvalsh(model.context_hessians(model.minimizer))
    stated = [0.0, *[pi * slip / (v - 1)] * (v - 2), pi * slip * (1 - slip) * v / (v - 1)]
    np.testing.assert_allclose(certain, np.sort(stated), atol=1e-15)
    np.testing.assert_allclose(uncertain, [0.0, *[pi / v] * (v - 1)], atol=1e-15)
    assert model.emergence(model.minimizer) == pytest.approx(pi / v / max(stated), rel=1e-9)


def test_adding_a_constant_to_a_row_changes_nothing(rng):
    model = two_kinds()
    w = rng.normal(size=model.dimension)
    shift = np.repeat(rng.normal(size=5), 5)
    assert model.value(w + shift) == pytest.approx(model.value(w), rel=1e-13)
    np.testing.assert_allclose(model.hvp(w, shift), 0.0, atol=1e-15)


def test_the_valley_emerges_as_certain_contexts_are_learned():
    model = two_kinds()
    start = np.zeros(model.dimension)
    assert model.emergence(start) == pytest.approx(1)
    np.testing.assert_allclose(model.context_curvature(start), model.context_curvature(start)[0])
    system = RISHD.from_optimizer(model, alpha=0.2, eta=0.5)
    run = simulate(system, start, steps=400, progress=False)
    emergence = model.emergence(run.w)
    assert emergence[-1] > 3
    assert model.value(run.w[-1]) < model.value(start) - 0.5
    at_the_minimum = model.context_curvature(model.minimizer)
    assert at_the_minimum[:3].max() < 0.2 * at_the_minimum[3:].min()


def test_curvature_falls_with_certainty():
    """The ordering of curvature by uncertainty, which the paper interprets as rivers and hills."""
    model = BigramModel(np.array([[1 - s, *[s / 4] * 4] for s in (0.01, 0.1, 0.3, 0.6, 0.8)]))
    curvature = model.context_curvature(model.minimizer)
    assert (np.diff(model.entropies) > 0).all()
    assert (np.diff(curvature) > 0).all()
    assert model.sharp_contexts == (2, 3, 4)


def test_the_river_is_where_uncertain_contexts_are_exact(rng):
    model = two_kinds()
    learned = 0.8 * model.minimizer.reshape(5, 5)
    learned[3:] = 0.5 * rng.normal(size=(2, 5))
    w = learned.reshape(-1)
    assert model.emergence(w) > 1
    off_river = model.sharp_projection(w, model.gradient(w))
    river = model.river(w)
    assert model.emergence(river) > 1
    assert np.linalg.norm(off_river) > 0.01
    assert np.linalg.norm(model.sharp_projection(river, model.gradient(river))) < 1e-14
    assert np.linalg.norm(model.gradient(river)) > 1e-3  # it still falls: along the certain contexts
    np.testing.assert_array_equal(river[:15], w[:15])
    # The sharp subspace is exactly that of the uncertain contexts' rows.
    assert np.abs(model.sharp_basis(river)[:15]).max() < 1e-12


def test_large_logits_do_not_overflow():
    model = two_kinds()
    w = np.zeros(model.dimension)
    w[0] = 2000.0
    assert np.isfinite(model.value(w))
    assert np.isfinite(model.gradient(w)).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BigramModel([[1.0, 0.0]]), "smallest entry 0"),
        (lambda: BigramModel([[0.5, 0.6]]), "sum to 1"),
        (lambda: BigramModel([[1.0]]), "at least two tokens"),
        (lambda: BigramModel([[0.5, 0.5]], context=[0.5, 0.5]), "context has shape"),
        (lambda: BigramModel([[0.5, 0.5]], sharp_contexts=(1,)), "sharp_contexts"),
        (lambda: two_kinds(slip=0.0), "slip = 0.0"),
        (lambda: two_kinds(certain=0, uncertain=0), "at least one"),
        (lambda: two_kinds(uncertain=0).emergence(np.zeros(15)), "only one kind"),
    ],
)
def test_bad_models_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
