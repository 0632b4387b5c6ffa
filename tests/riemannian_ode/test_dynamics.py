"""RISHD's constructors name the arguments that they refuse, and store the given parts."""

import functools

import numpy as np
import pytest
import torch

from riemannian_ode import RISHD, ConstantSplit, Preconditioner, TimeDependent, simulate
from tests.riemannian_ode.problems import RankOneMetric
from toy_landscapes import Quadratic

BOWL = Quadratic([1.0, 0.5])
OPTIMIZER = {"alpha": 0.3, "eta": 0.2}
SECOND_ORDER = {"alpha": 0.3, "beta": 0.1, "gamma": 1.0}


@pytest.mark.parametrize("name", ["alpha", "eta", "beta", "nesterov", "gain"])
@pytest.mark.parametrize("value", ["much", float("nan"), None])
def test_optimizer_coefficients_that_are_no_numbers_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^(beta|{name}) = "):  # γ = c + αβ is checked under the name of β
        RISHD.from_optimizer(BOWL, **OPTIMIZER | {name: value})


@pytest.mark.parametrize("name", ["chi", "beta_flat"])
@pytest.mark.parametrize("value", ["much", float("nan")])
def test_coefficients_of_flat_directions_that_are_no_numbers_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} = "):
        RISHD.from_optimizer(BOWL, flat=ConstantSplit(np.eye(2)[:, :1]), **OPTIMIZER | {name: value})


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma"])
@pytest.mark.parametrize("value", ["much", float("nan"), None])
def test_second_order_coefficients_that_are_no_numbers_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} = "):
        RISHD.from_coefficients(BOWL, **SECOND_ORDER | {name: value})


def test_ranges_are_named_with_their_reason():
    with pytest.raises(ValueError, match=r"^beta = -1.* must be ≥ 0: the form in v is dissipative for β ≥ 0"):
        RISHD.from_coefficients(BOWL, **SECOND_ORDER | {"beta": -1.0})
    assert RISHD.from_coefficients(BOWL, **SECOND_ORDER | {"beta": 0.0}).nesterov == 0.0
    with pytest.raises(ValueError, match="metric"):
        RISHD.from_coefficients(BOWL, np.eye(2), **SECOND_ORDER)
    with pytest.raises(ValueError, match="metric"):
        RISHD.from_optimizer(BOWL, np.eye(2), **OPTIMIZER)
    with pytest.raises(ValueError, match="flat"):
        RISHD.from_optimizer(BOWL, flat=np.eye(2), **OPTIMIZER)
    with pytest.raises(ValueError, match=r"^alpha = 'much'"):
        RISHD(objective=BOWL, alpha="much", eta=0.1).for_arrays(np.zeros(2))


class Halved(Preconditioner):
    """F⁻¹ = ½, without memory."""

    name = "halved"

    def raise_index(self, memory, covector):
        return 0.5 * covector

    def flat(self, memory, covector, raised, *, h=1.0):
        return (lambda x: x), memory


def test_decay_shrinks_the_weights_and_keeps_its_range():
    build = functools.partial(RISHD.from_optimizer, BOWL, Halved(), **OPTIMIZER)
    for value in (-0.1, float("nan"), "much"):
        with pytest.raises(ValueError, match=r"^decay = "):
            build(decay=value)
    with pytest.raises(ValueError, match=r"^decay = -0\.1 must be ≥ 0: it shrinks the weights"):
        build(decay=-0.1)
    w, m = np.array([1.0, -2.0]), np.array([0.3, 0.7])
    np.testing.assert_allclose(build(decay=0.5).rates(0.0, w, m)[0], -0.2 * (0.5 * m + 0.5 * w))
    fading = build(decay=TimeDependent(lambda t: 0.5 - 0.25 * t))
    np.testing.assert_allclose(fading.rates(1.0, w, m)[0], -0.2 * (0.5 * m + 0.25 * w))
    run = simulate(fading, w, steps=5)
    assert run.times[-1] == 2.0 and "decay(3) = -0.25 must be at least 0" in run.message


@pytest.mark.parametrize(
    "build",
    [
        lambda **settings: RISHD.from_optimizer(BOWL, RankOneMetric(2), **OPTIMIZER, **settings),
        lambda **settings: RISHD.from_coefficients(BOWL, RankOneMetric(2), **SECOND_ORDER, **settings),
    ],
)
def test_the_correction_is_kept_unless_it_is_switched_off(build):
    w, velocity, m = np.random.default_rng(0).normal(size=(3, 2))
    expected = RankOneMetric(2).correction(w, velocity, m)
    np.testing.assert_allclose(build().riemannian_correction(w, velocity, m), expected)
    assert build(correction=False).riemannian_correction(w, velocity, m) is None


def test_every_coefficient_is_taken_at_the_time_of_the_direction():
    wave = {
        name: TimeDependent(lambda t, level=level: level + 0.1 * t, lambda t: 0.1)
        for name, level in {
            "alpha": 0.3,
            "eta": 0.2,
            "nesterov": 0.1,
            "beta": 0.4,
            "beta_flat": 0.8,
            "chi": 2.0,
        }.items()
    }
    system = RISHD.from_optimizer(BOWL, flat=ConstantSplit(np.eye(2)[:, :1]), gain=1.5, **wave)
    assert system.coefficients(2.0) == pytest.approx(
        {
            "alpha": 0.5,
            "eta": 0.4,
            "nesterov": 0.3,
            "beta_sharp": 0.6,
            "beta_flat": 1.0,
            "chi": 2.2,
            "gain": 1.5,
            "decay": 0.0,
        }
    )
    m, g = np.array([1.0, -2.0]), np.array([0.5, 0.3])
    a = m + 0.3 * g
    np.testing.assert_allclose(
        system.direction(2.0, np.zeros(2), m, g), [a[0] + 0.6 * g[0], 2.2 * (a[1] + 1.0 * g[1])], rtol=1e-13
    )
    assert system.gamma_over_eta(2.0) == pytest.approx(
        {"beta": 1.5 + 0.5 * 0.9 + 0.2, "beta_flat": 1.5 + 0.5 * 1.3 + 0.2}
    )


def test_coefficients_of_members_become_arrays_of_the_states_kind():
    system = RISHD.from_optimizer(BOWL, alpha=0.3, eta=np.array([0.1, 0.2]), gain=lambda t: np.array([1.0, t]))
    fitted = system.for_arrays(torch.zeros(2, 2))
    assert fitted.eta.dtype == torch.float32 and fitted.eta.tolist() == [[pytest.approx(0.1)], [pytest.approx(0.2)]]
    assert fitted.at("gain", 3.0).tolist() == [[1.0], [3.0]]
    assert fitted.alpha == 0.3
    with pytest.raises(ValueError, match="eta has one value for each of"):
        system.for_arrays(np.zeros((3, 2)))


def wave(level, slope):
    return TimeDependent(lambda t: level + 0.5 * slope * t**2, lambda t: slope * t)


def test_second_order_coefficients_and_rates_are_those_of_their_time():
    """α − η̇/η, ηβ and η(c + αβ + β̇) with β = ν + β₁; and the flow in the optimizer's parameters (claim C1)."""
    metric, t = RankOneMetric(2), 2.0
    settings = {"alpha": wave(0.3, 0.1), "eta": wave(0.2, 0.05), "nesterov": wave(0.1, 0.02), "gain": wave(1.5, -0.1)}
    system = RISHD.from_optimizer(BOWL, metric, beta=wave(0.4, 0.03), **settings)
    alpha, eta, beta, gain = 0.5, 0.3, 0.6, 1.3
    assert system.second_order_coefficients(t) == pytest.approx(
        (alpha - 0.1 / eta, eta * beta, eta * (gain + alpha * beta + 0.1))
    )
    assert system.gamma_over_eta(t) == pytest.approx({"beta": gain + alpha * beta + 0.1})
    assert system.rate("alpha", t) == pytest.approx(0.2)
    w, m = np.random.default_rng(0).normal(size=(2, 2))
    g = BOWL.gradient(w)
    velocity, force = system.rates(t, w, m)
    np.testing.assert_allclose(velocity, -eta * metric.raise_index(w, m + beta * g), rtol=1e-13)
    np.testing.assert_allclose(force, -alpha * m + gain * g + metric.correction(w, velocity, m), rtol=1e-13)
    np.testing.assert_allclose(system.momentum_of(w, velocity), -metric.lower_index(w, velocity), rtol=1e-13)
    np.testing.assert_allclose(system.velocity_of(w, m), -metric.raise_index(w, m), rtol=1e-13)
    unknown = RISHD.from_optimizer(BOWL, metric, **settings | {"nesterov": lambda t: 0.1 + 0.02 * t})
    assert unknown.gamma_over_eta(t) == pytest.approx({"beta": gain + alpha * 0.14})  # counted as slow
    with pytest.raises(ValueError, match=r"^beta"):
        unknown.second_order_coefficients(t)
    with pytest.raises(ValueError, match="eta"):
        RISHD.from_optimizer(BOWL, **OPTIMIZER | {"eta": lambda t: 0.1}).rate("eta", t)
    one = RISHD.from_optimizer(BOWL, alpha=0.3, eta=1.0)  # η = 1 is a learning rate like any other
    assert one.second_order_coefficients(0.0) == pytest.approx((0.3, 0.0, 1.0))
    for system in (RISHD.from_optimizer(BOWL, Halved(), **OPTIMIZER), RISHD.from_optimizer(BOWL, alpha=0.3, eta=0.0)):
        with pytest.raises(ValueError, match=r"without F\(w\) there is no|eta\(0\) = 0"):
            system.second_order_coefficients(0.0)


def test_a_preconditioner_is_split_if_a_coefficient_of_flat_directions_is_given():
    build = functools.partial(RISHD.from_optimizer, BOWL, Halved(), beta=0.1, **OPTIMIZER)
    is_split = [build(**changes).is_split for changes in ({}, {"chi": 1.0}, {"chi": 2.0}, {"beta_flat": 0.1})]
    assert is_split == [False, False, True, True]
    assert build(chi=np.ones(2)).is_split and build(chi=lambda t: 1.0).is_split
    memory = build(shape=(1, 2), corrects_momentum=True).memory
    assert memory.shape == (1, 2) and memory.corrects_momentum
    assert build().memory.shape is None and not build().memory.corrects_momentum
    assert RISHD.from_optimizer(BOWL, **OPTIMIZER).memory is None
    assert RISHD.from_optimizer(BOWL, decay=0, **OPTIMIZER).decay == 0.0
    for settings in ({"shape": (2,)}, {"corrects_momentum": True}, {"decay": 0.1}, {"decay": lambda t: 0.0}):
        with pytest.raises(ValueError, match=r"^decay, corrects_momentum and shape belong to a preconditioner"):
            RISHD.from_optimizer(BOWL, **OPTIMIZER, **settings)
