"""Common behaviour of one-step schemes: runs, lost members, noise; and the derivative of the rates."""

import math

import numpy as np
import pytest
import torch

from riemannian_ode import RISHD, ConstantMetric, ConstantSplit, GradientNoise, TimeDependent, integrator
from riemannian_ode.integrators import Losses, OneStepIntegrator, PhaseState
from riemannian_ode.integrators.base import is_tracked, states_with_jumps, with_stand_ins, without_lost_members
from riemannian_ode.integrators.linearisation import hessian_product, linearised, rates_jacobian
from tests.riemannian_ode.problems import RankOneMetric, general
from toy_landscapes import Quadratic, RiverValley

BOWL = Quadratic([1.0, 0.5])
SYSTEM = RISHD.from_optimizer(BOWL, alpha=0.3, eta=0.2)


class Clock(OneStepIntegrator):
    """w' = w + h and m' = t at the start of the step."""

    name, order, noise_place, normals = "clock", 1, 0.25, 2

    def step(self, system, t, state, h):
        return PhaseState(state.w + h, 0.0 * state.m + t)


def tensors(*rows, **options):
    return torch.tensor(rows, dtype=torch.float64, **options)


def test_runs_are_steps_from_their_times():
    start = PhaseState(np.zeros(2), np.zeros(2))
    for first, times in ((0, [1.0, 1.5, 2.0]), (2, [2.0])):
        states = list(Clock().states(SYSTEM, start, t0=1.0, h=0.5, steps=3, first=first))
        assert [float(state.m[0]) for state in states] == times
        assert [float(state.w[0]) for state in states] == [0.5 * (k + 1) for k in range(len(times))]
    assert float(Clock().partial_step(SYSTEM, 0.7, start, 0.1).m[0]) == 0.7
    tracked = PhaseState(tensors(0.0, requires_grad=True), tensors(0.0))
    with pytest.raises(ValueError, match="'cut' returns a state cut off from autograd"):
        list(type("Cut", (Clock,), {"name": "cut", "step": lambda *_: PhaseState(tensors(0.0), tensors(0.0))})()
             .states(SYSTEM, tracked, t0=0.0, h=1.0, steps=1))  # fmt: skip


def test_a_step_with_noise_sees_one_increment_at_its_place():
    """g + σ(t + place·h)ξ/√h, with the numbers of the step's own number."""

    class Seen(Clock):
        def step(self, system, t, state, h):
            return PhaseState(system.objective.gradient(state.w), 0.0 * state.m + np.array([t, h]))

    matrix = np.array([[0.3, 0.1, 0.0], [0.0, 0.2, 0.4]])
    noise = GradientNoise(factor=TimeDependent(lambda t: t * matrix), seed=3)
    w = np.array([[1.0, 2.0], [0.5, -1.0]])
    scheme, h = Seen(), 0.25
    scheme.normals = 1
    state = PhaseState(w, 0.0 * w)
    for first in (0, 1):
        (found, *_) = scheme.noisy_states(SYSTEM, state, noise, t0=1.0, h=h, steps=2, first=first)
        t = 1.0 + h * first
        white = noise.normals(first, w, 3) / math.sqrt(h)
        np.testing.assert_allclose(found.w, BOWL.gradient(w) + (t + 0.25 * h) * white @ matrix.T, rtol=1e-13)
        assert (found.m == [t, h]).all()
    constant = GradientNoise(factor=matrix, seed=3)  # its numbers are made to fit the state's
    start = PhaseState(*torch.as_tensor(np.stack([w, 0.0 * w]), dtype=torch.float32))
    (found, *rest) = Clock().noisy_states(SYSTEM, start, constant, t0=1.0, h=h, steps=2)
    assert found.w.dtype == torch.float32 and len(rest) == 1 and (found.m == 1.0).all()


def test_first_causes_and_first_messages_of_losses_stay():
    losses = Losses((3,))
    losses.add(np.array([True, False, False]), "step-limit", "first")
    losses.add(np.array([True, True, False]), "integrator-failed", "second")
    losses.add(np.array([False, False, True]), "step-limit", "third")
    assert losses.causes.tolist() == ["step-limit", "integrator-failed", "step-limit"]
    assert losses.messages == {"step-limit": "first", "integrator-failed": "second"}


def test_a_state_is_tracked_if_either_half_is():
    plain, graph = tensors(1.0), tensors(1.0, requires_grad=True)
    assert [is_tracked(PhaseState(*x)) for x in ((plain, plain), (graph, plain), (plain, graph))] == [False, True, True]
    with torch.no_grad():
        assert not is_tracked(PhaseState(graph, graph))


def test_lost_members_make_the_step_again_where_a_sound_one_is():
    """After it they are NaN, so that their zero gradients are not multiplied by ∞."""
    w = tensors([1e200], [2.0], [3.0], requires_grad=True)
    state, starts = PhaseState(w, w.detach() + 1.0), []

    def step(state):
        starts.append(state)
        return PhaseState(state.w**2, state.m * state.w)

    new = without_lost_members(step, state, step(state))
    assert starts[1].w[:, 0].tolist() == [2.0, 2.0, 3.0] and starts[1].m[:, 0].tolist() == [3.0, 3.0, 4.0]
    assert torch.isnan(new.w[0]).all() and torch.isnan(new.m[0]).all()
    assert new.w[1:, 0].tolist() == [4.0, 9.0] and new.m[1:, 0].tolist() == [6.0, 12.0]
    (slope,) = torch.autograd.grad(new.w[1:].sum(), w)
    assert slope[:, 0].tolist() == [0.0, 4.0, 6.0]
    sound = PhaseState(tensors([1.0], [2.0]), tensors([1.0], [2.0]))
    assert without_lost_members(step, sound, sound) is sound
    lost = PhaseState(sound.w + math.inf, sound.m)
    assert without_lost_members(step, sound, lost) is lost  # no substitute member
    opposite = PhaseState(tensors([math.inf], [2.0]), tensors([1.0], [math.nan]))
    assert without_lost_members(step, sound, opposite) is opposite
    half = PhaseState(tensors([math.inf], [2.0]), tensors([1.0], [3.0]))  # lost if either half is
    for lost in (half, PhaseState(half.m, half.w)):
        assert torch.isnan(torch.cat(without_lost_members(lambda _: sound, sound, lost), -1)).tolist() == [
            [True, True],
            [False, False],
        ]
    large = PhaseState(tensors([1e308], [1e308]), tensors([0.0], [0.0]))  # the sum of sound members overflows
    assert without_lost_members(step, sound, large) is large
    stand_ins = with_stand_ins(PhaseState(w, w), torch.tensor([False, False, True]))
    assert stand_ins.w[:, 0].tolist() == [3.0, 3.0, 3.0]
    (slope,) = torch.autograd.grad(stand_ins.w.sum(), w)
    assert slope[:, 0].tolist() == [0.0, 0.0, 1.0]


def test_lost_members_are_those_of_any_ensemble():
    """Two ensemble axes, of parameters that are lost in one coordinate each."""
    w = torch.arange(12.0, dtype=torch.float64).reshape(2, 3, 2)
    new = PhaseState(w.clone(), w.clone())
    new.w[0, 0, 1], new.m[1, 2, 0] = math.inf, math.nan
    starts = []
    found = without_lost_members(lambda state: starts.append(state) or state, PhaseState(w, -w), new)
    lost = torch.tensor([[True, False, False], [False, False, True]])
    assert torch.equal(torch.isnan(found.w).all(-1), lost) and torch.equal(torch.isnan(found.m).all(-1), lost)
    for start, part in zip(starts[0], (w, -w), strict=True):
        assert torch.equal(start, torch.where(lost[..., None], part[0, 1], part))


class Jumping:
    """Adds its arguments to the state."""

    def settle(self, now, t, w, z, g, h):
        return np.array([now["alpha"], t, g[0], z[0]])


def test_a_memory_settles_after_each_step_from_its_time_with_the_coefficients_at_its_end():
    class System:
        memory, objective = Jumping(), BOWL

        def coefficients(self, t):
            return {"alpha": 100.0 * t}

    start = PhaseState(np.zeros(2), np.zeros(4))
    for first, times in ((0, (1.0, 1.5, 2.0)), (2, (2.0,))):
        states = list(states_with_jumps(Clock(), System(), start, t0=1.0, h=0.5, steps=3, first=first))
        assert len(states) == len(times)
        for k, (state, t) in enumerate(zip(states, times, strict=True)):
            w = 0.5 * (k + 1)
            np.testing.assert_allclose(state.w, [w, w])
            np.testing.assert_allclose(state.m, [100.0 * (t + 0.5), t, BOWL.gradient(state.w)[0], t])


VALLEY = RiverValley([3.0], floor_curvatures=[0.2], amplitudes=0.8)


class Bare:
    """An objective without its own curvature."""

    value, gradient = staticmethod(VALLEY.value), staticmethod(VALLEY.gradient)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_hessian_products_come_from_the_objective_from_autograd_or_from_differences(kind):
    w, v = (kind(x) for x in np.random.default_rng(0).normal(size=(2, 3, 2)))
    exact = VALLEY.hvp(w, v)
    np.testing.assert_array_equal(hessian_product(VALLEY, w)(v), exact)
    found = hessian_product(Bare(), w)(v)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-13 if kind is torch.as_tensor else 1e-6)
    small = hessian_product(Bare(), w)(1e-9 * v)  # the step fits the point, whatever the length of the vector
    np.testing.assert_allclose(1e9 * small, exact, rtol=0, atol=1e-6)
    assert not np.asarray(hessian_product(Bare(), w)(0.0 * v)).any()


@pytest.mark.parametrize("build", [general, lambda: RISHD.from_optimizer(
    VALLEY, alpha=0.3, eta=0.3, chi=3.0, beta_flat=1.0, flat=VALLEY.flat_split)])  # fmt: skip
def test_the_derivative_of_the_rates_has_ten_digits_if_it_is_central_and_seven_else(build):
    system, t = build(), 0.7
    w, m, dw, dm = np.random.default_rng(1).normal(size=(4, 4, 2))
    e = 1e-3
    near, far = (
        [np.asarray(a) - b for a, b in zip(system.rates(t, w + k * e * dw, m + k * e * dm),
                                           system.rates(t, w - k * e * dw, m - k * e * dm), strict=True)]
        for k in (1, 2)
    )  # fmt: skip
    exact = [(8 * a - b) / (12 * e) for a, b in zip(near, far, strict=True)]
    calls = []
    system.__dict__["rates_with"] = lambda *x: calls.append(x) or RISHD.rates_with(system, *x)
    for central, tolerance in ((True, 1e-8), (False, 1e-5)):
        derivative = linearised(system, t, w, m, central=central)
        calls.clear()
        for got, wanted in zip(derivative(dw, dm), exact, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
        assert len(calls) == 1 + central
    by_default = linearised(system, t, w, m)
    calls.clear()
    by_default(dw, dm)
    assert len(calls) == 1
    columns = rates_jacobian(system, t, w, m, hessian=hessian_product(system.objective, w), central=True)
    along = (columns @ np.concatenate([dw, dm], axis=-1)[..., None])[..., 0]
    np.testing.assert_allclose(along, np.concatenate(exact, axis=-1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("central", [False, True])
def test_differences_move_each_member_by_one_share_of_its_size(shape, dtype, central):
    """No part moves by more than ε(1 + its largest entry), with √ε for forward and ∛ε for central differences."""
    source = np.random.default_rng(2)
    sizes = 10.0 ** source.normal(size=(4, *shape[:-1], 1))  # of each member's w, m, δw and δm
    w, m, dw, dm = torch.as_tensor(source.normal(size=(4, *shape)) * sizes, dtype=dtype)
    system, ahead = RISHD.from_optimizer(BOWL, RankOneMetric(2), alpha=0.3, eta=0.2), []
    system.__dict__["rates_with"] = lambda t, *x: ahead.append(x) or x[:2]
    linearised(system, 0.7, w, m, hessian=lambda v: v, central=central)(dw, dm)
    epsilon = torch.finfo(dtype).eps ** (1 / 3 if central else 1 / 2)
    moved = [
        (x - at).abs().amax(-1) / (1.0 + at.abs().amax(-1))
        for x, at in zip(ahead[0 if central else 1], (w, m), strict=False)
    ]
    torch.testing.assert_close(torch.maximum(*moved), torch.full(shape[:-1], epsilon, dtype=dtype), rtol=3e-3, atol=0)


def test_single_precision_has_differences_of_its_own():
    w, v = (torch.as_tensor(x, dtype=torch.float32) for x in np.random.default_rng(0).normal(size=(2, 3, 2)))

    class Left(Bare):
        def gradient(self, w):
            return torch.as_tensor(VALLEY.gradient(w.detach().numpy()))

    np.testing.assert_allclose(hessian_product(Left(), w)(v), VALLEY.hvp(w, v), rtol=0, atol=0.05)


def test_the_matrix_of_the_derivative_is_by_the_curvature_and_the_differences_given():
    system, t = general(), 0.7
    w, m = np.random.default_rng(1).normal(size=(2, 4, 2))
    calls = []
    system.__dict__["rates_with"] = lambda *x: calls.append(x) or RISHD.rates_with(system, *x)
    for central, count in ((True, 8), (False, 5)):
        calls.clear()
        rates_jacobian(system, t, w, m, hessian=lambda v: 0.0 * v, central=central)
        assert len(calls) == count
    constant = RISHD.from_optimizer(BOWL, alpha=0.3, eta=0.2)
    straight = rates_jacobian(constant, t, w, m, hessian=lambda v: 5.0 * v, central=False)
    exact = np.block([[np.zeros((2, 2)), -0.2 * np.eye(2)], [5.0 * np.eye(2), -0.3 * np.eye(2)]])
    np.testing.assert_allclose(straight, np.broadcast_to(exact, (4, 4, 4)), atol=1e-14)


def test_products_by_autograd_may_be_taken_again_and_are_zero_where_nothing_depends_on_w():
    w, v = (torch.as_tensor(x) for x in np.random.default_rng(0).normal(size=(2, 3, 2)))
    product = hessian_product(Bare(), w)
    np.testing.assert_array_equal(product(v), product(v))

    class Slope(Bare):
        slope = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)

        def gradient(self, w):
            return 1.0 * self.slope

    assert not hessian_product(Slope(), w)(v).any()


def test_the_name_of_an_integrator_is_refused_by_its_argument():
    with pytest.raises(ValueError, match=r"^integrator"):
        integrator("rk5")


def test_the_derivative_of_affine_rates_is_their_difference():
    """With a constant metric and split, in one call; other curvature may be given."""
    system = RISHD.from_optimizer(
        BOWL, ConstantMetric(np.diag([1.0, 1.6])), alpha=TimeDependent(lambda t: 0.3 + t), eta=0.2, beta=0.1,
        beta_flat=0.5, chi=2.0, flat=ConstantSplit(np.eye(2)[:, :1]),
    )  # fmt: skip
    t, (w, m, dw, dm) = 0.7, np.random.default_rng(1).normal(size=(4, 3, 2))
    exact = [a - b for a, b in zip(system.rates(t, w + dw, m + dm), system.rates(t, w, m), strict=True)]
    for got, wanted in zip(linearised(system, t, w, m)(dw, dm), exact, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-11)
    straight = linearised(system, t, w, m, hessian=lambda v: 0.0 * v)(dw, dm)
    for got, wanted in zip(straight, system.rates_with(t, w, dm, 0.0 * dw), strict=True):
        np.testing.assert_array_equal(got, wanted)
