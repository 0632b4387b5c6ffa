"""Compiled chunks of steps: the same numbers as plain steps, exact failure times, plain errors where it cannot work."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemannian_ode import RISHD, CompiledSteps, CompileError, ConstantMetric, DiagonalMetric, TimeDependent, simulate
from riemannian_ode.components import assemble, components, scalar
from riemannian_ode.events import Event
from toy_landscapes import Quadratic, RiverValley, power_law_spectrum

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="Inductor needs a C++ compiler"
)
VALLEY = RiverValley([20.0], floor_curvatures=[0.05], floor_width=3.0, amplitudes=1.0, frequency=0.7)


def lite(landscape, metric=None, **changes):
    settings = {"alpha": 0.1, "eta": 0.02, "chi": 2.0, "beta_flat": 1.0, "flat": landscape.flat_split} | changes
    return RISHD.from_optimizer(landscape, metric, **settings)


CASES = {
    "one member": (lambda: lite(VALLEY), "semi-implicit-euler", np.array([0.5, 0.3]), "components"),
    "ensemble, values per member, time-dependent eta": (
        lambda: lite(
            VALLEY,
            DiagonalMetric([2.0, 0.5]),
            alpha=np.array([0.1, 0.3, 0.2]),
            eta=TimeDependent(lambda t: 0.02 / (1.0 + t)),
        ),
        "explicit-euler",
        np.random.default_rng(0).normal(size=(3, 2)),
        "components",
    ),
    "tensors": (
        lambda: RISHD.from_optimizer(
            Quadratic.random(power_law_spectrum(20), seed=0), ConstantMetric(2.0 * np.eye(20)), alpha=0.1, eta=0.1
        ),
        "explicit-euler",
        torch.as_tensor(np.random.default_rng(1).normal(size=(4, 20))),
        "tensors",
    ),
}


@needs_compiler
@pytest.mark.parametrize("case", sorted(CASES))
def test_compiled_steps_equal_plain_ones(case):
    make, scheme, w0, layout = CASES[case]
    system = make()
    compiled = CompiledSteps(system, w0, integrator=scheme, h=0.5, steps=1 if case.startswith("ensemble") else 2)
    assert compiled.layout == layout
    run = {"integrator": scheme, "h": 0.5, "steps": 15, "save_every": 7}
    plain, fast = (simulate(system, w0, **run, compile=choice) for choice in (False, compiled))
    assert type(fast.w) is type(plain.w)
    np.testing.assert_array_equal(fast.times, plain.times)
    np.testing.assert_allclose(fast.w, plain.w, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(fast.m, plain.m, rtol=1e-12, atol=1e-13)


@needs_compiler
def test_a_lost_member_has_its_exact_time(tmp_path):
    straight = RiverValley([20.0], floor_curvatures=[0.05])
    system = lite(straight, eta=np.array([0.02, 40.0, 0.02, 4000.0]))
    w0 = np.random.default_rng(2).normal(size=(4, 2))
    run = {"steps": 400, "save_every": 100}
    compiled = CompiledSteps(system, w0, steps=2)
    plain, fast = (simulate(system, w0, **run, compile=choice) for choice in (False, compiled))
    assert plain.status == fast.status == "non-finite"
    np.testing.assert_array_equal(fast.failed_at, plain.failed_at)
    np.testing.assert_allclose(fast.w[:, [0, 2]], plain.w[:, [0, 2]], rtol=1e-9)
    for steps in (150, 400):
        resumed = simulate(system, w0, steps=steps, compile=compiled, checkpoint=tmp_path / "run.npz")
    np.testing.assert_array_equal(resumed.failed_at, plain.failed_at)


class Kinked(Quadratic):
    def gradient(self, w):
        return super().gradient(w) if w.sum() > 0 else -super().gradient(w)


def test_what_cannot_be_compiled_is_refused():
    w0 = np.ones(2)
    with pytest.raises(CompileError, match="solves equations"):
        simulate(lite(VALLEY), w0, integrator="implicit-midpoint", steps=3, compile=True)
    with pytest.raises(CompileError, match="cannot be traced"):
        simulate(RISHD.from_optimizer(Kinked([1.0, 2.0]), alpha=0.1, eta=0.1), w0, steps=3, compile=True)
    with pytest.raises(ValueError, match="every step"):
        simulate(lite(VALLEY), w0, steps=3, compile=True, events=[Event("low", lambda t, w, m: VALLEY.value(w) - 1e-3)])
    with pytest.raises(ValueError, match="compile = 0"):
        simulate(lite(VALLEY), w0, steps=3, compile=0)


@needs_compiler
def test_compiled_steps_serve_only_what_they_were_made_for():
    system = lite(VALLEY)
    compiled = CompiledSteps(system, np.ones(2), steps=1)
    with pytest.raises(CompileError, match="another system"):
        simulate(lite(VALLEY), np.ones(2), steps=3, compile=compiled)
    with pytest.raises(CompileError, match="shape"):
        simulate(system, np.ones((3, 2)), steps=3, compile=compiled)
    with pytest.raises(CompileError, match=r"h = 0\.5"):
        simulate(system, np.ones(2), steps=3, h=0.5, compile=compiled)


@needs_compiler
def test_a_step_that_reads_the_clock_is_found_out():
    from riemannian_ode.integrators import ExplicitEuler

    class Drifting(ExplicitEuler):
        name = "drifting"

        def step(self, system, t, state, h):
            w, m = super().step(system, t, state, h)
            return type(state)(w + 0.01 * t, m)

    with pytest.raises(CompileError, match="differ from the plain ones"):
        CompiledSteps(lite(VALLEY), np.ones(2), integrator=Drifting(), t=3.0, steps=1)


FORMULAS = {
    "sum of products": lambda x, y: (x * y).sum(-1) * x,
    "matrix product": lambda x, y: np.outer(np.arange(3.0), np.ones(3)) @ x - y,
    "where": lambda x, y: np.where(x > y, np.sin(x), np.exp(-(y**2))),
    "mixed functions": lambda x, y: np.tanh(x) / (1.0 + np.abs(y)) + np.sqrt(x**2) + np.arctan(y),
    "pieces": lambda x, y: np.concatenate([x[..., :1] + y[..., 1:2], y[..., 1:]]) * np.maximum(x, 0.25),
    "reductions": lambda x, y: x * x.max(-1) + y.prod(-1) - np.cos(1.0),
}


@pytest.mark.parametrize("formula", sorted(FORMULAS))
@settings(max_examples=20, deadline=None)
@given(ensemble=st.sampled_from([(), (4,), (2, 3)]), seed=st.integers(0, 10_000))
def test_component_arrays_compute_what_numpy_computes(formula, ensemble, seed):
    x, y = np.random.default_rng(seed).normal(size=(2, *ensemble, 3))
    by_component = [components(torch.as_tensor(np.moveaxis(a, -1, 0).copy())) for a in (x, y)]
    result = FORMULAS[formula](*by_component)
    flat = zip(x.reshape(-1, 3), y.reshape(-1, 3), strict=True)
    truth = np.stack([FORMULAS[formula](a, b) for a, b in flat]).reshape(*ensemble, 3)
    like = torch.zeros(3, *ensemble, dtype=torch.float64)
    np.testing.assert_allclose(np.moveaxis(assemble(result, like).numpy(), 0, -1), truth, rtol=1e-13, atol=1e-13)


def test_component_arrays_refuse_what_has_no_counterpart():
    x = components(torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match="no counterpart"):
        np.modf(x)
    with pytest.raises(ValueError, match="for 2 coordinates"):
        assemble(scalar(1.0), torch.ones(2, 3))


def test_compiled_runs_save_off_the_grid_and_check_coefficients():
    system = lite(VALLEY, eta=TimeDependent(lambda t: 0.02 - 0.002 * t))
    compiled = CompiledSteps(system, np.ones(2), steps=2)
    run = {"save_every": 50, "save_at": [0.5, 3.0, 5.25, 5.75]}
    plain, fast = (simulate(system, np.ones(2), steps=9, **run, compile=choice) for choice in (False, compiled))
    np.testing.assert_array_equal(fast.times, plain.times)
    np.testing.assert_array_equal(fast.times, [0, 0.5, 3, 5.25, 5.75, 9])
    np.testing.assert_allclose(fast.w, plain.w, rtol=1e-12)
    ended = simulate(system, np.ones(2), steps=30, save_every=50, compile=compiled)
    assert ended.status == "invalid-system"
    assert "eta(11) = -0.00" in ended.message
    assert ended.times[-1] == 10.0
