"""Gradient noise: the numbers, the orders that schemes declare, restarts, and errors."""

import itertools

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
import torch

from riemannian_ode import (
    INTEGRATORS,
    RISHD,
    CompiledSteps,
    CompileError,
    ConstantMetric,
    ConstantSplit,
    Event,
    GradientNoise,
    PhaseState,
    TimeDependent,
    VaryingDiagonalMetric,
    integrator,
    simulate,
)
from riemannian_ode.integrators.langevin import _ornstein_uhlenbeck
from riemannian_ode.normals import standard_normals
from tests.machines import needs_compiler
from tests.riemannian_ode.problems import random_metric
from toy_landscapes import Quadratic, RiverValley

STOCHASTIC = [name for name, cls in INTEGRATORS.items() if cls.stochastic is not None]
BOWL = Quadratic.random([1.3, 0.4], seed=1)
VALLEY = RiverValley([3.0], floor_curvatures=[0.2], amplitudes=0.8)
START = np.random.default_rng(5).normal(size=(6, 2))
MATRIX = np.array([[0.3, 0.1, 0.0], [0.0, 0.2, 0.4]])


def bowl(beta=0.6, **changes):
    return RISHD.from_optimizer(BOWL, ConstantMetric(random_metric(2)), alpha=0.5, beta=beta, eta=2.0, **changes)


def sigma_of_state(t, w):
    return 0.2 + 0.1 * np.sin(w) + 0.01 * t


# The numbers


def test_normal_numbers_of_a_member_depend_on_seed_member_and_step_alone():
    together = standard_normals(11, 3, 9, 5)
    assert together.shape == (9, 5)
    for member in range(9):
        np.testing.assert_array_equal(standard_normals(11, 3, 1, 5, first=member)[0], together[member])
    np.testing.assert_array_equal(standard_normals(11, 3, 4, 5, first=2), together[2:6])
    others = standard_normals(12, 3, 9, 5), standard_normals(11, 4, 9, 5), standard_normals(11, 3, 9, 5, first=9)
    assert all(not np.isin(other, together).any() for other in others)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_no_number_is_drawn_twice_and_all_are_normal_and_uncorrelated(count):
    draws = np.stack([standard_normals(5, step, 500, count) for step in range(40)], axis=1).reshape(500, -1)
    assert len(np.unique(draws)) == draws.size
    assert scipy.stats.kstest(draws.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(correlation).max() < 5.5 / np.sqrt(500)


@pytest.mark.parametrize("kind", ["number", "diagonal", "matrix", "low rank", "time", "state", "state matrix"])
def test_covariance_is_factor_times_its_transpose(kind):
    root = np.array([[1.0, 0.0], [0.5, 0.0]])
    made, covariance = {
        "number": (GradientNoise.from_covariance(0.25), 0.25 * np.eye(2)),
        "diagonal": (GradientNoise.from_covariance([0.25, 4.0]), np.diag([0.25, 4.0])),
        "matrix": (GradientNoise.from_covariance(root @ root.T), root @ root.T),  # singular
        "low rank": (GradientNoise(factor=MATRIX), MATRIX @ MATRIX.T),
        "time": (GradientNoise(factor=TimeDependent(lambda t: t * MATRIX)), 4.0 * MATRIX @ MATRIX.T),
        "state": (GradientNoise(factor=sigma_of_state), np.diag(sigma_of_state(2.0, START[0]) ** 2)),
        "state matrix": (
            GradientNoise.from_covariance(lambda t, w: t * w[..., None] * w[..., None, :]),
            2.0 * np.outer(START[0], START[0]),
        ),
    }[kind]
    r = made.columns(2.0, START)
    columns = np.stack([made.of_white(2.0, START, np.tile(unit, (6, 1)))[0] for unit in np.eye(r)], axis=-1)
    np.testing.assert_allclose(columns @ columns.T, covariance, atol=1e-12)
    alone = np.stack([made.of_white(2.0, START[0], unit) for unit in np.eye(r)], axis=-1)
    np.testing.assert_allclose(columns, alone, atol=1e-15)


# Orders, from moments that are exact: on a linear flow a step is linear in the state and in the normal numbers


def linear_step(name, system, h, noise, r):
    """Matrices M and N of y' = My + Nξ."""
    scheme, p = integrator(name), 2
    count = scheme.normals * r

    def step(y, xi):
        state = PhaseState(y[..., :p].copy(), y[..., p:].copy())
        return np.concatenate(scheme.noisy_step(system, 0.0, state, h, noise=noise, normals=xi), axis=-1)

    m = step(np.eye(2 * p), np.zeros((2 * p, count))).T
    return m, step(np.zeros((count, 2 * p)), np.eye(count)).T


def flow_of(system):
    """J and b of dy = Jy dt + b dB."""
    p, units = 2, np.eye(4)
    drift = np.concatenate(system.rates(0.0, units[:, :p], units[:, p:]), axis=-1).T
    zero = np.zeros((p, p))
    return drift, np.concatenate(system.rates_with(0.0, zero, zero, np.eye(p)), axis=-1).T


def kernels(name, alpha, h):
    """Normal numbers as integrals of the path: functions k(s) with ξ = ∫k dB, by half step."""
    if INTEGRATORS[name].normals == 1:
        return [[lambda s: np.full_like(s, h**-0.5)]] * 2
    tau = h / 2
    _, of_both, own = _ornstein_uhlenbeck(alpha, tau, np.zeros(1))

    def second(s):
        return ((1.0 - np.exp(-alpha * (tau - s % tau))) / alpha - of_both / tau) / own

    def whole(s):
        return np.full_like(s, tau**-0.5)

    def zero(s):
        return 0.0 * s

    return [[whole, second, zero, zero], [zero, zero, whole, second]]


def moments(name, beta, h, steps=None, span=4.0):
    """Errors at the span's end: of the mean, of the covariance, and in the mean square along one path."""
    system = bowl(beta)
    noise, (drift, b) = GradientNoise(factor=MATRIX[:, :2]), flow_of(system)
    b = b @ MATRIX[:, :2]
    m, n = linear_step(name, system, h, noise, 2)
    exact = scipy.linalg.expm(h * drift)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    spread, cross = np.zeros((4, 4)), np.zeros((len(n.T), 4))
    for half, functions in enumerate(kernels(name, 0.5, h)):
        for x, weight in zip(h / 4 * (nodes + 1.0), h / 4 * weights, strict=True):
            response = scipy.linalg.expm((h - half * h / 2 - x) * drift) @ b
            spread += weight * response @ response.T
            k = np.array([function(np.array([x]))[0] for function in functions])
            cross += weight * np.kron(k[:, None], response.T)
    step = scipy.linalg.block_diag(m, exact)
    input_ = np.block([[n @ n.T, n @ cross], [(n @ cross).T, spread]])
    mean, covariance = np.tile([1.0, -0.5, 0.2, 0.3], 2), np.zeros((8, 8))
    for _ in range(round(span / h)):
        mean, covariance = step @ mean, step @ covariance @ step.T + input_
    apart = np.block([np.eye(4), -np.eye(4)])
    difference = apart @ mean
    strong = np.sqrt(np.trace(apart @ covariance @ apart.T) + difference @ difference)
    return np.linalg.norm(difference), np.linalg.norm(covariance[:4, :4] - covariance[4:, 4:]), strong


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_weak_and_strong_orders_are_those_declared(name, beta):
    cls = INTEGRATORS[name]
    coarse, fine = (np.array(moments(name, beta, h)) for h in (1 / 16, 1 / 32))
    mean, covariance, strong = np.log2(coarse / fine)
    assert min(mean, covariance) == pytest.approx(cls.weak_order, abs=0.12)
    is_langevin = name == "ubu" and beta == 0.0
    assert strong == pytest.approx(2.0 if is_langevin else cls.strong_order, abs=0.12)


class Quartic(Quadratic):
    def gradient(self, w):
        return w**3 - 0.5 * w


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_weak_order_on_a_nonlinear_flow(name, beta):
    """Expectations after one step and after two halves differ by O(h^(order + 1)): Gauss's rule for all numbers."""
    system = RISHD.from_optimizer(Quartic([1.0]), alpha=0.5, beta=beta, eta=0.7)
    noise, scheme = GradientNoise(factor=0.8), integrator(name)
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = weights / weights.sum()

    def expectation(h, steps):
        count = scheme.normals * steps
        xi = np.array(list(itertools.product(nodes, repeat=count)))
        weight = np.array(list(itertools.product(weights, repeat=count))).prod(-1)
        state = PhaseState(np.full((len(xi), 1), 0.9), np.full((len(xi), 1), -0.4))
        for part in np.split(xi, steps, axis=-1):
            state = scheme.noisy_step(system, 0.0, state, h / steps, noise=noise, normals=part)
        return float((weight[:, None] * (np.cos(state.w) + state.w**2 * state.m + state.m**2)).sum())

    coarse, fine = (abs(expectation(h, 1) - expectation(h, 2)) for h in (0.04, 0.02))
    assert np.log2(coarse / fine) == pytest.approx(scheme.weak_order + 1.0, abs=0.25)


def test_runge_kutta_of_higher_order_has_no_weak_order_2_under_noise():
    """It declares none: with the same noise in all stages it would need Σb_i c_i² = 1/2, but order 3 requires 1/3."""
    assert INTEGRATORS["rk4"].stochastic is None
    heun = INTEGRATORS["heun"].tableau
    assert np.dot(heun.weights, np.square(heun.nodes)) == 0.5


def test_multiplicative_noise_has_the_drift_of_its_calculus():
    """Stratonovich's mean drifts by ½η²β²σσ′ more than Itô's in w, and by −½ηβσσ′ in m."""
    eta, beta, h, w = 0.7, 0.6, 1e-4, 0.9
    system = RISHD.from_optimizer(Quadratic([0.0]), alpha=0.5, beta=beta, eta=eta)
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    weights = weights / weights.sum()

    def drift(name, calculus):
        noise = GradientNoise(factor=lambda t, w: 1.0 + w**2, calculus=calculus)
        state = PhaseState(np.full((6, 1), w), np.zeros((6, 1)))
        moved = integrator(name).noisy_step(system, 0.0, state, h, noise=noise, normals=nodes[:, None])
        return weights @ np.concatenate([moved.w - w, moved.m], axis=-1) / h

    extra = drift("heun", "stratonovich") - drift("explicit-euler", "ito")
    product = (1.0 + w**2) * 2.0 * w
    np.testing.assert_allclose(extra, [0.5 * (eta * beta) ** 2 * product, -0.5 * eta * beta * product], rtol=1e-3)


@pytest.mark.parametrize("x", [0.0, 1e-9, 1e-3, 0.0499, 0.0501, 0.055, 0.499, 0.501, 0.7, 30.0])
def test_ornstein_uhlenbeck_integrals_against_quadrature(x):
    tau = 1.7
    alpha = x / tau
    nodes, weights = np.polynomial.legendre.leggauss(80)
    s, weights = tau / 2 * (nodes + 1.0), tau / 2 * weights
    phi = s if alpha == 0 else -np.expm1(-alpha * s) / alpha
    mean = weights @ phi
    at_end = tau if alpha == 0 else -np.expm1(-x) / alpha
    own = np.sqrt(weights @ (phi - mean / tau) ** 2)
    np.testing.assert_allclose(_ornstein_uhlenbeck(alpha, tau, np.zeros(1)), [at_end, mean, own], rtol=2e-10)
    for dtype, rtol in ((np.float64, 2e-10), (np.float32, 1e-5)):
        column = _ornstein_uhlenbeck(np.array([[alpha]], dtype=dtype), tau, np.zeros((1, 1), dtype=dtype))
        np.testing.assert_allclose(np.squeeze(column), [at_end, mean, own], rtol=rtol)


# Paths


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("factor", [0.3, MATRIX], ids=["number", "low rank"])
def test_members_move_as_they_do_alone_and_however_a_run_is_cut(name, factor, tmp_path):
    settings = {"integrator": name, "h": 0.5}
    noise = GradientNoise(factor=factor, seed=4)
    whole = simulate(bowl(), START, steps=12, noise=noise, **settings)
    for k in (0, 5):
        alone = simulate(
            bowl(), START[k], steps=12, noise=GradientNoise(factor=factor, seed=4, first_member=k), **settings
        )
        np.testing.assert_allclose(alone.w, whole.w[:, k], rtol=1e-14, atol=1e-15)
    grid = simulate(bowl(), START.reshape(2, 3, 2), steps=12, noise=noise, save_every=12, **settings)
    np.testing.assert_allclose(grid.w[-1].reshape(6, 2), whole.w[-1], rtol=1e-14, atol=1e-15)
    file = tmp_path / "run.npz"
    simulate(bowl(), START, steps=5, noise=noise, checkpoint=file, **settings)
    resumed = simulate(bowl(), START, steps=12, noise=noise, checkpoint=file, **settings)
    np.testing.assert_array_equal(resumed.w[-1], whole.w[-1])
    np.testing.assert_array_equal(resumed.m[-1], whole.m[-1])


def test_checkpoint_of_another_noise_is_refused(tmp_path):
    file = tmp_path / "run.npz"
    simulate(bowl(), START, steps=2, noise=GradientNoise(factor=0.3, seed=1), checkpoint=file)
    for other in (None, GradientNoise(factor=0.3, seed=2), GradientNoise(factor=0.4, seed=1)):
        with pytest.raises(ValueError, match="is of another run: noise is"):
            simulate(bowl(), START, steps=4, noise=other, checkpoint=file)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_torch_has_the_same_path_and_derivatives_along_it(name):
    """Derivatives by w0, η, α and σ on a fixed path, against differences."""
    names = ("w0", "eta", "alpha", "sigma")
    numbers = [START[0], 0.4, 0.3, 0.25]

    def end(w0, eta, alpha, sigma):
        system = RISHD.from_optimizer(VALLEY, alpha=alpha, beta=0.3, eta=eta)
        noise = GradientNoise(factor=sigma, seed=3)
        return simulate(system, w0, h=0.5, steps=8, integrator=name, noise=noise).w[-1]

    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
    run = end(*leaves)
    np.testing.assert_allclose(run.detach(), end(*numbers), rtol=1e-12)
    gradients = torch.autograd.grad((run**2).sum(), leaves)
    for i in range(1, len(names)):
        near = [(end(*(x + e * (j == i) for j, x in enumerate(numbers))) ** 2).sum() for e in (1e-5, -1e-5)]
        assert float(gradients[i]) == pytest.approx((near[0] - near[1]) / 2e-5, rel=1e-6), names[i]
    nudged = [(end(START[0] + e * np.array([1.0, 0.0]), *numbers[1:]) ** 2).sum() for e in (1e-5, -1e-5)]
    assert float(gradients[0][0]) == pytest.approx((nudged[0] - nudged[1]) / 2e-5, rel=1e-6)


def test_only_the_noise_requires_gradients():
    sigma = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    w0 = torch.as_tensor(START)
    run = simulate(bowl(), w0, steps=3, noise=GradientNoise(factor=sigma))
    assert torch.autograd.grad(run.w[-1].sum(), sigma)[0] != 0
    with pytest.raises(ValueError, match=r"which a numpy w0 cannot carry"):
        simulate(bowl(), START, steps=3, noise=GradientNoise(factor=sigma))
    with pytest.raises(ValueError, match=r"noise.factor requires gradients, but a checkpoint cannot hold them"):
        simulate(bowl(), w0, steps=3, noise=GradientNoise(factor=sigma), checkpoint="x.npz")


@needs_compiler
@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_compiled_paths_are_the_plain_ones(name, dtype):
    w0 = np.random.default_rng(0).normal(size=(37, 2)).astype(dtype)
    split = ConstantSplit(np.eye(2)[:, :1])
    system = RISHD.from_optimizer(BOWL, alpha=np.linspace(0.001, 0.5, 37), eta=0.1, chi=2.0, beta_flat=0.5, flat=split)
    noise = GradientNoise(factor=MATRIX, seed=2**70 + 1, first_member=5)
    settings = {"integrator": name, "h": 0.7, "steps": 11, "noise": noise}
    plain = simulate(system, w0, **settings)
    for kernel in (True, 3):
        compiled = simulate(system, w0, compile=kernel, save_every=4, **settings)
        np.testing.assert_allclose(compiled.w[-1], plain.w[-1], rtol=0, atol=1e-13 if dtype == np.float64 else 1e-5)


@needs_compiler
@pytest.mark.parametrize("compiled", [False, True])
def test_whole_numbers_of_numpy_are_seeds_as_well(compiled):
    w0 = START.astype(float)
    plain = simulate(bowl(), w0, steps=2, noise=GradientNoise(factor=0.1, seed=7, first_member=2))
    noise = GradientNoise(factor=0.1, seed=np.int64(7), first_member=np.uint8(2))
    np.testing.assert_allclose(simulate(bowl(), w0, steps=2, noise=noise, compile=compiled).w, plain.w, atol=1e-14)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_no_members_are_an_empty_ensemble(name):
    run = simulate(bowl(), np.zeros((0, 2)), steps=2, integrator=name, noise=GradientNoise(factor=MATRIX))
    assert run.w.shape == (3, 0, 2)


@needs_compiler
def test_compiled_steps_are_of_one_noise():
    noise = GradientNoise(factor=0.1)
    steps = CompiledSteps(bowl(), START, noise=noise)
    with pytest.raises(CompileError, match="compiled for another system"):
        simulate(bowl(), START, steps=2, noise=noise, compile=steps)
    with pytest.raises(CompileError, match="compiled for another noise"):
        simulate(steps.source, START, steps=2, noise=GradientNoise(factor=0.1), compile=steps)
    with pytest.raises(CompileError, match="with a constant factor and up to 16 coordinates"):
        CompiledSteps(bowl(), START, noise=GradientNoise(factor=TimeDependent(lambda t: 0.1)))


def test_a_time_dependent_factor_is_taken_where_the_scheme_says():
    noise = GradientNoise(factor=TimeDependent(lambda t: 1.0 + t))
    for name, place in {"explicit-euler": 0.0, "semi-implicit-euler": 0.0, "heun": 0.5}.items():
        moved = simulate(bowl(), 0.0 * START, h=0.5, t0=2.0, steps=1, integrator=name, noise=noise)
        constant = GradientNoise(factor=3.0 + place * 0.5)
        expected = simulate(bowl(), 0.0 * START, h=0.5, t0=2.0, steps=1, integrator=name, noise=constant)
        np.testing.assert_allclose(moved.w[-1], expected.w[-1], rtol=1e-12)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (GradientNoise.from_covariance(lambda t, w: (1.5 - t) + 0.0 * w), "positive semidefinite"),
        (GradientNoise(factor=TimeDependent(lambda t: np.nan if t > 1.5 else 1.0)), "factor(2) = nan must be finite"),
        (GradientNoise(factor=TimeDependent(lambda t: np.ones(3 if t > 1.5 else 2))), "factor(2) has shape (3,)"),
        (GradientNoise(factor=lambda t, w: np.ones((*w.shape, 2 if t > 1.5 else 1))), "has 2 columns and had 1"),
    ],
)
def test_noise_that_turns_invalid_on_the_way_ends_the_run(noise, message):
    run = simulate(bowl(0.0), START, steps=5, noise=noise)
    assert run.status == "invalid-system"
    assert message in run.message
    assert run.times[-1] == 2.0


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientNoise(factor=np.ones((2, 2, 2))), "at most two axes"),
        (lambda: GradientNoise(factor=np.ones((2, 0))), "none of length 0"),
        (lambda: GradientNoise(factor=np.nan), "factor = nan must be finite"),
        (lambda: GradientNoise(factor=None), "factor = None must be a real number"),
        (lambda: GradientNoise(factor="0.3"), r"factor = '0.3' must be a real number"),
        (lambda: GradientNoise(factor=1j * np.ones(2)), "must be a real number"),
        (lambda: GradientNoise(factor=torch.ones(2, dtype=torch.complex64)), "must be a real number"),
        (lambda: GradientNoise(factor=np.array([True, False])), "must be a real number"),
        (lambda: GradientNoise.from_covariance(np.eye(2) * (1 + 1j)), "must be a real number"),
        (lambda: GradientNoise.from_covariance(TimeDependent(lambda t: 1.0)), "covariance is TimeDependent"),
        (lambda: GradientNoise(factor=1.0, seed=-1), r"seed = -1 must be a whole number"),
        (lambda: GradientNoise(factor=1.0, seed=0.5), r"seed = 0.5 must be a whole number"),
        (lambda: GradientNoise(factor=1.0, calculus="Ito"), r"calculus = 'Ito' is unknown.*Did you mean 'ito'"),
        (lambda: GradientNoise.from_covariance(-1.0), "eigenvalue -1, but a covariance is positive semidefinite"),
        (lambda: GradientNoise.from_covariance([1.0, -1.0]), "eigenvalue -1"),
        (lambda: GradientNoise.from_covariance([[0.0, 1.0], [1.0, 0.0]]), "eigenvalue -1"),
        (lambda: GradientNoise.from_covariance([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (lambda: GradientNoise.from_covariance(np.ones((2, 3))), "not symmetric"),
    ],
)
def test_bad_noise_is_refused_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", sorted(set(INTEGRATORS) - set(STOCHASTIC)))
def test_schemes_without_a_form_with_noise_refuse_it(name):
    with pytest.raises(ValueError, match=rf"'{name}' has no form with noise; take one of explicit-euler"):
        simulate(bowl(), START, steps=1, integrator=name, noise=GradientNoise(factor=0.1))


VARYING = VaryingDiagonalMetric(lambda w: 1.0 + w**2)


@pytest.mark.parametrize(
    ("noise", "changes", "message"),
    [
        (0.3, {}, r"noise is of type float; give GradientNoise"),
        (GradientNoise(factor=np.ones(3)), {}, r"factor has shape \(3,\), but w0 has 2 coordinates"),
        (GradientNoise(factor=np.ones((3, 2))), {}, r"factor has shape \(3, 2\)"),
        (GradientNoise(factor=lambda t, w: np.ones(2)), {}, r"return diagonals of shape \(\*ensemble, p\)"),
        (GradientNoise(factor=lambda t, w: 1.0), {}, "return an array of the kind of w"),
        (GradientNoise(factor=lambda t, w: np.inf * w), {}, "non-finite"),
        (GradientNoise(factor=lambda t, w: w + w.mean(0)), {}, "noise.factor gives member"),
        (GradientNoise(factor=lambda t, w: 1j * w), {}, "has dtype complex128"),
        (GradientNoise(factor=TimeDependent(lambda t: np.ones(3))), {}, r"factor\(0\) has shape \(3,\)"),
        (GradientNoise.from_covariance(lambda t, w: -1.0 + 0 * w), {}, "positive semidefinite"),
        (GradientNoise.from_covariance(lambda t, w: 1.0), {}, "return an array of the kind of w"),
        (GradientNoise.from_covariance(lambda t, w: np.float64(1.0)), {}, "0 axes"),
        (GradientNoise.from_covariance(lambda t, w: (1 + 1j) * w), {}, "has dtype complex128"),
        (GradientNoise.from_covariance(lambda t, w: np.ones((*w.shape, 3))), {}, r"return variances of shape"),
        (GradientNoise.from_covariance(lambda t, w: np.ones((*w.shape, 1)) * [1, 9]), {}, "is not symmetric"),
        (GradientNoise(factor=0.1), {"events": [Event("x", lambda t, w, m: w[..., 0])]}, "events are located inside"),
        (GradientNoise(factor=0.1), {"save_at": [0.5]}, "save_at holds times between steps"),
        (GradientNoise(factor=sigma_of_state), {"integrator": "heun"}, "take 'explicit-euler', or give"),
        (GradientNoise(factor=sigma_of_state, calculus="stratonovich"), {}, "take 'heun', or give"),
        (GradientNoise(factor=sigma_of_state), {"integrator": "ubu"}, "does not depend on the state"),
        (GradientNoise(factor=sigma_of_state), {"compile": True}, "cannot be compiled"),
    ],
)
def test_noise_that_does_not_fit_is_refused_at_the_call(noise, changes, message):
    with pytest.raises(ValueError, match=message):
        simulate(bowl(), START, steps=3, noise=noise, **changes)


def test_noise_under_a_metric_that_moves_is_multiplicative_only_with_damping():
    noise = GradientNoise(factor=0.1)
    damped, plain = (RISHD.from_optimizer(BOWL, VARYING, alpha=0.3, beta=beta, eta=0.1) for beta in (0.2, 0.0))
    with pytest.raises(ValueError, match="varies with the state here"):
        simulate(damped, START, steps=2, integrator="heun", noise=noise)
    assert simulate(damped, START, steps=2, noise=noise).ok
    assert simulate(plain, START, steps=2, integrator="heun", noise=noise).ok
    assert simulate(plain, START, steps=2, integrator="heun", noise=GradientNoise(factor=sigma_of_state)).ok
