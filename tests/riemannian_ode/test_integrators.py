"""Adaptive schemes, exact solutions, both forms of the system, and user-defined schemes."""

import numpy as np
import pytest
import scipy.integrate

from riemannian_ode import INTEGRATORS, RISHD, TimeDependent, integrator, simulate
from riemannian_ode.integrators import OneStepIntegrator
from riemannian_ode.integrators.adaptive import DOP853
from rishd.claims.instances import rippled_quadratics
from tests.riemannian_ode.problems import REFERENCE, START, RankOneMetric, general
from toy_landscapes import Quadratic

ADAPTIVE = sorted(name for name, cls in INTEGRATORS.items() if cls.adaptive)


@pytest.fixture(scope="module")
def exact_end():
    run = simulate(general(), START, h=2.0, steps=1, integrator=REFERENCE)
    assert run.ok
    return run


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_schemes_reach_their_tolerance(name, exact_end):
    scheme = INTEGRATORS[name](rtol=1e-9, atol=1e-11)
    run = simulate(general(), START, h=2.0 / 7, steps=7, integrator=scheme)
    assert run.ok
    assert len(run.times) == 8
    np.testing.assert_allclose(run.w[-1], exact_end.w[-1], atol=1e-6)


def test_adaptive_output_times_match_separate_runs():
    whole = simulate(general(), START, h=0.25, steps=8, integrator="dop853")
    part = simulate(general(), START, h=0.75, steps=1, integrator="dop853")
    np.testing.assert_allclose(whole.w[3], part.w[-1], atol=1e-8)


@pytest.mark.parametrize("time_dependent", [False, True])
def test_special_oracle_gradient_flow(time_dependent):
    """γ = αβ + β̇ and v(0) = 0 give exactly ẇ = −β grad f (claim C15), for any metric."""
    objective = rippled_quadratics(np.random.default_rng(3), 4, 2)
    metric = RankOneMetric(2)
    if time_dependent:
        beta = TimeDependent(lambda t: 0.9 + 0.1 * t, lambda t: 0.1)
        gamma = TimeDependent(lambda t: 0.7 * (0.9 + 0.1 * t) + 0.1)
    else:
        beta, gamma = 0.9, 0.63
    system = RISHD.from_coefficients(objective, metric, alpha=0.7, beta=beta, gamma=gamma)
    run = simulate(system, START, h=0.5, steps=4, integrator=DOP853(rtol=1e-12))
    np.testing.assert_allclose(run.m, 0.0, atol=1e-15)

    def gradient_flow(t, y):
        w = y.reshape(4, 2)
        rate = beta(t) if time_dependent else beta
        return (-rate * metric.raise_index(w, objective.gradient(w))).ravel()

    exact = scipy.integrate.solve_ivp(gradient_flow, (0, 2), START.ravel(), method="DOP853", rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(run.w[-1], exact.y[:, -1].reshape(4, 2), atol=1e-10)


def test_both_constructors_describe_the_same_motion():
    objective = rippled_quadratics(np.random.default_rng(3), 4, 2)
    metric = RankOneMetric(2)
    alpha, beta, eta = 0.5, 0.4, 0.8
    optimizer = RISHD.from_optimizer(objective, metric, alpha=alpha, beta=beta, eta=eta)
    second = optimizer.second_order_coefficients(0.0)
    ode = RISHD.from_coefficients(objective, metric, alpha=second.alpha, beta=second.beta, gamma=second.gamma)
    m0 = np.full_like(START, 0.3)
    v0 = -eta * metric.raise_index(START, m0)  # v = ẇ + ηβ grad f at the start
    scheme = DOP853(rtol=1e-12)
    one = simulate(optimizer, START, m0, h=0.5, steps=4, integrator=scheme)
    other = simulate(ode, START, ode.momentum_of(START, v0), h=0.5, steps=4, integrator=scheme)
    np.testing.assert_allclose(one.w, other.w, atol=1e-10)
    np.testing.assert_allclose(
        ode.velocity_of(other.w[-1], other.m[-1]), -eta * metric.raise_index(one.w[-1], one.m[-1]), atol=1e-10
    )


def test_unknown_integrator_lists_those_that_exist():
    with pytest.raises(
        ValueError, match=r"'rk5' is unknown\. Choose one of: discrete-gradient, dop853, .*Did you mean"
    ):
        integrator("rk5")


def test_tolerances_must_be_positive():
    with pytest.raises(ValueError, match="rtol"):
        DOP853(rtol=0.0)


def test_adaptive_failure_keeps_the_partial_trajectory():
    class Wall:
        """f falls to −∞ in finite time: the flow cannot continue beyond it."""

        def value(self, w):
            return -(w**4).sum(-1)

        def gradient(self, w):
            return -4 * w**3

    run = simulate(
        RISHD.from_optimizer(Wall(), alpha=0.1, eta=1.0), np.array([1.0]), h=0.2, steps=100, integrator="dop853"
    )
    assert run.status == "integrator-failed"
    assert "dop853 stopped at t" in run.message
    assert 1 < len(run.times) < 100
    assert np.isfinite(run.w).all()


def test_user_written_integrator():
    class Heun(OneStepIntegrator):
        name = "heun"
        order = 2

        def step(self, system, t, state, h):
            w1, m1 = system.rates(t, *state)
            w2, m2 = system.rates(t + h, state.w + h * w1, state.m + h * m1)
            return type(state)(state.w + h / 2 * (w1 + w2), state.m + h / 2 * (m1 + m2))

    landscape = Quadratic([1.0, 0.2])
    system = RISHD.from_optimizer(landscape, alpha=0.5, eta=0.5, beta=0.2)
    w0 = np.array([1.0, -1.0])
    exact = simulate(system, w0, h=2.0, steps=1, integrator="dop853").w[-1]
    errors = [np.abs(simulate(system, w0, h=2 / n, steps=n, integrator=Heun()).w[-1] - exact).max() for n in (50, 100)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)
