"""Splits against metrics: a split that does not commute is refused, and the metric's own split obeys the theory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemannian_ode import (
    RISHD,
    ConstantMetric,
    ConstantSplit,
    DiagonalMetric,
    Euclidean,
    KroneckerMetric,
    LowRankPlusDiagonalMetric,
    MetricSplit,
    PhasePoint,
    PreconditionerMetric,
    VaryingDiagonalMetric,
    energy_identity_residual,
    simulate,
)
from riemannian_ode.split import metric_matrix
from toy_landscapes import Quadratic, RiverValley

BOWL = Quadratic.random([9.0, 4.0, 1.0, 0.2], seed=3, sharp_rank=2)
START = np.array([1.0, -0.5, 0.8, 2.0])
RNG = np.random.default_rng(5)
ROOT = RNG.normal(size=(4, 4))
METRICS = {
    "matrix": ConstantMetric(ROOT @ ROOT.T + np.eye(4)),
    "diagonal": DiagonalMetric([1.0, 4.0, 9.0, 0.3]),
    "Kronecker": KroneckerMetric(np.array([[2.0, 0.5], [0.5, 1.0]]), np.diag([1.0, 3.0])),
    "low rank": LowRankPlusDiagonalMetric(np.ones(4), RNG.normal(size=(4, 1))),
    "varying": VaryingDiagonalMetric(lambda w: 1.0 + 0.1 * torch.arange(4) * (1.0 + w[0] ** 2)),
}


def lite(metric, flat, objective=BOWL, **changes):
    settings = {"alpha": 0.2, "eta": 0.05, "beta": 0.1, "beta_flat": 1.0, "chi": 3.0}
    return RISHD.from_optimizer(objective, metric, flat=flat, **(settings | changes))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("split", ["landscape", "constant"])
def test_a_split_that_does_not_commute_is_refused_with_the_remedies(name, split):
    flat = BOWL.flat_split if split == "landscape" else ConstantSplit(BOWL.basis[:, :2])
    with pytest.raises(ValueError, match=r"does not commute.*C4, C8 and C9.*MetricSplit\(landscape, metric\)"):
        simulate(lite(METRICS[name], flat), START, steps=2)
    assert simulate(lite(METRICS[name], flat, check_split=False), START, steps=2).ok
    for remedy in (MetricSplit(BOWL, METRICS[name]), ConstantSplit(BOWL.basis[:, :2], metric=METRICS[name])):
        assert simulate(lite(METRICS[name], remedy), START, steps=40).ok


@pytest.mark.parametrize("name", [name for name in METRICS if name != "varying"])
@pytest.mark.parametrize("split", ["metric's", "constant"])
def test_the_energy_identity_holds_with_the_metrics_own_split(name, split):
    """Claim C4; with the split that does not commute it fails."""
    metric = METRICS[name]
    flat = MetricSplit(BOWL, metric) if split == "metric's" else ConstantSplit(BOWL.basis[:, :2], metric=metric)
    run = {"integrator": "dop853", "h": 0.1, "steps": 60}
    system = lite(metric, flat)
    assert energy_identity_residual(system, simulate(system, START, **run)).residual < 1e-7
    wrong = lite(metric, BOWL.flat_split, check_split=False)
    assert energy_identity_residual(wrong, simulate(wrong, START, **run)).residual > 1e-4


def test_the_metrics_split_is_the_landscapes_in_coordinates_where_the_metric_is_the_identity():
    """w̃ = F^{1/2}w: the same trajectory, computed in another way."""
    values, vectors = np.linalg.eigh(METRICS["matrix"].matrix)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = np.linalg.inv(root)
    hessian, basis = np.linalg.eigh(inverse @ BOWL.matrix @ inverse)
    moved = Quadratic(hessian, basis=basis, sharp_rank=2)
    ours = simulate(lite(METRICS["matrix"], MetricSplit(BOWL, METRICS["matrix"])), START, steps=50)
    theirs = simulate(lite(None, moved.flat_split, moved), root @ START, steps=50)
    np.testing.assert_allclose(ours.w @ root, theirs.w, atol=1e-12)


def test_with_the_identity_the_metrics_split_is_the_landscapes(rng):
    valley = RiverValley([20.0, 12.0], floor_curvatures=[0.02], amplitudes=[0.3, 0.2])
    w, x = rng.normal(size=(2, 5, 3))
    for points in ((w, x), (torch.as_tensor(w), torch.as_tensor(x))):
        point = PhasePoint(points[0], points[1], points[1])
        ours, theirs = MetricSplit(valley, Euclidean())(point)(points[1]), valley.flat_split(point)(points[1])
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@given(seed=st.integers(0, 10_000), p=st.integers(1, 5), rank=st.integers(0, 5), condition=st.floats(1.0, 1e6))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_splits_that_fit_pass_and_others_do_not(seed, p, rank, condition):
    """Axes shared with the metric, and the metric's own split, for any condition number."""
    rng = np.random.default_rng(seed)
    rank = min(rank, p)
    basis = np.linalg.qr(rng.normal(size=(p, p)))[0]
    spread = np.geomspace(1.0, condition, p)
    metric = ConstantMetric(0.5 * ((m := (basis * spread) @ basis.T) + m.T))
    bowl = Quadratic.random(rng.uniform(0.1, 3.0, p), seed=rng, sharp_rank=rank)
    start = rng.normal(size=p)
    for flat in (
        ConstantSplit(basis[:, :rank]),
        MetricSplit(bowl, metric),
        ConstantSplit(bowl.basis[:, :rank], metric=metric),
    ):
        assert simulate(lite(metric, flat, bowl, eta=1e-3), start, steps=1).ok
    if 0 < rank < p and condition > 2.0:
        with pytest.raises(ValueError, match="does not commute"):
            simulate(lite(metric, bowl.flat_split, bowl), start, steps=1)


def test_every_member_has_its_own_metric_and_the_one_that_does_not_fit_is_found():
    fits = np.stack([3.0 * np.eye(4), BOWL.matrix])
    starts = np.stack([START, -START])
    assert simulate(lite(ConstantMetric(fits), BOWL.flat_split), starts, steps=3).ok
    fits[1] = np.diag([1.0, 4.0, 9.0, 0.3])
    with pytest.raises(ValueError, match="does not commute"):
        simulate(lite(ConstantMetric(fits), BOWL.flat_split), starts, steps=3)


def test_a_moving_split_that_stops_commuting_ends_the_run_at_a_save():
    """Commutes while w₁ > 0.5, rotates after."""
    metric = DiagonalMetric([1.0, 4.0])

    def flat(point):
        angle = np.where(point.w[..., :1] > 0.5, 0.0, 0.3)
        v = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
        return lambda x: x - (x * v).sum(-1, keepdims=True) * v

    bowl = Quadratic([1.0, 0.5])
    run = simulate(lite(metric, flat, bowl, eta=0.02), np.ones(2), steps=400)
    assert run.status == "invalid-system"
    assert "does not commute" in run.message
    assert "at t = " in run.message
    kept = simulate(lite(metric, flat, bowl, eta=0.02), np.ones(2), steps=400, save_every=400)
    assert kept.status == "invalid-system"  # the last save is always checked
    assert simulate(lite(metric, flat, bowl, eta=0.02, check_split=False), np.ones(2), steps=400).ok


def test_long_runs_hardly_look_at_the_split():
    calls = []
    metric = ConstantMetric(2.0 * np.eye(4))

    def flat(point):
        calls.append(point)
        return BOWL.flat_split(point)

    counts = []
    for check in (False, True):
        calls.clear()
        assert simulate(lite(metric, flat, check_split=check), START, steps=1000).ok
        counts.append(len(calls))
    assert 0 < counts[1] - counts[0] <= 1000 / 64 + 3


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        (lambda point: lambda x: 0.5 * x, r"not a projector: \|Q²v − Qv\|"),
        (lambda point: lambda x: np.stack([0.0 * x[..., 0], x[..., 1] + x[..., 0]], axis=-1), "does not commute"),
        (lambda point: lambda x: x[..., :1], r"flat\(point\)\(x\) has shape \(1,\)"),
        (lambda point: np.eye(2), r"flat\(point\) is of type ndarray; give a function x"),
    ],
)
def test_what_is_not_an_orthogonal_projector_is_refused_with_the_identity_too(flat, message):
    with pytest.raises(ValueError, match=message):
        simulate(lite(None, flat, Quadratic([1.0, 0.5])), np.ones(2), steps=1)


def test_a_metric_of_history_has_no_geometry_to_fit():
    sign = PreconditionerMetric(np.sign)
    assert simulate(lite(sign, BOWL.flat_split), START, steps=3).ok
    for build in (lambda: MetricSplit(BOWL, sign), lambda: ConstantSplit(BOWL.basis[:, :2], metric=sign)):
        with pytest.raises(ValueError, match=r"needs a Metric with F\(w\)"):
            build()
    with pytest.raises(ValueError, match="without a method hessian"):
        MetricSplit(object(), Euclidean())
    with pytest.raises(ValueError, match="sharp_rank = -1"):
        MetricSplit(BOWL, Euclidean(), sharp_rank=-1)
    with pytest.raises(ValueError, match="sharp_rank = 5"):
        simulate(lite(None, MetricSplit(BOWL, Euclidean(), sharp_rank=5)), START, steps=1)


@pytest.mark.parametrize("name", METRICS)
def test_metric_matrix(name, rng):
    w = rng.normal(size=(3, 4))
    matrix = np.broadcast_to(metric_matrix(METRICS[name], w), (3, 4, 4))
    v = rng.normal(size=(3, 4))
    np.testing.assert_allclose((matrix @ v[..., None])[..., 0], METRICS[name].lower_index(w, v), rtol=1e-12)


def test_float32_splits_that_fit_pass():
    start = torch.as_tensor(START, dtype=torch.float32)
    metric = ConstantMetric(BOWL.matrix)
    assert simulate(lite(metric, BOWL.flat_split), start, steps=3).ok
    assert simulate(lite(METRICS["matrix"], MetricSplit(BOWL, METRICS["matrix"])), start, steps=3).ok
    with pytest.raises(ValueError, match="does not commute"):
        simulate(lite(METRICS["matrix"], BOWL.flat_split), start, steps=3)


@pytest.mark.parametrize("condition", [1e6, 1e12])
def test_the_metrics_own_split_is_a_projector_at_any_condition(condition):
    basis = np.linalg.qr(ROOT)[0]
    metric = ConstantMetric(basis @ np.diag(np.geomspace(1.0, condition, 4)) @ basis.T)
    assert simulate(lite(metric, MetricSplit(BOWL, metric)), START, steps=2).ok
