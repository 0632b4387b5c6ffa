"""The three stages of a step, and the common parts of preconditioners, number by number."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from riemannian_ode.preconditioner import Preconditioner, spread
from riemannian_ode.stages import (
    MASS,
    Directed,
    TakenIn,
    direct,
    direction_on_sphere,
    move,
    per_member,
    shrinkage,
    take_in,
    with_cautious_decay,
)

Q = np.array([0.0, 1.0])  # the second coordinate is flat
SCALE = np.array([2.0, 0.5])
M, G, W = np.array([1.0, -2.0]), np.array([0.5, 0.7]), np.array([3.0, 4.0])
LITE = {"chi": 3.0, "chi_sharp": 0.5, "beta_sharp": 0.2, "beta_flat": 0.4}


class Scaled(Preconditioner):
    """F⁻¹ = diag(2, ½) with an average and a sum in its memory; it records its calls."""

    name, is_linear, skips_first = "scaled", True, False

    def __init__(self, **changes):
        self.calls, self.raised = [], 0
        self.__dict__ |= changes

    def initial(self, w, *, batch=0):
        return {"mean": 0.0 * w, "sum": 0.0 * w, "still": 1.0 + 0.0 * w}

    def rates(self):
        return {"mean": 0.25, "sum": None}

    def averaged(self, memory, g, frame_g):
        return {"mean": g, "sum": g * frame_g}

    def raise_index(self, memory, covector):
        self.raised += 1
        return memory.get("factor", 1.0) * SCALE * covector

    def flat(self, memory, covector, raised, *, h=1.0):
        self.calls.append(("flat", covector, raised, h))
        return lambda x: Q * x, memory | {"asked": True}

    def watch(self, memory, covector):
        return memory | {"watched": covector}


class Turned(Scaled):
    """The same in a frame that swaps both coordinates."""

    has_frame = True

    def to_frame(self, memory, x):
        return x[:: memory.get("turn", -1)]

    def from_frame(self, memory, x):
        return x[:: memory.get("turn", -1)]

    def due(self, step, numbers=(0,)):
        return [0] if step == 3 else []

    def with_flat_decay(self, u, flat, memory, shrinkage, *, due):
        self.calls.append(("decay", due))
        return super().with_flat_decay(u, flat, memory, shrinkage, due=due)

    def jump(self, memory, m, step, *, due=(0,), is_phase=False):
        self.calls.append(("jump", step, due, is_phase))
        return memory | {"jumped": True}, 10.0 * m


def expected(sharp, a, d, decay, *, chi, chi_sharp, beta_sharp, beta_flat):
    return np.where(sharp, chi_sharp * (a + beta_sharp * d + decay), chi * (a + beta_flat * d + decay))


def test_taking_in_is_one_euler_step_of_momentum_memory_and_mass():
    memory = {"mean": np.array([1.0, 1.0]), "sum": np.array([2.0, 2.0]), "still": W, MASS: np.array(0.5)}
    taken = take_in(Scaled(), M, memory, G, alpha=0.1, gain=0.3, nesterov=0.6, h=0.5)
    m = M + 0.5 * (0.3 * G - 0.1 * M)
    np.testing.assert_allclose(taken.m, m)
    np.testing.assert_allclose(taken.covector, m + 0.6 * G)
    np.testing.assert_array_equal(taken.g, G)
    np.testing.assert_allclose(taken.memory["mean"], 1.0 + 0.5 * 0.25 * (G - 1.0))
    np.testing.assert_allclose(taken.memory["sum"], 2.0 + 0.5 * G**2)
    assert taken.memory["still"] is W
    assert taken.memory[MASS] == pytest.approx(0.5 + 0.5 * 0.1 * 0.5)
    assert memory[MASS] == 0.5
    assert MASS not in take_in(Scaled(), M, Scaled().initial(M), G, alpha=0.1).memory
    plain = take_in(Scaled(), M, Scaled().initial(M), G, alpha=0.1)
    np.testing.assert_allclose(plain.covector, 0.9 * M + G)


def test_the_momentum_enters_in_the_frame_and_averages_see_both():
    taken = take_in(Turned(), M, Turned().initial(M), G, alpha=0.1, nesterov=0.5)
    np.testing.assert_allclose(taken.m, 0.9 * M + G[::-1])
    np.testing.assert_allclose(taken.g, G[::-1])
    np.testing.assert_allclose(taken.covector, 0.9 * M + 1.5 * G[::-1])
    np.testing.assert_allclose(taken.memory["sum"], G * G[::-1])


def test_metric_and_gradient_are_in_the_floating_type_at_work():
    class Wide(Scaled):
        def at_work(self, x):
            return x.astype(np.float64)

    taken = take_in(Wide(), M.astype(np.float32), Wide().initial(M), G.astype(np.float32), alpha=0.1)
    assert (taken.m.dtype, taken.g.dtype, taken.covector.dtype) == (np.float32, np.float64, np.float64)


@pytest.mark.parametrize("is_linear", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.2, 0.4), (0.2, 0.0), (0.0, 0.4), (0.0, 0.0)])
def test_direction_is_algorithm_one_with_a_split(is_linear, decay, betas):
    rule = Scaled(is_linear=is_linear)
    settings = LITE | {"beta_sharp": betas[0], "beta_flat": betas[1]}
    taken = TakenIn(M, {}, G, M + G)
    directed = direct(rule, taken, shrinkage=shrinkage(taken, W, decay), h=0.7, **settings)
    want = expected(1 - Q, SCALE * (M + G), SCALE * G, decay * W, **settings)
    np.testing.assert_allclose(directed.u, want, rtol=1e-13)
    assert directed.m is M
    assert directed.memory == {"asked": True}
    assert rule.raised == (1 if is_linear or betas == (0.0, 0.0) else 2)
    ((_, covector, raised, h),) = rule.calls
    assert covector is taken.covector
    assert h == 0.7
    if not is_linear:
        np.testing.assert_array_equal(raised, SCALE * (M + G))
    whole = direct(Scaled(is_linear=is_linear), taken, is_split=False, shrinkage=shrinkage(taken, W, decay))
    np.testing.assert_allclose(whole.u, SCALE * (M + G) + decay * W)
    assert whole.memory["watched"] is taken.covector
    assert "asked" not in whole.memory


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_direction_in_a_frame_is_that_outside(decay):
    rule, taken = Turned(), TakenIn(M, {}, G, M + G)
    directed = direct(rule, taken, shrinkage=shrinkage(taken, W, decay), step=2, **LITE)
    in_frame = expected(1 - Q, SCALE * (M + G), SCALE * G, decay * W[::-1], **LITE)
    np.testing.assert_allclose(directed.u, in_frame[::-1], rtol=1e-13)
    assert directed.m is M
    assert "jumped" not in directed.memory


def test_the_frame_jumps_after_the_direction_and_only_a_whole_step_of_an_optimizer_decays_for_it():
    taken = TakenIn(M, {}, G, M + G)
    for changes, due in (({}, [0]), ({"h": 0.5}, None), ({"is_rate": True}, None)):
        rule = Turned()
        directed = direct(rule, taken, shrinkage=W, step=3, is_phase=True, **LITE, **changes)
        np.testing.assert_array_equal(directed.u, direct(Turned(), taken, shrinkage=W, step=2, **LITE).u)
        np.testing.assert_array_equal(directed.m, 10.0 * M)
        assert directed.memory == {"asked": True, "jumped": True}
        assert rule.calls[1:] == [("decay", due), ("jump", 3, [0], True)]


def test_equal_learning_rates_need_no_flat_decay_in_a_frame():
    rule, taken = Turned(), TakenIn(M, {}, G, M + G)
    directed = direct(rule, taken, shrinkage=W, beta_flat=0.4)
    want = expected(1 - Q, SCALE * (M + G), SCALE * G, W[::-1], chi=1.0, chi_sharp=1.0, beta_sharp=0.0, beta_flat=0.4)
    np.testing.assert_allclose(directed.u, want[::-1])
    assert [call[0] for call in rule.calls] == ["flat"]
    unsplit = direct(Turned(), taken, shrinkage=W, is_split=False, chi=3.0)
    np.testing.assert_allclose(unsplit.u, (SCALE * (M + G))[::-1] + W)


def test_a_soft_mask_is_applied_twice_if_the_preconditioner_says_so():
    class Soft(Scaled):
        is_linear = False
        applies_twice = True

        def flat(self, memory, covector, raised, *, h=1.0):
            return lambda x: 0.5 * x, memory

    taken = TakenIn(M, {}, G, M)
    directed = direct(Soft(), taken, chi=3.0, beta_sharp=0.2, beta_flat=0.6, shrinkage=W)
    damped = SCALE * M + 0.2 * SCALE * G + 0.4 * 0.5 * SCALE * G
    np.testing.assert_allclose(directed.u, 2.0 * (damped + W))


class Cubed(Scaled):
    """F⁻¹x = (2x₁³, ½x₂³), which records the gradients that it takes in."""

    def __init__(self, **changes):
        super().__init__(is_linear=False, **changes)

    def raise_index(self, memory, covector):
        return SCALE * covector**3

    def raise_step(self, memory, covector, g, *, h=1.0):
        self.calls.append(("step", h))
        return super().raise_step(memory | {"learned": covector}, covector, g, h=h)


@pytest.mark.parametrize(("changes", "learned"), [({}, 1.0), ({"h": 0.7}, 0.7), ({"h": 0.7, "is_rate": True}, 0.0)])
@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("is_split", [False, True])
def test_damping_acts_before_or_behind_a_map_that_is_not_linear(is_inside, is_split, changes, learned):
    """Inside, F⁻¹(m̃ + β₁Pg + β₂Qg) is one call and Q comes from m̃ alone. A rate does not change the memory."""
    rule, taken = Cubed(), TakenIn(M, {"old": 1}, G, M + G)
    directed = direct(rule, taken, damps_inside=is_inside, is_split=is_split, shrinkage=W, **LITE, **changes)
    flat, settings = (Q, LITE) if is_split else (0.0 * Q, LITE | {"beta_flat": 0.2})
    beta = 0.2 * (1.0 - flat) + 0.4 * flat
    damped = SCALE * (M + G + beta * G) ** 3
    behind = expected(1 - flat, SCALE * (M + G) ** 3, SCALE * G**3, W, **settings)
    inside = expected(1 - flat, damped, 0.0, W, **settings)
    np.testing.assert_allclose(directed.u, inside if is_inside else behind, rtol=1e-13)
    np.testing.assert_allclose(directed.memory["learned"], M + G + beta * G if is_inside else M + G)
    assert directed.memory["old"] == 1 and directed.memory.get("asked", False) == is_split
    assert ("step", learned) in rule.calls
    if is_split:
        ((_, covector, raised, h),) = (call for call in rule.calls if call[0] == "flat")
        assert covector is taken.covector and h == changes.get("h", 1.0)
        np.testing.assert_array_equal(raised, M + G if is_inside else SCALE * (M + G) ** 3)


def test_damping_inside_is_by_the_velocity_given_and_only_if_there_is_any():
    taken, rule = TakenIn(M, {}, G, M + G), Cubed()
    plain = direct(rule, taken, damps_inside=True, chi=3.0)
    np.testing.assert_array_equal(plain.u, SCALE * (M + G) ** 3 * np.where(Q, 3.0, 1.0))
    assert [call[0] for call in rule.calls] == ["step", "flat"]
    doubled = direct(Cubed(), taken, damps_inside=True, beta_sharp=0.2, velocity=lambda a, d, **_: 2.0 * a)
    np.testing.assert_allclose(doubled.u, 2.0 * SCALE * (2.0 * (M + G)) ** 3)


def test_decay_that_meets_no_mask_is_that_of_sharp_directions():
    class Unmasked(Cubed):
        masks_decay = False

    taken = TakenIn(M, {}, G, M)
    directed = direct(Unmasked(), taken, shrinkage=W, **LITE)
    want = expected(1 - Q, SCALE * M**3, SCALE * G**3, 0.0, **LITE) + LITE["chi_sharp"] * W
    np.testing.assert_allclose(directed.u, want, rtol=1e-13)


def test_coefficients_are_those_of_the_base_method_by_default():
    taken = TakenIn(M, {}, G, M + G)
    for name, beta in (("beta_sharp", np.where(Q, 0.0, 0.2)), ("beta_flat", np.where(Q, 0.2, 0.0))):
        np.testing.assert_allclose(direct(Scaled(), taken, **{name: 0.2}).u, SCALE * (M + G + beta * G), rtol=1e-13)
    rule = Turned()
    rule.due = lambda step, numbers=(0,): [step, *numbers]
    direct(rule, taken)
    assert rule.calls[-1] == ("jump", 0, [0, 0], False)


def test_the_mass_follows_the_rate_of_its_member():
    memory = Scaled().initial(np.ones((2, 3))) | {MASS: np.array([0.5, 0.0])}
    alpha = np.array([[0.1], [0.4]])
    taken = take_in(Scaled(), np.ones((2, 3)), memory, np.ones((2, 3)), alpha=alpha)
    np.testing.assert_allclose(taken.memory[MASS], [0.5 + 0.1 * 0.5, 0.4])
    np.testing.assert_allclose(taken.m, 2.0 - alpha * np.ones(3))


def test_cautious_decay_acts_where_direction_and_parameter_agree():
    u, w = np.array([[1.0, -2.0], [3.0, 0.0]]), np.array([[0.5, 0.7], [-1.0, 4.0]])
    agree = np.array([[True, False], [False, False]])
    directed = with_cautious_decay(Directed(u, M, {"kept": 1}), w, 0.3)
    np.testing.assert_allclose(directed.u, u + 0.3 * agree * w)
    assert directed.m is M and directed.memory == {"kept": 1}
    halves = with_cautious_decay(Directed(u, M, {MASS: np.array([0.5, 0.25])}), w, 0.3)
    np.testing.assert_allclose(halves.u, u + 0.3 * np.array([[0.5], [0.25]]) * agree * w)
    wide = torch.ones(1, dtype=torch.float64)
    shrunk = with_cautious_decay(Directed(wide, wide, {}), wide.bfloat16(), 1 / 3).u  # in the direction's dtype
    assert shrunk.dtype == torch.float64 and float(shrunk) == pytest.approx(4 / 3, rel=1e-14)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_the_step_on_a_sphere_goes_along_the_direction_and_back(kind):
    """w − ηd = R·(w − ηRû)/‖w − ηRû‖, matrix by matrix."""
    w, u = (kind(x) for x in np.random.default_rng(0).normal(size=(2, 5, 4, 3)) * np.arange(1.0, 6.0)[:, None, None])

    def norm(x):
        return np.linalg.norm(np.asarray(x), axis=(-2, -1), keepdims=True)

    for eta in (0.02, 0.7, 3.0):
        ahead = np.asarray(w - eta * kind(norm(w) / norm(u)) * u)
        landed = np.asarray(w - eta * direction_on_sphere(w, u, eta=eta))
        np.testing.assert_allclose(landed, norm(w) * ahead / norm(ahead), rtol=0, atol=1e-12)
    tangent = direction_on_sphere(w, u, eta=0.0)
    np.testing.assert_allclose(np.asarray((tangent * w).sum((-2, -1))), 0.0, atol=1e-12)
    far = direction_on_sphere(1e3 * w, 1e-3 * u, eta=1e-9)  # no division by η
    np.testing.assert_allclose(np.asarray(far), 1e3 * np.asarray(tangent), rtol=1e-6, atol=1e-6)


def test_the_step_on_a_sphere_tends_to_the_projected_flow():
    w, u = (torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    direction = u / u.norm()
    tangent = w.norm() * direction - (w * direction).sum() * w / w.norm()
    errors = [float((direction_on_sphere(w, u, eta=eta) - tangent).norm()) for eta in (1e-3, 5e-4)]
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.01)
    assert float((direction_on_sphere(w, u, eta=0.0) - tangent).norm()) < 1e-14


def test_on_a_sphere_nothing_moves_without_a_direction_or_a_radius():
    w, zero = np.ones((2, 2)), np.zeros((2, 2))
    np.testing.assert_allclose(direction_on_sphere(w, zero, eta=0.3), 0.0, atol=1e-15)
    assert not direction_on_sphere(zero, w, eta=0.3).any()


def test_the_step_on_a_sphere_is_in_the_floating_type_of_the_direction():
    w, u = torch.linspace(0.1, 1.3, 12, dtype=torch.float64).reshape(2, 3, 2).bfloat16(), torch.ones(3, 2).double()
    torch.testing.assert_close(direction_on_sphere(w, u, eta=0.3), direction_on_sphere(w.double(), u, eta=0.3))


def test_moving_divides_by_the_mass_of_each_member():
    u = np.ones((2, 3))
    directed = Directed(u, u, {MASS: np.array([0.5, 0.25])})
    np.testing.assert_allclose(move(0.0 * u, directed, eta=0.1, h=0.5), [[-0.1] * 3, [-0.2] * 3])
    np.testing.assert_allclose(move(0.0 * u, directed, eta=0.1), [[-0.2] * 3, [-0.4] * 3])
    np.testing.assert_allclose(move(0.0 * u, Directed(u, u, {}), eta=0.1), -0.1 * u)


def test_shrinkage_is_in_the_units_of_the_direction_and_its_floating_type():
    taken = TakenIn(M, {MASS: np.array(0.5)}, G, M)
    np.testing.assert_allclose(shrinkage(taken, W, 0.2), 0.1 * W)
    np.testing.assert_allclose(shrinkage(TakenIn(M, {}, G, M), W, 0.2), 0.2 * W)
    assert shrinkage(taken, W, 0.0) is None
    np.testing.assert_array_equal(shrinkage(taken, W, np.zeros(2)), [0.0, 0.0])
    wide = torch.ones(2, dtype=torch.float64)
    assert shrinkage(TakenIn(wide, {}, wide, wide), wide.bfloat16(), 0.2).dtype == torch.float64


def test_coefficients_of_members_have_the_shape_of_the_mass():
    assert per_member(0.3, np.zeros(4)) == 0.3
    assert per_member(2, np.zeros(4)) == 2
    scalar = np.array(0.3)
    assert per_member(scalar, np.zeros(4)) is scalar
    assert per_member(np.zeros((4, 1, 1)), np.zeros(4)).shape == (4,)
    assert spread(np.zeros((4, 5)), np.zeros((4, 5, 2, 3))).shape == (4, 5, 1, 1)
    assert spread(torch.zeros(4).double(), torch.zeros(4, 2)).dtype == torch.float32
    assert spread(torch.zeros(4, dtype=torch.int64), torch.zeros(4, 2)).dtype == torch.int64


def test_what_preconditioners_have_in_common():
    rule = Scaled()
    memory = {"mean": np.array([1.0, 1.0]), "sum": np.array([2.0, 2.0]), "still": W}
    rates = rule.memory_rates(memory, G, G)
    np.testing.assert_allclose(rates["mean"], 0.25 * (G - 1.0))
    np.testing.assert_allclose(rates["sum"], G**2)
    np.testing.assert_array_equal(rates["still"], [0.0, 0.0])
    assert rule.observe(memory, G, G)["mean"] == pytest.approx(1.0 + 0.25 * (G - 1.0))
    np.testing.assert_array_equal(Turned().precondition({}, M), (SCALE * M[::-1])[::-1])
    np.testing.assert_array_equal(rule.raise_two({"factor": 3.0}, M, G), (3.0 * SCALE * M, 3.0 * SCALE * G))
    np.testing.assert_array_equal(rule.to_frame({}, M), M)
    assert (rule.cost(3, 4), rule.due(5), rule.phase(7)) == (12.0, [], 0)
    assert rule.jump({"a": 1}, M, 2) == ({"a": 1}, M)
    assert rule.first({"a": 1}, G) == {"a": 1}
    assert rule.admissible(memory) is memory
    assert not rule.applies_twice and rule.masks_decay
    assert rule.exact is rule and rule.degree == 2.0 and Scaled(is_linear=False).degree is None
    with pytest.raises(ValueError, match="'scaled' has no sharp directions"):
        Preconditioner.flat(rule, {}, M, None)


def test_the_mass_has_the_batch_axes_in_double_precision():
    rule = Scaled()
    for w in (np.ones((2, 3, 4, 5), np.float32), torch.ones(2, 3, 4, 5)):
        assert tuple(rule.initial_mass(w).shape) == ()
        mass = rule.initial_mass(w, batch=2)
        assert tuple(mass.shape) == (2, 3)
        assert str(mass.dtype).endswith("float64")
        assert not mass.any()
    zero = SimpleNamespace(device=torch.device("mps"))  # Apple's GPUs have no double precision
    assert rule.initial_mass(SimpleNamespace(shape=(2, 3), new_zeros=lambda shape: zero)) is zero


def test_matrices_are_asked_for_behind_the_batch_axes():
    rule = Scaled(needs_matrices=True)
    rule.check_shape((4, 3))
    rule.check_shape((7, 4, 3), batch=1)
    Scaled().check_shape((7,))
    for shape, batch in (((4,), 0), ((7, 4, 3), 0), ((4, 3), 1)):
        with pytest.raises(ValueError, match="made for matrices"):
            rule.check_shape(shape, batch=batch)
