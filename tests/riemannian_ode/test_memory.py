"""Flows with memory against their closed forms, one state and one step at a time."""

import math
import warnings
from types import MappingProxyType

import numpy as np
import pytest
import torch

from riemannian_ode import Preconditioner
from riemannian_ode.memory import RememberedMetric
from riemannian_ode.preconditioner import spread
from riemannian_ode.stages import MASS

SHAPE, RATE = (2, 3), 0.25
NOW = {"alpha": 0.3, "gain": 0.8, "eta": 0.2, "nesterov": 0.1, "chi": 1.0, "beta_sharp": 0.4, "beta_flat": 0.4}
NOW = MappingProxyType(NOW | {"decay": 0.5})


class Smoothed(Preconditioner):
    """F⁻¹ = 1/(1 + v/c) with the average v of g² and its mass c; ``extra`` is a constant part."""

    name, masses = "smoothed", ("v_mass",)
    extra = False

    def initial(self, w, *, batch=0):
        memory = {"v": 0.0 * w, "v_mass": self.initial_mass(w, batch=batch)}
        return memory | ({"a_part": 7.0 + 0.0 * w[..., 0]} if self.extra else {})

    def rates(self):
        return {"v": RATE, "v_mass": RATE}

    def averaged(self, memory, g, frame_g):
        return {"v": frame_g**2, "v_mass": torch.ones_like(memory["v_mass"])}

    def raise_index(self, memory, covector):
        return covector / (1.0 + memory["v"] / spread(memory["v_mass"], covector))


class Still(Smoothed):
    """The same metric with a part that is not an average."""

    name, extra = "still", True


class Jumping(Smoothed):
    """Momentum is kept in coordinates twice as large, and changes its sign at every third time."""

    name, has_frame, every = "jumping", True, 3

    def initial(self, w, *, batch=0):
        return super().initial(w, batch=batch) | {"scale": 2.0 + self.initial_mass(w, batch=batch)}

    def to_frame(self, memory, x):
        return spread(memory["scale"], x) * x

    def from_frame(self, memory, x):
        return x / spread(memory["scale"], x)

    def due(self, step, numbers=(0,)):
        return [place for place, _ in enumerate(numbers) if step and step % self.every == 0]

    def jump(self, memory, m, step, *, due=(0,), is_phase=False):
        return memory, -m if due else m


class JumpingAlways(Jumping):
    name, every = "always", 1


class Told(Jumping):
    """It records its arguments; every second coordinate is flat."""

    name = "told"

    def __init__(self):
        self.told = []

    def averaged(self, memory, g, frame_g):
        self.told.append(("averaged", g, frame_g))
        return super().averaged(memory, g, frame_g)

    def due(self, step, numbers=(0,)):
        self.told.append(("due", step, tuple(numbers)))
        return super().due(step, numbers)

    def phase(self, step):
        return 10 * step

    def jump(self, memory, m, step, *, due=(0,), is_phase=False):
        self.told.append(("jump", step, is_phase))
        return memory, m

    def flat(self, memory, covector, raised, *, h=1.0):
        self.told.append(("flat", covector, h))
        return lambda x: torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]) * x, memory

    def with_flat_decay(self, u, flat, memory, shrinkage, *, due):
        self.told.append(("decay", due))
        return super().with_flat_decay(u, flat, memory, shrinkage, due=due)

    def of(self, what):
        found = [told[1:] for told in self.told if told[0] == what]
        self.told = [told for told in self.told if told[0] != what]
        return found


class Bare(Preconditioner):
    """F⁻¹ = 1, without memory."""

    name, needs_matrices = "bare", True

    def raise_index(self, memory, covector):
        return covector


class Skipping(Smoothed):
    """The first gradient only sets v."""

    name = "skipping"

    @property
    def skips_first(self):
        return True

    def first(self, memory, g):
        return memory | {"v": 3.0 * g}


def metric(cls=Smoothed, **settings):
    return RememberedMetric(cls(), shape=SHAPE, **{"corrects_momentum": True} | settings)


def numbers(seed, *shape, kind=np.asarray):
    return kind(np.random.default_rng(seed).normal(size=(*shape, 6)))


def known(ensemble, *, v=0.7, v_mass=0.5, mass=0.4, **others):
    """A memory in the form of a trajectory."""
    memory = {"v": np.full((*ensemble, *SHAPE), v), "v_mass": np.full(ensemble, v_mass), MASS: np.full(ensemble, mass)}
    return memory | others


def pushed(w, m, g, v, v_mass, mass):
    """−ẇ of the flow: all of one metric, so that look-ahead and damping add up."""
    covector = m + (NOW["nesterov"] + NOW["beta_sharp"]) * g
    return NOW["eta"] * (covector / (1.0 + v / v_mass) / mass + NOW["decay"] * w)


@pytest.mark.parametrize("ensemble", [(), (2,), (2, 2)])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_state_rates_and_step_are_the_closed_forms(ensemble, kind):
    w, m, g = (numbers(seed, *ensemble) for seed in range(3))
    w[..., 0] = 0.0
    flow, given = metric(), [kind(x) for x in (w, m, g)]
    z = flow.start(*given, known(ensemble))
    assert z.shape == (*ensemble, 6 + 1 + 6 + 1) and isinstance(z, type(given[0]))
    assert flow.unpack(given[0], z)[0].shape == ((math.prod(ensemble),) if ensemble else ()) + SHAPE
    np.testing.assert_array_equal(flow.momentum(given[0], z), m)
    for key, value in flow.memory(given[0], z).items():
        np.testing.assert_array_equal(value, known(ensemble)[key])

    velocity, slope = flow.rates(NOW, given[0], z, given[2])
    np.testing.assert_allclose(velocity, -pushed(w, m, g, 0.7, 0.5, 0.4), rtol=1e-12)
    np.testing.assert_allclose(flow.momentum(given[0], slope), -0.3 * m + 0.8 * g, rtol=1e-12)
    changes = flow.memory(given[0], slope)
    np.testing.assert_allclose(changes["v"].reshape(w.shape), RATE * (g**2 - 0.7), rtol=1e-12)
    np.testing.assert_allclose(changes["v_mass"], RATE * 0.5, rtol=1e-12)
    np.testing.assert_allclose(changes[MASS], 0.3 * 0.6, rtol=1e-12)

    h = 0.5
    moved, after = flow.semi_implicit_step(NOW, 0.0, given[0], z, given[2], h)
    m1, v1 = m + h * (-0.3 * m + 0.8 * g), 0.7 + h * RATE * (g**2 - 0.7)
    mass1, v_mass1 = 0.4 + h * 0.3 * 0.6, 0.5 + h * RATE * 0.5
    np.testing.assert_allclose(moved, w - h * pushed(w, m1, g, v1, v_mass1, mass1), rtol=1e-12)
    np.testing.assert_allclose(flow.momentum(given[0], after), m1, rtol=1e-12)
    memory = flow.memory(given[0], after)
    np.testing.assert_allclose(memory["v"].reshape(w.shape), v1, rtol=1e-12)
    np.testing.assert_allclose(memory["v_mass"], v_mass1, rtol=1e-12)
    np.testing.assert_allclose(memory[MASS], mass1, rtol=1e-12)


@pytest.mark.parametrize("empty", ["v_mass", "mass"])
def test_rates_from_an_empty_memory_are_those_after_the_first_gradient(empty):
    """The limit of 0/0 is the value after one step of h = 1: v/c = g² and m/c₁ = m'/α."""
    w, m, g = (numbers(seed) for seed in range(3))
    flow = metric()
    z = flow.start(w, m, g, known((), **{empty: 0.0}, v=0.0 if empty == "v_mass" else 0.7))
    masses = {"v_mass": 0.5, "mass": 0.4} | {empty: 0.0}
    v = 0.0 if empty == "v_mass" else 0.7
    after = {"v": v + RATE * (g**2 - v), "v_mass": masses["v_mass"] + RATE * (1 - masses["v_mass"])}
    velocity, slope = flow.rates(NOW, w, z, g)
    expected = pushed(w, 0.7 * m + 0.8 * g, g, **after, mass=masses["mass"] + 0.3 * (1 - masses["mass"]))
    np.testing.assert_allclose(velocity, -expected, rtol=1e-12)
    np.testing.assert_allclose(flow.momentum(w, slope), -0.3 * m + 0.8 * g, rtol=1e-12)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_lost_member_is_nan_and_the_others_are_as_without_it(place):
    arrays = [numbers(seed, 3) for seed in range(3)]
    flow = metric()
    z = flow.start(*arrays, known((3,)))
    w, m, g = (x.copy() for x in arrays)
    (w, m, g)[place][1, 2] = np.inf
    lost = flow.start(w, m, g, known((3,)))
    for broken, sound in (
        ((lost,), (z,)),
        (flow.rates(NOW, w, lost, g), flow.rates(NOW, arrays[0], z, arrays[2])),
        (
            flow.semi_implicit_step(NOW, 0.0, w, lost, g, 0.5),
            flow.semi_implicit_step(NOW, 0.0, arrays[0], z, arrays[2], 0.5),
        ),
        ((flow.settle(NOW, 0.0, w, lost, g, 0.5),), (flow.settle(NOW, 0.0, arrays[0], z, arrays[2], 0.5),)),
    ):
        for x, y in zip(broken, sound, strict=True):
            assert np.isnan(x[1]).all()
            np.testing.assert_array_equal(x[[0, 2]], y[[0, 2]])


def test_by_default_the_memory_is_that_before_the_first_gradient():
    w, m, g = (numbers(seed, 2) for seed in range(3))
    memory = metric(Still).memory(w, metric(Still).start(w, m, g))
    assert {key: x.shape for key, x in memory.items()} == {
        "a_part": (2, 2), "v": (2, 2, 3), "v_mass": (2,), MASS: (2,)
    }  # fmt: skip
    assert (memory["a_part"] == 7.0).all() and not any(memory[key].any() for key in ("v", "v_mass", MASS))
    assert MASS not in metric(corrects_momentum=False).memory(w, metric(corrects_momentum=False).start(w, m, g))
    skipping = metric(Skipping)
    np.testing.assert_allclose(skipping.memory(w, skipping.start(w, m, g))["v"].reshape(2, 6), 3.0 * g)
    given = skipping.memory(w, skipping.start(w, m, g, known((2,))))
    assert (given["v"] == 0.7).all()  # a given memory has already seen it


def test_parts_of_the_memory_keep_their_place_and_what_is_no_average_stands_still():
    w, m, g = (numbers(seed, 2) for seed in range(3))
    flow = metric(Still)
    part = np.random.default_rng(4).normal(size=(2, 2))
    z = flow.start(w, m, g, known((2,), a_part=part))
    np.testing.assert_array_equal(flow.memory(w, z)["a_part"], part)
    np.testing.assert_array_equal(flow.memory(w, z)["v_mass"], 0.5)
    assert not flow.memory(w, flow.rates(NOW, w, z, g)[1])["a_part"].any()
    np.testing.assert_array_equal(flow.memory(w, flow.settle(NOW, 0.0, w, z, g, 1.0))["a_part"], part)
    assert [metric(cls).changes_between_steps for cls in (Smoothed, Still, Jumping)] == [False, True, True]
    assert not RememberedMetric(Smoothed()).changes_between_steps


def test_momentum_turns_with_its_frame_at_whole_times():
    w, m, g = (numbers(seed, 2) for seed in range(3))
    flow = metric(Jumping)
    z = flow.start(w, m, g, known((2,), scale=np.full(2, 2.0)))
    np.testing.assert_array_equal(z[:, :6], 2.0 * m)
    np.testing.assert_array_equal(flow.momentum(w, z), m)
    np.testing.assert_array_equal(flow.momentum(w, flow.settle(NOW, 2.4, w, z, g, 0.5)), m)
    np.testing.assert_array_equal(flow.momentum(w, flow.settle(NOW, 2.5, w, z, g, 0.5)), -m)
    np.testing.assert_array_equal(z[:, :6], 2.0 * m)  # it is not written to
    for t, sign in ((2.0, 1.0), (2.5, -1.0)):
        _, after = flow.semi_implicit_step(NOW, t, w, z, g, 0.5)
        np.testing.assert_allclose(flow.momentum(w, after), sign * (m + 0.5 * (-0.3 * m + 0.8 * g)), rtol=1e-12)
    np.testing.assert_allclose(flow.rates(NOW, w, z, g)[1][:, :6], 2.0 * (-0.3 * m + 0.8 * g), rtol=1e-12)


def test_what_a_preconditioner_is_told_of_a_step_and_of_a_rate():
    """All members jump at the same step; the masses in a flow's memory show when."""
    w, m, g = (numbers(seed, 2) for seed in range(3))
    flow = metric(Told, is_split=True)
    now, told = NOW | {"chi": 3.0}, flow.preconditioner
    z = flow.start(w, m, g, known((2,), scale=np.full(2, 2.0)))
    shaped = [2.0 * torch.as_tensor(x).reshape(2, *SHAPE) for x in (m, g)]
    taken = flow.taken_in(*flow.shaped(now, w, g)[:1], *flow.unpack(w, z), 0.5 * shaped[1], h=0.0)
    told.told.clear()
    for rate in (
        lambda: flow.rates(now, w, z, g),
        lambda: flow.direction(now, taken, torch.as_tensor(w).reshape(2, *SHAPE)),
    ):
        rate()
        assert told.of("due") == [(0, (0, 0))] and told.of("decay") == [(None,)] and not told.of("jump")
        ((covector, h),) = told.of("flat")
        assert h == 1.0
        torch.testing.assert_close(covector, shaped[0] + 0.1 * shaped[1])
    ((gradient, frame_g),) = told.of("averaged")
    torch.testing.assert_close(2.0 * gradient, shaped[1])
    torch.testing.assert_close(frame_g, shaped[1])
    for h, decay in ((0.5, None), (1.0, [0, 1])):
        flow.semi_implicit_step(now, 2.0 + (1.0 - h), w, z, g, h)
        assert told.of("due")[-1] == (30, (0, 0)) and told.of("jump") == [(30, True)]
        assert told.of("decay") == [(decay,)] and told.of("flat")[0][1] == h
        flow.settle(now, 2.0, w, z, g, h)
        ((covector, settled),) = told.of("flat")
        assert settled == h
        torch.testing.assert_close(covector, shaped[0] + 0.1 * shaped[1])
        assert told.of("due")[-1] == ((30 if h == 1.0 else 0), (0, 0)) and told.of("jump") == [(30, True)] * (h == 1.0)
    flow.semi_implicit_step(now, 2.0, w[0], z[0], g[0], 1.0)
    assert told.of("due")[-1] == (30, (0,))


def test_sharp_and_flat_directions_differ_if_the_flow_is_split():
    w, m, g = (numbers(seed) for seed in range(3))
    memory, now = known((), scale=np.array(2.0)), NOW | {"chi": 3.0, "beta_flat": 0.7}
    sharp = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    for is_split in (False, True):
        flow = metric(Told, is_split=is_split)
        velocity, _ = flow.rates(now, w, flow.start(w, m, g, memory), g)
        raised = 1.0 / (1.0 + 0.7 / 0.5) / 0.4
        parts = [0.2 * (raised * (m + (0.1 + beta) * g) + 0.5 * w) for beta in (0.4, 0.7)]
        expected = sharp * parts[0] + 3.0 * (1.0 - sharp) * parts[1] if is_split else parts[0]
        np.testing.assert_allclose(velocity, -expected, rtol=1e-12)


def test_without_a_shape_the_parameter_is_a_vector():
    w, m, g = (numbers(seed, 2) for seed in range(3))
    matrix, vector = metric(), RememberedMetric(Smoothed(), corrects_momentum=True)
    memory = known((2,))
    flat = memory | {"v": memory["v"].reshape(2, 6)}
    for x, y in zip(
        matrix.rates(NOW, w, matrix.start(w, m, g, memory), g), vector.rates(NOW, w, vector.start(w, m, g, flat), g),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(x, y)
    assert vector.memory(w, vector.start(w, m, g))["v"].shape == (2, 6)
    vector.check(w)
    with pytest.raises(ValueError, match="made for matrices"):
        RememberedMetric(Bare()).check(w)
    RememberedMetric(Bare(), shape=SHAPE).check(w)


def test_states_carry_graphs():
    w, m, g = (numbers(seed, kind=torch.tensor) for seed in range(3))
    flow = metric()
    velocity, slope = flow.rates(NOW, w, flow.start(w, m, g.requires_grad_(), known(())), g)
    (got,) = torch.autograd.grad(velocity.sum(), g, retain_graph=True)
    torch.testing.assert_close(got, torch.full_like(g, -pushed(0.0, 0.0, 1.0, 0.7, 0.5, 0.4)))
    (got,) = torch.autograd.grad(slope[:6].sum(), g)
    torch.testing.assert_close(got, torch.full_like(g, 0.8))


def test_momentums_mass_alone_is_a_memory():
    w, m, g = (numbers(seed) for seed in range(3))
    bare = RememberedMetric(Bare(), shape=SHAPE)
    momentum, memory = bare.at_state(w, m, g, None)
    assert memory == {} and momentum.shape == SHAPE
    with pytest.raises(ValueError, match=r"^memory is missing"):
        RememberedMetric(Bare(), shape=SHAPE, corrects_momentum=True).at_state(w, m, g, None)


@pytest.mark.parametrize(
    ("t", "h", "jump"),
    [
        (0.0, 1.0, 0), (0.0, 2.9, 0), (2.0, 1.0, 3), (2.5, 0.5, 3), (3.0, 0.5, 0), (3.0, 3.0, 6), (0.0, 10.0, 3),
        (3.1, 10.0, 6), (3.0 - 1e-12, 1.0, 0), (2.0, 1.0 - 1e-12, 3), (3.0 - 1e-6, 1.0, 3), (2.0, 1.0 - 1e-6, 0),
        (-1.0, 1.0, 0), (-1.0, 3.5, 0), (-1.0, 4.0, 3),
    ],
)  # fmt: skip
def test_memory_jumps_at_the_first_due_time_after_the_start_of_a_step(t, h, jump):
    assert metric(Jumping).jump_time(t, h) == jump
    assert metric().jump_time(t, h) == 0
    assert metric(JumpingAlways).jump_time(0.0, 1.0) == 1


def test_the_direction_is_that_of_the_rates_but_for_the_momentums_mass():
    w, m, g = (numbers(seed, 2) for seed in range(3))
    flow = metric()
    momentum, memory = flow.at_state(w, m, g, known((2,)))
    now, position, gradient = flow.shaped(NOW, w, g)
    taken = flow.taken_in(now, momentum, memory, gradient, h=0.0)
    expected = -flow.rates(NOW, w, flow.start(w, m, g, known((2,))), g)[0] * 0.4 / NOW["eta"]
    np.testing.assert_allclose(flow.direction(now, taken, position).reshape(2, 6), expected, rtol=1e-12)
    np.testing.assert_allclose(
        flow.direction(now, taken, None).reshape(2, 6), expected - 0.4 * NOW["decay"] * w, rtol=1e-12
    )


def test_coefficients_of_members_meet_their_members_only():
    w, m, g = (numbers(seed, 2, 2) for seed in range(3))
    flow, z = metric(), metric().start(w, m, g, known((2, 2)))
    own = {key: np.array([[x], [2.0 * x]])[:, None] for key, x in NOW.items()}
    for run in (
        flow.rates,
        lambda now, w, z, g: flow.semi_implicit_step(now, 0.0, w, z, g, 0.5),
        lambda now, w, z, g: (flow.settle(now, 0.0, w, z, g, 0.5),),
    ):
        together = run(own, w, z, g)
        for row, factor in enumerate((1.0, 2.0)):
            alone = run({key: factor * x for key, x in NOW.items()}, w[row], z[row], g[row])
            for x, y in zip(together, alone, strict=True):
                np.testing.assert_allclose(x[row], y, rtol=1e-12)
    broadcast = flow.shaped(own, w, g)[0]["eta"]
    assert broadcast.shape == (4, 1, 1) and broadcast.flatten().tolist() == [0.2, 0.2, 0.4, 0.4]


@pytest.mark.parametrize("kind", [np.float32, torch.float32])
def test_a_single_precision_state_has_masses_in_double_at_work(kind):
    w, m, g = (
        torch.as_tensor(numbers(seed), dtype=kind) if isinstance(kind, torch.dtype) else numbers(seed).astype(kind)
        for seed in range(3)
    )
    flow = metric()
    z = flow.start(w, m, g, known(()))
    assert z.dtype == kind
    momentum, memory = flow.unpack(w, z)
    assert momentum.dtype == memory["v"].dtype == torch.float32
    assert memory["v_mass"].dtype == memory[MASS].dtype == torch.float64
    assert flow.memory(w, z)["v_mass"].dtype == kind
    for x in (*flow.rates(NOW, w, z, g), *flow.semi_implicit_step(NOW, 0.0, w, z, g, 1.0)):
        assert x.dtype == kind


def test_arrays_that_may_not_be_written_to_are_taken():
    arrays = [numbers(seed, 2) for seed in range(3)]
    for x in arrays:
        x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that it may not write to
        assert np.isfinite(metric().start(*arrays)).all()


def test_what_does_not_fit_is_named():
    w, m, g = (numbers(seed, 2) for seed in range(3))
    flow = metric()
    for memory, words in (
        ({"v": 1.0}, r"^memory0 has shapes .*; give {'v': \(2, 2, 3\), 'v_mass': \(2,\), 'momentum_mass': \(2,\)}"),
        (known((1,)), r"^memory0 has shapes"),
        (known((2,), v=math.nan, mass=math.inf), r"^memory0 is not finite in momentum_mass, v; start"),
    ):
        with pytest.raises(ValueError, match=words):
            flow.start(w, m, g, memory)
    with pytest.raises(ValueError, match=r"^memory has shapes"):
        flow.at_state(w, m, g, {})
    with pytest.raises(ValueError, match=r"^memory is missing, and preconditioner 'smoothed' has one"):
        flow.at_state(w, m, g, None)
    for ask in (flow.raise_index, flow.lower_index):
        with pytest.raises(ValueError, match="memory"):
            ask(w, m)
    with pytest.raises(ValueError, match=r"^shape = \(2, 3\) has 6 numbers, but w has 5 coordinates"):
        flow.check(np.ones((2, 5)))
    flow.check(w)
    for shape in ((0, 2), (True, 2), (2.0,), 6, "ab"):
        with pytest.raises(ValueError, match=r"^shape = .* must hold whole numbers of at least 1"):
            RememberedMetric(Smoothed(), shape=shape)
    assert RememberedMetric(Smoothed(), shape=[1, 6]).shape == (1, 6)
    bare = RememberedMetric(Smoothed())
    assert bare.shape_of(w) == (6,) and not bare.is_split and not bare.corrects_momentum


def test_a_preconditioner_must_have_a_hash():
    class Unhashable(Smoothed):
        __hash__ = None

    with pytest.raises(ValueError, match=r"^preconditioner is a Unhashable that cannot be hashed"):
        RememberedMetric(Unhashable())
