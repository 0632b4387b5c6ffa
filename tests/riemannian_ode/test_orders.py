"""Every registered integrator reaches its declared order, and its iterates on linear flows have the known form."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.linalg

from riemannian_ode import INTEGRATORS, RISHD, ConstantMetric, TimeDependent, simulate
from riemannian_ode.integrators import PhaseState, integrator
from tests.riemannian_ode.problems import REFERENCE, START, general, hardest_for, linear, random_metric
from toy_landscapes import Quadratic, RiverValley

ROUNDING = 1e-12  # errors below it are no longer the scheme's alone
HAVE_AN_ORDER = [name for name, cls in INTEGRATORS.items() if "variable-order" not in cls.structure]


def end_of(name, system, start, span, steps):
    """State after ``steps`` equal steps; an adaptive scheme gets its step as a cap and tolerances that do not bind."""
    cls = INTEGRATORS[name]
    if cls.adaptive:
        loose = 1e-5 if cls.implicit else 1.0  # an implicit one solves its equations to a share of the tolerance
        scheme = cls(rtol=loose, atol=loose, max_step=span / steps)
        run = simulate(system, *start, h=span, steps=1, integrator=scheme)
    else:
        run = simulate(system, *start, h=span / steps, steps=steps, save_every=steps, integrator=name)
    assert run.ok, run.message
    return np.concatenate([run.w[-1], run.m[-1]], axis=-1)


def observed_order(name, system, start, span, exact):
    """Slope of the error between the two finest step sizes, on a ladder of ratio √2, whose errors are not rounding."""
    cls = INTEGRATORS[name]
    finest = 150 if not cls.implicit or cls.order == 1 else 50
    coarsest = 6 if cls.order > 4 else finest / 3  # high orders reach rounding quickly
    ladder = [steps for k in range(12) if coarsest <= (steps := round(6 * 2 ** (k / 2))) <= finest]
    order, last = np.nan, None
    for steps in ladder:
        error = np.sqrt(((end_of(name, system, start, span, steps) - exact) ** 2).mean())
        if error < ROUNDING:
            return order
        if last is not None:
            order = np.log(last[1] / error) / np.log(steps / last[0])
        last = steps, error
    return order


@pytest.mark.parametrize("name", HAVE_AN_ORDER)
def test_order_on_a_linear_flow_against_the_matrix_exponential(name, rng):
    system, generator = linear()
    start = rng.normal(size=(2, 4, 3))
    y0 = np.concatenate(list(start), axis=-1)
    exact = y0 @ scipy.linalg.expm(4.0 * generator).T
    if "exact-linear" in INTEGRATORS[name].structure:
        for steps in (1, 2, 10):
            np.testing.assert_allclose(end_of(name, system, start, 4.0, steps), exact, atol=1e-13)
    else:
        measured = observed_order(name, system, start, 4.0, exact)
        assert measured == pytest.approx(INTEGRATORS[name].order, abs=0.1)


@pytest.mark.parametrize("name", HAVE_AN_ORDER)
def test_order_on_the_hardest_nonlinear_flow_that_a_scheme_takes(name):
    system, refusals = hardest_for(integrator(name))
    assert all(name in refusal and "take '" in refusal for refusal in refusals)  # and names an alternative
    span = 4.0 if INTEGRATORS[name].order < 8 else 8.0  # errors must grow to stand out of rounding
    exact = simulate(system, START, h=span, steps=1, integrator=REFERENCE)
    exact = np.concatenate([exact.w[-1], exact.m[-1]], axis=-1)
    assert observed_order(name, system, (START,), span, exact) == pytest.approx(INTEGRATORS[name].order, abs=0.1)


@pytest.mark.parametrize("name", INTEGRATORS)
def test_special_oracle_is_gradient_flow_for_any_integrator(name):
    """γ = αβ and v(0) = 0: the momentum stays exactly zero and w follows ẇ = −β grad f (claim C15)."""
    landscape, metric, beta = Quadratic.random([2.0, 0.7, 0.3], seed=1), random_metric(3), 0.5
    system = RISHD.from_coefficients(landscape, ConstantMetric(metric), alpha=0.5, beta=beta, gamma=0.25)
    start = np.array([[1.0, -2.0, 0.5], [0.3, 0.2, -0.1]])
    if name == "discrete-gradient":
        with pytest.raises(ValueError, match="divides by gain, which is 0 here"):
            simulate(system, start, steps=1, integrator=name)
        return
    cls, span = INTEGRATORS[name], 2.0
    decay = -beta * np.linalg.inv(metric) @ landscape.matrix
    exact = start @ scipy.linalg.expm(span * decay).T
    errors = []
    for steps in (10, 20):
        state = end_of(name, system, start[None], span, steps)
        assert (state[:, 3:] == 0.0).all()
        errors.append(np.abs(state[:, :3] - exact).max())
    if "exact-linear" in cls.structure or "variable-order" in cls.structure:
        assert errors[1] < (1e-14 if "exact-linear" in cls.structure else 1e-2)
    else:
        assert errors[1] < ROUNDING or np.log2(errors[0] / errors[1]) > cls.order - 0.15


def _taylor(order):
    return lambda z: sum(np.linalg.matrix_power(z, k) / math.factorial(k) for k in range(order + 1))


def _cayley(z):
    return np.linalg.solve(np.eye(len(z)) - z / 2, np.eye(len(z)) + z / 2)


# R of y' = R(hJ)y for the flow ẏ = Jy (Hairer and Wanner, Solving ODEs II, IV.3).
STABILITY_FUNCTIONS = {
    "explicit-euler": _taylor(1),
    "heun": _taylor(2),
    "rk4": _taylor(4),
    "implicit-euler": lambda z: np.linalg.inv(np.eye(len(z)) - z),
    "implicit-midpoint": _cayley,
    "discrete-gradient": _cayley,  # the mean of a linear gradient is its value at the middle
    "exponential-euler": scipy.linalg.expm,
}


@pytest.mark.parametrize("name", STABILITY_FUNCTIONS)
@pytest.mark.parametrize("h", [0.1, 1.0])
def test_iterates_on_a_linear_flow_are_powers_of_the_stability_function(name, h, rng):
    system, generator = linear()
    start = rng.normal(size=(2, 3))
    step = STABILITY_FUNCTIONS[name](h * generator)
    y = np.linalg.matrix_power(step, 5) @ np.concatenate(list(start))
    np.testing.assert_allclose(
        end_of(name, system, start, 5 * h, 5), y, rtol=1e-10, atol=1e-10 if INTEGRATORS[name].implicit else 1e-13
    )


@pytest.mark.parametrize("h", [0.1, 1.0])
def test_iterates_of_the_other_one_step_schemes_on_a_linear_flow(h, rng):
    """Semi-implicit: m' = (1 − hα)m + hHw, w' = w − hηF⁻¹(m' + βHw); its adjoint order; Strang at β = 0."""
    (system, generator), p, one = linear(), 3, np.eye(3)
    alpha, eta, beta = system.alpha, system.eta, system.nesterov
    hessian, inverse = generator[p:, :p], np.linalg.inv(random_metric(p))
    zero = np.zeros((p, p))
    kick = np.block([[one, zero], [h * hessian, (1 - h * alpha) * one]])
    drift = np.block([[one, -h * eta * inverse], [zero, one]])
    # With β the gradient that drives w is the one that kicked m: at the old w in both.
    damped = np.block([[one - h * eta * beta * inverse @ hessian, zero], [zero, one]])
    old_gradient = np.block([[-h * eta * beta * inverse @ hessian, zero], [zero, zero]])
    closed = {"semi-implicit-euler": drift @ kick + old_gradient, "position-first-euler": kick @ (drift @ damped)}
    start = rng.normal(size=(2, p))
    y0 = np.concatenate(list(start))
    for name, step in closed.items():
        y = np.linalg.matrix_power(step, 5) @ y0
        np.testing.assert_allclose(end_of(name, system, start, 5 * h, 5), y, rtol=1e-11, atol=1e-12)
    undamped = dataclasses.replace(system, nesterov=0.0)
    decay = scipy.linalg.block_diag(one, math.exp(-alpha * h / 2) * one)
    half = np.block([[one, -h / 2 * eta * inverse], [zero, one]])
    push = np.block([[one, zero], [h * hessian, one]])
    y = np.linalg.matrix_power(decay @ half @ push @ half @ decay, 5) @ y0
    np.testing.assert_allclose(end_of("strang", undamped, start, 5 * h, 5), y, rtol=1e-11, atol=1e-12)


EULER = {  # w' and m' in turn, by the flow's velocity v(w, m) and force f(w, m), all at the old time
    "explicit-euler": lambda w, m, h, v, f: (w + h * v(w, m), m + h * f(w, m)),
    "semi-implicit-euler": lambda w, m, h, v, f: (w + h * v(w, m + h * f(w, m)), m + h * f(w, m)),
    "position-first-euler": lambda w, m, h, v, f: (w + h * v(w, m), m + h * f(w + h * v(w, m), m)),
}


@pytest.mark.parametrize("name", EULER)
@pytest.mark.parametrize("flow", ["state", "no correction", "split"])
def test_euler_schemes_are_steps_along_the_rates_of_the_flow(name, flow):
    system = general()
    if flow == "no correction":
        system = dataclasses.replace(system, correction=False)
    if flow == "split":
        system = dataclasses.replace(TURNING, nesterov=0.2, gain=1.4)
    w, m = np.random.default_rng(2).normal(size=(2, 4, 2))
    t, h = 0.7, 0.4
    expected = EULER[name](w, m, h, *(lambda w, m, k=k: system.rates(t, w, m)[k] for k in range(2)))
    for got, wanted in zip(integrator(name).step(system, t, PhaseState(w, m), h), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-13)


VALLEY = RiverValley([3.0], floor_curvatures=[0.2], amplitudes=0.8)
TURNING = RISHD.from_optimizer(VALLEY, alpha=0.3, eta=0.3, chi=3.0, beta_flat=1.0, flat=VALLEY.flat_split)
FADING = RISHD.from_optimizer(VALLEY, alpha=TimeDependent(lambda t: 0.3 + 0.3 * t), eta=0.5, beta=0.2)


@pytest.mark.parametrize(
    ("name", "system"),
    [("exponential-euler", TURNING), ("implicit-midpoint", TURNING), ("discrete-gradient", FADING)],
)
def test_second_order_with_a_split_that_turns_and_a_damping_that_varies(name, system):
    start = np.array([[1.0, 0.5]]), np.zeros((1, 2))
    exact = end_of("dop853", system, start, 4.0, 400)
    errors = [np.abs(end_of(name, system, start, 4.0, steps) - exact).max() for steps in (40, 80, 160)]
    for coarse, fine in itertools.pairwise(errors):
        assert np.log2(coarse / fine) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("name", [name for name, cls in INTEGRATORS.items() if cls.implicit and not cls.adaptive])
@pytest.mark.parametrize("p", [2, 40])
def test_implicit_schemes_take_float32(name, p, rng):
    """Newton's method with factors (p = 2) and with GMRES (p = 40)."""
    objective = Quadratic(np.linspace(2.0, 0.5, p))
    system = RISHD.from_optimizer(objective, alpha=0.3, eta=0.1, beta=0.5)
    w0 = rng.normal(size=p)
    double, single = (simulate(system, x, h=0.5, steps=10, integrator=name) for x in (w0, w0.astype(np.float32)))
    assert single.ok, single.message
    assert single.w.dtype == np.float32
    np.testing.assert_allclose(single.w[-1], double.w[-1], rtol=0, atol=2e-6)
