"""Events are located to 1e−10, and not skipped inside large steps."""

import numpy as np
import pytest
import torch

from riemannian_ode import INTEGRATORS, RISHD, Event, integrator, simulate
from riemannian_ode.integrators.adaptive import DOP853
from tests.riemannian_ode.problems import START, hardest_for
from toy_landscapes import Quadratic, RiverValley

ACCURATE = DOP853(rtol=1e-13, atol=1e-14)


def oscillator(eta=1.0):
    """ẅ = −w without damping: w = cos t from (1, 0)."""
    return RISHD.from_coefficients(Quadratic([1.0]), alpha=0.0, beta=0.0, gamma=eta)


def test_crossings_of_a_cosine_are_at_odd_multiples_of_half_pi():
    zero = Event("zero", lambda t, w, m: w[..., 0])
    run = simulate(oscillator(), np.array([1.0]), h=0.5, steps=20, integrator=ACCURATE, events=[zero])
    times = [record.time for record in run.events]
    np.testing.assert_allclose(times, np.pi * (np.arange(3) + 0.5), atol=1e-10)
    assert [record.member for record in run.events] == [()] * 3
    np.testing.assert_allclose([record.w[0] for record in run.events], 0.0, atol=1e-10)


@pytest.mark.parametrize(("direction", "count"), [("falling", 2), ("rising", 1), ("any", 3)])
def test_direction(direction, count):
    zero = Event("zero", lambda t, w, m: w[..., 0], direction=direction)
    run = simulate(oscillator(), np.array([1.0]), h=0.5, steps=20, integrator=ACCURATE, events=[zero])
    assert len(run.events) == count


def test_two_crossings_inside_one_large_step_are_found():
    """The whole oscillation between both crossings of −0.9 lies inside one step: the ends do not differ in sign."""
    low = Event("low", lambda t, w, m: w[..., 0] + 0.9)
    run = simulate(oscillator(), np.array([1.0]), h=2.2, steps=2, integrator=ACCURATE, events=[low])
    exact = np.arccos(-0.9)
    np.testing.assert_allclose([record.time for record in run.events], [exact, 2 * np.pi - exact], atol=1e-10)


def test_terminal_event_ends_the_trajectory_at_its_place():
    landscape = Quadratic([1.0, 0.1])
    system = RISHD.from_optimizer(landscape, alpha=0.5, eta=0.5)
    reached = Event("loss below 0.01", lambda t, w, m: landscape.value(w) - 0.01, direction="falling", terminal=True)
    run = simulate(system, np.array([1.0, 1.0]), h=1.0, steps=500, integrator=ACCURATE, events=[reached])
    assert run.status == "event"
    assert run.ok
    assert "loss below 0.01 at t =" in run.message
    assert landscape.value(run.w[-1]) == pytest.approx(0.01, abs=1e-11)
    assert run.times[-1] == run.events[-1].time


def test_fixed_step_schemes_locate_on_their_own_step():
    landscape = Quadratic([1.0, 0.1])
    system = RISHD.from_optimizer(landscape, alpha=0.5, eta=0.5)
    reached = Event("reached", lambda t, w, m: landscape.value(w) - 0.01, direction="falling", terminal=True)
    exact = simulate(system, np.array([1.0, 1.0]), h=1.0, steps=500, integrator=ACCURATE, events=[reached]).times[-1]
    errors = []
    for h in (0.2, 0.1):
        run = simulate(system, np.array([1.0, 1.0]), h=h, steps=1000, integrator="rk4", events=[reached])
        errors.append(abs(run.times[-1] - exact))
    assert errors[0] / errors[1] > 10  # of the scheme's order, not of the step's length


@pytest.mark.parametrize("name", INTEGRATORS)
def test_every_integrator_locates_events_on_its_own_steps(name):
    scheme = integrator(name)
    system, _ = hardest_for(scheme)
    zero = Event("zero", lambda t, w, m: w[..., 0])
    run = simulate(system, START, h=0.4, steps=6, integrator=scheme, events=[zero])
    assert run.events
    for record in run.events:
        assert abs(record.w[0]) < (1e-9 if scheme.adaptive else 1e-11)  # an adaptive step has its tolerance's noise
        k = int(record.time // 0.4)
        start = run.w[k], run.m[k]
        own = simulate(system, *start, t0=0.4 * k, h=record.time - 0.4 * k, steps=1, integrator=scheme)
        np.testing.assert_allclose(own.w[-1][record.member], record.w, atol=1e-9)


def test_members_have_their_own_events_and_the_ensemble_ends_with_the_last():
    landscape = Quadratic([1.0])
    rates = np.array([0.1, 0.3, 0.9])
    system = RISHD.from_coefficients(landscape, alpha=1.0, beta=rates, gamma=rates)  # exactly ẇ = −βw
    half = Event("half", lambda t, w, m: w[..., 0] - 0.5, terminal=True)
    run = simulate(system, np.ones((3, 1)), h=1.0, steps=100, integrator=ACCURATE, events=[half])
    assert run.status == "event"
    times = {record.member: record.time for record in run.events}
    np.testing.assert_allclose([times[i,] for i in range(3)], np.log(2) / rates, atol=1e-9)
    assert run.times[-1] == 7.0  # the slowest member's event is in the seventh step


def test_nothing_happens_after_the_terminal_event_of_a_single_trajectory():
    """w = cos t: falls below 0.5 at π/3 and below 0 at π/2, both inside one step."""
    half = Event("half", lambda t, w, m: w[..., 0] - 0.5, terminal=True)
    zero = Event("zero", lambda t, w, m: w[..., 0])
    run = simulate(oscillator(), np.array([1.0]), h=2.0, steps=4, integrator=ACCURATE, events=[zero, half])
    assert [record.name for record in run.events] == ["half"]
    assert run.times[-1] == pytest.approx(np.pi / 3, abs=1e-10)
    assert run.message.startswith("half at t = 1.0471975")


def gradient_flow(landscape, beta=0.7):
    """γ = αβ, from rest: exactly ẇ = −β∇f (claim C15)."""
    return RISHD.from_coefficients(landscape, alpha=0.5, beta=beta, gamma=0.5 * beta)


TUBE = RiverValley([20.0, 20.0], floor_curvatures=[0.05])  # straight: the walls' part is s₀e^{−20βt}
SADDLE = Quadratic([1.0, -0.1])
BOWL = Quadratic([2.0, 2.0])
MEANT_FOR = {
    "enter the river's tube": (
        TUBE,
        lambda t, w, m: np.linalg.norm(TUBE.sharp_projection(w, TUBE.gradient(w)), axis=-1) - 0.1,
        "falling",
        lambda w0: np.log(20.0 * np.linalg.norm(w0[1:]) / 0.1) / (0.7 * 20.0),
    ),
    "loss below epsilon": (
        BOWL,
        lambda t, w, m: BOWL.value(w) - 1e-4,
        "falling",
        lambda w0: np.log(BOWL.value(w0) / 1e-4) / (2 * 0.7 * 2.0),
    ),
    "leave the saddle": (
        SADDLE,
        lambda t, w, m: np.abs(w[..., 1]) - 2.0,
        "rising",
        lambda w0: np.log(2.0 / abs(w0[1])) / (0.7 * 0.1),
    ),
}


@pytest.mark.parametrize("name", MEANT_FOR)
@pytest.mark.parametrize("h", [0.05, 1.0])
def test_what_events_are_meant_for_is_located_to_its_closed_form(name, h, rng):
    landscape, function, direction, time = MEANT_FOR[name]
    w0 = rng.uniform(0.5, 1.0, (3, landscape.dimension))
    exact = np.array([time(start) for start in w0])
    event = Event(name, function, direction=direction, terminal=True)
    run = simulate(gradient_flow(landscape), w0, h=h, steps=2000, integrator=ACCURATE, events=[event])
    assert run.status == "event"
    found = {record.member: record.time for record in run.events}
    np.testing.assert_allclose([found[i,] for i in range(3)], exact, atol=1e-10)


@pytest.mark.parametrize("name", ["implicit-euler", "exponential-euler"])
def test_crossings_between_a_stiff_steps_ends_are_found_where_the_cubic_strays(name):
    """One step damps |P∇f| by orders of magnitude; the cubic through its ends overshoots."""
    _, function, direction, _ = MEANT_FOR["enter the river's tube"]
    event = Event("tube", function, direction=direction)
    run = simulate(gradient_flow(TUBE), np.ones((2, 3)), h=4.0, steps=3, integrator=name, events=[event])
    assert {record.member for record in run.events} == {(0,), (1,)}
    for record in run.events:
        assert abs(function(0.0, record.w, record.m)) < 1e-9


def test_directions_are_checked():
    with pytest.raises(ValueError, match="direction = 'up' is unknown"):
        Event("zero", lambda t, w, m: w, direction="up")


@pytest.mark.parametrize("kind", [np.float64, torch.float64])
def test_an_event_that_is_nan_at_the_start_is_refused(kind):
    start = torch.tensor([1.0], dtype=kind) if kind is torch.float64 else np.array([1.0])
    event = Event("broken", lambda t, w, m: w[..., 0] * np.nan)
    with pytest.raises(ValueError, match=r"event 'broken' is NaN at t = 0, where w = \[1\.\]"):
        simulate(oscillator(), start, steps=2, events=[event])


@pytest.mark.parametrize("scheme", ["rk4", "semi-implicit-euler", "dop853", "ensemble-rk45"])
def test_an_event_that_becomes_nan_ends_the_run_with_member_and_time(scheme):
    """√(w + 0.5) leaves its domain when cos t falls below −0.5, for the second member only."""
    starts = np.array([[0.1], [1.0], [0.2]])
    event = Event("root", lambda t, w, m: np.sqrt(w[..., 0] + 0.5))
    run = simulate(oscillator(), starts, h=0.25, steps=40, integrator=scheme, events=[event])
    assert run.status == "invalid-system"
    assert "event 'root' is NaN at t = " in run.message
    assert "for member (1,), where w = [-0." in run.message
    assert run.times[-1] <= 2 * np.pi / 3 + 0.25
    assert np.isfinite(run.w).all()


def test_a_lost_members_nan_is_no_events_fault():
    system = RISHD.from_optimizer(Quadratic([1.0]), alpha=0.1, eta=np.array([0.1, 1e30]))
    zero = Event("zero", lambda t, w, m: w[..., 0])
    run = simulate(system, np.ones((2, 1)), steps=60, events=[zero])
    assert run.status == "non-finite"
    assert run.times[-1] == 60
    assert any(record.member == (0,) for record in run.events)


def test_an_event_that_is_infinite_on_one_side_is_located():
    log = Event("log", lambda t, w, m: np.where(w[..., 0] > 0.5, w[..., 0], -np.inf))
    run = simulate(oscillator(), np.array([1.0]), h=0.5, steps=3, integrator=ACCURATE, events=[log])
    assert run.events[0].time == pytest.approx(np.arccos(0.5), abs=1e-9)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda t, w, m: w, r"event 'odd' has shape \(1,\)"),
        (lambda t, w, m: None, "event 'odd' is of type NoneType"),
    ],
)
def test_events_of_a_wrong_shape_are_named(function, message):
    with pytest.raises(ValueError, match=message):
        simulate(oscillator(), np.array([1.0]), steps=2, events=[Event("odd", function)])
