"""Sine and cosine of compiled loops against mpmath: within a unit in the last place."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riemannian_ode.compiled.native import NativeLoop
from riemannian_ode.integrators import PhaseState
from tests.machines import needs_compiler, needs_fused_products
from tests.riemannian_ode.test_compiled import loop_of

pytestmark = [needs_compiler, needs_fused_products]
MEMBERS = 1024


@pytest.fixture(scope="module")
def loop() -> NativeLoop:
    w = np.zeros((MEMBERS, 2))
    return loop_of(lambda a, b: (np.stack([np.sin(a[..., 0]), np.cos(a[..., 0])], axis=-1), b), w)


def circle(loop, x):
    x = np.resize(x, MEMBERS)
    w = np.stack([x, x], axis=-1)
    with np.errstate(invalid="ignore"):
        return x, *loop.leave(loop.advance(0.0, 0, loop.enter(PhaseState(w, w)), 1)).w.T


def worst_error(loop, x):
    """Largest error in units in the last place."""
    x, *found = circle(loop, x)
    worst = 0.0
    with mpmath.workprec(1200):
        for function, values in zip((mpmath.sin, mpmath.cos), found, strict=True):
            for argument, value in zip(x, values, strict=True):
                exact = function(mpmath.mpf(float(argument)))
                unit = float(np.spacing(abs(float(exact))))
                worst = max(worst, float(abs(mpmath.mpf(float(value)) - exact) / unit))
    return worst


def multiples(rng):
    near = np.concatenate([np.arange(1, 200), rng.integers(1, 2**29, 150)]) * (np.pi / 2)
    return np.concatenate([near, np.nextafter(near, 0.0), np.nextafter(near, np.inf)])


@pytest.mark.parametrize(
    "arguments",
    [
        lambda rng: rng.normal(0.0, 3.0, MEMBERS),
        multiples,
        lambda rng: rng.choice([-1.0, 1.0], MEMBERS) * 10.0 ** rng.uniform(0.0, 9.03, MEMBERS),
        lambda rng: rng.choice([-1.0, 1.0], MEMBERS) * 10.0 ** rng.uniform(9.0, 300.0, MEMBERS),
        lambda rng: 10.0 ** rng.uniform(-323.0, 0.0, MEMBERS),
        lambda rng: np.array([1e300, -1e300, np.finfo(float).max, 2.0**30, np.nextafter(2.0**30, np.inf)]),
    ],
    ids=["usual", "near multiples of π/2", "to 1e9", "far", "small and subnormal", "limits"],
)
def test_within_a_unit_in_the_last_place(loop, rng, arguments):
    assert worst_error(loop, arguments(rng)) < 1.0


@settings(max_examples=15, deadline=None)
@given(x=st.lists(st.floats(-(2.0**30), 2.0**30), min_size=1, max_size=40))
def test_any_angle_that_is_not_far(loop, x):
    assert worst_error(loop, np.array([*x] + [0.0] * (64 - len(x)))) < 1.0


def test_far_angles_get_the_c_library_s_numbers(loop):
    """Also next to a multiple of π/2, where glibc's cosine is off by 8 units in the last place."""
    x, *found = circle(loop, np.array([6381956970095103.0 * 2.0**797, -1e300, 2.0**40]))
    for function, values in zip((math.sin, math.cos), found, strict=True):
        np.testing.assert_array_equal(values, [function(number) for number in x])


def test_zeros_infinities_and_nan(loop):
    _, sine, cosine = circle(loop, np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -5e-324]))
    np.testing.assert_array_equal(sine[:7], [0.0, -0.0, np.nan, np.nan, np.nan, 5e-324, -5e-324])
    assert list(np.signbit(sine[:2])) == [False, True]
    np.testing.assert_array_equal(cosine[:7], [1.0, 1.0, np.nan, np.nan, np.nan, 1.0, 1.0])


def test_a_far_or_lost_neighbour_changes_no_bit(loop, rng):
    x = rng.normal(0.0, 3.0, MEMBERS)
    disturbed = x.copy()
    disturbed[::5], disturbed[1::64], disturbed[2::64] = 1e200, np.nan, np.inf
    same = disturbed == x
    for alone, beside in zip(circle(loop, x)[1:], circle(loop, disturbed)[1:], strict=True):
        np.testing.assert_array_equal(alone[same], beside[same])
