"""Early ends of a run with a status and a partial trajectory: stiffness, coefficients, metrics, Ctrl-C."""

import signal

import numpy as np
import pytest
import torch

from riemannian_ode import (
    INTEGRATORS,
    RISHD,
    ConstantMetric,
    PreconditionerMetric,
    StateDependentMetric,
    TimeDependent,
    simulate,
)
from riemannian_ode.integrators import PhaseState, integrator
from riemannian_ode.integrators.adaptive import RK45
from riemannian_ode.integrators.embedded import EnsembleDormandPrince
from toy_landscapes import Quadratic, RiverValley

ADAPTIVE = [name for name, cls in INTEGRATORS.items() if cls.adaptive]
STIFF = RiverValley([1e7], floor_curvatures=[0.1])
VALLEY = RiverValley([3.0], floor_curvatures=[0.2], amplitudes=0.8)
W0 = np.array([2.0, 0.5])


@pytest.mark.parametrize("name", ADAPTIVE)
def test_stiff_flows_end_at_the_step_limit_with_the_partial_trajectory(name):
    """The first interval is short enough for a few steps, the whole span is not."""
    scheme = INTEGRATORS[name](rtol=1e-8, atol=1e-10, max_steps=150)
    system = RISHD.from_optimizer(STIFF, alpha=1.0, eta=1.0, beta=1.0)
    easy = simulate(RISHD.from_optimizer(VALLEY, alpha=1.0, eta=1.0), W0, h=1.0, steps=5, integrator=scheme)
    assert easy.ok
    if INTEGRATORS[name].implicit:  # made for stiff flows: only few steps stop them
        scheme = INTEGRATORS[name](rtol=1e-8, atol=1e-10, max_steps=3)
    run = simulate(system, W0, h=1.0, steps=5, integrator=scheme)
    assert run.status == "step-limit"
    assert not run.ok
    assert f"{name} took {scheme.max_steps} steps without reaching t = 1" in run.message
    assert "raise max_steps" in run.message
    np.testing.assert_array_equal(run.w[0], W0)
    assert np.isfinite(run.w).all()


def test_the_limit_is_one_between_two_outputs_and_a_continued_run_may_raise_it(tmp_path):
    system = RISHD.from_optimizer(VALLEY, alpha=0.5, eta=TimeDependent(lambda t: 1.0 if t < 3 else 300.0))
    file = tmp_path / "run.npz"
    options = {"h": 1.0, "steps": 4, "checkpoint": file}
    short = simulate(system, W0, integrator=RK45(rtol=1e-6, atol=1e-8, max_steps=60), **options)
    assert short.status == "step-limit"
    assert short.times[-1] == 3.0
    whole = simulate(system, W0, integrator=RK45(rtol=1e-6, atol=1e-8, max_steps=100_000), **options)
    assert whole.status == "finished"
    np.testing.assert_array_equal(whole.w[:4], short.w)


def test_a_member_at_the_step_limit_is_named_and_the_others_go_on(tmp_path):
    eta = np.array([0.3, 1e7, 0.5])
    system = RISHD.from_optimizer(VALLEY, alpha=0.5, eta=eta)
    scheme = EnsembleDormandPrince(max_steps=80)
    w0 = np.array([[1.0, 0.5], [-2.0, 0.1], [0.3, 1.0]])
    run = simulate(system, w0, h=1.0, steps=6, integrator=scheme)
    assert run.status == "step-limit"
    assert "1 of 3 members reached the step limit, the first (member (1,)) at t = 1" in run.message
    assert run.times[-1] == 6.0
    np.testing.assert_array_equal(run.failed_at, [np.nan, 1.0, np.nan])
    for i in (0, 2):
        alone = RISHD.from_optimizer(VALLEY, alpha=0.5, eta=eta[i])
        np.testing.assert_array_equal(run.w[:, i], simulate(alone, w0[i], h=1.0, steps=6, integrator=scheme).w)
    # A resumed run reports it, too.
    file = tmp_path / "run.npz"
    simulate(system, w0, h=1.0, steps=3, integrator=scheme, checkpoint=file)
    resumed = simulate(system, w0, h=1.0, steps=6, integrator=scheme, checkpoint=file)
    assert (resumed.status, resumed.message) == (run.status, run.message)
    stuck = simulate(RISHD.from_optimizer(VALLEY, alpha=0.5, eta=np.full(3, 1e7)), w0, steps=6, integrator=scheme)
    assert stuck.status == "step-limit"
    assert "ensemble-rk45 took 80 steps without reaching t = 1" in stuck.message


@pytest.mark.parametrize("name", ADAPTIVE)
def test_bad_limits_are_refused(name):
    for setting, value in (("max_steps", 0), ("max_steps", 2.5), ("max_step", 0.0), ("rtol", -1.0)):
        with pytest.raises(ValueError, match=f"{setting} = {value}"):
            INTEGRATORS[name](**{setting: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": TimeDependent(lambda t: 0.3 - 0.1 * t)}, r"eta\(4\) = -0\.1.* must be at least 0"),
        ({"alpha": TimeDependent(lambda t: 0.3 - 0.1 * t)}, r"alpha\(4\) = -0\.1.* must be at least 0"),
        ({"eta": TimeDependent(lambda t: np.array([0.1, 0.35 - 0.1 * t]))}, r"eta\(4\) = -0\.05.* must be at least 0"),
        (
            {"beta": TimeDependent(lambda t: 1.0 / (4.0 - t) if t != 4 else np.inf)},
            r"nesterov\(4\) = inf must be finite",
        ),
        (
            {"chi": TimeDependent(lambda t: 1.0 - t / 3.5), "flat": VALLEY.flat_split},
            r"chi\(4\) = -0\.142.* must be at least 0",
        ),
        (
            {"beta": TimeDependent(lambda t: -0.9 * t)},  # 1 + 0.3β = −0.08 at t = 4
            r"beta\(4\) makes γ/η = c \+ αβ \+ dβ/dt = -0\.08 negative.*keep beta above −c/α",
        ),
        (
            {"beta": TimeDependent(lambda t: 1.0, lambda t: -2.0 * (t == 4))},
            r"beta\(4\) makes γ/η = .* = -0\.7 negative",
        ),
        (
            {"alpha": TimeDependent(lambda t: np.array([0.3, 0.1 + 0.1 * t])), "beta": -2.1},
            r"beta\(4\) makes γ/η = .* = -0\.05 negative",
        ),
        (
            {"beta": 0.5, "beta_flat": TimeDependent(lambda t: 2.2 - 0.5 * t), "flat": VALLEY.flat_split},
            r"beta_flat\(4\) is below beta by 0\.3",
        ),
        (
            {
                "beta": 0.5,
                "beta_flat": TimeDependent(lambda t: 2.0, lambda t: -2.0 * (t == 4)),
                "flat": VALLEY.flat_split,
            },
            r"beta_flat\(4\) makes γ/η = .* = -0\.4 negative",
        ),
    ],
)
@pytest.mark.parametrize("save_every", [1, 50])
def test_coefficients_that_leave_their_range_end_the_run_before(changes, message, save_every):
    system = RISHD.from_optimizer(VALLEY, **({"alpha": 0.3, "eta": 0.2} | changes))
    run = simulate(system, np.stack([W0, -W0]), steps=50, save_every=save_every)
    assert run.status == "invalid-system"
    assert not run.ok
    assert run.times[-1] == 3.0
    assert np.isfinite(run.w).all()
    with pytest.raises(RuntimeError, match=message):
        run.checked()


def test_coefficients_of_the_second_order_form_may_be_of_any_sign():
    """There the user chooses γ and α; only the optimizer's form promises to descend."""
    gamma = TimeDependent(lambda t: -0.1 * t)
    assert simulate(RISHD.from_coefficients(VALLEY, alpha=0.3, beta=0.1, gamma=gamma), W0, h=0.1, steps=5).ok


def test_schedules_that_reach_their_bound_but_for_rounding_are_in_range():
    system = RISHD.from_optimizer(VALLEY, alpha=0.3, eta=TimeDependent(lambda t: 0.3 * (1 - t / 0.7)))
    assert system.at("eta", 7 * 0.1) < 0  # −3e−17
    assert simulate(system, W0, h=0.1, steps=7).ok


def test_damping_that_varies_keeps_the_bound_of_its_form():
    beta = TimeDependent(lambda t: 0.5 - 0.1 * t, lambda t: -0.1)
    system = RISHD.from_coefficients(VALLEY, alpha=TimeDependent(lambda t: -1.0), beta=beta, gamma=1.0)
    run = simulate(system, W0, steps=50)  # a negative α is allowed here, a negative β is not
    assert "nesterov(6) = -0.1" in run.message


def test_second_order_coefficients_need_a_learning_rate():
    for eta in (0.0, np.array([0.1, 0.0])):
        system = RISHD.from_optimizer(VALLEY, alpha=0.3, eta=eta)
        with pytest.raises(ValueError, match=r"eta\(0\) = 0: .*does not exist"):
            system.second_order_coefficients(0.0)


def test_second_order_coefficients_need_a_metric_of_the_position():
    system = RISHD.from_optimizer(VALLEY, PreconditionerMetric(lambda x: x), alpha=0.1, eta=0.1, beta=2.0)
    with pytest.raises(ValueError, match="depends on history"):
        system.second_order_coefficients(0.0)


def test_a_metric_that_loses_its_symmetry_ends_the_run():
    def skewed(w):
        tilt = torch.where(w[0] < 1.5, 0.3, 0.0)  # symmetric at the start only
        zero, one = torch.zeros_like(w[0]), torch.ones_like(w[0])
        return torch.stack([torch.stack([one, zero + tilt]), torch.stack([zero, one])])

    system = RISHD.from_optimizer(VALLEY, StateDependentMetric(skewed), alpha=0.3, eta=0.3)
    run = simulate(system, np.stack([W0, W0 + 0.1]), h=0.5, steps=50)
    assert run.status == "invalid-system"
    assert "F(w) is not symmetric: max |F − Fᵀ| = 0.3" in run.message
    assert f"at t = {run.times[-1] + 0.5:g}: " in run.message


def test_singular_newton_equations_and_lost_members_are_not_crashes():
    """J = I − hA is singular for ẇ = w at h = 1; a lost member stays lost while the others are solved."""
    system = RISHD.from_coefficients(Quadratic([-1.0]), alpha=1.0, beta=1.0, gamma=1.0)
    run = simulate(system, np.array([1.0]), h=1.0, steps=3, integrator="implicit-euler")
    assert run.status == "integrator-failed"
    assert "did not converge" in run.message
    for p in (2, 60):  # factorised, and by GMRES
        landscape = Quadratic.random(np.geomspace(3.0, 0.1, p), seed=0)
        flow = RISHD.from_optimizer(landscape, ConstantMetric(np.eye(p)), alpha=0.5, eta=0.3)
        w = np.ones((3, p))
        w[1] = np.nan
        state = integrator("implicit-midpoint").step(flow, 0.0, PhaseState(w, 0.0 * w), 0.5)
        alone = integrator("implicit-midpoint").step(flow, 0.0, PhaseState(w[0], 0.0 * w[0]), 0.5)
        assert np.isnan(state.w[1]).all()
        np.testing.assert_allclose(state.w[[0, 2]], np.stack([alone.w, alone.w]), atol=1e-9)


def test_interrupts_at_any_moment_leave_a_run_that_continues_to_the_last_bit(tmp_path):
    """A real alarm interrupts the same run every few milliseconds until it is finished."""
    system = RISHD.from_optimizer(VALLEY, alpha=0.3, eta=0.2, beta=0.1)
    options = {
        "h": 0.3,
        "steps": 300,
        "save_every": 7,
        "save_at": np.linspace(0.05, 89.9, 100),
        "observers": {"height": lambda t, w, m: VALLEY.value(w)},
        "progress": False,
    }
    whole = simulate(system, W0, **options)

    previous = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    of_shell = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background start with it ignored
    interrupts = 0
    try:
        for attempt in range(500):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.003 * attempt)  # one alarm, later each time
                run = simulate(system, W0, checkpoint=tmp_path / "run.npz", checkpoint_every=2, **options)
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            except KeyboardInterrupt:  # before the first step, or after the last one
                continue
            if run.status == "finished":
                break
            assert run.status == "interrupted"
            assert (np.diff(run.times) > 0).all()
            assert len(run.observed["height"]) == len(run.times)
            interrupts += 1
    finally:
        signal.signal(signal.SIGALRM, previous)
        signal.signal(signal.SIGINT, of_shell)
    assert run.status == "finished"
    assert interrupts > 3
    for name in ("times", "w", "m", "observed_times"):
        np.testing.assert_array_equal(getattr(run, name), getattr(whole, name))
    np.testing.assert_array_equal(run.observed["height"], whole.observed["height"])
