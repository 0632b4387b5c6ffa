"""One failing member does not stop the others, for every scheme and failure."""

import numpy as np
import pytest
import torch

from riemannian_ode import INTEGRATORS, RISHD, GramRootMetric, Trajectory, integrator, simulate
from riemannian_ode.integrators import IntegratorError, PhaseState
from toy_landscapes import Landscape, MatrixFactorization, RiverValley


class Cliff(Landscape):
    """f = ½|w|² + sum of −w⁴/4 beyond w = 3: a start there falls to −∞ in finite time; no equation holds there."""

    sharp_rank = 1

    def __init__(self, dimension=2):
        self.dimension = dimension

    def value(self, w):
        return (0.5 * w**2 - np.where(w > 3.0, 0.25 * w**4, 0.0)).sum(-1)

    def gradient(self, w):
        return w - np.where(w > 3.0, w**3, 0.0)

    def hessian(self, w):
        return (1.0 - np.where(w > 3.0, 3.0 * w**2, 0.0))[..., None] * np.eye(self.dimension)

    def hvp(self, w, v):
        return (1.0 - np.where(w > 3.0, 3.0 * w**2, 0.0)) * v


def flow(eta, dimension=2):
    return RISHD.from_optimizer(Cliff(dimension), alpha=0.5, eta=eta)


ETA = np.array([0.2, 0.3, 0.4])
W0 = np.array([[1.0, -0.5], [8.0, 8.0], [0.3, 0.8]])


@pytest.mark.parametrize("name", INTEGRATORS)
def test_the_others_go_on_and_are_what_they_are_alone(name):
    scheme = integrator(name)
    run = simulate(flow(ETA), W0, h=0.5, steps=14, integrator=scheme)
    assert run.status in ("non-finite", "integrator-failed")
    assert not run.ok
    assert run.times[-1] == 7.0
    assert "1 of 3 members" in run.message
    assert "(member (1,)) at t = " in run.message
    np.testing.assert_array_equal(run.causes, ["", run.status, ""])
    np.testing.assert_array_equal(np.isnan(run.failed_at), [True, False, True])
    assert not np.isfinite(run.w[-1, 1]).all()
    for i in (0, 2):
        alone = simulate(flow(ETA[i]), W0[i], h=0.5, steps=14, integrator=scheme)
        assert alone.ok
        tolerance = 1e-7 if "shared-steps" in scheme.structure else 0.0
        np.testing.assert_allclose(run.w[:, i], alone.w, rtol=0.0, atol=tolerance)
        np.testing.assert_allclose(run.m[:, i], alone.m, rtol=0.0, atol=tolerance)


class Kinked(Landscape):
    """f = 10³|w|: implicit equations have no solution near the kink, and Newton's iteration does not converge."""

    dimension = sharp_rank = 1

    def value(self, w):
        return 1e3 * np.abs(w).sum(-1)

    def gradient(self, w):
        return 1e3 * np.where(w > 0, 1.0, -1.0) * (w != 0)

    def hessian(self, w):
        return 0.0 * w[..., None]

    def hvp(self, w, v):
        return 0.0 * v


def test_equations_without_a_solution_lose_their_member_only(tmp_path):
    system = RISHD.from_optimizer(Kinked(), alpha=0.5, eta=1.0, beta=1.0)
    w0 = np.array([[[0.0], [1.0]], [[2.0], [0.0]]])
    file = tmp_path / "run.npz"
    options = {"h": 1.0, "integrator": "implicit-euler", "checkpoint": file}
    simulate(system, w0, steps=2, **options)
    run = simulate(system, w0, steps=5, **options)  # a resumed run has the earlier failures
    assert run.status == "integrator-failed"
    assert "2 of 4 members could not be integrated further, the first (member (0, 1)) at t = 1" in run.message
    assert "implicit-euler at t = 0: Newton's method did not converge for member (0, 1)" in run.message
    np.testing.assert_array_equal(run.causes, [["", "integrator-failed"], ["integrator-failed", ""]])
    np.testing.assert_array_equal(run.failed_at, [[np.nan, 1.0], [1.0, np.nan]])
    np.testing.assert_array_equal(run.w[:, [0, 1], [0, 1]], 0.0)
    run.save(tmp_path / "trajectory.npz")
    np.testing.assert_array_equal(Trajectory.load(tmp_path / "trajectory.npz").causes, run.causes)
    # A single run, or a single step, cannot continue.
    alone = simulate(system, w0[0, 1], h=1.0, steps=5, integrator="implicit-euler")
    assert (alone.status, alone.times.tolist()) == ("integrator-failed", [0.0])
    with pytest.raises(IntegratorError, match=r"did not converge for member \(0, 1\)"):
        integrator("implicit-euler").step(system, 0.0, PhaseState(w0, 0.0 * w0), 1.0)


def test_an_ensemble_ends_where_its_last_member_fails():
    system = RISHD.from_optimizer(Kinked(), alpha=0.5, eta=1.0, beta=1.0)
    run = simulate(system, np.array([[1.0], [2.0]]), h=1.0, steps=5, integrator="implicit-euler")
    assert run.status == "integrator-failed"
    assert "2 of 2 members could not be integrated further" in run.message
    assert run.times[-1] == 1.0


@pytest.mark.parametrize("name", ["implicit-euler", "implicit-midpoint"])
def test_members_solved_for_together_by_krylov_do_not_spoil_each_other(name, rng):
    """30 coordinates, 60 unknowns: beyond the size of direct solutions."""
    w0 = rng.uniform(-1.0, 1.0, (4, 30))
    w0[2] = 50.0
    run = simulate(flow(0.3, 30), w0, h=0.5, steps=6, integrator=name)
    assert run.status in ("integrator-failed", "non-finite")
    assert np.isnan(run.failed_at).tolist() == [True, True, False, True]
    for i in (0, 1, 3):
        alone = simulate(flow(0.3, 30), w0[i], h=0.5, steps=6, integrator=name)
        np.testing.assert_allclose(run.w[:, i], alone.w, atol=1e-9)


@pytest.mark.parametrize("name", ["rk45", "dop853", "radau", "lsoda"])
def test_schemes_of_shared_steps_give_up_the_fastest_member_and_start_again(name):
    run = simulate(flow(ETA), W0, h=0.5, steps=12, integrator=name)
    assert run.status == "integrator-failed"
    assert f"{name} stopped at t = 0." in run.message
    assert "could not be integrated further, the first (member (1,))" in run.message
    alone = simulate(flow(ETA[1]), W0[1], h=0.5, steps=12, integrator=name)
    assert alone.status == "integrator-failed"
    assert np.isfinite(alone.w).all()


VALLEY = RiverValley([2.0, 3.0, 4.0], amplitudes=0.3)
FACTORS = MatrixFactorization(np.arange(6.0).reshape(3, 2), rank=1)
DECOMPOSING = {  # code that calls LAPACK's eigensolver for every member
    "split of a Hessian": lambda eta: RISHD.from_optimizer(
        FACTORS, alpha=0.3, eta=eta, chi=2.0, beta_flat=1.0, flat=FACTORS.flat_split
    ),
    "gram root": lambda eta: RISHD.from_optimizer(VALLEY, GramRootMetric((2, 2)), alpha=0.3, eta=eta),
    "split of a valley": lambda eta: RISHD.from_optimizer(
        VALLEY, alpha=0.3, eta=eta, chi=2.0, beta_flat=1.0, flat=VALLEY.flat_split
    ),
}


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("build", DECOMPOSING.values(), ids=DECOMPOSING.keys())
def test_lost_members_do_not_reach_solvers_that_refuse_the_whole_stack(build, kind, rng):
    eta = np.array([0.02, 1e9, 0.01])
    w0 = rng.normal(size=(3, 5 if build is DECOMPOSING["split of a Hessian"] else 4))
    if build is DECOMPOSING["gram root"]:
        w0[1] = 1e200  # WᵀW overflows
    run = simulate(build(eta), kind(w0), steps=150)
    assert run.times[-1] == 150
    np.testing.assert_array_equal(run.causes, ["", "non-finite", ""])
    for i in (0, 2):
        alone = simulate(build(eta[i]), kind(w0[i]), steps=150)
        np.testing.assert_allclose(run.w[:, i], alone.w, atol=1e-11)
