"""Learning rates over time: continuous, within their range, and with the right derivative."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riemannian_ode import RISHD, TimeDependent, energy_identity_residual, learning_rate, simulate
from tests.riemannian_ode.problems import Bowl

SPANS = st.tuples(st.sampled_from(["cosine", "wsd"]), st.integers(0, 40), st.integers(1, 60), st.floats(0.0, 1.0))


@given(SPANS, st.floats(0.0, 1.3))
def test_rates_are_continuous_and_stay_between_zero_and_the_peak(span, share):
    schedule, warmup, rest, min_ratio = span
    total = warmup + rest
    eta = learning_rate(0.3, schedule=schedule, total=total, warmup=warmup, min_ratio=min_ratio)
    t = share * total
    assert 0.0 <= eta(t) <= 0.3 * (1 + 1e-12)
    if warmup:  # without a warm-up the rate begins at its peak
        assert abs(eta(t + 1e-9) - eta(t)) < 1e-8
    assert eta(1.5 * total) == pytest.approx(0.3 * min_ratio)


@given(SPANS, st.floats(0.01, 0.99))
def test_derivatives_are_those_of_the_rates(span, share):
    schedule, warmup, rest, min_ratio = span
    total = warmup + rest
    eta = learning_rate(0.3, schedule=schedule, total=total, warmup=warmup, min_ratio=min_ratio)
    t, step = share * total, 1e-6
    corners = (warmup, max(int(0.8 * total), warmup), total)
    if min(abs(t - corner) for corner in corners) > 2 * step:
        slope = (eta(t + step) - eta(t - step)) / (2 * step)
        assert eta.derivative(t) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_flow_with_a_schedule_keeps_its_energy_identity():
    eta = learning_rate(0.4, total=40.0)
    assert isinstance(eta, TimeDependent)
    system = RISHD.from_optimizer(Bowl(), alpha=0.5, eta=eta)
    run = simulate(system, np.array([1.0, -2.0]), integrator="rk4", h=0.05, steps=700)
    assert float(energy_identity_residual(system, run).residual) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak": 0.0}, "peak = 0.0 must be finite and positive"),
        ({"schedule": "step"}, "schedule = 'step'"),
        ({"warmup": 20.0}, "warmup = 20.0 must be at least 0 and below total"),
        ({"min_ratio": 2.0}, "min_ratio = 2.0"),
        ({"total": -1.0}, "total = -1.0"),
    ],
)
def test_bad_schedules_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(**({"peak": 0.1, "total": 10.0} | changes))
