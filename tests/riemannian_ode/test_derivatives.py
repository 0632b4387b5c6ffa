"""Derivatives through simulations by autograd, against central differences of the numpy runs in float64."""

import numpy as np
import pytest
import torch

from riemannian_ode import (
    INTEGRATORS,
    RISHD,
    ConstantMetric,
    ConstantSplit,
    DiagonalMetric,
    Euclidean,
    Event,
    GramRootMetric,
    KroneckerMetric,
    LowRankPlusDiagonalMetric,
    OneStepIntegrator,
    PhaseState,
    PreconditionerMetric,
    StateDependentMetric,
    TimeDependent,
    VaryingDiagonalMetric,
    simulate,
)
from riemannian_ode.derivatives import check_attached
from riemannian_ode.integrators.embedded import EnsembleDormandPrince
from riemannian_ode.leading_eigenvectors import leading_eigenvectors
from tests.riemannian_ode.problems import random_metric
from toy_landscapes import Quadratic, RiverValley, StraightValley, TorchLandscape

P, STEPS, H, NUDGE = 4, 2, 0.1, 1e-5
SCHEMES = [name for name, scheme in INTEGRATORS.items() if scheme.differentiable]
every_scheme = pytest.mark.parametrize("name", SCHEMES)
RNG = np.random.default_rng(4)
VALLEY = RiverValley([2.0, 3.0], floor_curvatures=[0.3, 0.2], amplitudes=[0.4, 0.3], phases=[0.0, 1.0])
BENT = StraightValley(Quadratic([0.3, 0.2]), [[3.0, 1.0], [1.0, 3.0]], variation=[0.8, -0.5], frequency=[0.7, -1.1])
START, MOMENTUM = RNG.normal(size=(2, P))
WEIGHTS = RNG.normal(size=(2, STEPS + 1, 1, P))
METRICS = {
    "euclidean": Euclidean(),
    "constant": ConstantMetric(random_metric(P)),
    "diagonal": DiagonalMetric(RNG.uniform(0.5, 2.0, P)),
    "kronecker": KroneckerMetric(random_metric(2), random_metric(2)),
    "low rank plus diagonal": LowRankPlusDiagonalMetric(RNG.uniform(0.5, 2.0, P), RNG.normal(size=(P, 2))),
    "state dependent": StateDependentMetric(
        lambda w: torch.diag(1.5 + torch.cos(w)) + torch.outer(torch.sin(w), torch.sin(w))
    ),
    "varying diagonal": VaryingDiagonalMetric(lambda w: torch.sqrt(0.3 + torch.sin(w).roll(1) ** 2)),
    "gram root": GramRootMetric((2, 2), epsilon=0.5),
    "preconditioner": PreconditionerMetric(lambda x: x / (0.5 + x**2) ** 0.5),
}
COEFFICIENTS = {"alpha": 0.4, "eta": 0.7, "beta": 0.5, "nesterov": 0.2, "gain": 0.9}
SPLIT_COEFFICIENTS = {"alpha": 0.4, "eta": 0.7, "beta": 0.5, "beta_flat": 0.8, "chi": 1.5, "nesterov": 0.2, "gain": 0.9}


def scheme_of(name):
    """Adaptive steps depend on the differentiated quantity; with a tight tolerance the effect is negligible."""
    return EnsembleDormandPrince(rtol=1e-9, atol=1e-10) if name == "ensemble-rk45" else INTEGRATORS[name]()


def loss(run):
    w, m = (torch.as_tensor(weights).reshape(STEPS + 1, *[1] * (run.w.ndim - 2), P) for weights in WEIGHTS)
    return (w * torch.as_tensor(run.w) + m * torch.as_tensor(run.m)).sum((0, -1))


def run_of(build, name, w0, m0, **coefficients):
    return simulate(build(**coefficients), w0, m0, integrator=scheme_of(name), h=H, steps=STEPS).checked()


def check(build, name, coefficients, noise=2e-7):
    """Gradients of a single run with 0-d tensors, against one numpy ensemble with a perturbed member per derivative."""
    numbers = np.concatenate([START, MOMENTUM, list(coefficients.values())])
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (START, MOMENTUM)]
    named = {key: torch.tensor(x, dtype=torch.float64, requires_grad=True) for key, x in coefficients.items()}
    run = run_of(build, name, *leaves, **named)
    gradients = torch.autograd.grad(loss(run), [*leaves, *named.values()])
    got = np.concatenate([gradient.numpy().reshape(-1) for gradient in gradients])

    moved = numbers + NUDGE * np.concatenate([np.eye(len(numbers)), -np.eye(len(numbers))])
    nudged = {key: moved[:, 2 * P + i] for i, key in enumerate(coefficients)}
    ends = loss(run_of(build, name, moved[:, :P].copy(), moved[:, P : 2 * P].copy(), **nudged)).numpy()
    expected = (ends[: len(numbers)] - ends[len(numbers) :]) / (2 * NUDGE)
    assert np.abs(expected).min() > 1e-7  # no derivative is zero, so that a missing one shows
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=noise)
    with torch.no_grad():
        plain = run_of(build, name, *leaves, **named)
    assert not plain.w.requires_grad
    exact = name != "exponential-euler"  # it uses torch's matrix exponential if gradients are requested
    np.testing.assert_allclose(run.w.detach(), plain.w, rtol=1e-13 if exact else 1e-10, atol=1e-14)


@every_scheme
@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_start_and_every_coefficient_under_every_metric(name, metric):
    varies = metric.variation != "constant"
    constant_only = name in ("exponential-euler", "ubu")
    if (constant_only and varies) or (name == "discrete-gradient" and metric.variation == "history"):
        pytest.skip("the scheme refuses this metric")
    chosen = dict(COEFFICIENTS)
    if name == "discrete-gradient" and varies:
        del chosen["beta"], chosen["nesterov"]
    check(lambda **c: RISHD.from_optimizer(VALLEY, metric, **c), name, chosen)


@every_scheme
@pytest.mark.parametrize(
    ("landscape", "flat"),
    [
        (VALLEY, ConstantSplit(np.linalg.qr(np.random.default_rng(0).normal(size=(P, 2)))[0])),
        (VALLEY, VALLEY.flat_split),
        (BENT, BENT.flat_split),
    ],
    ids=["constant", "river", "eigenvectors"],
)
def test_every_coefficient_of_a_split(name, landscape, flat):
    if name == "discrete-gradient" or (name == "ubu" and not isinstance(flat, ConstantSplit)):
        pytest.skip("the scheme refuses this split")
    # The scheme's Jacobian has differences of a moving split; the reference's own differences magnify their noise.
    noise = 3e-5 if name == "exponential-euler" and not isinstance(flat, ConstantSplit) else 2e-7
    check(lambda **c: RISHD.from_optimizer(landscape, flat=flat, **c), name, SPLIT_COEFFICIENTS, noise)


def test_a_span_of_eigenvectors_has_derivatives_where_eigenvalues_coincide():
    a = torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64)).requires_grad_()

    def projector(a):
        basis = leading_eigenvectors(0.5 * (a + a.mT), 2)
        return basis @ basis.mT

    assert torch.autograd.gradcheck(projector, a)


@every_scheme
def test_second_order_coefficients(name):
    check(lambda **c: RISHD.from_coefficients(VALLEY, **c), name, {"alpha": 0.4, "beta": 0.5, "gamma": 1.3})


def matrix(theta):
    return torch.eye(P, dtype=torch.float64) * theta + 0.3


PARAMETERS = {
    "function of time": lambda theta: {
        "alpha": TimeDependent(lambda t: 0.2 + theta * torch.exp(-theta * torch.as_tensor(t, dtype=torch.float64)))
    },
    "objective": lambda theta: {
        "objective": TorchLandscape(lambda x: torch.cosh(theta * x).sum() + (x[0] * x[1]) ** 2, dimension=P)
    },
    "constant": lambda theta: {"metric": ConstantMetric(matrix(theta))},
    "diagonal": lambda theta: {"metric": DiagonalMetric(torch.diagonal(matrix(theta)))},
    "kronecker": lambda theta: {"metric": KroneckerMetric(matrix(theta)[:2, :2], torch.eye(2, dtype=torch.float64))},
    "low rank plus diagonal": lambda theta: {
        "metric": LowRankPlusDiagonalMetric(torch.diagonal(matrix(theta)), matrix(theta)[:, :2])
    },
    "state dependent": lambda theta: {
        "metric": StateDependentMetric(lambda w: matrix(theta) * (2 + torch.sin(w).sum()))
    },
    "state dependent, its parameters": lambda theta: {
        "metric": StateDependentMetric(lambda w, a: torch.diag(1 + a * w**2), [theta.expand(P)])
    },
    "preconditioner": lambda theta: {"metric": PreconditionerMetric(lambda x: x / (theta + x**2) ** 0.5)},
}


@every_scheme
@pytest.mark.parametrize("place", PARAMETERS)
def test_parameters_of_functions_metrics_and_objectives(name, place):
    def end(theta):
        parts = {"objective": VALLEY, "alpha": 0.4, "eta": 0.7, **PARAMETERS[place](theta)}
        return loss(run_of(RISHD.from_optimizer, name, torch.tensor(START), torch.tensor(MOMENTUM), **parts))

    theta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    try:
        value = end(theta)
    except ValueError as refusal:
        assert name in ("exponential-euler", "ubu", "discrete-gradient") and "take 'implicit-midpoint'" in str(refusal)
        return
    with torch.no_grad():
        expected = (end(theta + NUDGE) - end(theta - NUDGE)) / (2 * NUDGE)
    (got,) = torch.autograd.grad(value, theta)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-7)


@every_scheme
def test_lost_members_leave_the_others_derivatives_as_they_are_alone(name):
    landscape = TorchLandscape(lambda x: (x**4).sum() + (x**2).sum(), dimension=P)
    starts = torch.tensor(np.stack([START, np.full(P, 1e120), -START]))

    def gradient(w0):
        alpha, eta = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.4, 0.1))
        system = RISHD.from_optimizer(landscape, alpha=alpha, eta=eta, beta=0.1)
        run = simulate(system, w0, integrator=scheme_of(name), h=H, steps=STEPS)
        ends = run.w[-1]
        kept = torch.isfinite(ends).all(-1)
        assert kept.sum() == 2
        return [x.numpy() for x in torch.autograd.grad((ends[kept] ** 2).sum(), (alpha, eta))]

    np.testing.assert_allclose(gradient(starts), gradient(starts[[0, 2]]), rtol=1e-10)


@pytest.mark.parametrize("name", ["implicit-euler", "implicit-midpoint", "discrete-gradient", "strang"])
@pytest.mark.parametrize("curvature", [1.0, 1e8])
def test_large_and_stiff_implicit_steps(name, curvature):
    p = 30
    landscape = Quadratic(np.r_[curvature, np.linspace(1.0, 0.1, p - 1)])
    w0 = torch.tensor(np.random.default_rng(1).normal(size=p), requires_grad=True)
    direction = np.random.default_rng(2).normal(size=p)

    def end(w0):
        system = RISHD.from_optimizer(landscape, alpha=0.3, eta=0.5, beta=0.2)
        return simulate(system, w0, integrator=name, h=H, steps=2).checked().w[-1]

    got = torch.autograd.grad((end(w0) ** 2).sum() / 2, w0)[0] @ torch.tensor(direction)
    start = w0.detach().numpy()
    np.testing.assert_allclose(got, end(start) @ end(direction), rtol=1e-7)  # the step is linear


@every_scheme
def test_states_off_the_grid(name):
    w0 = torch.tensor(START, requires_grad=True)

    def at(w0):
        system = RISHD.from_optimizer(VALLEY, alpha=0.3, eta=0.5, beta=0.2)
        return simulate(system, w0, integrator=scheme_of(name), h=H, steps=2, save_at=[0.13]).w[2]

    got = torch.autograd.grad(at(w0).sum(), w0)[0] @ torch.tensor(MOMENTUM)
    expected = (at(START + NUDGE * MOMENTUM) - at(START - NUDGE * MOMENTUM)).sum() / (2 * NUDGE)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


class Detached(Euclidean):
    variation = "state"

    def raise_index(self, w, covector):
        return covector * (1 + w.detach() ** 2)


class Foreign:
    """An objective that leaves torch internally."""

    def __init__(self, leave):
        self.leave = leave

    def value(self, w):
        return (w**2).sum(-1)

    def gradient(self, w):
        return self.leave(2.0 * w)


def tracked(**changes):
    settings = {"alpha": torch.tensor(0.5, dtype=torch.float64, requires_grad=True), "eta": 0.1} | changes
    return RISHD.from_optimizer(settings.pop("objective", VALLEY), settings.pop("metric", None), **settings)


@pytest.mark.parametrize(
    ("system", "options", "words"),
    [
        *((tracked(), {"integrator": name}, "take one of explicit-euler") for name in set(INTEGRATORS) - set(SCHEMES)),
        (tracked(), {"compile": True}, "give compile=False"),
        (tracked(), {"checkpoint": "never.npz"}, "give checkpoint=None"),
        (tracked(), {"events": [Event("level", lambda t, w, m: w[..., 0], terminal=True)]}, "give terminal=False"),
        (tracked(objective=Foreign(lambda g: g.detach())), {}, "objective.gradient cannot be differentiated"),
        (
            tracked(objective=Foreign(lambda g: torch.tensor(g.numpy()))),
            {},
            "objective.gradient cannot be differentiated",
        ),
        (tracked(metric=Detached()), {}, "metric.raise_index cannot be differentiated"),
        (
            tracked(flat=lambda z: lambda x: x * torch.sin(z.w.detach()), check_split=False),
            {},
            "flat cannot be differentiated",
        ),
    ],
)
def test_what_cannot_be_differentiated_is_refused_at_once(system, options, words):
    w0 = torch.tensor(START)
    for start in (w0, w0.clone().requires_grad_()):
        with pytest.raises(ValueError, match=words) as refusal:
            simulate(system, start, h=H, steps=2, **options)
        assert "\n" not in str(refusal.value) and "torch.no_grad()" in str(refusal.value)
    if "compile" not in options and "checkpoint" not in options:
        with torch.no_grad():
            simulate(system, w0, h=H, steps=2, **options).checked()


def test_numpy_starts_refuse_coefficients_that_require_gradients():
    with pytest.raises(ValueError, match=r"alpha requires gradients, which a numpy w0 cannot carry"):
        simulate(tracked(), START, steps=1)


def test_own_schemes_that_leave_the_graph_are_refused():
    class Leaving(OneStepIntegrator):
        name, order = "leaving", 1

        def step(self, system, t, state, h):
            return PhaseState(state.w.detach(), state.m.detach())

    with pytest.raises(ValueError, match="'leaving' returns a state cut off from autograd"):
        simulate(tracked(), torch.tensor(START, requires_grad=True), integrator=Leaving(), steps=1)


def test_constants_need_no_graph():
    check_attached("a constant", lambda x: torch.ones(3), torch.zeros(3))


def test_second_derivatives_through_implicit_steps_are_an_error():
    w0 = torch.tensor(START, requires_grad=True)
    end = simulate(RISHD.from_optimizer(VALLEY, alpha=0.3, eta=0.5), w0, integrator="implicit-euler", steps=1).w[-1]
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad((end**2).sum(), w0, create_graph=True)
