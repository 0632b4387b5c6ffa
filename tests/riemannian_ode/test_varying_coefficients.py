"""Coefficients that vary in time: every scheme keeps its order, and one step takes each at the right time."""

import math

import numpy as np
import pytest

from riemannian_ode import (
    INTEGRATORS,
    RISHD,
    ConstantMetric,
    ConstantSplit,
    GradientNoise,
    PhaseState,
    TimeDependent,
    simulate,
)
from riemannian_ode.integrators import OneStepIntegrator, integrator
from tests.riemannian_ode.problems import REFERENCE, RankOneMetric
from toy_landscapes import Quadratic

# Level, swing: far from constant over a step, and within the range of each coefficient.
COEFFICIENTS = {
    "alpha": (0.6, 0.5),
    "eta": (0.5, 0.4),
    "gain": (1.2, 0.8),
    "nesterov": (0.5, 0.4),
    "beta": (0.5, 0.4),
    "beta_flat": (1.2, 0.5),
    "chi": (2.0, 0.9),
}
ONE_STEP = [name for name, cls in INTEGRATORS.items() if issubclass(cls, OneStepIntegrator)]
SPLIT = ("beta_flat", "chi")
SPAN = 2.0


def varying(name, *, constant=False, beta=0.3):
    """A coupled quadratic of which one coefficient varies: 0.8 turns of a sine over the run."""
    level, swing = COEFFICIENTS[name]
    coefficients = {"alpha": 0.3, "eta": 0.6, "gain": 1.6, "beta": beta}  # γ > 0
    split = {"flat": ConstantSplit(np.eye(2)[:, :1]), "chi": 1.5, "beta_flat": 0.8} if name in SPLIT else {}
    wave = TimeDependent(
        lambda t: level + swing * math.sin(2.5 * t + 0.4), lambda t: 2.5 * swing * math.cos(2.5 * t + 0.4)
    )
    metric = ConstantMetric(np.diag([1.0, 1.6]))
    return RISHD.from_optimizer(
        Quadratic.random([1.5, 0.6], seed=2), metric, **{**coefficients, **split, name: level if constant else wave}
    )


def end_of(system, name, steps):
    run = simulate(system, np.array([1.0, -0.7]), np.array([0.3, 0.5]), h=SPAN / steps, steps=steps, integrator=name)
    assert run.ok, run.message
    return np.concatenate([run.w[-1], run.m[-1]])


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
@pytest.mark.parametrize("name", ONE_STEP)
def test_order_with_a_coefficient_that_varies(name, coefficient):
    # Strang's leapfrog is for β = 0, its midpoint rule for the rest; the discrete gradient takes α(t) alone.
    betas = (0.0, 0.3) if name.startswith("strang") and coefficient not in ("beta", "nesterov", *SPLIT) else (0.3,)
    for beta in betas:
        system = varying(coefficient, beta=beta)
        if name == "discrete-gradient" and coefficient != "alpha":
            with pytest.raises(ValueError, match="constant coefficients and no split"):
                end_of(system, name, 4)
            return
        run = simulate(system, np.array([1.0, -0.7]), np.array([0.3, 0.5]), h=SPAN, steps=1, integrator=REFERENCE)
        exact = np.concatenate([run.w[-1], run.m[-1]])
        coarse, fine = (np.linalg.norm(end_of(system, name, steps) - exact) for steps in (16, 32))
        assert np.log2(coarse / fine) > INTEGRATORS[name].order - 0.35
        if INTEGRATORS[name].order > 1:  # this measures the effect of the varying coefficient only
            still = end_of(varying(coefficient, constant=True, beta=beta), name, 16)
            assert np.linalg.norm(still - exact) > 10 * fine


# Where in the step a scheme takes all of its coefficients.
PLACES = {
    "explicit-euler": 0.0,
    "semi-implicit-euler": 0.0,
    "position-first-euler": 0.0,
    "implicit-euler": 1.0,
    "implicit-midpoint": 0.5,
    "exponential-euler": 0.5,
}


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
@pytest.mark.parametrize("name", PLACES)
def test_schemes_take_coefficients_where_they_say(name, coefficient):
    """The same step with the coefficient constant at its value there; the order does not always distinguish places."""
    h, t = 0.4, 0.7
    system, state = varying(coefficient), PhaseState(np.array([1.0, -0.7]), np.array([0.3, 0.5]))
    frozen = {field: system.at(field, t + PLACES[name] * h) for field in ("alpha", "eta", "nesterov", "beta_sharp")}
    frozen |= {field: system.at(field, t + PLACES[name] * h) for field in ("beta_flat", "chi", "gain")}
    constant = RISHD(objective=system.objective, metric=system.metric, flat=system.flat, **frozen)
    moved, expected = (integrator(name).step(flow, t, state, h) for flow in (system, constant))
    for x, y in zip(moved, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def wave(name):
    level, swing = COEFFICIENTS[name]
    return TimeDependent(
        lambda t: level + swing * math.sin(2.5 * t + 0.4), lambda t: 2.5 * swing * math.cos(2.5 * t + 0.4)
    )


SCALES, BOWL = np.array([1.0, 1.6]), Quadratic.random([1.5, 0.6], seed=2)


def all_varying(**others):
    """A flow whose α, η and c vary in time."""
    coefficients = {name: wave(name) for name in ("alpha", "eta", "gain")}
    return RISHD.from_optimizer(BOWL, ConstantMetric(np.diag(SCALES)), **coefficients | others)


def strang(system, t, w, m, h):
    """Half the damping, leapfrog with the coefficients of its middle, half the damping."""
    eta, gain = (system.at(name, t + h / 2) for name in ("eta", "gain"))
    m = np.exp(-system.at("alpha", t + h / 4) * h / 2) * m
    w = w - h / 2 * eta * m / SCALES
    m = m + h * gain * BOWL.gradient(w)
    w = w - h / 2 * eta * m / SCALES
    return w, np.exp(-system.at("alpha", t + 3 * h / 4) * h / 2) * m


def test_strang_takes_each_coefficient_at_the_middle_of_its_part():
    """And its composition of order 4 has five steps of 0.4145, two of them before and two after one of −0.658."""
    w, m, h, t = np.array([1.0, -0.7]), np.array([0.3, 0.5]), 0.4, 0.7
    system = all_varying()
    for got, wanted in zip(integrator("strang").step(system, t, PhaseState(w, m), h), strang(system, t, w, m, h),
                           strict=True):  # fmt: skip
        np.testing.assert_allclose(got, wanted, rtol=1e-13)
    expected, time = (w, m), t
    for share in (0.4144907717943757, 0.4144907717943757, -0.6579630871775028, 0.4144907717943757, 0.4144907717943757):
        expected, time = strang(system, time, *expected, share * h), time + share * h
    for got, wanted in zip(integrator("strang4").step(system, t, PhaseState(w, m), h), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-13)
    members = all_varying(alpha=np.array([0.2, 0.9]))
    both = integrator("strang").step(members, t, PhaseState(np.stack([w, w]), np.stack([m, m])), h)
    for i, alpha in enumerate((0.2, 0.9)):
        for got, wanted in zip(both, strang(all_varying(alpha=alpha), t, w, m, h), strict=True):
            np.testing.assert_allclose(got[i], wanted, rtol=1e-13)


@pytest.mark.parametrize("is_damped", [False, True])
@pytest.mark.parametrize("fading", [False, True], ids=["α(t)", "α → 0"])
def test_ubu_glides_by_its_closed_form_and_takes_coefficients_at_the_middle_of_its_parts(is_damped, fading):
    """w − ηAφ(τ)m and e^{−ατ}m with φ(τ) = (1 − e^{−ατ})/α; with damping the kick is a midpoint step."""
    w, m, h, t = np.array([1.0, -0.7]), np.array([0.3, 0.5]), 0.4, 0.7
    system = all_varying(**({"beta": wave("beta")} if is_damped else {}), **({"alpha": 1e-6} if fading else {}))

    def glide(w, m, middle):
        alpha, eta = system.at("alpha", middle), system.at("eta", middle)
        return w + eta * math.expm1(-alpha * h / 2) / alpha * m / SCALES, math.exp(-alpha * h / 2) * m

    expected = glide(w, m, t + h / 4)
    rate = system.at("eta", t + h / 2) * system.at("nesterov", t + h / 2) / SCALES
    g = BOWL.gradient(expected[0] - h / 2 * rate * BOWL.gradient(expected[0]))
    expected = expected[0] - h * rate * g, expected[1] + h * system.at("gain", t + h / 2) * g
    for got, wanted in zip(integrator("ubu").step(system, t, PhaseState(w, m), h), glide(*expected, t + 3 * h / 4),
                           strict=True):  # fmt: skip
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_ubu_with_noise_takes_coefficients_and_noise_at_the_same_places():
    w, m, h, t = np.array([[1.0, -0.7]]), np.array([[0.3, 0.5]]), 0.4, 0.7
    system, seen = all_varying(beta=wave("beta")), []
    noise = GradientNoise(factor=lambda t, w: seen.append((t, w)) or 0.3 + 0.0 * w)
    quiet = integrator("ubu").noisy_step(system, t, PhaseState(w, m), h, noise=noise, normals=np.zeros((1, 8)))
    for got, wanted in zip(quiet, integrator("ubu").step(system, t, PhaseState(w, m), h), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert [time for time, _ in seen] == [t + h / 4] * 2 + [t + 3 * h / 4] * 2
    assert all(x.shape == w.shape for _, x in seen)
    for refused in ({"metric": RankOneMetric(2)}, {"flat": lambda point: lambda x: x}):
        settings = {"objective": BOWL, "alpha": 0.3, "eta": 0.2} | refused
        with pytest.raises(ValueError, match="ubu needs a constant metric"):
            integrator("ubu").step(RISHD(**settings), t, PhaseState(w, m), h)
