"""Compiled chunks of steps: the same numbers as plain steps, exact failure times, plain errors if impossible."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemannian_ode import RISHD, CompiledSteps, CompileError, ConstantMetric, DiagonalMetric, TimeDependent, simulate
from riemannian_ode.compiled.coefficients import CoefficientInputs
from riemannian_ode.compiled.components import assemble, components, scalar
from riemannian_ode.compiled.native import NativeLoop
from riemannian_ode.events import Event
from riemannian_ode.integrators import OneStepIntegrator, PhaseState
from tests.machines import needs_compiler, needs_fused_products
from toy_landscapes import Quadratic, RiverValley, power_law_spectrum

VALLEY = RiverValley([20.0], floor_curvatures=[0.05], floor_width=3.0, amplitudes=1.0, frequency=0.7)


def lite(landscape, metric=None, **changes):
    settings = {"alpha": 0.1, "eta": 0.02, "chi": 2.0, "beta_flat": 1.0, "flat": landscape.flat_split} | changes
    return RISHD.from_optimizer(landscape, metric, **settings)


class Softplus(Quadratic):
    """Its slope is a logistic function, written with numpy's logaddexp."""

    def value(self, w):
        return np.logaddexp(0.0, w).sum(-1)

    def gradient(self, w):
        return np.exp(w - np.logaddexp(0.0, w))


CASES = {
    "one member": (lambda: lite(VALLEY), "semi-implicit-euler", np.array([0.5, 0.3]), "loop"),
    "ensemble, values per member, time-dependent eta": (
        lambda: lite(
            VALLEY,
            DiagonalMetric([2.0, 0.5]),
            alpha=np.array([0.1, 0.3, 0.2]),
            eta=TimeDependent(lambda t: 0.02 / (1.0 + t)),
            check_split=False,
        ),
        "explicit-euler",
        np.random.default_rng(0).normal(size=(3, 2)),
        "loop",
    ),
    "one value per member at every time, two axes, float32": (
        lambda: lite(
            VALLEY,
            alpha=np.array([[0.1, 0.3], [0.2, 0.25], [0.4, 0.35]]),
            eta=TimeDependent(lambda t: np.array([[0.02, 0.01], [0.03, 0.02], [0.01, 0.04]]) / (1.0 + t)),
        ),
        "rk4",
        torch.as_tensor(np.random.default_rng(0).normal(size=(3, 2, 2)), dtype=torch.float32),
        "loop",
    ),
    "a function that C++ lacks": (
        lambda: RISHD.from_optimizer(Softplus([1.0, 0.5]), alpha=0.3, eta=0.2),
        "heun",
        np.random.default_rng(3).normal(size=(3, 2)),
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
    compiled = CompiledSteps(system, w0, integrator=scheme, h=0.5, steps=2)
    assert compiled.layout == layout
    run = {"integrator": scheme, "h": 0.5, "steps": 15, "save_every": 7}
    plain, fast = (simulate(system, w0, **run, compile=choice) for choice in (False, compiled))
    assert type(fast.w) is type(plain.w)
    np.testing.assert_array_equal(fast.times, plain.times)
    rounding = (
        {"rtol": 1e-12, "atol": 1e-13} if w0.dtype in (np.float64, torch.float64) else {"rtol": 1e-4, "atol": 1e-6}
    )
    np.testing.assert_allclose(fast.w, plain.w, **rounding)
    np.testing.assert_allclose(fast.m, plain.m, **rounding)


@needs_compiler
def test_members_do_not_depend_on_the_number_of_threads_and_steps_a_call():
    """A block gives the same numbers in one thread or two, in long calls or short ones."""
    system, w0 = lite(VALLEY), np.random.default_rng(4).normal(size=(3000, 2))
    runs = []
    for threads, steps in ((1, None), (2, None), (2, 7)):
        torch.set_num_threads(threads)
        try:
            compiled = CompiledSteps(system, w0, steps=steps)
            runs.append(simulate(system, w0, steps=100, save_every=60, compile=compiled))
        finally:
            torch.set_num_threads(1)
    for other in runs[1:]:
        np.testing.assert_array_equal(other.w, runs[0].w)
        np.testing.assert_array_equal(other.m, runs[0].m)
    np.testing.assert_allclose(runs[0].w, simulate(system, w0, steps=100, save_every=60).w, rtol=1e-10, atol=1e-12)


@needs_compiler
@needs_fused_products  # else sine and cosine are the library's
@pytest.mark.parametrize("scheme", ["semi-implicit-euler", "rk4"])
def test_members_equal_single_compiled_runs_to_the_last_bit(scheme):
    """On the valley, whose formulas are sums, products, quotients, roots, sines and cosines."""
    w0, run = np.random.default_rng(4).normal(size=(40, 2)), {"steps": 300, "save_every": 150}
    system = lite(VALLEY)
    together = simulate(system, w0, **run, integrator=scheme, compile=True)
    alone = CompiledSteps(system, w0[0], integrator=scheme)
    for member in (0, 17, 39):
        single = simulate(system, w0[member], **run, integrator=scheme, compile=alone)
        np.testing.assert_array_equal(single.w, together.w[:, member])
        np.testing.assert_array_equal(single.m, together.m[:, member])


@needs_compiler
def test_a_lost_member_has_its_exact_time(tmp_path):
    straight = RiverValley([20.0], floor_curvatures=[0.05])
    system = lite(straight, eta=np.array([0.02, 40.0, 0.02, 4000.0]))
    w0 = np.random.default_rng(2).normal(size=(4, 2))
    run = {"steps": 400, "save_every": 100}
    compiled = CompiledSteps(system, w0)
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
    from riemannian_ode.integrators.euler import ExplicitEuler

    class Drifting(ExplicitEuler):
        name = "drifting"

        def step(self, system, t, state, h):
            w, m = super().step(system, t, state, h)
            return type(state)(w + 0.01 * t, m)

    with pytest.raises(CompileError, match="differ from the plain ones"):
        CompiledSteps(lite(VALLEY), np.ones(2), integrator=Drifting(), t=3.0, steps=1)


def test_without_a_compiler_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr("riemannian_ode.compiled.compiler.shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CompileError, match=r"no C\+\+ compiler was found.*must be installed, or leave compile=False"):
        CompiledSteps(lite(VALLEY), np.ones(2))
    for broken, complaint in (("no-such-compiler", "cannot be run"), ("false", "false failed: no reason given")):
        monkeypatch.setenv("CXX", broken)
        with pytest.raises(CompileError, match=complaint):
            CompiledSteps(lite(VALLEY), np.ones(2))


def loop_of(function, w, **settings):
    """A compiled loop whose step is a function (w, m) ↦ (w, m)."""

    class Scheme(OneStepIntegrator):
        name, order = "function", 1

        def step(self, system, t, state, h):
            return PhaseState(*function(*state))

    steps = NativeLoop(Scheme(), CoefficientInputs(lite(VALLEY)), PhaseState(w, w), h=1.0, t=0.0, steps=None)
    steps.build(0.0)
    return steps


# Functions of a compiled loop, each with arguments in its domain made of numbers x and y of any sign.
ELEMENTWISE = {
    "arithmetic": lambda x, y: -x + 2.0 * y - x * y / (1.5 + y**2) + np.square(x) + np.reciprocal(2.0 + np.abs(x)),
    "powers": lambda x, y: x**2 + x**3 + y**7 + (1 + x**2) ** -1 + (1 + y**2) ** -0.5 + (2 + np.abs(x)) ** 1.7,
    "power of a number": lambda x, y: 1.3**x + (1.0 + np.abs(y)) ** x,
    "exponentials": lambda x, y: np.exp(x) + np.exp2(y) + np.expm1(x) + np.cbrt(y),
    "logarithms": lambda x, y: np.log(1 + x**2) + np.log2(1 + y**2) + np.log10(2 + y**2) + np.log1p(np.abs(x)),
    "circular": lambda x, y: np.sin(x) + np.cos(y) + np.tan(0.2 * x) + np.sin(y) * np.cos(x),
    "inverse circular": lambda x, y: np.arcsin(0.1 * x) + np.arccos(0.1 * y) + np.arctan(x) + np.arctan2(x, y),
    "hyperbolic": lambda x, y: np.sinh(x) + np.cosh(y) + np.tanh(x),
    "inverse hyperbolic": lambda x, y: np.arcsinh(x) + np.arccosh(1 + y**2) + np.arctanh(0.1 * x) + np.hypot(x, y),
    "steps": lambda x, y: np.floor(x) + np.ceil(y) + np.trunc(x) + np.sign(y) + np.maximum(x, y) - np.minimum(x, 0.3),
    "choices": lambda x, y: np.where((x > 0) & (y <= 0.5) | np.isnan(x), x, np.where(~(x < y), y * (x != y), 0.25)),
    "limits": lambda x, y: np.where(np.isfinite(x / np.where(y > 0, 0.0, 1.0)), np.minimum(np.inf, x), -np.inf),
}


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_compiled_functions_are_numpys(dtype, rng):
    """All functions in one step; for a single member and for 45 (two blocks, the second one padded)."""
    w, m = rng.normal(0.0, 2.0, (2, 45, len(ELEMENTWISE))).astype(dtype)
    w[3], m[5] = 0.0, 0.0

    def step(x, y):
        pairs = enumerate(ELEMENTWISE.values())
        return np.stack([formula(x[..., i], y[..., i]) for i, formula in pairs], axis=-1), y

    with np.errstate(divide="ignore", invalid="ignore"):
        expected = step(w, m)[0]
    assert expected.dtype == dtype
    for rows in (slice(None), 7):
        loop = loop_of(step, w[rows])
        result = loop.leave(loop.advance(0.0, 0, loop.enter(PhaseState(w[rows], m[rows])), 1))
        precision = 100 * np.finfo(dtype).eps
        np.testing.assert_allclose(result.w, expected[rows], rtol=precision, atol=precision)
        np.testing.assert_array_equal(result.m, m[rows])


def test_loops_refuse_what_depends_on_the_numbers_or_has_no_counterpart():
    w = np.ones(2)
    for function, reason in (
        (lambda x, y: (x if x[0] > 0 else y, y), "cannot depend on its numbers"),
        (lambda x, y: (np.heaviside(x, y), y), "numpy.heaviside has no counterpart"),
        (lambda x, y: ((x > 0) + (y > 0), y), "numpy.add of truth values"),
        (lambda x, y: (x[:1], y), r"shapes \(1,\) and \(2,\) for 2 coordinates"),
    ):
        with pytest.raises(TypeError, match=reason):
            loop_of(function, w)
    with pytest.raises(TypeError, match="not float16"):
        loop_of(lambda x, y: (x, y), w.astype(np.float16))


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


@needs_compiler
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
