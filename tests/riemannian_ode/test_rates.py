"""Guaranteed rates: their special cases, equations and errors."""

import numpy as np
import pytest

from riemannian_ode.rates import convex_value_bound, polyak_lojasiewicz_rate, strongly_convex_rate


def test_strongly_convex_rate_without_hessian_damping_is_the_root_of_mu():
    for gamma in ("one", "corrected"):
        assert strongly_convex_rate(0.25, 0.0, gamma=gamma) == pytest.approx(0.5)


def test_strongly_convex_rates_solve_their_equations_and_beat_the_published_ones():
    b = np.linspace(0.0, 0.5, 11)
    r = strongly_convex_rate(1.0, b, gamma="one")
    assert (1 - (1 + b) * r) * (4 - b - 2 * r) == pytest.approx((1 - r) ** 2 * (1 - 0.5 * b * r), abs=1e-12)
    assert np.all(r >= 0.632)  # arXiv:1907.10536 has 1/2
    assert np.all(strongly_convex_rate(1.0, np.linspace(0, 1, 11), gamma="corrected") >= 2 / 3)  # 1810.08907 has 1/4


def test_strongly_convex_rates_scale_with_time():
    assert strongly_convex_rate(4.0, 0.2, gamma="one") == pytest.approx(2 * strongly_convex_rate(1.0, 0.4, gamma="one"))


def test_too_much_damping_is_refused():
    with pytest.raises(ValueError, match="needs b < 3"):
        strongly_convex_rate(1.0, 3.0, gamma="one")


def test_convex_bound_is_an_equality_of_gaps_for_a_start_at_the_minimiser():
    late = convex_value_bound(np.array([0.0, 30.0]), distance=0.0, gap=2.0, alpha=0.5, eta=1.0)
    assert late == pytest.approx([2.0, 2.0 * 3.0 / 33.0])


def test_polyak_lojasiewicz_rate_is_the_slower_of_its_two_parts():
    assert polyak_lojasiewicz_rate(0.5, alpha=0.3, eta=1.0, beta=np.array([0.0, 0.1, 9.0])) == pytest.approx(
        [0.0, 0.1, 0.6]
    )


def test_convex_bound_is_its_formula_number_by_number():
    """[D²/(2η) + 3δ₀/(2α)]/(t + 3/(2α)) with D² = 6, η = 0.1, α = 0.3, δ₀ = 2, t = 5: (30 + 10)/(5 + 5)."""
    assert convex_value_bound(5.0, distance=6.0, gap=2.0, alpha=0.3, eta=0.1) == pytest.approx(4.0)


@pytest.mark.parametrize(("b", "share"), [(0.0, 1.0), (0.5, 0.75), (1.0, 2 / 3), (2.0, 0.6)])
def test_corrected_rate_is_its_formula_number_by_number(b, share):
    assert strongly_convex_rate(4.0, b / 2.0, gamma="corrected") == pytest.approx(2.0 * share)
