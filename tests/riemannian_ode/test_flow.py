"""The formulas of flow.py against their definitions with explicit projectors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from riemannian_ode import RISHD, ConstantMetric, PreconditionerMetric, total_energy
from riemannian_ode.flow import (
    average_rate,
    average_step,
    lite_direction,
    lite_velocity,
    lookahead,
    momentum_rate,
    momentum_step,
    position_step,
)
from toy_landscapes import Quadratic

coefficient = st.floats(-1.0, 3.0)


def _projector(rng, p, d):
    basis = np.linalg.qr(rng.normal(size=(p, d)))[0] if d else np.zeros((p, 0))
    return np.eye(p) - basis @ basis.T


@given(
    p=st.integers(1, 6),
    d=st.integers(0, 6),
    chi=st.floats(1, 4),
    chi_sharp=st.floats(0.5, 2),
    beta_sharp=coefficient,
    beta_flat=coefficient,
    seed=st.integers(0, 10**6),
)
def test_single_projection_is_the_definition(p, d, chi, chi_sharp, beta_sharp, beta_flat, seed):
    rng = np.random.default_rng(seed)
    q = _projector(rng, p, min(d, p))
    sharp = np.eye(p) - q
    a, g, c = rng.normal(size=(3, p))
    u = lite_velocity(
        a, g, flat=lambda x: q @ x, chi=chi, beta_sharp=beta_sharp, beta_flat=beta_flat, chi_sharp=chi_sharp, decay=c
    )
    expected = chi_sharp * sharp @ (a + beta_sharp * g + c) + chi * q @ (a + beta_flat * g + c)
    np.testing.assert_allclose(u, expected, atol=1e-13 * (1 + np.abs(expected).max()) * 10)


@given(
    p=st.integers(2, 6), chi=st.floats(1, 4), beta_sharp=coefficient, beta_flat=coefficient, seed=st.integers(0, 10**6)
)
def test_soft_mask_equals_projection_where_q_is_a_projector(p, chi, beta_sharp, beta_flat, seed):
    rng = np.random.default_rng(seed)
    q = _projector(rng, p, 1)
    a, g = rng.normal(size=(2, p))
    settings = {"flat": lambda x: q @ x, "chi": chi, "beta_sharp": beta_sharp, "beta_flat": beta_flat}
    np.testing.assert_allclose(lite_velocity(a, g, twice=True, **settings), lite_velocity(a, g, **settings), atol=1e-12)


def test_soft_mask_differs_where_q_is_none(rng):
    a, g = rng.normal(size=(2, 4))
    settings = {"flat": lambda x: 0.5 * x, "chi": 2.0, "beta_sharp": -0.25, "beta_flat": 1.0}
    gap = np.abs(lite_velocity(a, g, twice=True, **settings) - lite_velocity(a, g, **settings)).max()
    assert gap > 0.1 * np.abs(g).max()


def test_base_method_is_chi_one_and_equal_betas(rng):
    a, g = rng.normal(size=(2, 5))
    q = _projector(rng, 5, 2)
    base = lite_velocity(a, g, beta_sharp=0.7)
    split = lite_velocity(a, g, flat=lambda x: q @ x, chi=1.0, beta_sharp=0.7, beta_flat=0.7)
    np.testing.assert_allclose(base, a + 0.7 * g)
    np.testing.assert_allclose(split, base, atol=1e-15)


def test_momentum_is_heavy_ball_or_ema(rng):
    m, g = rng.normal(size=(2, 3))
    np.testing.assert_allclose(momentum_step(m, g, alpha=0.1), 0.9 * m + g, rtol=1e-15)
    np.testing.assert_allclose(momentum_step(m, g, alpha=0.1, gain=0.1), 0.9 * m + 0.1 * g, rtol=1e-14)
    np.testing.assert_allclose(momentum_step(m, g, alpha=0.1, h=0.5, correction=g), m + 0.5 * (2 * g - 0.1 * m))


def test_lookahead_of_zero_is_the_momentum_itself(rng):
    m, g = rng.normal(size=(2, 3))
    assert lookahead(m, g, 0.0) is m
    np.testing.assert_allclose(lookahead(m, g, 0.5), m + 0.5 * g)


@pytest.mark.parametrize("nesterov", [0.0, 0.4])
def test_nesterov_is_hessian_damping_for_a_linear_metric(rng, nesterov):
    m, g = rng.normal(size=(2, 4))
    inverse = np.diag(rng.uniform(0.5, 2.0, 4))
    inside = lite_direction(m, g, raise_index=lambda x: inverse @ x, nesterov=nesterov)
    beside = lite_direction(m, g, raise_index=lambda x: inverse @ x, beta_sharp=nesterov)
    np.testing.assert_allclose(inside, beside, rtol=1e-14)


def test_torch_and_numpy_agree_to_the_bit(rng):
    w, m, g = rng.normal(size=(3, 50))
    moved = momentum_step(m, g, alpha=0.05, gain=0.05)
    position = position_step(w, lite_velocity(moved, g, beta_sharp=0.3), eta=0.01)
    tensors = [torch.as_tensor(x) for x in (w, m, g)]
    moved_t = momentum_step(tensors[1], tensors[2], alpha=0.05, gain=0.05)
    position_t = position_step(tensors[0], lite_velocity(moved_t, tensors[2], beta_sharp=0.3), eta=0.01)
    assert np.array_equal(position, position_t.numpy())


class _Asked:
    """A split that records the points where it is evaluated; the second coordinate is flat."""

    def __init__(self):
        self.points = []

    def __call__(self, *point):
        self.points.append(point[0] if len(point) == 1 else point)
        return lambda x: x * np.array([0.0, 1.0])


def _raise_index(x):
    return x / np.array([2.0, 5.0])


def test_split_is_asked_at_the_covector_that_the_metric_raises():
    """Every code path to a direction passes m̃ = m + νg and a = F⁻¹m̃, not m, not m̃ twice."""
    w, m, g, nesterov = np.array([0.3, 0.4]), np.array([1.0, -2.0]), np.array([0.5, 0.7]), 0.6
    metric = ConstantMetric(np.diag([2.0, 5.0]))
    split = _Asked()
    lite_direction(m, g, raise_index=_raise_index, split=split, beta_flat=0.2, chi=2.0, nesterov=nesterov)
    np.testing.assert_allclose(split.points, [(m + nesterov * g, _raise_index(m + nesterov * g))], rtol=1e-14)

    flat = _Asked()
    system = RISHD.from_optimizer(
        Quadratic([1.0, 0.5]),
        metric,
        alpha=0.3,
        eta=0.1,
        nesterov=nesterov,
        beta=0.1,
        beta_flat=0.2,
        chi=2.0,
        flat=flat,
    )
    system.direction(0.0, w, m, g)
    total_energy(system, 0.0, w, m)
    for (where, covector, raised), expected in zip(flat.points, (m + nesterov * g, m), strict=True):
        np.testing.assert_array_equal(where, w)
        np.testing.assert_allclose(covector, expected, rtol=1e-14)
        np.testing.assert_allclose(raised, _raise_index(expected), rtol=1e-14)


def test_hessian_damping_of_a_metric_that_depends_on_the_covector_stays_beside_it():
    """F⁻¹m + βF⁻¹g differs from F⁻¹(m + βg) there: only ν enters the look-ahead."""
    metric = PreconditionerMetric(lambda x: x / np.sqrt((x**2).sum(-1, keepdims=True)))
    w, m, g = np.array([0.3, 0.4]), np.array([1.0, -2.0]), np.array([0.5, 0.7])
    unit_m, unit_g = m / np.linalg.norm(m), g / np.linalg.norm(g)
    ahead = (m + 0.6 * g) / np.linalg.norm(m + 0.6 * g)
    for nesterov, first in ((0.0, unit_m), (0.6, ahead)):
        system = RISHD.from_optimizer(Quadratic([1.0, 0.5]), metric, alpha=0.3, eta=0.1, beta=0.8, nesterov=nesterov)
        np.testing.assert_allclose(system.direction(0.0, w, m, g), first + 0.8 * unit_g, rtol=1e-14)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("h", [1.0, 0.5, 1])
@pytest.mark.parametrize("alpha", [0.1, np.array([0.1, 0.2, 0.3])])
@pytest.mark.parametrize("gain", [1.0, 0.1, 0.3])
def test_a_step_is_the_rate_times_its_size(rng, convert, h, alpha, gain):
    m, g, correction = (convert(x) for x in rng.normal(size=(3, 3)))
    alpha = alpha if isinstance(alpha, float) else convert(alpha)
    for settings in ({}, {"correction": correction}):
        rate = momentum_rate(m, g, alpha=alpha, gain=gain, **settings)
        np.testing.assert_allclose(rate, gain * g - alpha * m + settings.get("correction", 0.0))
        if gain == 1.0:
            np.testing.assert_array_equal(momentum_rate(m, g, alpha=alpha, **settings), rate)
        np.testing.assert_allclose(
            momentum_step(m, g, alpha=alpha, h=h, gain=gain, **settings), m + h * rate, rtol=1e-13
        )
    for rate in (alpha, None):
        slope = average_rate(m, g, rate=rate)
        np.testing.assert_allclose(slope, g if rate is None else rate * (g - m))
        np.testing.assert_allclose(average_step(m, g, rate=rate, h=h), m + h * slope, rtol=1e-13)
    np.testing.assert_allclose(position_step(m, g, eta=gain, h=h), m - h * gain * g, rtol=1e-13)
    np.testing.assert_allclose(position_step(m, g, eta=alpha), m - alpha * g, rtol=1e-13)


@pytest.mark.parametrize("coefficient", [0.3, 3, 1e39, torch.tensor(0.3), torch.tensor(0.3).double()])
@pytest.mark.parametrize("types", [(x, y) for x in (torch.float32, torch.float64) for y in (torch.bfloat16, x)])
def test_sums_of_tensors_round_in_the_wider_type(types, coefficient):
    """A product of bfloat16 tensors would be wrong in the third digit; a number beyond float32 overflows silently."""
    x, y = torch.tensor([1.0, 2.0], dtype=types[0]), torch.tensor([1.01, 3.03]).to(types[1])
    exact = x.double() + float(coefficient) * y.double()
    assert momentum_step(x, y, alpha=0.1, gain=0.1).dtype == average_step(x, y, rate=0.1).dtype == x.dtype
    torch.testing.assert_close(lookahead(x, y, coefficient).double(), exact.to(types[0]).double(), rtol=1e-6, atol=0)


def test_direction_takes_the_decay_beside_the_raised_momentum(rng):
    """Once if sharp and flat are alike, and under the soft mask as (1 + (χ − 1)Q)c."""
    m, g, c = rng.normal(size=(3, 4))
    np.testing.assert_allclose(
        lite_direction(m, g, raise_index=lambda x: 2.0 * x, decay=c, beta_sharp=0.5), 2.0 * m + g + c, rtol=1e-13
    )
    soft = {"flat": lambda x: 0.5 * x, "chi": 3.0, "twice": True}
    np.testing.assert_allclose(lite_velocity(m, decay=c, **soft), 2.0 * (m + c))
    np.testing.assert_allclose(
        lite_velocity(m, g, decay=c, beta_sharp=0.2, beta_flat=0.6, **soft), 2.0 * (m + 0.4 * g + c)
    )


def test_direction_with_a_split_moves_flat_directions_at_their_own_rate_and_damping(rng):
    m, g = rng.normal(size=(2, 2))
    flat = np.array([0.0, 1.0])
    settings = {"chi": 3.0, "beta_sharp": 0.2, "beta_flat": 0.6, "decay": np.array([5.0, 7.0]), "nesterov": 0.1}
    u = lite_direction(m, g, raise_index=lambda x: 2.0 * x, split=lambda *_: lambda x: flat * x, **settings)
    a, d = 2.0 * (m + 0.1 * g), 2.0 * g
    np.testing.assert_allclose(u, [a[0] + 0.2 * d[0] + 5.0, 3.0 * (a[1] + 0.6 * d[1] + 7.0)], rtol=1e-13)


def test_defaults_are_those_of_the_base_method(rng):
    """χ = χ_s = 1 and no damping: with any projector u = a, and undamped directions never raise the gradient."""
    m, g = rng.normal(size=(2, 4))
    np.testing.assert_array_equal(lite_velocity(m, g, flat=lambda x: 0.5 * x), m)
    np.testing.assert_array_equal(lite_velocity(m, g, flat=lambda x: 0.5 * x, twice=True), m)
    raised = []
    u = lite_direction(m, g, raise_index=lambda x: raised.append(x) or x, split=lambda *_: lambda x: 0.5 * x)
    np.testing.assert_array_equal(u, m)
    assert len(raised) == 1
    for betas in ({"beta_sharp": 0.3}, {"beta_flat": 0.3}):
        raised.clear()
        lite_direction(m, g, raise_index=lambda x: raised.append(x) or x, **betas)
        assert raised[1] is g


class _Operations(TorchDispatchMode):
    """Records the names of the operations that torch runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("formula", "dtype", "operations"),
    [
        (lambda m, g: momentum_step(m, g, alpha=0.1, gain=0.1), torch.float64, ["lerp"]),
        (lambda m, g: momentum_step(m, g, alpha=0.1), torch.float64, ["mul", "mul", "sub", "add"]),
        (lambda m, g: average_step(m, g, rate=0.1), torch.float64, ["lerp"]),
        (lambda m, g: average_step(m, g, rate=0.1, h=0.5), torch.float64, ["lerp"]),
        (lambda m, g: average_step(m, g, rate=None), torch.float64, ["add"]),
        (lambda m, g: position_step(m, g, eta=0.1), torch.float32, ["add"]),
        (lambda m, g: lookahead(m, g, torch.tensor(0.5)), torch.float32, ["addcmul"]),
        (lambda m, g: lookahead(m, g.bfloat16(), torch.tensor(0.5)), torch.float32, ["_to_copy"] * 2 + ["addcmul"]),
        (lambda m, g: lookahead(m, g, 0.5), torch.float64, ["mul", "add"]),
        (lambda m, g: lookahead(m, g, torch.tensor(0.5).double()), torch.float64, ["_to_copy", "mul", "add"]),
        (lite_velocity, torch.float64, []),
        (lambda m, g: lite_velocity(m, g, decay=g), torch.float64, ["add"]),
        (lambda m, g: lite_velocity(m, g, beta_sharp=0.5), torch.float32, ["add"]),
    ],
)
def test_tensors_are_read_as_seldom_as_their_type_allows(formula, dtype, operations):
    """One pass over memory for a sum of training types; two roundings in float64, as numpy's."""
    m, g = torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype)
    with _Operations() as run:
        formula(m, g)
    assert [name for name in run.names if name not in ("lift_fresh", "detach")] == operations
