"""Stationary noise in closed form against SciPy's solver and known special cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import solve_continuous_lyapunov

from discretizations.noise import (
    flat_loss_floor,
    floor_ratio_bounds,
    flow_covariance,
    flow_loss_floor,
    loss_floor,
    lyapunov_covariance,
    noise_input,
    stationary_covariance,
)
from discretizations.stability import asymptotic_speedup, stable_limit


@given(alpha=st.floats(0.01, 1), beta=st.floats(-0.9, 5), share=st.floats(0.01, 0.99))
def test_closed_form_solves_the_lyapunov_equation(alpha, beta, share):
    kappa = share * stable_limit(alpha, beta)
    exact, solved = stationary_covariance(kappa, alpha, beta), lyapunov_covariance(kappa, alpha, beta)
    assert np.abs(exact - solved).max() <= 1e-8 * np.abs(solved).max()


def test_without_momentum_it_is_an_autoregressive_process():
    """w ← (1 − κ)w − ηaσξ has the variance (ηaσ)²/(1 − (1 − κ)²)."""
    assert stationary_covariance(0.3, 1.0, 0.0)[0, 0] == pytest.approx(1.0 / (1.0 - 0.7**2))
    assert loss_floor(0.3, 1.0, 0.0, rate=2.0, sigma=0.5) == pytest.approx(0.5 * 0.3 * 2.0 * 0.25 / (1.0 - 0.7**2))


def test_flat_floor_does_not_depend_on_curvature_and_grows_like_the_speed():
    small = loss_floor(np.array([1e-9, 1e-8]), 0.05, 1.0, rate=1.0, sigma=1.0)
    assert small == pytest.approx(float(flat_loss_floor(0.05, 1.0, rate=1.0, sigma=1.0)), rel=1e-5)
    lite, base = (flat_loss_floor(0.05, b, rate=r, sigma=1.0) for b, r in ((4.0, 2.0), (1.0, 1.0)))
    assert lite / base == pytest.approx(asymptotic_speedup(0.05, 1.0, 4.0, 2.0))


def test_hessian_damping_lowers_the_floor_before_stability_raises_it():
    """κ ≪ α is not enough for the limit: βκ ≪ α is needed."""
    floor = loss_floor(np.array([1e-6, 0.06, 0.35]), 0.05, 5.0, rate=1.0, sigma=1.0)
    assert floor[1] < 0.5 * floor[0] < floor[2]


@pytest.mark.parametrize("function", [stationary_covariance, lyapunov_covariance])
def test_unstable_modes_have_no_stationary_noise(function):
    with pytest.raises(ValueError, match="no stationary noise"):
        function(4.0, 0.05, 0.0)


@given(alpha=st.floats(0.01, 2), beta=st.floats(-0.4, 5), kappa=st.floats(1e-3, 20))
def test_flow_covariance_solves_its_lyapunov_equation(alpha, beta, kappa):
    if beta < 0:
        kappa = min(kappa, -0.9 * alpha / beta)
    entry = np.array([-beta, 1.0])
    solved = solve_continuous_lyapunov(np.array([[-beta * kappa, -1.0], [kappa, -alpha]]), -np.outer(entry, entry))
    assert np.abs(flow_covariance(kappa, alpha, beta) - solved).max() <= 1e-8 * np.abs(solved).max()


@pytest.mark.parametrize("beta", [0.0, 0.8])
def test_floors_of_small_steps_tend_to_that_of_the_flow(beta):
    """A semi-implicit Euler step h is the update rule with hα, β/h, h²κ, the rate h²ηa and the noise σ/√h."""
    alpha, kappa, rate, sigma = 0.3, 0.7, 1.7, 0.4
    flow = flow_loss_floor(kappa, alpha, beta, rate=rate, sigma=sigma)
    errors = [
        loss_floor(h**2 * kappa, h * alpha, beta / h, rate=h**2 * rate, sigma=sigma / h**0.5) / flow - 1.0
        for h in (1 / 64, 1 / 128)
    ]
    assert errors[0] / errors[1] == pytest.approx(4.0 if beta == 0 else 2.0, rel=0.05)
    assert 0 < errors[1] < 0.01


def test_flow_noise_without_a_stationary_state_is_refused():
    for kappa, alpha, beta in ((0.0, 0.1, 0.0), (1.0, 0.1, -0.2), (0.1, 3.0, -0.5)):
        with pytest.raises(ValueError, match="has no stationary noise"):
            flow_covariance(kappa, alpha, beta)
    with pytest.raises(ValueError, match=r"beta = -0\.1 must be at least 0"):
        floor_ratio_bounds(0.1, 0.5, -0.1)


def test_arrays_are_their_members():
    kappa, alpha, beta = np.array([[0.1], [0.4]]), 0.2, np.array([0, 1, 2])
    np.testing.assert_array_equal(noise_input(beta), [[-1.0, 1.0], [-2.0, 1.0], [-3.0, 1.0]])
    for function in (lyapunov_covariance, stationary_covariance, flow_covariance):
        whole = function(kappa, alpha, beta)
        assert whole.shape == (2, 3, 2, 2)
        for i, k in np.ndindex(2, 3):
            np.testing.assert_allclose(whole[i, k], function(float(kappa[i, 0]), alpha, float(beta[k])), rtol=1e-12)


def test_whole_numbers_count_as_floats():
    """And results are in double precision, since covariances near a stability limit need it."""
    single = np.float32([0.1, 0.3])
    assert noise_input(single).dtype == np.float64
    for function in (stationary_covariance, flow_covariance, floor_ratio_bounds):
        np.testing.assert_array_equal(function(1, 1, 0), function(1.0, 1.0, 0.0))
        np.testing.assert_array_equal(function(single, single, single), function(*[single.astype(np.float64)] * 3))
    np.testing.assert_allclose(noise_input(np.array([10**18])), [[-1e18, 1.0]])


@given(sigma=st.floats(0.1, 3), rate=st.floats(0.1, 3), alpha=st.floats(0.05, 0.9), beta=st.floats(-0.5, 3))
def test_floors_grow_with_the_variance_of_the_noise_and_the_rate(sigma, rate, alpha, beta):
    for floor in (
        lambda **scale: loss_floor(0.01, alpha, beta, **scale),
        lambda **s: flat_loss_floor(alpha, beta, **s),
    ):
        unit = floor(rate=1.0, sigma=1.0)
        assert floor(rate=rate, sigma=sigma) == pytest.approx(sigma**2 * rate * unit)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_bounds_of_the_stable_region_are_outside(share):
    with pytest.raises(ValueError, match="no stationary noise"):
        stationary_covariance(share * stable_limit(0.05, 1.0), 0.05, 1.0)


@given(alpha=st.floats(0.01, 1), beta=st.floats(0, 5), share=st.floats(0.01, 0.99))
def test_the_rule_over_the_flow_lies_between_its_bounds_and_attains_them(alpha, beta, share):
    for a, b in ((alpha, beta), (alpha, 0.0), (1.0, beta)):
        kappa = share * stable_limit(a, b)
        ratio = loss_floor(kappa, a, b, rate=1.0, sigma=1.0) / flow_loss_floor(kappa, a, b, rate=1.0, sigma=1.0)
        lower, upper = floor_ratio_bounds(kappa, a, b)
        assert lower * (1 - 1e-9) <= ratio <= upper * (1 + 1e-9)
        if b == 0.0:
            assert lower == pytest.approx(1.0 / (1.0 - share))
            assert upper == pytest.approx(ratio) == pytest.approx(lower)
        if a == 1.0:
            assert upper == pytest.approx(ratio)


def test_bounds_of_the_ratio_are_their_closed_form():
    """α = ½, β = 2, κ = ¼: κ* = 3/4, and 1 + (2/1.5)·½/(1 + 1 + 1) = 11/9."""
    lower, upper = floor_ratio_bounds([0.25], 0.5, 2.0)
    assert lower.shape == upper.shape == (1,)
    np.testing.assert_allclose([lower, upper], [[1.5], [1.5 * 11.0 / 9.0]])
    lower, upper = floor_ratio_bounds(0.25, 0.5, np.array([0.0, 2.0, 2.0]))
    assert lower.shape == upper.shape == (3,)


def test_the_bounds_of_the_flow_s_stable_region_are_outside():
    for kappa, alpha, beta in ((1.0, 0.5, -0.5), (0.1, 2.0, -0.5)):
        with pytest.raises(ValueError, match="has no stationary noise"):
            flow_covariance(kappa, alpha, beta)


@given(sigma=st.floats(0.1, 3), rate=st.floats(0.1, 3))
def test_the_flow_s_floor_grows_with_the_variance_of_the_noise_and_the_rate(sigma, rate):
    """σ²ηa(1 + αβ + β²κ)/(4(α + βκ)), here with α = ½, β = 2, κ = ¼."""
    assert flow_loss_floor(0.25, 0.5, 2.0, rate=rate, sigma=sigma) == pytest.approx(sigma**2 * rate * 3.0 / 4.0)
