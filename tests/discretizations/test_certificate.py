"""Descent certificates: closed forms against eigenvalues, the literature, and objectives that violate them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discretizations.certificate import (
    block_curvatures,
    circle_gradient,
    convex_offset,
    coupled_curvatures,
    cycle_curvature,
    descent_form,
    lookahead_certificate,
    noise_growth,
)
from discretizations.stability import descent_limit, stable_limit

ALPHAS, BETAS, SHARES = st.floats(0.01, 0.99), st.floats(-0.45, 6.0), st.floats(0.0, 100.0)


def largest_eigenvalue(kappa, alpha, beta, certificate, share):
    form = descent_form(
        kappa, alpha, beta, lookahead=certificate.lookahead, weight=certificate.weight, negative=share * kappa
    )
    return np.linalg.eigvalsh(form)[-1]


@given(alpha=ALPHAS, beta=BETAS, share=SHARES, part=st.floats(0.0, 1.0))
def test_the_form_is_negative_semidefinite_up_to_the_limit(alpha, beta, share, part):
    certificate = lookahead_certificate(alpha, beta, share)
    assert certificate.limit > 0
    assert largest_eigenvalue(part * certificate.limit, alpha, beta, certificate, share) <= 1e-7


@given(alpha=ALPHAS, beta=BETAS, share=SHARES)
def test_the_limit_lies_below_what_is_known_to_fail(alpha, beta, share):
    limit = lookahead_certificate(alpha, beta, share).limit
    assert limit <= stable_limit(alpha, beta) * (1 + 1e-7)
    assert limit <= cycle_curvature(alpha, beta, share).kappa * (1 + 1e-7)
    assert limit >= descent_limit(alpha, beta) * (1 - 1e-12)


@given(alpha=ALPHAS, beta=BETAS)
def test_without_a_lower_bound_no_lookahead_helps(alpha, beta):
    certificate = lookahead_certificate(alpha, beta, np.inf)
    assert certificate.lookahead == 0
    assert certificate.weight == pytest.approx(1 - alpha)
    assert certificate.limit == pytest.approx(2 * alpha / (1 + alpha * beta))
    assert cycle_curvature(alpha, beta, np.inf).kappa == pytest.approx(certificate.limit, rel=0.02)


def test_more_negative_curvature_certifies_less():
    limits = lookahead_certificate(0.05, 1.0, np.geomspace(1e-3, 1e3, 30)).limit
    assert np.all(np.diff(limits) < 0)


def test_without_momentum_it_is_gradient_descent():
    """α = 1: the learning rate η(1 + β) may reach 2/L."""
    assert descent_limit(1.0, 0.5) == pytest.approx(2.0 / 1.5)
    assert stable_limit(1.0, 0.5) == pytest.approx(2.0 / 1.5)


def test_smooth_objectives_cycle_from_twice_the_limit_on():
    """−L ≼ ∇²f ≼ L: 1/κ + 1/κ₋ = (1 + αβ)/(2α) at κ = κ₋ is 4α/(1 + αβ), up to finitely many corners."""
    assert cycle_curvature(0.01, 1.0, 1.0).kappa == pytest.approx(0.04 / 1.01, rel=1e-3)


def test_offset_grows_towards_the_limit_and_is_refused_beyond():
    certificate = lookahead_certificate(0.1, 0.5)
    offsets = convex_offset(np.array([0.1, 0.5, 0.9]) * certificate.limit, 0.1, 0.5, certificate)
    assert np.all(np.diff(offsets) > 0)
    with pytest.raises(ValueError, match="kappa must lie strictly between"):
        convex_offset(1.01 * certificate.limit, 0.1, 0.5, certificate)
    with pytest.raises(ValueError, match="no momentum"):
        convex_offset(0.1, 1.0, 0.5, certificate)


def test_blocks_with_their_coupling_majorise_the_hessian(rng):
    matrix = rng.normal(size=(50, 6, 6))
    matrix = matrix + np.swapaxes(matrix, -1, -2)
    sharp = np.linalg.qr(rng.normal(size=(50, 6, 6)))[0][..., :2]
    across, along = block_curvatures(matrix, sharp, np.exp(rng.normal(size=50)))
    projector = sharp @ np.swapaxes(sharp, -1, -2)
    majorant = across[:, None, None] * projector + along[:, None, None] * (np.eye(6) - projector)
    assert np.linalg.eigvalsh(majorant - matrix).min() >= -1e-9


def test_noise_growth_of_plain_gradient_descent():
    """No momentum: f rises by ½Lη²σ² per coordinate, κ/2 in units of ηaσ²."""
    assert noise_growth(0.3, 0.0, lookahead=0.0, weight=0.0) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0, 0.0), "alpha = 0.0"), ((0.5, -0.7), "beta = -0.7 must exceed"), ((0.5, 0.0, -1.0), "negative_share")],
)
def test_outside_the_hypotheses_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lookahead_certificate(*arguments)


@pytest.mark.parametrize("balance", [0.3, 1.0, 4.0])
def test_coupling_in_the_plane_is_bounded_without_slack(balance):
    """Two dimensions: majorant − H = [[t|c|, −c], [−c, |c|/t]] is singular, so that no smaller bound holds."""
    matrix = np.array([[2.0, -0.7], [-0.7, 0.4]])
    across, along = block_curvatures(matrix, np.eye(2)[:, :1], balance)
    assert np.linalg.eigvalsh(np.diag([across, along]) - matrix)[0] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("beta", [-0.3, 0.0, 2.0])
def test_cycles_begin_where_their_condition_is_an_equality(beta, share):
    """The corner's normal cone (docs/theory, eq-cycle), written out for κ and κ₋ = ωκ."""
    kappa, corners = cycle_curvature(0.2, beta, share)
    g, t = circle_gradient(0.2, beta, 2 * np.pi / corners), np.tan(np.pi / corners)
    negative = share * kappa
    left = abs(g.imag) * (kappa + negative)
    right = t * ((g.real + negative) * (kappa - g.real) - g.imag**2)
    assert left == pytest.approx(right, rel=1e-9)


def test_noise_growth_with_lookahead_is_its_formula_number_by_number():
    """½[φ + κ(1 − c + β)²] with κ = 0.5, β = 0.4, c = 0.2, φ = 0.2."""
    assert noise_growth(0.5, 0.4, lookahead=0.2, weight=0.2) == pytest.approx(0.5 * (0.2 + 0.5 * 1.44))


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.5), (0.5, -0.3), (0.02, 3.0)])
def test_offset_is_the_least_at_which_the_form_is_negative_semidefinite(alpha, beta, part):
    """One below it, no constant weight works; at it, the best one does. The form is written out as in docs/theory."""
    certificate, s = lookahead_certificate(alpha, beta), 1 - alpha
    c, phi, kappa = certificate.lookahead, certificate.weight, part * certificate.limit
    falling = descent_form(kappa, alpha, beta, lookahead=c, weight=phi)
    shifts = np.linspace(-1.5, 1.5, 3001) * phi / alpha
    rest = np.empty((len(shifts), 2, 2))
    rest[:, 0, 0] = kappa * c**2 + phi - shifts * (1 - s**2)
    rest[:, 0, 1] = rest[:, 1, 0] = s / alpha + c + shifts * s
    rest[:, 1, 1] = beta + 1 / alpha - 1 / kappa + shifts
    offset = float(convex_offset(kappa, alpha, beta, certificate))
    for factor, exists in ((0.98, False), (1.001, True)):
        forms = (factor * offset + 1) * falling + 0.5 * rest
        kept = (np.linalg.eigvalsh(forms)[:, -1] <= 0) & (phi * factor * offset + shifts >= 0)
        assert kept.any() == exists


@given(alpha=ALPHAS, beta=BETAS, c=st.floats(0.0, 1.0), weight=st.floats(0.0, 2.0), seed=st.integers(0, 10**6))
def test_the_form_is_the_change_of_the_energy_with_both_curvature_bounds(alpha, beta, c, weight, seed):
    """ΔE/ηa for f(y₁) ≤ f + g·Δ₁ + L/2 Δ₁² and f(y₀) ≥ f + g·Δ₀ − ℓ/2 Δ₀², from one step of the update rule."""
    m, g, kappa, negative = np.random.default_rng(seed).uniform(0.5, 2.0, 4) * [1, -1, 1, 1]
    moved = (1 - alpha) * m + g
    ahead, behind = c * moved - (moved + beta * g), c * m  # Δ₁ and Δ₀ over ηa
    change = g * ahead + 0.5 * kappa * ahead**2 - g * behind + 0.5 * negative * behind**2
    change += 0.5 * weight * (moved**2 - m**2)
    form = descent_form(kappa, alpha, beta, lookahead=c, weight=weight, negative=negative)
    assert np.array([m, g]) @ form @ [m, g] == pytest.approx(change, rel=1e-9, abs=1e-9)


def test_without_lookahead_negative_curvature_does_not_matter():
    forms = [descent_form(0.3, 0.1, 0.5, lookahead=0.0, weight=0.9, negative=x) for x in (0.0, 1.0, np.inf)]
    np.testing.assert_array_equal(forms[0], forms[1])
    np.testing.assert_array_equal(forms[0], forms[2])


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0, 10.0])
@pytest.mark.parametrize(("alpha", "beta"), [(0.05, 1.0), (0.3, -0.3), (0.5, 3.0), (0.9, 0.0), (0.02, 6.0)])
def test_no_other_energy_certifies_more(alpha, beta, share):
    """One percent beyond the limit, no weight and no lookahead of a grid make the form negative semidefinite."""
    certificate = lookahead_certificate(alpha, beta, share)

    def falls(kappa):
        c, weight = np.linspace(0, 1, 101)[:, None], np.linspace(0, 2, 2001)
        form = descent_form(kappa, alpha, beta, lookahead=c, weight=weight, negative=share * kappa)
        determinant = form[..., 0, 0] * form[..., 1, 1] - form[..., 0, 1] ** 2
        return bool(((form[..., 0, 0] <= 0) & (form[..., 1, 1] <= 0) & (determinant >= 0)).any())

    assert not falls(1.01 * certificate.limit)
    assert falls(0.98 * certificate.limit)


def test_arrays_are_their_members():
    alpha, beta, share = np.array([[0.05], [0.4]]), np.array([0.0, 1.0, 3.0]), 0.2
    for function in (lookahead_certificate, cycle_curvature):
        whole = function(alpha, beta, share)
        for i, k in np.ndindex(2, 3):
            one = function(float(alpha[i, 0]), float(beta[k]), share)
            assert tuple(float(x[i, k]) for x in whole) == tuple(map(float, one))


def test_blocks_without_positive_curvature_count_as_flat():
    """Only the coupling remains, divided by the balance; 1 by default."""
    matrix = np.array([[-2.0, 0.3], [0.3, -1.0]])
    np.testing.assert_allclose(block_curvatures(matrix, np.eye(2)[:, :1], 2.0), (0.6, 0.15))
    np.testing.assert_allclose(block_curvatures(matrix, np.eye(2)[:, :1]), (0.3, 0.3))
    np.testing.assert_allclose(coupled_curvatures(-2.0, -1.0, 0.3), (0.3, 0.3))


def test_the_coupling_is_the_largest_singular_value():
    """The largest singular value of H_sf, not its Frobenius norm."""
    matrix = np.zeros((4, 4))
    matrix[:2, 2:] = np.diag([3.0, 4.0])
    matrix += matrix.T
    np.testing.assert_allclose(block_curvatures(matrix, np.eye(4)[:, :2], 1.0), (4.0, 4.0))


@pytest.mark.parametrize("argument", [0.0, 1.0])
def test_an_offset_needs_a_step_strictly_inside(argument):
    certificate = lookahead_certificate(0.1, 0.5)
    with pytest.raises(ValueError, match="strictly between"):
        convex_offset(argument * certificate.limit, 0.1, 0.5, certificate)


@given(alpha=st.floats(0.001, 0.99), gap=st.floats(-8.0, -1.0), share=st.floats(0.0, 1e4))
def test_damping_next_to_its_bound_still_has_the_limit_without_lookahead(alpha, gap, share):
    """At β → −1/(2 − α) rounding once refused c = 0, too, and the limit was 0."""
    beta = -1 / (2 - alpha) + 10**gap
    assert lookahead_certificate(alpha, beta, share).limit >= descent_limit(alpha, beta) * (1 - 1e-4)


def test_objectives_are_convex_by_default():
    for function in (lookahead_certificate, cycle_curvature):
        assert tuple(map(float, function(0.1, 0.5))) == tuple(map(float, function(0.1, 0.5, 0.0)))


def test_whole_numbers_and_single_precision_count_as_double():
    assert lookahead_certificate(np.float32([0.5, 0.25]), np.float32([0.0, 1.0])).limit.dtype == np.float64
    np.testing.assert_array_equal(cycle_curvature(1, 0, 0).kappa, cycle_curvature(1.0, 0.0, 0.0).kappa)


def test_hardly_any_momentum_needs_hardly_any_offset():
    certificate = lookahead_certificate(0.999, 0.0)
    assert 0.0 <= float(convex_offset(1e-3 * certificate.limit, 0.999, 0.0, certificate)) < 0.5
