"""Saves off the grid of steps, and dense output after the fact."""

import numpy as np
import pytest
import torch

from riemannian_ode import INTEGRATORS, RISHD, ConstantMetric, Event, integrator, simulate
from riemannian_ode.save_grid import SavePoints
from tests.riemannian_ode.problems import REFERENCE, START, general, hardest_for, random_metric
from toy_landscapes import Quadratic, RiverValley

TIMES = [0.11, 0.3, 0.95, 1.26]


@pytest.mark.parametrize("name", INTEGRATORS)
def test_saves_off_the_grid_are_the_schemes_own_and_leave_the_grid_alone(name):
    scheme = integrator(name)
    system, _ = hardest_for(scheme)
    plain = simulate(system, START, h=0.3, steps=5, integrator=scheme)
    run = simulate(system, START, h=0.3, steps=5, integrator=scheme, save_at=TIMES)
    np.testing.assert_allclose(run.times, [0, 0.11, 0.3, 0.6, 0.9, 0.95, 1.2, 1.26, 1.5], rtol=1e-15)
    assert set(TIMES) - {0.3} <= set(run.times)
    grid = [0, 2, 3, 4, 6, 8]
    np.testing.assert_array_equal(run.w[grid], plain.w)
    np.testing.assert_array_equal(run.m[grid], plain.m)
    t = run.times[4]
    own = simulate(system, run.w[4], run.m[4], t0=t, h=0.95 - t, steps=1, integrator=scheme)
    np.testing.assert_array_equal(run.w[5], own.w[-1])


def test_only_the_points_are_saved_where_steps_are_not_wanted():
    seen = {"height": lambda t, w, m: t}
    run = simulate(general(), START, h=0.3, steps=5, save_every=5, save_at=[0.6, 0.7], observers=seen)
    np.testing.assert_allclose(run.times, [0.0, 0.6, 0.7, 1.5])
    np.testing.assert_array_equal(run.observed["height"], run.times)
    lean = simulate(general(), START, h=0.3, steps=5, save_at=[0.7], observers=seen, keep_states=False)
    assert lean.w.shape[0] == 2
    np.testing.assert_allclose(lean.observed_times, [0, 0.3, 0.6, 0.7, 0.9, 1.2, 1.5])


def test_both_ends_and_times_equal_to_the_grids_but_for_rounding_are_the_grids():
    run = simulate(general(), START, h=0.1, steps=10, save_every=10, save_at=np.linspace(0.0, 1.0, 11))
    np.testing.assert_array_equal(run.times, 0.1 * np.arange(11))  # not 0.3 but 3 · 0.1
    np.testing.assert_array_equal(run.w, simulate(general(), START, h=0.1, steps=10).w)


def test_points_lie_in_their_steps(rng):
    times = np.sort(rng.uniform(-7.0, 93.0, 500))
    points = SavePoints(times, t0=-7.0, h=0.1, steps=1000)
    found = [(k, t) for k in range(1000) for t in points.inside(k)]
    assert all(-7.0 + k * 0.1 < t < -7.0 + (k + 1) * 0.1 for k, t in found)
    np.testing.assert_array_equal([t for _, t in found], times)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.5, 0.4], "must increase, but 0.4.* comes after 0.5"),
        ([0.5, 0.5], "must increase"),
        ([-0.1], r"holds t = -0\.1.*, outside the simulated span 0 … 2"),
        ([0.1, 2.1], r"holds t = 2\.1.*, outside"),
        ([float("nan")], "finite times"),
        (0.5, "list of finite times"),
    ],
)
def test_bad_points_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        simulate(general(), START, h=0.5, steps=4, save_at=times)


def test_a_terminal_event_ends_the_saves_too():
    system = RISHD.from_coefficients(Quadratic([1.0]), alpha=0.0, beta=0.0, gamma=1.0)  # w = cos t
    zero = Event("zero", lambda t, w, m: w[..., 0], terminal=True)
    run = simulate(
        system, np.array([1.0]), h=1.0, steps=5, integrator=REFERENCE, events=[zero], save_at=[0.5, 1.2, 1.9, 2.5]
    )
    np.testing.assert_allclose(run.times, [0.0, 0.5, 1.0, 1.2, np.pi / 2], atol=1e-10)
    np.testing.assert_allclose(run.w[:, 0], np.cos(run.times), atol=1e-10)


def test_dense_output_is_of_fourth_order_in_the_distance_of_the_saves():
    system = general()
    times = np.array([0.05, 0.71, 1.33, 1.96])
    exact = simulate(system, START, h=2.0, steps=1, save_at=times, integrator=REFERENCE)
    errors = []
    for saves in (16, 32, 64):
        run = simulate(system, START, h=2.0 / saves, steps=saves, integrator=REFERENCE)
        w, m = run.interpolate(times, system)
        assert w.shape == m.shape == (4, *START.shape)
        errors.append(np.abs(np.stack([w, m]) - np.stack([exact.w, exact.m])[:, 1:-1]).max())
    assert np.diff(-np.log2(errors)) == pytest.approx(4.0, abs=0.3)


def test_dense_output_passes_through_the_saves_and_takes_numbers_and_tensors(rng):
    valley = RiverValley([3.0], amplitudes=0.8)
    system = RISHD.from_optimizer(valley, ConstantMetric(random_metric(2)), alpha=[0.3, 0.4], eta=0.3)
    run = simulate(system, torch.as_tensor(rng.normal(size=(2, 2))), h=0.3, steps=4)
    w, m = run.interpolate(run.times, system)
    assert torch.allclose(w, run.w, atol=1e-15)
    assert torch.allclose(m, run.m, atol=1e-15)
    at_one, _ = run.interpolate(1.0, system)
    assert at_one.shape == (2, 2)
    for outside in (-0.1, 1.3, float("nan"), [0.1, 2.0]):
        with pytest.raises(ValueError, match=r"must lie between the first and the last save, 0 … 1\.2"):
            run.interpolate(outside, system)
