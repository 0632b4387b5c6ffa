"""Contracts of every registered integrator for any shape and parameters: finite or reported, members independent."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemannian_ode import (
    INTEGRATORS,
    RISHD,
    ConstantMetric,
    DiagonalMetric,
    Euclidean,
    KroneckerMetric,
    LowRankPlusDiagonalMetric,
    StateDependentMetric,
    VaryingDiagonalMetric,
    simulate,
)
from tests.riemannian_ode.problems import random_metric
from toy_landscapes import RiverValley

OWN_STEPS = [name for name, cls in INTEGRATORS.items() if "shared-steps" not in cls.structure]
SHARED_STEPS = [name for name, cls in INTEGRATORS.items() if "shared-steps" in cls.structure]


@st.composite
def flows(draw):
    """A valley of any dimension, a metric that acts coordinate by coordinate, and coefficients per member."""
    p = draw(st.integers(2, 4))
    axes = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    valley = RiverValley(rng.uniform(1.0, 10 ** draw(st.floats(0.1, 3.0)), p - 1), amplitudes=rng.uniform(0, 1, p - 1))
    metric = draw(st.sampled_from([Euclidean(), DiagonalMetric(rng.uniform(0.5, 2.0, p))]))
    undamped = draw(st.booleans())
    coefficients = {
        "alpha": rng.uniform(0.01, 2.0, axes),
        "eta": 10 ** rng.uniform(-3.0, draw(st.floats(-2.0, 1.5)), axes),
        "beta": 0.0 if undamped else rng.uniform(0.0, 2.0, axes),
    }
    h = draw(st.floats(0.05, 2.0))
    return valley, metric, coefficients, rng.normal(0.0, 2.0, (*axes, p)), rng.normal(0.0, 0.3, (*axes, p)), h


def run_of(name, valley, metric, coefficients, w0, m0, h, steps=3):
    cls = INTEGRATORS[name]
    scheme = cls(rtol=1e-5, atol=1e-7, max_steps=300) if cls.adaptive else cls()
    system = RISHD.from_optimizer(valley, metric, **coefficients)
    return simulate(system, w0, m0, h=h, steps=steps, integrator=scheme)


@pytest.mark.parametrize("name", INTEGRATORS)
@settings(max_examples=6)
@given(flow=flows())
def test_finite_or_reported_with_shapes_kept_and_deterministic(name, flow):
    w0 = flow[3]
    run = run_of(name, *flow)
    assert run.w.shape == run.m.shape == (len(run.times), *w0.shape)
    assert run.failed_at.shape == w0.shape[:-1]
    np.testing.assert_array_equal(run.w[0], w0)
    finite = np.isfinite(run.w).all((0, -1)) & np.isfinite(run.m).all((0, -1))
    np.testing.assert_array_equal(finite, np.isnan(run.failed_at))
    if run.status == "finished":
        assert finite.all()
        assert len(run.times) == 4
    else:
        assert run.status in ("non-finite", "integrator-failed", "step-limit")
        assert "at t = " in run.message
    again = run_of(name, *flow)
    np.testing.assert_array_equal(again.w, run.w)
    assert (again.status, again.message) == (run.status, run.message)


@pytest.mark.parametrize("name", OWN_STEPS)
@settings(max_examples=4)
@given(flow=flows())
def test_members_are_their_single_runs_to_the_last_bit(name, flow):
    """If each member's numbers are computed separately, as in numpy's products and sums of rows."""
    valley, metric, coefficients, w0, m0, h = flow
    together = run_of(name, *flow)
    for member in np.ndindex(w0.shape[:-1]):
        own = {key: value if np.ndim(value) == 0 else value[member] for key, value in coefficients.items()}
        alone = run_of(name, valley, metric, own, w0[member], m0[member], h)
        if (
            member and alone.status == "integrator-failed"
        ):  # a single run ends before the step from which an ensemble continues
            assert together.causes[member] == "integrator-failed"
        saves = min(len(alone.times), len(together.times))
        np.testing.assert_array_equal(together.w[(slice(saves), *member)], alone.w[:saves])
        np.testing.assert_array_equal(together.m[(slice(saves), *member)], alone.m[:saves])


@pytest.mark.parametrize("name", INTEGRATORS)
def test_members_are_their_single_runs_to_rounding_or_to_the_tolerance(name, rng):
    """One matrix for all members is a matrix–matrix product, one member's a matrix–vector product: rounding differs."""
    valley, metric = RiverValley([3.0, 5.0], amplitudes=[0.8, 0.3]), ConstantMetric(random_metric(3))
    w0, m0 = rng.normal(size=(2, 5, 3))
    coefficients = {"alpha": rng.uniform(0.1, 0.9, 5), "eta": rng.uniform(0.05, 0.3, 5), "beta": 0.2}
    together = run_of(name, valley, metric, coefficients, w0, m0, 0.7)
    for i in range(5):
        own = {key: value if np.ndim(value) == 0 else value[i] for key, value in coefficients.items()}
        alone = run_of(name, valley, metric, own, w0[i], m0[i], 0.7)
        np.testing.assert_allclose(together.w[:, i], alone.w, atol=1e-3 if name in SHARED_STEPS else 1e-12)


def _positive(rng, *shape):
    root = rng.normal(size=(*shape, shape[-1]))
    return root @ np.swapaxes(root, -1, -2) + np.eye(shape[-1])


PER_MEMBER = {  # metrics with one parameter per member, as functions of the parameters
    "constant": (lambda rng: (_positive(rng, 4, 4),), ConstantMetric),
    "diagonal": (lambda rng: (rng.uniform(0.5, 2.0, (4, 4)),), DiagonalMetric),
    "Kronecker": (lambda rng: (_positive(rng, 4, 2), _positive(rng, 4, 2)), KroneckerMetric),
    "low rank": (lambda rng: (rng.uniform(0.5, 2.0, (4, 4)), rng.normal(size=(4, 4, 2))), LowRankPlusDiagonalMetric),
    "varying diagonal": (
        lambda rng: (rng.uniform(0.1, 1.0, (4, 4)),),
        lambda scale: VaryingDiagonalMetric(lambda w, c: 1.0 + c * w**2, (scale,)),
    ),
    "any function": (
        lambda rng: (rng.uniform(0.1, 1.0, (4, 4)),),
        lambda scale: StateDependentMetric(lambda w, c: torch.diag(1.0 + c) + torch.outer(w, w), (scale,)),
    ),
}


@pytest.mark.parametrize("metric", PER_MEMBER)
@pytest.mark.parametrize("scheme", ["semi-implicit-euler", "rk4", "implicit-midpoint", "ensemble-rk45"])
def test_members_may_have_metrics_of_their_own(metric, scheme, rng):
    draw, make = PER_MEMBER[metric]
    parameters, valley = draw(rng), RiverValley([3.0, 2.0, 1.0], amplitudes=[0.4, 0.2, 0.1])
    w0, alpha = rng.normal(size=(4, 4)), rng.uniform(0.2, 0.8, 4)

    def run(metric, alpha, w0):
        system = RISHD.from_optimizer(valley, metric, alpha=alpha, eta=0.1, beta=0.1)
        return simulate(system, w0, h=0.4, steps=6, integrator=scheme)

    together = run(make(*parameters), alpha, w0)
    assert together.ok
    tensors = run(make(*parameters), alpha, torch.as_tensor(w0))
    assert isinstance(tensors.w, torch.Tensor)
    np.testing.assert_allclose(tensors.w.numpy(), together.w, rtol=1e-10, atol=1e-10)
    for i in range(4):
        alone = run(make(*(parameter[i] for parameter in parameters)), alpha[i], w0[i])
        np.testing.assert_allclose(together.w[:, i], alone.w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", INTEGRATORS)
def test_torch_ensembles_equal_numpys_without_a_silent_way_through_numpy(name, monkeypatch, rng):
    """A tensor on another device refuses ``__array__``; here the CPU's do too."""

    def refuse(tensor, *arguments, **options):
        raise TypeError("can't convert a device tensor to numpy")

    valley, metric = RiverValley([3.0, 5.0], amplitudes=[0.8, 0.3]), ConstantMetric(random_metric(3))
    coefficients = {"alpha": rng.uniform(0.2, 1.0, 4), "eta": rng.uniform(0.05, 0.2, 4), "beta": 0.0}
    w0, m0 = rng.normal(size=(2, 4, 3))
    ours = run_of(name, valley, metric, coefficients, w0, m0, 0.7)
    monkeypatch.setattr(torch.Tensor, "__array__", refuse)
    theirs = run_of(name, valley, metric, coefficients, torch.as_tensor(w0), torch.as_tensor(m0), 0.7)
    assert isinstance(theirs.w, torch.Tensor)
    assert theirs.ok
    np.testing.assert_allclose(theirs.w.numpy(), ours.w, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(theirs.m.numpy(), ours.m, rtol=1e-9, atol=1e-9)
