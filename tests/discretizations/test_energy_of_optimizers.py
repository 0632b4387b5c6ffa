"""Energy of optimizers as flows: norms and metrics with memory (claims C18 and C19)."""

import numpy as np
import pytest
import torch

from discretizations import EigenbasisMoment, KroneckerRoot, PolarFactor, SecondMoment
from discretizations.matrices.roots import inverse_root
from riemannian_ode import RISHD, TimeDependent, dissipation, energy_identity_residual, total_energy
from riemannian_ode.integrators.adaptive import DOP853
from tests.discretizations.test_memory_flows import FLOWS, SHAPE, SMOOTH, P, Wells, flow, run, start

ADAPTS = ("adam, lite", "soap, lite", "kl-soap")  # masks whose thresholds move between steps
NO_GRADIENT = ("muon, graded", "muon, random", "muon, redrawn", "normuon", "normuon, tracked", "shampoo, grafted")


def warm(name, *ensemble, **changes):
    """A system, and a state whose memory has seen gradients."""
    system = flow(name, **changes)
    before = run(system, start(3, *ensemble), steps=4)
    memory = {key: value[-1] for key, value in before.memory.items()} or None
    return system, before.w[-1], before.m[-1], memory


@pytest.mark.parametrize("ensemble", [(), (2, 2)])
@pytest.mark.parametrize("name", [name for name in FLOWS if name not in (*ADAPTS, *NO_GRADIENT)])
def test_identity_holds_along_every_flow(name, ensemble):
    """Also with the work of approximate masks and polynomials, which are not gradients."""
    system, w, m, memory = warm(name, *ensemble, **({"eta": 0.001} if name == "sign" else {}))
    found = run(system, w, m0=m, memory0=memory, t0=4.0, h=0.002, steps=20, integrator="rk4")
    assert energy_identity_residual(system, found).residual.max() <= 1e-7  # a tracked mask adapts between steps


@pytest.mark.parametrize("name", [name for name in FLOWS if name not in NO_GRADIENT])
def test_rates_are_the_derivative_of_the_energy(name):
    """E along the flow's own rates, by central differences."""
    system, w, m, memory = warm(name)
    metric = system.memory
    z = metric.start(w, m, system.objective.gradient(w), memory)
    w_dot, z_dot = system.rates(4.0, w, z)

    def energy(h):
        at, there = w + h * w_dot, z + h * z_dot
        return total_energy(system, 4.0, at, metric.momentum(at, there), metric.memory(at, there) or None)

    h = 1e-4
    slope = (8.0 * (energy(h) - energy(-h)) - (energy(2.0 * h) - energy(-2.0 * h))) / (12.0 * h)
    lost = dissipation(system, 4.0, w, m, memory)
    assert slope == pytest.approx(-lost.total, rel=1e-6)
    assert sum(x for key, x in lost._asdict().items() if key not in ("total", "flat")) == pytest.approx(lost.total)


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_directions_that_are_no_gradients_have_no_energy(name):
    system, w, m, memory = warm(name)
    with pytest.raises(ValueError, match="declares no potential"):
        total_energy(system, 4.0, w, m, memory)


@pytest.mark.parametrize("name", [name for name in SMOOTH if name not in NO_GRADIENT])
def test_identity_holds_from_an_empty_memory(name):
    system = flow(name, beta=0.0)
    scheme = DOP853(rtol=1e-11, atol=1e-13)
    found = run(system, start(), h=0.01, steps=40, integrator=scheme)
    assert energy_identity_residual(system, found).residual <= 1e-5  # RMSprop's memory begins like √t
    np.testing.assert_allclose(total_energy(system, 0.0, found.w[0], found.m[0], first(found)), kinetic_free(system))


def test_per_member_coefficients_are_members_own():
    _, w, m, memory = warm("adam", 2)
    coefficients = {"alpha": 0.1, "eta": 0.02, "gain": 0.1, "nesterov": 0.3, "decay": 0.1, "chi": 1.5, "beta_flat": 0.4}
    spread = {name: value * np.array([1.0, 1.3]) for name, value in coefficients.items()}
    mask = FLOWS["adam, lite"][0]
    memory |= {"hi": np.ones(2), "lo": 0.5 * np.ones(2)}

    def lost(settings, *state):
        system = RISHD.from_optimizer(Wells(), mask, shape=SHAPE, corrects_momentum=True, **settings)
        return np.array([*dissipation(system, 0.0, *state), total_energy(system, 0.0, *state)])

    together = lost(spread, w, m, memory)
    for i in range(2):
        alone = {name: float(value[i]) for name, value in spread.items()}
        own = lost(alone, w[i], m[i], {key: value[i] for key, value in memory.items()})
        np.testing.assert_allclose(together[:, i], own, rtol=1e-10, atol=1e-15)


def first(found):
    return {key: value[0] for key, value in found.memory.items()} or None


def kinetic_free(system):
    return system.gain * Wells().value(start())


def test_schedules_of_rate_ratio_and_decay():
    settings = {
        "eta": TimeDependent(lambda t: 0.02 / (1 + t), lambda t: -0.02 / (1 + t) ** 2),
        "chi": TimeDependent(lambda t: 2.0 + 0.1 * t, lambda t: 0.1),
        "decay": TimeDependent(lambda t: 0.1 + 0.05 * t, lambda t: 0.05),
    }
    exact = PolarFactor(iteration="svd", mask=FLOWS["muon, exact"][0].mask)
    system = RISHD.from_optimizer(Wells(), exact, shape=SHAPE, alpha=0.1, gain=0.1, beta_flat=0.5, **settings)
    _, w, m, _ = warm("muon, exact")
    found = run(system, w, m0=m, t0=1.0, h=0.01, steps=20, integrator="rk4")
    balance = energy_identity_residual(system, found)
    assert balance.residual <= 1e-8
    assert dissipation(system, 1.0, w, m).defect == pytest.approx(0.0, abs=1e-15)


def test_the_defect_is_what_a_polynomial_has_beyond_the_polar_factor():
    system, w, m, memory = warm("muon")
    polynomial = FLOWS["muon"][0]
    assert (polynomial.degree, polynomial.exact.degree) == (None, 1.0)
    x = torch.as_tensor(m).reshape(SHAPE)
    off = (polynomial.raise_index({}, x) - polynomial.exact.raise_index({}, x)).numpy().ravel()
    expected = 0.02 * 0.1 * Wells().gradient(w) @ off
    assert abs(expected) > 1e-7
    assert dissipation(system, 4.0, w, m, memory).defect == pytest.approx(expected, rel=1e-8)


def test_torch_states_give_the_same_numbers():
    system, w, m, memory = warm("adam", 3)
    tensors = [torch.as_tensor(x) for x in (w, m)] + [{key: torch.as_tensor(x) for key, x in memory.items()}]
    found, expected = total_energy(system, 4.0, *tensors), total_energy(system, 4.0, w, m, memory)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13)


def test_memory_that_is_missing_or_another_one_s_is_told():
    system, w, m, memory = warm("adam")
    with pytest.raises(ValueError, match=r"memory is missing.*trajectory\.memory\.items"):
        total_energy(system, 0.0, w, m)
    other = memory | {"v": np.ones((2, 2))}
    for ask in (total_energy, dissipation):
        with pytest.raises(ValueError, match=r"memory has shapes .*\(2, 2\).*; give .*\(4, 3\)"):
            ask(system, 0.0, w, m, other)
    for m in (np.ones(5), np.ones((2, 12))):
        with pytest.raises(ValueError, match=r"m has shape .*, w has \(12,\); give the momentum at w"):
            total_energy(flow("adam"), 0.0, np.ones(12), m)
    with pytest.raises(ValueError, match="memory has v, but the metric is a function of w; leave it out"):
        total_energy(RISHD.from_optimizer(Wells(), alpha=0.1, eta=0.1), 0.0, w, m, {"v": w})
    with pytest.raises(ValueError, match=r"shape = \(3, 3\) has 9 numbers, but w has 12"):
        total_energy(RISHD.from_optimizer(Wells(), PolarFactor(), alpha=0.1, eta=0.1, shape=(3, 3)), 0.0, w, m)


@pytest.mark.parametrize(
    ("name", "message"), [("soap", "jumps at t = 3"), ("adam, lite", "hi, lo of the memory adapted")]
)
def test_jumps_of_the_memory_are_told(name, message):
    system = flow(name, beta=0.0) if name == "soap" else flow(name, beta=0.0, beta_flat=0.0)
    with pytest.raises(ValueError, match=message):
        energy_identity_residual(system, run(system, start(), h=0.5, steps=8, integrator="rk4"))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_inverse_root_has_its_derivative_where_eigenvalues_coincide(order):
    generator = torch.Generator().manual_seed(0)
    a, change = (torch.randn(5, n, dtype=torch.float64, generator=generator) for n in (2, 5))
    a, change = a @ a.mT, change + change.mT  # rank 2: 0 is a triple eigenvalue

    def root(x):
        return inverse_root(x, order, eps=0.5)

    _, slope = torch.func.jvp(root, (a,), (change,))
    h = 1e-4
    positive = a + h * torch.eye(5, dtype=torch.float64)  # eigenvalues below 0 would count as 0
    _, there = torch.func.jvp(root, (positive,), (change,))
    shift = 1e-5 * change
    torch.testing.assert_close(there, (root(positive + shift) - root(positive - shift)) / 2e-5, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(slope, there, rtol=0.01, atol=1e-3)
    assert torch.autograd.gradcheck(lambda x: root(x @ x.mT), (a + 0.1 * change).requires_grad_())


def test_energy_of_a_gradient_that_vanishes_in_places():
    """At v = 0 with a rate of 0 the root has no derivative, but the energy has one."""

    class Sparse(Wells):
        def gradient(self, w):
            return w * (np.arange(P) % 2)

        def value(self, w):
            return 0.5 * (w**2 * (np.arange(P) % 2)).sum(-1)

    for preconditioner in (SecondMoment(beta2=0.9), EigenbasisMoment(beta2=0.9), KroneckerRoot(beta2=0.9, eps=1e-3)):
        system = RISHD.from_optimizer(Sparse(), preconditioner, shape=SHAPE, alpha=0.1, eta=0.01)
        found = run(system, start(), h=0.5, steps=4, integrator="semi-implicit-euler")
        memory = {key: value[-1] for key, value in found.memory.items()}
        assert np.isfinite(dissipation(system, 2.0, found.w[-1], found.m[-1], memory).total)
