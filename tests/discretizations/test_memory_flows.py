"""Flows whose metric remembers gradients: RISHD with a preconditioner instead of a metric."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from discretizations import (
    PRECONDITIONERS,
    CoordinateMask,
    EigenbasisMoment,
    ExactSubspace,
    GradedMask,
    Identity,
    KroneckerRoot,
    NormalizedPolarFactor,
    PolarFactor,
    RandomSubspace,
    SecondMoment,
    Sign,
    ThresholdMask,
    TrackedSubspace,
    UpdateRule,
)
from riemannian_ode import RISHD, CompiledSteps, CompileError, Event, GradientNoise, Trajectory, simulate
from riemannian_ode.integrators.adaptive import DOP853

SHAPE = (4, 3)
P = math.prod(SHAPE)
AVERAGE = {"alpha": 0.1, "gain": 0.1, "eta": 0.02}
LITE = {"chi": 2.0, "beta_flat": 0.5}

# Every preconditioner, with its mask if it has one.
FLOWS = {
    "identity": (Identity(), {"alpha": 0.1, "eta": 0.01, "decay": 0.1}),
    "adam": (SecondMoment(beta2=0.95), AVERAGE | {"corrects_momentum": True, "decay": 0.1}),
    "rmsprop": (SecondMoment(beta2=0.95, eps=1e-2, corrects_bias=False), {"alpha": 1.0, "eta": 0.01}),
    "adam, lite": (
        SecondMoment(beta2=0.95, eps_first=True, mask=CoordinateMask(sharp_fraction=0.3)),
        AVERAGE | {"corrects_momentum": True, "chi": 2.0, "beta": 0.1, "beta_flat": 0.5},
    ),
    "muon": (PolarFactor(), AVERAGE | {"nesterov": 0.1}),
    "muon, tracked": (PolarFactor(mask=TrackedSubspace(sharp_fraction=0.4)), AVERAGE | LITE | {"decay": 0.1}),
    "muon, exact": (PolarFactor(mask=ExactSubspace(sharp_fraction=0.4)), AVERAGE | LITE),
    "muon, graded": (PolarFactor(iteration="svd", mask=GradedMask()), AVERAGE | LITE | {"decay": 0.1}),
    "muon, random": (PolarFactor(mask=RandomSubspace(sharp_fraction=0.4)), AVERAGE | {"chi": 2.0}),
    "muon, redrawn": (PolarFactor(mask=RandomSubspace(sharp_fraction=0.4, is_redrawn=True)), AVERAGE | {"chi": 0.5}),
    "muon, threshold": (PolarFactor(iteration="svd", mask=ThresholdMask(sharp_fraction=0.4)), AVERAGE | LITE),
    "shampoo": (KroneckerRoot(beta2=0.95, eps=1e-2), AVERAGE | {"corrects_momentum": True}),
    "shampoo, sums": (KroneckerRoot(beta2=None, eps=1e-1, sharp_fraction=0.3), AVERAGE | LITE),
    "soap": (EigenbasisMoment(beta2=0.95, frequency=3), AVERAGE | {"corrects_momentum": True}),
    "soap, lite": (
        EigenbasisMoment(beta2=0.95, frequency=3, mask=CoordinateMask(sharp_fraction=0.3)),
        AVERAGE | LITE | {"corrects_momentum": True, "decay": 0.1},
    ),
    "sign": (Sign(sharp_fraction=0.3), AVERAGE | LITE),
    "normuon": (NormalizedPolarFactor(beta2=0.9, iteration="svd"), AVERAGE | {"nesterov": 0.1, "decay": 0.1}),
    "normuon, tracked": (NormalizedPolarFactor(mask=TrackedSubspace(sharp_fraction=0.4)), AVERAGE | LITE),
    "shampoo, grafted": (
        KroneckerRoot(beta2=0.95, eps=1e-2, grafts=True),
        AVERAGE | {"corrects_momentum": True, "decay": 0.1},
    ),
    "shampoo, kept": (
        KroneckerRoot(beta2=0.95, eps=1e-2, frequency=3, root="newton", sharp_fraction=0.4),
        AVERAGE | LITE,
    ),
    "kl-soap": (
        EigenbasisMoment(beta2=0.95, frequency=3, divergence="kl", mask=CoordinateMask(sharp_fraction=0.3)),
        AVERAGE | LITE | {"corrects_momentum": True},
    ),
    "kl-shampoo": (
        EigenbasisMoment(beta2=0.95, frequency=3, divergence="kl", moment="kronecker", eps=1e-3),
        AVERAGE | {"decay": 0.1},
    ),
}
SMOOTH = ("identity", "adam", "rmsprop", "shampoo", "shampoo, grafted")


class Wells:
    """f(w) = ½‖Aw‖² + Σ log cosh w, for any leading axes."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.a = generator.normal(size=(P, P)) / P**0.5
        self.h = self.a.T @ self.a

    def value(self, w):
        if isinstance(w, torch.Tensor):
            a = torch.as_tensor(self.a)
            return 0.5 * ((w @ a.T) ** 2).sum(-1) + w.cosh().log().sum(-1)
        return 0.5 * ((w @ self.a.T) ** 2).sum(-1) + np.log(np.cosh(w)).sum(-1)

    def gradient(self, w):
        if isinstance(w, torch.Tensor):
            return w @ torch.as_tensor(self.h) + w.tanh()
        return (self.h @ w[..., None])[..., 0] + np.tanh(w)


def start(seed=1, *ensemble):
    return np.random.default_rng(seed).normal(size=(*ensemble, P))


def flow(name, **changes):
    preconditioner, settings = FLOWS[name]
    return RISHD.from_optimizer(Wells(), preconditioner, shape=SHAPE, **settings | changes)


def smooth_start(name, scheme):
    """Settings with which a flow exists from an empty memory: β over a vanishing mass is not integrable."""
    is_corrected = FLOWS[name][1].get("corrects_momentum", False)
    damped = {"beta": 0.0, "beta_flat": 0.0} if "beta_flat" in FLOWS[name][1] else {}
    return damped if is_corrected and scheme != "semi-implicit-euler" else {}


def run(system, w0, **settings):
    return simulate(system, w0, progress=False, **settings).checked()


def test_every_preconditioner_is_tried():
    assert {type(preconditioner) for preconditioner, _ in FLOWS.values()} == set(PRECONDITIONERS.values())
    assert all(PRECONDITIONERS[name].name == name for name in PRECONDITIONERS)


@pytest.mark.parametrize("noise", [None, GradientNoise(factor=0.3, seed=2)], ids=["exact gradients", "noise"])
@pytest.mark.parametrize("name", FLOWS)
def test_semi_implicit_euler_at_one_is_the_update_rule(name, noise):
    """To the last bit. The first gradient of SOAP, which only sets the basis, is the flow's start, without noise."""
    preconditioner, settings = FLOWS[name]
    found = run(flow(name), start(), steps=20, noise=noise)
    names = {"eta", "beta", "beta_flat"}
    beta = settings.get("beta", 0.0)
    rule = UpdateRule(
        preconditioner=preconditioner,
        beta_sharp=beta,
        beta_flat=settings.get("beta_flat", beta),
        **{key: value for key, value in settings.items() if key not in names},
    )
    state = rule.start(torch.as_tensor(start()).reshape(SHAPE))
    path = [state]
    while len(path) <= 20:
        w = state.w.reshape(-1).numpy()
        g = Wells().gradient(w)
        if noise is not None and not (preconditioner.skips_first and state.step == 0):
            g = g + noise.at_step(len(path) - 1, w)
        g = torch.as_tensor(g).reshape(SHAPE)
        moved = rule.step(state, g, eta=settings["eta"])
        if moved.w is not state.w:
            path.append(moved)
        state = moved
    for k, expected in enumerate(path):
        np.testing.assert_array_equal(found.w[k], expected.w.reshape(-1).numpy())
    for key, value in found.memory.items():
        np.testing.assert_array_equal(value[-1], path[-1].memory[key].numpy())
    assert np.abs(found.w[-1] - found.w[0]).max() > 1e-2


ORDERS = {"explicit-euler": 1, "semi-implicit-euler": 1, "heun": 2, "rk4": 4}


@pytest.mark.parametrize("scheme", ORDERS)
@pytest.mark.parametrize("name", SMOOTH)
def test_schemes_have_their_order_from_a_memory_that_has_seen_gradients(name, scheme):
    system, before = flow(name), run(flow(name), start(), steps=5)
    begin = {"m0": before.m[-1], "memory0": {key: value[-1] for key, value in before.memory.items()}}
    exact = run(system, before.w[-1], **begin, integrator=DOP853(rtol=1e-12, atol=1e-14), h=2.0, steps=1).w[-1]
    steps = (8, 16) if ORDERS[scheme] > 1 else (64, 128)
    coarse, fine = (
        np.abs(run(system, before.w[-1], **begin, integrator=scheme, h=2.0 / n, steps=n, save_every=n).w[-1] - exact)
        for n in steps
    )
    assert abs(np.log2(coarse.max() / fine.max()) - ORDERS[scheme]) < 0.35


@pytest.mark.parametrize("name", SMOOTH)
def test_adaptive_schemes_agree(name):
    """From the very start, where averages over their masses are 0/0 and have a limit."""
    ends = [
        run(flow(name), start(), integrator=scheme, h=1.0, steps=2).w[-1]
        for scheme in ("dop853", "radau", "lsoda", "ensemble-rk45", "rk45")
    ]
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, scheme) for name in FLOWS for scheme in ("semi-implicit-euler", "rk4")]
    + [(name, scheme) for name in SMOOTH for scheme in ("dop853", "ensemble-rk45")],
)
def test_members_of_an_ensemble_are_what_they_are_alone(name, scheme):
    w0 = start(2, 2, 2)
    settings = {"integrator": scheme, "h": 0.5, "steps": 8}
    system = flow(name, **smooth_start(name, scheme))
    together = run(system, w0, **settings)
    alone = run(system, w0[1, 0], **settings)
    np.testing.assert_allclose(together.w[:, 1, 0], alone.w, rtol=1e-7, atol=1e-9)
    for key, value in together.memory.items():
        assert value.shape == (9, 2, 2, *alone.memory[key].shape[1:])


def test_per_member_coefficients_are_members_own():
    eta, chi = np.array([0.01, 0.03]), np.array([1.5, 3.0])
    w0 = start(2, 2)
    together = run(flow("muon, exact", eta=eta, chi=chi), w0, steps=5)
    for i in range(2):
        alone = run(flow("muon, exact", eta=float(eta[i]), chi=float(chi[i])), w0[i], steps=5)
        np.testing.assert_allclose(together.w[:, i], alone.w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scheme", ["semi-implicit-euler", "rk4"])
@pytest.mark.parametrize("name", FLOWS)
def test_a_run_resumes_bit_for_bit(name, scheme, tmp_path):
    settings = {"integrator": scheme, "h": 0.5, "checkpoint_every": 4, "checkpoint": tmp_path / "run.npz"}
    system = flow(name, **smooth_start(name, scheme))
    whole = run(system, start(), integrator=scheme, h=0.5, steps=11)
    run(system, start(), steps=6, **settings)
    resumed = run(system, start(), steps=11, **settings)
    np.testing.assert_array_equal(resumed.w, whole.w)
    np.testing.assert_array_equal(resumed.m, whole.m)
    for key, value in whole.memory.items():
        np.testing.assert_array_equal(resumed.memory[key], value)


def test_a_checkpoint_knows_the_preconditioner(tmp_path):
    file = tmp_path / "run.npz"
    run(flow("adam"), start(), steps=2, checkpoint=file)
    for other in (flow("adam", decay=0.2), flow("rmsprop"), flow("shampoo")):
        with pytest.raises(ValueError, match="is of another run"):
            simulate(other, start(), steps=2, checkpoint=file)


@pytest.mark.parametrize("scheme", ["semi-implicit-euler", "rk4"])
def test_bases_jump_at_their_times_only(scheme):
    """At t = 3, 6, …, between steps, whatever the step size; momentum and metric are unchanged, in the new basis."""
    found = run(flow("soap"), start(), integrator=scheme, h=0.25, steps=32)
    turns = np.abs(np.diff(found.memory["left_basis"], axis=0)).max((1, 2)) > 0
    assert found.times[1:][turns].tolist() == [3.0, 6.0]


@pytest.mark.parametrize("scheme", ["semi-implicit-euler", "rk4"])
@pytest.mark.parametrize("name", ["adam", "muon, exact", "soap"])
def test_coefficients_of_every_kind_broadcast(name, scheme):
    """One per member, along either axis of the ensemble, and the damping that the momentum's mass follows."""
    w0 = start(2, 3, 2)
    rows, columns = np.array([[0.01], [0.02], [0.03]]), np.array([0.1, 0.2])
    together = run(flow(name, eta=rows, alpha=columns, gain=columns), w0, integrator=scheme, h=0.5, steps=4)
    for i, j in ((0, 0), (2, 1)):
        own = {"eta": float(rows[i, 0]), "alpha": float(columns[j]), "gain": float(columns[j])}
        alone = run(flow(name, **own), w0[i, j], integrator=scheme, h=0.5, steps=4)
        np.testing.assert_allclose(together.w[:, i, j], alone.w, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        (name, scheme)
        for scheme in ("semi-implicit-euler", "rk4", "ensemble-rk45")
        for name in FLOWS
        if (name, scheme) not in (("kl-soap", "ensemble-rk45"), ("soap, lite", "ensemble-rk45"))  # half a minute each
    ],
)
def test_a_member_that_is_not_finite_does_not_stop_the_others(name, scheme):
    """Although factorisations raise for NaN."""

    class Cliff(Wells):
        def gradient(self, w):
            return np.where(w[..., :1] > 50.0, np.nan, super().gradient(w))

    w0 = start(3, 3)
    w0[1, 0] = 100.0
    system = replace(flow(name, **smooth_start(name, scheme)), objective=Cliff())
    found = simulate(system, w0, integrator=scheme, h=0.5, steps=3, progress=False)
    assert found.status == "non-finite" and np.isnan(found.failed_at).tolist() == [True, False, True]
    assert np.isfinite(found.w[-1, [0, 2]]).all()
    alone = simulate(system, w0[2], integrator=scheme, h=0.5, steps=3, progress=False)
    np.testing.assert_allclose(found.w[-1, 2], alone.w[-1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("scheme", "h"), [("rk4", 0.25), ("heun", 0.25), ("semi-implicit-euler", 1e-3)])
def test_weight_decay_of_soap_s_flat_directions_is_that_of_the_flow(scheme, h):
    """The optimizer applies it once per period, which is another discretisation."""
    preconditioner = EigenbasisMoment(beta2=0.9, frequency=3, mask=CoordinateMask(sharp_fraction=0.3))
    zero = type("Zero", (), {"value": lambda _, w: 0.0 * w.sum(-1), "gradient": lambda _, w: 0.0 * w})()
    system = RISHD.from_optimizer(zero, preconditioner, alpha=0.1, eta=0.1, decay=0.5, chi=3.0, shape=SHAPE)
    basis = {
        key: np.linalg.qr(start(4)[: n * n].reshape(n, n) if n * n <= P else np.eye(n) + 0.1)[0]
        for key, n in (("left_basis", 4), ("right_basis", 3))
    }
    memory = {"v": np.ones(SHAPE), "v_mass": np.ones(()), "left": np.eye(4), "right": np.eye(3), **basis}
    memory |= {"hi": np.array(1e9), "lo": np.array(5e8)}
    found = run(
        system, start(), integrator=scheme, h=h, steps=round(2.0 / h), save_every=round(2.0 / h), memory0=memory
    )
    np.testing.assert_allclose(found.w[-1], start() * math.exp(-0.1 * 0.5 * 3.0 * 2.0), rtol=1e-3)


def test_weight_decay_of_flat_directions_is_chi_times_as_fast():
    """Without gradients only decay acts: λ in sharp directions, χλ in flat ones, here all or none."""

    class Nothing:
        def value(self, w):
            return 0.0 * w.sum(-1)

        def gradient(self, w):
            return 0.0 * w

    for fraction, rate in ((0.0, 3.0), (1.0, 1.0)):
        mask = CoordinateMask(sharp_fraction=fraction, all_flat_below=1e-5)
        preconditioner = SecondMoment(beta2=0.9, mask=mask)
        system = RISHD.from_optimizer(Nothing(), preconditioner, alpha=0.1, eta=0.1, decay=0.5, chi=3.0)
        if fraction:  # thresholds that every coordinate passes
            memory = {"v": np.ones(P), "v_mass": np.ones(()), "hi": np.array(1e-3), "lo": np.array(5e-4)}
        else:
            memory = {"v": np.ones(P), "v_mass": np.ones(()), "hi": np.array(1.0), "lo": np.array(0.5)}
        found = run(system, start(), integrator="rk4", h=0.1, steps=10, memory0=memory)
        np.testing.assert_allclose(found.w[-1], start() * math.exp(-0.1 * 0.5 * rate), rtol=1e-7)


def test_observers_and_events_see_the_momentum():
    seen = []
    event = Event("slow", lambda t, w, m: np.abs(m).max(-1) - 0.5, direction="falling", terminal=True)
    found = simulate(
        flow("soap"),
        start(),
        steps=400,
        events=[event],
        observers={"m": lambda t, w, m: seen.append(m.shape) or m},
        progress=False,
    )
    assert found.status == "event" and set(seen) == {(P,)}
    assert np.abs(found.m[-1]).max() == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(found.events[0].m, found.m[-1])
    np.testing.assert_allclose(found.observed["m"][:-1], found.m[:-1])


def test_memory_is_saved_with_the_trajectory(tmp_path):
    found = run(flow("adam"), start(), steps=3)
    found.save(tmp_path / "t.npz")
    loaded = Trajectory.load(tmp_path / "t.npz")
    assert set(loaded.memory) == {"v", "v_mass", "momentum_mass"}
    np.testing.assert_array_equal(loaded.memory["v"], found.memory["v"])


@pytest.mark.parametrize("scheme", ["semi-implicit-euler", "rk4", "ensemble-rk45"])
@pytest.mark.parametrize("name", SMOOTH)
def test_torch_gives_the_same_numbers_and_gradients(name, scheme):
    settings = {"integrator": scheme, "h": 0.5, "steps": 4}
    w0 = torch.as_tensor(start()).requires_grad_()
    found = run(flow(name), w0, **settings)
    np.testing.assert_allclose(found.w[-1].detach().numpy(), run(flow(name), start(), **settings).w[-1], rtol=1e-9)
    direction = np.random.default_rng(5).normal(size=P)
    (slope,) = torch.autograd.grad(found.w[-1] @ torch.as_tensor(direction), w0)
    step = 1e-5 * start(7)
    difference = sum(
        sign * run(flow(name), start() + sign * step, **settings).w[-1] @ direction / 2 for sign in (1.0, -1.0)
    )
    assert float(slope @ torch.as_tensor(step)) == pytest.approx(difference, rel=1e-4)


def test_what_does_not_fit_is_refused():
    system = flow("adam")
    with pytest.raises(
        ValueError, match=r"'strang' does not integrate the memory.*take one of explicit-euler, semi-impl"
    ):
        simulate(system, start(), steps=1, integrator="strang")
    for compiled in ("adam", "muon"):
        with pytest.raises(CompileError, match=r"flows of a preconditioner .* give compile=False"):
            simulate(flow(compiled), start(), steps=1, compile=True)
        with pytest.raises(CompileError, match=r"flows of a preconditioner .* give compile=False"):
            CompiledSteps(flow(compiled), start())
    with pytest.raises(ValueError, match=r"shape = \(4, 3\) has 12 numbers, but w has 5 coordinates"):
        simulate(system, np.ones(5), steps=1)
    for shape in (12, (-3, -4), (3.0, 4), "ab"):
        with pytest.raises(ValueError, match=r"shape = .* must hold whole numbers"):
            RISHD.from_optimizer(Wells(), PolarFactor(), shape=shape, **AVERAGE)
    assert flow("muon").memory.shape == SHAPE
    with pytest.raises(ValueError, match="memory0 is not finite in v"):
        simulate(flow("rmsprop"), start(), steps=1, memory0={"v": np.full(SHAPE, np.nan)})
    with pytest.raises(ValueError, match="memory0 is complex in v"):
        simulate(flow("rmsprop"), start(), steps=1, memory0={"v": 1j * np.ones(SHAPE)})
    with pytest.raises(ValueError, match="require gradients, but the memory of preconditioner 'eigenbasis-moment'"):
        simulate(flow("soap"), torch.as_tensor(start()).requires_grad_(), steps=1)
    with pytest.raises(ValueError, match=r"made for matrices .* give RISHD.from_optimizer shape="):
        simulate(RISHD.from_optimizer(Wells(), PolarFactor(), **AVERAGE), start(), steps=1)
    with pytest.raises(ValueError, match="'rk4' has nothing to converge to; start from a memory"):
        simulate(flow("soap, lite"), start(), steps=1, integrator="rk4")
    with pytest.raises(ValueError, match="memory0 has shapes"):
        simulate(system, start(), steps=1, memory0={"v": np.ones(P)})
    with pytest.raises(ValueError, match="memory0 is given, but the system's metric has no memory"):
        simulate(RISHD.from_optimizer(Wells(), alpha=0.1, eta=0.1), start(), steps=1, memory0={})
    with pytest.raises(ValueError, match="'identity' has no sharp directions; keep"):
        flow("identity", chi=2.0)
    with pytest.raises(ValueError, match="a preconditioner has its own sharp directions"):
        flow("adam", flat=lambda point: lambda x: x)
    with pytest.raises(ValueError, match="decay, corrects_momentum and shape belong to a preconditioner"):
        RISHD.from_optimizer(Wells(), alpha=0.1, eta=0.1, decay=0.1)
    with pytest.raises(ValueError, match="a flow with memory is not interpolated"):
        run(system, start(), steps=2).interpolate(0.5, system)


@pytest.mark.parametrize(("scheme", "h"), [("semi-implicit-euler", 0.5), ("heun", 1.0), ("explicit-euler", 1.0)])
def test_noise_has_no_limit_in_a_metric_that_depends_on_gradients(scheme, h):
    with pytest.raises(ValueError, match="take integrator='semi-implicit-euler' with h = 1"):
        simulate(flow("rmsprop"), start(), integrator=scheme, h=h, steps=2, noise=GradientNoise(factor=0.1))


@dataclass(frozen=True)
class OwnObserve(Identity):
    """An average of the gradient's size that ``observe`` takes in by itself, with or without the rate that belongs."""

    declares_rate: bool = False

    def initial(self, w, *, batch=0):
        return {"size": 0.0 * w}

    def observe(self, memory, g, frame_g, *, h=1.0):
        return {"size": memory["size"] + h * 0.1 * (abs(g) - memory["size"])}

    def memory_rates(self, memory, g, frame_g):
        return {"size": 0.1 * (abs(g) - memory["size"]) if self.declares_rate else 0.0 * memory["size"]}


def test_an_observe_that_is_not_the_step_of_its_rates_is_refused():
    with pytest.raises(ValueError, match="observes 'size' by a step that is not its memory_rates over h"):
        simulate(RISHD.from_optimizer(Wells(), OwnObserve(), alpha=0.1, eta=0.01), start(), steps=1, integrator="rk4")
    system = RISHD.from_optimizer(Wells(), OwnObserve(declares_rate=True), alpha=0.1, eta=0.01)
    assert run(system, start(), steps=2).memory["size"].shape == (3, P)
