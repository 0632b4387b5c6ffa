"""The driver: ensembles, bad input, failures that keep the partial trajectory."""

import re

import numpy as np
import pytest
import torch

from riemannian_ode import (
    RISHD,
    ConstantMetric,
    ConstantSplit,
    DiagonalMetric,
    StateDependentMetric,
    TimeDependent,
    Trajectory,
    simulate,
)
from riemannian_ode.progress import progress_bar
from toy_landscapes import Quadratic, RiverValley

LANDSCAPE = Quadratic.random([3.0, 1.0, 0.1], seed=0, sharp_rank=1)
W0 = np.array([1.0, -2.0, 0.5])


def system(**changes):
    settings = {"alpha": 0.3, "eta": 0.2, "beta": 0.1} | changes
    return RISHD.from_optimizer(LANDSCAPE, **settings)


@pytest.mark.parametrize("scheme", ["semi-implicit-euler", "rk4"])
def test_ensemble_members_equal_single_runs_with_their_own_parameters(scheme, rng):
    n = 6
    w0 = rng.normal(size=(n, 3))
    alpha, eta, beta = rng.uniform(0.1, 0.9, n), rng.uniform(0.05, 0.3, n), rng.uniform(0.0, 1.0, n)
    chi, beta_flat = rng.uniform(1.0, 3.0, n), beta + rng.uniform(0.0, 1.0, n)
    together = simulate(
        system(alpha=alpha, eta=eta, beta=beta, beta_flat=beta_flat, chi=chi, flat=LANDSCAPE.flat_split),
        w0,
        steps=30,
        integrator=scheme,
    )
    for i in range(n):
        alone = simulate(
            system(
                alpha=alpha[i], eta=eta[i], beta=beta[i], beta_flat=beta_flat[i], chi=chi[i], flat=LANDSCAPE.flat_split
            ),
            w0[i],
            steps=30,
            integrator=scheme,
        )
        # Not to the bit: an ensemble's products are matrix–matrix, a member's matrix–vector.
        np.testing.assert_allclose(together.w[:, i], alone.w, atol=1e-13)


def test_torch_equals_numpy(rng):
    w0 = rng.normal(size=(4, 3))
    alpha = rng.uniform(0.1, 0.9, 4)
    ours = simulate(system(alpha=alpha), w0, steps=20)
    theirs = simulate(system(alpha=alpha), torch.as_tensor(w0), steps=20)
    assert isinstance(theirs.w, torch.Tensor)
    np.testing.assert_allclose(theirs.to_numpy().w, ours.w, atol=1e-13)


def test_two_leading_axes(rng):
    w0 = rng.normal(size=(2, 3, 3))
    run = simulate(system(eta=rng.uniform(0.1, 0.2, (2, 3))), w0, steps=5, save_every=2)
    assert run.w.shape == (4, 2, 3, 3)
    np.testing.assert_allclose(run.times, [0, 2, 4, 5])
    assert run.failed_at.shape == (2, 3)


def test_time_dependent_eta_is_taken_at_the_start_of_the_step():
    run = simulate(system(eta=TimeDependent(lambda t: 0.1 / (1 + t)), beta=0.0), W0, steps=3)
    w, m = W0, np.zeros(3)
    for k in range(3):
        g = LANDSCAPE.gradient(w)
        m = 0.7 * m + g
        w = w - 0.1 / (1 + k) * m
    np.testing.assert_allclose(run.w[-1], w, rtol=1e-14)


def test_diverging_member_is_named_and_the_others_go_on(rng):
    run = simulate(system(eta=np.array([0.1, 50.0, 0.1])), rng.normal(size=(3, 3)), steps=400)
    assert run.status == "non-finite"
    assert not run.ok
    assert "1 of 3 members" in run.message
    assert "member (1,)" in run.message
    assert np.isnan(run.failed_at[[0, 2]]).all()
    assert 0 < run.failed_at[1] < 400
    assert run.times[-1] == 400
    assert np.isfinite(run.w[-1][[0, 2]]).all()


def test_diverging_trajectory_stops_with_what_it_has():
    run = simulate(system(eta=50.0), W0, steps=10_000)
    assert run.status == "non-finite"
    assert "non-finite at t =" in run.message
    assert run.times[-1] < 10_000
    assert run.times[-1] == run.failed_at


def test_interrupt_keeps_the_partial_trajectory():
    class Interrupting:
        calls = 0

        def value(self, w):
            return 0.0 * w.sum(-1)

        def gradient(self, w):
            self.calls += 1
            if self.calls > 8:
                raise KeyboardInterrupt
            return w

    run = simulate(RISHD.from_optimizer(Interrupting(), alpha=0.5, eta=0.1), W0, steps=100)
    assert run.status == "interrupted"
    assert "after 7 of 100 steps" in run.message
    assert len(run.times) == 8


def test_save_and_load(tmp_path, rng):
    run = simulate(system(), rng.normal(size=(2, 3)), steps=4)
    run.save(tmp_path / "run.npz")
    back = Trajectory.load(tmp_path / "run.npz")
    assert back.status == "finished"
    np.testing.assert_array_equal(back.w, run.w)
    np.testing.assert_array_equal(back.times, run.times)
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(ValueError, match="not a saved trajectory"):
        Trajectory.load(tmp_path / "other.npz")


def test_progress_bar_shows_steps_per_second_and_time_left_on_request(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    simulate(RISHD.from_optimizer(_Slow(), alpha=0.5, eta=0.1), W0, steps=6, progress=True)
    shown = capsys.readouterr().err
    assert re.search(r"simulating .*6/6 .*\d steps/s .*0:00:00", shown), shown


def test_progress_bar_of_a_resumed_run_counts_its_own_steps(capsys, monkeypatch):
    now = iter(0.2 * k for k in range(100))  # a step every 0.2 s
    monkeypatch.setattr("riemannian_ode.progress.time.monotonic", lambda: next(now))
    with progress_bar(1005, True, first=1000) as advance:
        for k in range(1001, 1006):
            advance(k)
    assert "1005/1005" in capsys.readouterr().err
    with progress_bar(5, None) as advance:  # no terminal here: silent
        advance(5)
    assert capsys.readouterr().err == ""


class _Slow:
    def value(self, w):
        return w.sum(-1)

    def gradient(self, w):
        import time

        time.sleep(0.06)
        return w


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -0.1}, r"alpha = -0\.1 must be > 0"),
        ({"alpha": float("nan")}, "alpha = nan must be finite"),
        ({"alpha": np.array([0.1, -0.2])}, "alpha"),
        ({"eta": -1.0}, r"eta = -1\.0 must be ≥ 0"),
        ({"eta": float("inf")}, "eta = inf must be finite"),
        ({"chi": -0.5, "flat": LANDSCAPE.flat_split}, r"chi = -0\.5 must be ≥ 0"),
        ({"beta": -4.0}, r"beta = -4\.0 makes γ/η = c \+ αβ = -0\.2 non-positive"),
        ({"beta": 1.0, "beta_flat": 0.5, "flat": LANDSCAPE.flat_split}, r"beta_flat = 0\.5 is below beta"),
        ({"chi": 2.0}, "none are named"),
        ({"beta_flat": 2.0}, "none are named"),
        ({"alpha": "0.5"}, "alpha = '0.5' must be a number"),
        ({"metric": np.eye(3)}, "metric is of type ndarray"),
    ],
)
def test_coefficients_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        system(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"h": 0.0}, "h = 0.0 must be finite and positive"),
        ({"steps": 0}, "steps = 0 must be a whole number"),
        ({"save_every": 0}, "save_every"),
        ({"m0": np.zeros(2)}, "m0 has shape"),
        ({"integrator": "euler"}, "Choose one of"),
        ({"integrator": None}, "Choose one of"),
        ({"t0": float("nan")}, "t0 = nan"),
        ({"steps": True}, "steps = True"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate(system(), W0, **({"steps": 3} | arguments))


@pytest.mark.parametrize(
    ("w0", "message"),
    [
        (np.array([1.0, np.nan, 0.0]), "w0 holds a non-finite number"),
        (np.array(1.0), "last axis"),
        (np.array([1j, 0, 0]), "real floating-point"),
    ],
)
def test_bad_starts_are_refused(w0, message):
    with pytest.raises(ValueError, match=message):
        simulate(system(), w0, steps=3)


def test_integer_starts_become_float64():
    assert simulate(system(), [1, 2, 3], steps=2).w.dtype == np.float64


def test_parameters_that_do_not_fit_the_ensemble_are_refused():
    with pytest.raises(ValueError, match=r"alpha has one value for each of \(4,\) members"):
        simulate(system(alpha=np.full(4, 0.2)), np.zeros((3, 3)), steps=2)


def test_metrics_that_do_not_fit_are_refused():
    for metric in (ConstantMetric(np.eye(2)), DiagonalMetric(np.ones(2)), StateDependentMetric(lambda w: torch.eye(2))):
        with pytest.raises(ValueError, match="has 3 coordinates"):
            simulate(RISHD.from_optimizer(LANDSCAPE, metric, alpha=0.1, eta=0.1), W0, steps=2)


def test_indefinite_state_dependent_metric_is_refused_at_the_start():
    metric = StateDependentMetric(lambda w: torch.diag(torch.stack([w[0], w[0] ** 0, w[0] ** 0])))
    with pytest.raises(ValueError, match=r"smallest eigenvalue.*-2"):
        simulate(RISHD.from_optimizer(LANDSCAPE, metric, alpha=0.1, eta=0.1), np.array([-2.0, 1.0, 1.0]), steps=2)


def test_wrong_dimension_of_a_valley_is_refused():
    valley = RiverValley([5.0])
    with pytest.raises(ValueError, match="must hold 2 coordinates"):
        simulate(RISHD.from_optimizer(valley, alpha=0.1, eta=0.1), W0, steps=2)


def test_split_must_be_orthonormal():
    with pytest.raises(ValueError, match="not orthonormal"):
        ConstantSplit(np.array([[1.0], [1.0]]))
    with pytest.raises(ValueError, match="basis has shape"):
        ConstantSplit(np.ones(3))


def test_beta_that_varies_needs_its_derivative():
    with pytest.raises(ValueError, match="needs β̇"):
        RISHD.from_coefficients(LANDSCAPE, alpha=1.0, beta=TimeDependent(lambda t: 1.0), gamma=1.0)


def test_split_has_no_scalar_second_order_form():
    with pytest.raises(ValueError, match="operators"):
        system(flat=LANDSCAPE.flat_split, chi=2.0).second_order_coefficients(0.0)


def test_lists_are_taken_as_arrays():
    run = simulate(system(alpha=[0.2, 0.3]), [[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]], steps=2)
    assert run.ok
    metric = ConstantMetric([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert simulate(system(metric=metric), W0, steps=2).ok
    assert simulate(system(metric=DiagonalMetric([1, 2, 3])), W0, steps=2).ok


def test_shapes_that_do_not_match_are_refused_in_words():
    with pytest.raises(ValueError, match="must hold 3 coordinates"):
        simulate(system(), np.ones(4), steps=1)
    with pytest.raises(ValueError, match="but w has 3 coordinates"):
        simulate(system(chi=2.0, flat=ConstantSplit(np.eye(4)[:, :1])), W0, steps=1)


@pytest.mark.parametrize(("name", "value"), [("eta", -0.1), ("chi", -0.2), ("eta", float("nan"))])
def test_time_dependent_coefficients_are_checked_where_they_start(name, value):
    changes = {name: TimeDependent(lambda t: value), "flat": LANDSCAPE.flat_split}
    with pytest.raises(ValueError, match=rf"{name}\(0\)"):
        simulate(system(**changes), W0, steps=2)


def test_metric_function_that_ignores_w_is_constant():
    metric = StateDependentMetric(lambda w: 2.0 * torch.eye(3, dtype=torch.float64))
    run = simulate(system(metric=metric), W0, steps=5)
    same = simulate(system(metric=ConstantMetric(2.0 * np.eye(3))), W0, steps=5)
    np.testing.assert_allclose(run.w, same.w, rtol=1e-13)
    with pytest.raises(ValueError, match="write it with torch"):
        simulate(system(metric=StateDependentMetric(lambda w: np.eye(3))), W0, steps=1)


def test_files_that_are_no_trajectories(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(2))
    (tmp_path / "text.npz").write_text("hello")
    for name in ("x.npy", "text.npz"):
        with pytest.raises(ValueError, match="not a saved trajectory"):
            Trajectory.load(tmp_path / name)
