"""A user's functions get a plain error if they are written for one member, or have a wrong type or shape."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemannian_ode import RISHD, ConstantSplit, Event, Metric, PreconditionerMetric, TimeDependent, simulate
from riemannian_ode.integrators.embedded import EnsembleDormandPrince
from tests.riemannian_ode.problems import NONLINEAR, START
from toy_landscapes import GaussianNoise, Quadratic, RiverValley, StochasticGradient

CURVATURE = np.array([[2.0, 0.5], [0.5, 1.0]])


class Objective:
    """½wᵀHw for any leading axes; attributes replace its methods."""

    def __init__(self, **methods):
        vars(self).update(methods)

    def value(self, w):
        return 0.5 * ((w @ CURVATURE) * w).sum(-1)

    def gradient(self, w):
        return w @ CURVATURE

    def hvp(self, w, v):
        return v @ CURVATURE

    def hessian(self, w):
        return CURVATURE + 0.0 * w[..., None]


class Scaled(Metric):
    """F = (1 + |w|²) I, without its correction; attributes replace its methods."""

    variation = "state"

    def __init__(self, **methods):
        vars(self).update(methods)

    def raise_index(self, w, covector):
        return covector / (1.0 + (w * w).sum(-1, keepdims=True))

    def lower_index(self, w, vector):
        return vector * (1.0 + (w * w).sum(-1, keepdims=True))

    def correction(self, w, velocity, momentum):
        return (w * momentum).sum(-1, keepdims=True) * velocity


def flow(objective=None, metric=None, **changes):
    return RISHD.from_optimizer(objective or Objective(), metric, **({"alpha": 0.3, "eta": 0.1} | changes))


def with_event(function):
    return {"events": [Event("watched", function)]}


# Each is written for one member of shape (p,), runs on shape (2, 2), and is wrong there.
FOR_ONE_MEMBER = {
    "objective.gradient": lambda: ({"objective": Objective(gradient=lambda w: CURVATURE @ w)}, {}),
    "objective.value": lambda: ({"objective": Objective(value=lambda w: w[0] ** 2 + 3.0 * w[1] ** 2)}, {}),
    "objective.hvp": lambda: (
        {"objective": Objective(hvp=lambda w, v: CURVATURE @ v)},
        {"integrator": "implicit-euler"},
    ),
    "objective.hessian": lambda: (
        {"objective": Objective(hessian=lambda w: CURVATURE * (1.0 + 0.1 * w.sum()))},
        {"integrator": "exponential-euler"},
    ),
    "metric.raise_index": lambda: ({"metric": PreconditionerMetric(lambda c: c / np.linalg.norm(c))}, {}),
    "metric.lower_index": lambda: (
        {"metric": Scaled(lower_index=lambda w, v: v * (1.0 + (w * w).sum()))},
        {},
    ),
    "metric.correction": lambda: ({"metric": Scaled(correction=lambda w, v, m: (w * m).sum() * v)}, {}),
    "flat": lambda: ({"flat": lambda point: lambda x: np.array([0.0 * x[0], x[1]]), "chi": 2.0}, {}),
    "event 'watched'": lambda: ({}, with_event(lambda t, w, m: w[0] - 0.5)),
}


@pytest.mark.parametrize("name", FOR_ONE_MEMBER)
@pytest.mark.parametrize("start", [np.ones((2, 2)), np.array([[1.0, -0.5], [0.3, 2.0]])], ids=["ones", "any"])
def test_functions_written_for_one_member_are_refused_on_an_ensemble(name, start):
    changes, run = FOR_ONE_MEMBER[name]()
    with pytest.raises(ValueError, match=rf"{re.escape(name)} gives member .* alone"):
        simulate(flow(**changes), start, steps=2, **run)


@pytest.mark.parametrize("members", [3, 40, (5, 8)])
def test_functions_that_mix_members_are_refused_in_any_ensemble(members):
    """Normalised over all members instead of member by member: no shape reveals it."""
    start = np.random.default_rng(0).normal(size=(*np.atleast_1d(members), 2))
    with pytest.raises(ValueError, match=r"objective\.gradient gives member"):
        simulate(flow(Objective(gradient=lambda w: w / np.linalg.norm(w))), start, steps=2)
    with pytest.raises(ValueError, match="flat gives member"):
        flat = {"flat": lambda point: lambda x: x - x.mean(), "chi": 2.0}
        simulate(flow(**flat, check_split=False), start, steps=2)


@pytest.mark.parametrize("members", [3, 40])
def test_splits_with_data_of_every_member_pass(members):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(members, 3, 3)))[0][..., :1]
    scale = np.linspace(1.0, 2.0, members)[:, None]
    objective = Objective(gradient=lambda w: scale * w, value=lambda w: 0.5 * (scale * w * w).sum(-1))
    system = flow(objective, flat=ConstantSplit(basis), chi=scale[:, 0], nesterov=scale[:, 0])
    assert simulate(system, np.ones((members, 3)), steps=3).ok


def test_the_zero_start_hides_nothing():
    with pytest.raises(ValueError, match=r"objective\.gradient gives member"):
        simulate(flow(Objective(gradient=lambda w: CURVATURE @ w)), np.zeros((2, 2)), steps=2)


@given(
    axes=st.sampled_from([(2,), (3,), (2, 2), (1,), (20,), (5, 4)]),
    p=st.integers(1, 3),
    kind=st.sampled_from([np.float64, np.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_functions_for_any_leading_axes_pass(axes, p, kind, seed):
    """Also with data per member, which cannot be evaluated for a single member."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 2.0, axes)
    w0 = rng.normal(size=(*axes, p))
    w0 = torch.as_tensor(w0) if isinstance(kind, torch.dtype) else w0.astype(kind)
    scale = torch.as_tensor(scale) if isinstance(kind, torch.dtype) else scale.astype(kind)

    def gradient(w):
        return scale[..., None] * w

    objective = Objective(
        gradient=gradient, value=lambda w: 0.5 * scale * (w * w).sum(-1), hvp=lambda w, v: gradient(v)
    )
    event = Event("low", lambda t, w, m: (w * w).sum(-1) - 0.5 * scale)
    for integrator in ("semi-implicit-euler", "implicit-midpoint"):
        assert simulate(flow(objective), w0, h=0.1, steps=2, integrator=integrator, events=[event]).ok


@pytest.mark.parametrize("problem", NONLINEAR)
def test_problems_of_the_tests_pass(problem):
    assert simulate(NONLINEAR[problem](), START, h=0.01, steps=1, integrator="implicit-midpoint").ok


def test_a_noisy_gradient_is_drawn_as_often_as_before():
    """The noise of a seed does not change: one draw at the start, one per step."""
    counts = []
    for start in (np.ones(2), np.ones((2, 2)), np.ones((4, 2))):
        generator = np.random.default_rng(0)
        noisy = StochasticGradient(Quadratic([1.0, 0.5]), GaussianNoise(1.0), generator=generator)
        assert simulate(flow(noisy), start, steps=3).ok
        again = np.random.default_rng(0)
        again.standard_normal((4, *start.shape))
        counts.append(generator.random() == again.random())
    assert all(counts)


def test_a_random_function_that_does_not_say_so_is_not_taken_for_a_wrong_one():
    rng = np.random.default_rng(0)
    noisy = Objective(gradient=lambda w: w + 0.1 * rng.normal(size=w.shape))
    assert simulate(flow(noisy), np.ones((2, 2)), steps=2).ok


def test_a_start_near_the_edge_of_a_functions_domain_passes():
    def gradient(w):
        return np.where((w > 1.0).all(-1, keepdims=True), np.nan, w)

    objective = Objective(gradient=gradient, value=lambda w: (w * w).sum(-1))
    assert simulate(flow(objective), np.ones((3, 2)), steps=2).ok


WRONG_RESULTS = {
    "list": (lambda w: [1.0, 2.0], "gradient.*is of type list; return a numpy array"),
    "None": (lambda w: None, "gradient.*is of type NoneType"),
    "tensor": (lambda w: torch.ones(2, dtype=torch.float64), "gradient.*is of type Tensor; return a numpy array"),
    "complex": (lambda w: w + 1j, "gradient.*dtype complex128"),
    "scalar": (lambda w: w.sum(), r"gradient.*has shape \(\)"),
}


@pytest.mark.parametrize("kind", WRONG_RESULTS)
def test_results_of_a_wrong_kind_are_named(kind):
    gradient, message = WRONG_RESULTS[kind]
    with pytest.raises(ValueError, match=message):
        simulate(flow(Objective(gradient=gradient)), np.ones(2), steps=1)


JUNK = st.sampled_from(
    [
        *(None, "text", b"bytes", [], [1.0, "a"], {}, {"a": 1}, object(), Objective, 3, -1.5, float("nan"), True),
        *(np.eye(2), np.array(None), torch.ones(2), lambda *_: None, lambda *_: "text"),
    ]
)
ARGUMENTS = ("system", "w0", "m0", "integrator", "h", "steps", "t0", "save_every", "save_at", "observers", "events")
PARTS = ("objective", "metric", "alpha", "eta", "beta", "beta_flat", "chi", "flat", "nesterov", "gain")


@given(name=st.sampled_from(ARGUMENTS + PARTS), junk=JUNK)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_arguments_of_a_wrong_kind_are_named_or_run(name, junk):
    """No AttributeError or TypeError from deep inside: only a ValueError in one line, or a trajectory."""
    parts = {"objective": Objective(), "alpha": 0.3, "eta": 0.1, "flat": lambda point: lambda x: 0.0 * x, "chi": 1.5}
    run = {"w0": np.ones(2), "steps": 2, "progress": False}
    try:
        system = RISHD.from_optimizer(**(parts | ({name: junk} if name in PARTS else {})))
        simulate(**({"system": system} | run | ({name: junk} if name in ARGUMENTS else {})))
    except ValueError as problem:
        assert str(problem)
        assert "\n" not in str(problem)
        assert len(str(problem)) < 400


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: flow(object()), "objective is of type object; give an object with the methods value"),
        (lambda: flow(Objective), "objective is the class Objective"),
        (lambda: flow(Objective(gradient=3)), "objective is of type Objective"),
        (lambda: RISHD.from_coefficients(object(), alpha=1.0, beta=0.0, gamma=1.0), "objective is of type object"),
        (
            lambda: RISHD.from_coefficients(Objective(), np.eye(2), alpha=1.0, beta=0.0, gamma=1.0),
            "metric is of type ndarray",
        ),
        (lambda: flow(flat=Quadratic([1.0, 0.5]), chi=2.0), "flat is of type Quadratic; give a function PhasePoint"),
        (lambda: PreconditionerMetric(np.eye(2)), "precondition is of type ndarray; give a function"),
        (lambda: TimeDependent(0.1), "TimeDependent's value is of type float; give a function of time"),
        (lambda: TimeDependent(lambda t: t, 1.0), "TimeDependent's derivative is of type float"),
        (lambda: Event("low", 3.0), "event 'low' is of type float; give a function"),
        (lambda: simulate(Objective(), np.ones(2), steps=1), "system is a Objective; build one with RISHD"),
        (lambda: simulate(flow(), np.ones(2), steps=1, observers={"x": 1.0}), r"observers\['x'\] is of type float"),
        (lambda: simulate(flow(), np.ones(2), steps=1, observers=[len]), "observers is of type list"),
        (
            lambda: simulate(flow(), np.ones(2), steps=1, events=[len]),
            "events holds a value of type builtin_function_or_method",
        ),
    ],
)
def test_parts_of_a_wrong_kind_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["alpha", "eta", "beta", "beta_flat", "chi", "nesterov", "gain"])
def test_a_plain_function_of_time_is_a_coefficient(name):
    base = {"alpha": 0.3, "eta": 0.1, "beta": 0.1, "beta_flat": 2.0, "chi": 2.0, "nesterov": 0.1, "gain": 1.0}
    valley = RiverValley([5.0])

    def coefficient(t):
        return base[name] + 0.01 * t

    runs = [
        simulate(RISHD.from_optimizer(valley, flat=valley.flat_split, **(base | {name: c})), np.ones(2), steps=5)
        for c in (coefficient, TimeDependent(coefficient))
    ]
    np.testing.assert_array_equal(runs[0].w, runs[1].w)
    assert not np.array_equal(
        runs[0].w, simulate(RISHD.from_optimizer(valley, flat=valley.flat_split, **base), np.ones(2), steps=5).w
    )


@pytest.mark.parametrize("name", ["alpha", "gamma"])
def test_a_plain_function_is_a_coefficient_of_the_second_order_form(name):
    base = {"alpha": 0.3, "beta": 0.1, "gamma": 1.0}

    def coefficient(t):
        return 0.5 + 0.1 * t

    runs = [
        simulate(RISHD.from_coefficients(Objective(), **(base | {name: c})), np.ones(2), h=0.1, steps=5)
        for c in (coefficient, TimeDependent(coefficient))
    ]
    np.testing.assert_array_equal(runs[0].w, runs[1].w)


TIMES = {
    "a branch": (lambda t: 0.1 if t < 2.0 else 0.05, "eta does not take an array of times"),
    "a sum": (lambda t: 0.1 / (1.0 + np.sum(t)), "eta at an array of times gives the last member"),
    "another shape": (
        lambda t: np.array([0.1, 0.2, 0.3]) + 0.0 * np.max(t),
        "eta does not take|has one value for each",
    ),
}


@pytest.mark.parametrize("kind", TIMES)
def test_coefficients_that_mix_members_times_are_refused_where_members_have_their_own(kind):
    function, message = TIMES[kind]
    with pytest.raises(ValueError, match=message):
        simulate(flow(eta=function), np.ones((2, 2)), steps=2, integrator="ensemble-rk45")
    assert simulate(
        flow(eta=np.vectorize(lambda t: 0.1 if t < 2.0 else 0.05)),
        np.ones((2, 2)),
        steps=2,
        integrator=EnsembleDormandPrince(),
    ).ok


def test_without_the_check_only_the_scheme_calls():
    calls = []
    objective = Objective(gradient=lambda w: calls.append(1) or w @ CURVATURE)
    simulate(flow(objective), np.ones((4, 2)), steps=5, check_functions=False)
    assert len(calls) == 5
    simulate(flow(objective), np.ones((4, 2)), steps=5)
    assert len(calls) > 10


SOUND = {
    "computes in float32": Objective(
        gradient=lambda w: (w.astype(np.float32) @ CURVATURE.astype(np.float32)).astype(float)
    ),
    "a value that raises": Objective(value=lambda w: 1 / 0),
    "a value that is missing": Objective(value=lambda w: None),
    "one Hessian for all": Objective(hessian=lambda w: CURVATURE),
}


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("start", [np.ones((2, 2)), np.ones((3, 2)), np.ones((40, 2)), np.ones((0, 2))])
def test_sound_functions_are_not_refused(name, start):
    run = simulate(flow(SOUND[name]), start, steps=3, integrator="exponential-euler")
    assert run.w.shape == (4, *start.shape)


@pytest.mark.parametrize("value", [lambda w: (w**2).sum(), lambda w: 0.0])
def test_values_of_no_member_are_refused_by_shape(value):
    with pytest.raises(ValueError, match=r"objective\.value\(w0\)"):
        simulate(flow(Objective(value=value)), np.ones((3, 2)), steps=3)


def test_repeated_noise_is_told_how_to_say_so():
    noisy = Objective(gradient=lambda w: w + np.random.default_rng(0).normal(size=w.shape))
    with pytest.raises(ValueError, match="is_random = True"):
        simulate(flow(noisy), np.ones((3, 2)), steps=3)


@pytest.mark.parametrize(
    "start", [np.ones(2), torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64).requires_grad_()]
)
def test_a_random_gradient_is_called_once_at_the_start(start):
    calls = []
    noisy = Objective(gradient=lambda w: calls.append(1) or 0.5 * w, is_random=True)
    simulate(flow(noisy), start, steps=5)
    assert len(calls) == 6


@pytest.mark.parametrize("name", ["alpha", "eta", "beta", "nesterov", "gain"])
def test_coefficients_may_be_lists_but_no_booleans(name):
    start, values = np.ones((2, 2)), [0.3, 0.4]
    listed = simulate(flow(**{name: values}), start, steps=3)
    assert np.array_equal(listed.w, simulate(flow(**{name: np.array(values)}), start, steps=3).w)
    with pytest.raises(ValueError, match=f"{name} = True must be a number"):
        flow(**{name: True})
