"""Closed forms of modes and stability against companion matrices, and the symbolic proofs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discretizations.noise import stationary_covariance
from discretizations.proofs import dynamics
from discretizations.stability import (
    asymptotic_speedup,
    check_damping,
    descent_limit,
    flat_rate,
    is_overdamped,
    mode_roots,
    spectral_radius,
    stable_limit,
    step_matrix,
)


@given(kappa=st.floats(-5, 5), alpha=st.floats(0.01, 3), beta=st.floats(-0.3, 4))
def test_mode_roots_equal_the_companion_matrix(kappa, alpha, beta):
    companion = np.array([[-(alpha + beta * kappa), -(1 + alpha * beta) * kappa], [1.0, 0.0]])
    roots, expected = mode_roots(kappa, alpha, beta), np.linalg.eigvals(companion)
    assert np.sum(roots) == pytest.approx(np.sum(expected), abs=1e-9)
    assert np.prod(roots) == pytest.approx(np.prod(expected), abs=1e-9)
    assert roots[0].real >= roots[1].real
    assert flat_rate(kappa, alpha, beta) == pytest.approx(-max(expected.real), abs=1e-6)


def test_small_curvature_keeps_its_digits():
    """(1/α + β)κ to 12 digits at κ = 1e−14, where the textbook formula loses all digits."""
    assert flat_rate(1e-14, 0.1, 0.5) == pytest.approx(10.5e-14, rel=1e-11)


def test_overdamping_begins_at_its_threshold():
    # α = 1, β = 0: κ = 1/4 is critical.
    assert is_overdamped(0.25, 1.0, 0.0)
    assert not is_overdamped(0.2501, 1.0, 0.0)


def test_speedup_of_the_published_settings_in_theory_units():
    assert asymptotic_speedup(0.05, 0.0, 20.0, 2.0) == pytest.approx(4.0)


@given(alpha=st.floats(0.01, 1), beta=st.floats(-0.99, 5), share=st.floats(0.01, 0.999))
def test_stable_inside_unstable_outside(alpha, beta, share):
    limit = stable_limit(alpha, beta)
    assert np.isfinite(limit)
    assert spectral_radius(share * limit, alpha, beta) < 1
    assert spectral_radius(limit / share, alpha, beta) > 1


@given(kappa=st.floats(0, 5), alpha=st.floats(0.01, 1), beta=st.floats(-1, 5))
def test_spectral_radius_is_that_of_the_step_matrix(kappa, alpha, beta):
    expected = np.abs(np.linalg.eigvals(step_matrix(kappa, alpha, beta))).max()
    assert spectral_radius(kappa, alpha, beta) == pytest.approx(expected, abs=1e-6)


def test_heavy_ball_and_nesterov_limits_of_the_literature():
    """Heavy ball: κ < 2(1 + μ). Nesterov, β = 1/μ and η = lr·μ: lr·λ < 2(1 + μ)/(1 + 2μ)."""
    mu = 0.9
    assert stable_limit(1 - mu, 0.0) == pytest.approx(2 * (1 + mu))
    assert stable_limit(1 - mu, 1 / mu) / mu == pytest.approx(2 * (1 + mu) / (1 + 2 * mu))


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (1.5, 0.0), (0.5, -2.0)])
def test_outside_the_hypotheses_is_refused(alpha, beta):
    with pytest.raises(ValueError, match=r"alpha|beta"):
        stable_limit(alpha, beta)


def test_undamped_modes_have_no_rate():
    with pytest.raises(ValueError, match="undamped"):
        flat_rate(1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "residuals",
    [
        dynamics.phase_space_identity_from_definitions,
        lambda: dynamics.phase_space_identity_jets(2),
        lambda: dynamics.phase_space_identity_jets(3),
        lambda: [dynamics.energy_identity_jets(2), dynamics.energy_identity_jets(3)],
        dynamics.mode_equation,
        dynamics.saddle_escape,
        dynamics.stability_region,
        dynamics.shadow_identity,
    ],
)
def test_symbolic_proofs(residuals):
    assert all(residual == 0 for residual in residuals())


def test_energy_identity_is_false_without_the_correction():
    assert dynamics.energy_identity_jets(2, correction=False) != 0


def test_closed_forms_number_by_number():
    assert asymptotic_speedup(0.1, 5.0, 20.0, 2.0) == pytest.approx(2.0 * 3.0 / 1.5)
    assert stable_limit(0.05, [-0.25, 0.0, 1.0]) == pytest.approx([0.05 / (0.95 * 0.25), 3.9, 3.9 / 2.95])


@pytest.mark.parametrize(("fast", "slow"), [(-1.0, -1e-14), (1.0, 1e-14), (1.0, -1e-14), (-1.0, 1e-14)])
def test_both_roots_keep_their_digits_at_every_sign(fast, slow):
    """s² + ακ⁰s + κ with α = −(s₁ + s₂), κ = s₁s₂, β = 0; the larger root comes first."""
    roots = mode_roots(fast * slow, -(fast + slow), 0.0)
    np.testing.assert_allclose(roots, sorted((fast, slow), reverse=True), rtol=1e-12)


def test_a_mode_without_curvature_and_damping_has_two_roots_zero():
    np.testing.assert_array_equal(mode_roots([0.0, 1.0], 0.0, 0.0), [[0, 0], [1j, -1j]])
    np.testing.assert_array_equal(mode_roots(0.0, 2.0, 0.0), [0, -2])


@given(kappa=st.floats(0.01, 5), alpha=st.floats(0.01, 3), beta=st.floats(-0.3, 4))
def test_overdamped_modes_are_those_with_real_roots(kappa, alpha, beta):
    gap = (alpha + beta * kappa) ** 2 - 4 * (1 + alpha * beta) * kappa
    if abs(gap) > 1e-9:
        assert bool(is_overdamped(kappa, alpha, beta)) == (np.abs(mode_roots(kappa, alpha, beta).imag).max() == 0)


def test_arrays_are_their_members():
    kappa, alpha, beta = np.array([[0.1], [0.4]]), 0.2, np.array([-0.2, 1.0, 2.0])
    for function in (mode_roots, flat_rate, is_overdamped, step_matrix, spectral_radius):
        whole = function(kappa, alpha, beta)
        for i, k in np.ndindex(2, 3):
            np.testing.assert_allclose(whole[i, k], function(float(kappa[i, 0]), alpha, float(beta[k])), rtol=1e-14)


@pytest.mark.parametrize(
    "function",
    [
        flat_rate,
        spectral_radius,
        stationary_covariance,
        lambda kappa, *damping: stable_limit(*damping),
        lambda kappa, *damping: descent_limit(*damping),
    ],
)
@pytest.mark.parametrize("single", [0, 1, 2])
def test_single_precision_is_computed_in_double(function, single):
    """Each argument in turn gives the double-precision result, without intermediate rounding."""
    arguments = [np.array([0.1, 0.3]), np.array([0.1, 0.7]), np.array([0.3, 1.1])]
    arguments[single] = arguments[single].astype(np.float32)
    expected = function(*(x.astype(np.float64) for x in arguments))
    np.testing.assert_array_equal(function(*arguments), expected)
    assert function(*(x.astype(np.float32) for x in arguments)).dtype == np.float64


def test_beta_next_to_zero_from_below_sets_no_limit_and_overflows_silently():
    assert stable_limit(0.05, [-5e-324, -1e-310, -0.0]) == pytest.approx([3.9, 3.9, 3.9])
    assert stable_limit(1.0, [-0.5, 0.0]) == pytest.approx([4.0, 2.0])


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, -1.0), (1.5, 0.0), (2.0, 0.0), (0.0, 0.0)])
def test_bounds_of_the_damping_are_outside(alpha, beta):
    with pytest.raises(ValueError, match=r"alpha|beta"):
        check_damping(alpha, beta)
    with pytest.raises(ValueError, match=r"alpha|beta"):
        descent_limit(alpha, beta)
    check_damping(1.0, 0.0)
