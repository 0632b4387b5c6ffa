"""Discretisations as optimizers, against the integrators, the flow, the optimizers' own rule and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from discretizations.curvature_schemes import CURVATURE_SCHEMES
from discretizations.proofs import schemes as schemes_proofs
from discretizations.scheme_modes import (
    all_schemes,
    decay_rate,
    slow_rate,
    spectral_radius,
    stable_limit,
    step_matrix,
    step_polynomial,
)
from discretizations.schemes import ONE_GRADIENT_SCHEMES
from discretizations.stability import stable_limit as rule_limit
from discretizations.update_rule import lite_step
from riemannian_ode import RISHD, ConstantMetric, DiagonalMetric, PhaseState, integrator, simulate
from riemannian_ode.integrators.adaptive import DOP853
from toy_landscapes import Quadratic, RiverValley

ALPHA, ETA = 0.3, 0.08
VALLEY = RiverValley([6.0], floor_curvatures=[0.3], floor_width=2.0, amplitudes=0.5, frequency=0.9)
METRIC = ConstantMetric(np.diag([1.0, 2.0]))
START, MOMENTUM = np.array([-2.0, 1.2]), np.array([0.4, -0.7])
AFFINE = [name for name in all_schemes() if name != "exponential-euler"]


def raise_index(x):
    return METRIC.raise_index(x, x)


def run(name, steps, *, w=START, m=MOMENTUM, h=1.0, alpha=ALPHA, eta=ETA, **settings):
    """Stored states of a scheme with one gradient, on the valley."""
    scheme, path = ONE_GRADIENT_SCHEMES[name], []
    for _ in range(steps):
        w, m = scheme.step(w, m, VALLEY.gradient(w), alpha=alpha, eta=eta, h=h, precondition=raise_index, **settings)
        path.append((w, m))
    return path


def integrate(name, steps, *, beta, h=1.0, eta=ETA, **lite):
    system = RISHD.from_optimizer(VALLEY, METRIC, alpha=ALPHA, eta=eta, beta=beta, **lite)
    return simulate(system, START, m0=MOMENTUM, integrator=name, h=h, steps=steps, progress=False)


@pytest.mark.parametrize("name", ["semi-implicit-euler", "explicit-euler"])
@pytest.mark.parametrize("h", [1.0, 0.5])
def test_euler_schemes_are_the_integrators(name, h):
    flow = integrate(name, 30, beta=0.7, h=h)
    path = run(name, 30, beta=0.7, h=h)
    assert np.array_equal(flow.w[1:], [w for w, _ in path])
    assert np.array_equal(flow.m[1:], [m for _, m in path])


@pytest.mark.parametrize("name", ["semi-implicit-euler", "explicit-euler"])
def test_a_split_is_the_flows(name):
    lite = {"beta_flat": 1.5, "chi": 2.0}
    system = RISHD.from_optimizer(VALLEY, alpha=ALPHA, eta=ETA, beta=0.2, flat=VALLEY.flat_split, **lite)
    flow = simulate(system, START, m0=MOMENTUM, integrator=name, steps=20, progress=False)
    w, m = START, MOMENTUM
    for k in range(20):
        basis = VALLEY.sharp_basis(w)
        split = lambda *_, basis=basis: lambda x: x - basis @ (basis.T @ x)  # noqa: E731
        w, m = ONE_GRADIENT_SCHEMES[name].step(
            w, m, VALLEY.gradient(w), alpha=ALPHA, eta=ETA, beta=0.2, split=split, **lite
        )
        np.testing.assert_allclose(w, flow.w[k + 1], rtol=1e-12, atol=1e-13)


def test_position_first_is_the_optimizers_rule_with_its_first_kick_left_out():
    flow = integrate("position-first-euler", 30, beta=0.7)
    scheme = ONE_GRADIENT_SCHEMES["position-first-euler"]
    stored = scheme.stored_momentum(MOMENTUM, VALLEY.gradient(START), alpha=ALPHA)
    for name in ("position-first-euler", "semi-implicit-euler"):
        path = run(name, 30, m=stored, beta=0.7)
        np.testing.assert_allclose([w for w, _ in path], flow.w[1:], rtol=1e-12, atol=1e-13)


def test_leapfrog_is_the_strang_integrator():
    flow = integrate("strang", 30, beta=0.0)
    scheme = ONE_GRADIENT_SCHEMES["leapfrog"]
    shared = {"alpha": ALPHA, "eta": ETA, "precondition": raise_index}
    path = run("leapfrog", 30, **dict(zip("wm", scheme.enter(START, MOMENTUM, **shared), strict=True)))
    for state, w, m in zip(path, flow.w[1:], flow.m[1:], strict=True):
        left = scheme.leave(*state, **shared)
        np.testing.assert_allclose(left.w, w, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(left.m, m, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "beta"),
    [(name, beta) for name in CURVATURE_SCHEMES for beta in (0.0, 0.7) if (name, beta) != ("strang", 0.0)],
)
def test_curvature_schemes_are_the_integrators_on_quadratics(name, beta):
    """At β = 0 the Strang integrator is the leapfrog instead."""
    curvature, metric = torch.tensor([3.0, 0.5, 0.01]).double(), np.array([1.0, 2.0, 0.5])
    system = RISHD.from_optimizer(Quadratic(curvature.numpy()), DiagonalMetric(metric), alpha=ALPHA, eta=0.6, beta=beta)
    w, m = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 0.2, -0.4]).double()
    scheme, peer = CURVATURE_SCHEMES[name], integrator(CURVATURE_SCHEMES[name].integrator)
    expected = PhaseState(w.numpy(), m.numpy())
    for k in range(20):
        inverse = 1 / torch.tensor(metric)
        w, m = scheme.step(w, m, curvature * w, curvature, alpha=ALPHA, eta=0.6, beta=beta, inverse_metric=inverse)
        expected = peer.step(system, float(k), expected, 1.0)
        np.testing.assert_allclose(w.numpy(), expected.w, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(m.numpy(), expected.m, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ONE_GRADIENT_SCHEMES)
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_schemes_follow_the_flow_at_their_order(name, beta):
    span, eta = 4.0, 0.3
    exact = integrate(DOP853(rtol=1e-12, atol=1e-13), 1, beta=beta, h=span, eta=eta).w[-1]
    scheme, errors, shared = ONE_GRADIENT_SCHEMES[name], [], {"alpha": ALPHA, "eta": eta, "precondition": raise_index}
    for steps in (200, 400):
        h = span / steps
        w, m = START, MOMENTUM
        if name == "leapfrog":
            w, m = scheme.enter(w, m, h=h, **shared)
        w, m = run(name, steps, w=w, m=m, h=h, eta=eta, beta=beta)[-1]
        if name == "leapfrog":
            w, m = scheme.leave(w, m, h=h, **shared)
        errors.append(np.abs(w - exact).max())
    order = scheme.order if beta == 0 else 1
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", CURVATURE_SCHEMES)
def test_curvature_schemes_follow_a_nonquadratic_flow_at_their_order(name):
    """One mode, f = √(1 + w²): the curvature is exact and varies."""
    span, errors = 6.0, []

    class Bowl:
        value = staticmethod(lambda w: np.sqrt(1 + w**2).sum(-1))
        gradient = staticmethod(lambda w: w / np.sqrt(1 + w**2))

    system = RISHD.from_optimizer(Bowl(), alpha=ALPHA, eta=0.5, beta=0.4)
    exact = simulate(
        system, np.array([2.0]), integrator=DOP853(rtol=1e-12, atol=1e-13), h=span, progress=False, steps=1
    )
    for steps in (80, 160):
        w, m = torch.tensor([2.0]).double(), torch.zeros(1).double()
        for _ in range(steps):
            stretch = torch.sqrt(1 + w**2)
            w, m = CURVATURE_SCHEMES[name].step(
                w, m, w / stretch, stretch**-3, alpha=ALPHA, eta=0.5, beta=0.4, h=span / steps
            )
        errors.append(abs(w.item() - exact.w[-1].item()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(CURVATURE_SCHEMES[name].order, abs=0.15)


@pytest.mark.parametrize("name", ONE_GRADIENT_SCHEMES)
@given(alpha=st.floats(0.05, 0.9), beta=st.floats(0, 3), h=st.floats(0.2, 1.0))
def test_every_scheme_with_one_gradient_is_the_optimizers_rule(name, alpha, beta, h):
    """Same positions on a nonquadratic valley from α', β', η' of ``equivalent_rule``, the momentum being a sum."""
    scheme = ONE_GRADIENT_SCHEMES[name]
    rule = scheme.equivalent_rule(alpha, beta, h)
    eta = 0.02
    path = run(name, 15, m=np.zeros(2), alpha=alpha, eta=eta, beta=beta, h=h)
    w, m = START, np.zeros(2)
    for expected, _ in path:
        g = VALLEY.gradient(w)
        w, m = lite_step(
            w, m, g, alpha=rule.alpha, nesterov=rule.beta, eta=rule.eta_ratio * eta, precondition=raise_index
        )
        np.testing.assert_allclose(w, expected, rtol=1e-9, atol=1e-10)


def tensor_step_matrix(name, kappa, alpha, beta):
    """Step of a mode with λ = κ, η = a = 1, from the update rule applied to unit vectors."""
    columns = []
    for unit in torch.eye(2).double():
        w, m = unit[:1], unit[1:]
        if name in ONE_GRADIENT_SCHEMES:
            new = ONE_GRADIENT_SCHEMES[name].step(w, m, kappa * w, alpha=alpha, eta=1.0, beta=beta)
        else:
            new = CURVATURE_SCHEMES[name].step(w, m, kappa * w, 0 * w + kappa, alpha=alpha, eta=1.0, beta=beta)
        columns.append(torch.cat(new).numpy())
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("name", all_schemes())
@given(kappa=st.floats(1e-3, 20), alpha=st.floats(0.02, 1), beta=st.floats(0, 4))
def test_step_matrix_is_that_of_the_update_rule(name, kappa, alpha, beta):
    matrix = step_matrix(name, kappa, alpha, beta)
    np.testing.assert_allclose(matrix, tensor_step_matrix(name, kappa, alpha, beta), rtol=1e-9, atol=1e-11)
    radius = np.abs(np.linalg.eigvals(matrix)).max()
    assert spectral_radius(name, kappa, alpha, beta) == pytest.approx(radius, abs=1e-6)  # double roots: half the digits


@pytest.mark.parametrize("name", all_schemes())
@given(alpha=st.floats(0.02, 1), beta=st.floats(-0.9, 5))
def test_stable_limit_is_where_runs_begin_to_grow(name, alpha, beta):
    """Bisection on the eigenvalues of the tensors' own steps, to 1e−6."""
    limit = float(stable_limit(name, alpha, beta))

    def stable(kappa):
        return np.abs(np.linalg.eigvals(tensor_step_matrix(name, kappa, alpha, beta))).max() < 1

    if np.isinf(limit):
        assert all(stable(kappa) for kappa in (0.01, 1.0, 30.0))
        return
    assume(limit < 1e6)  # of an exponential scheme with β just below 0; rounding of larger steps' eigenvalues moves it
    low, high = 0.5 * limit, 2.0 * limit
    assert stable(low)
    assert not stable(high)
    while high - low > 1e-8 * limit:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if stable(middle) else (low, middle)
    assert low == pytest.approx(limit, rel=1e-6)


@given(alpha=st.floats(0.01, 1), beta=st.floats(0, 5))
def test_stability_limits_differ_by_a_number_that_does_not_depend_on_beta(alpha, beta):
    shifts = {
        "semi-implicit-euler": 1 / (2 * (2 - alpha)),
        "leapfrog": 1 / 4,
        "exponential-damping": np.tanh(alpha / 2) / (2 * alpha),
        "implicit-damping": 1 / (2 * (2 + alpha)),
    }
    assert sorted(shifts.values(), reverse=True) == list(shifts.values())
    for name, shift in shifts.items():
        assert 1 / stable_limit(name, alpha, beta) == pytest.approx(beta / 2 + shift)
    assert stable_limit("semi-implicit-euler", alpha, beta) == pytest.approx(float(rule_limit(alpha, beta)))
    for name in CURVATURE_SCHEMES:
        assert np.isinf(stable_limit(name, alpha, beta))


@pytest.mark.parametrize("name", all_schemes())
@given(alpha=st.floats(0.1, 1), beta=st.floats(0, 4))
def test_slow_modes_decay_at_the_slow_rate(name, alpha, beta):
    kappa = 1e-7
    assert decay_rate(name, kappa, alpha, beta) / kappa == pytest.approx(slow_rate(name, alpha, beta), rel=1e-4)


def test_exponential_scheme_has_the_flows_rate():
    kappa = np.geomspace(1e-3, 50, 40)
    flow = np.linalg.eigvals([[[-0.5 * k, -1.0], [k, -0.2]] for k in kappa]).real.max(-1)
    np.testing.assert_allclose(decay_rate("exponential-euler", kappa, 0.2, 0.5), -flow, rtol=1e-9)


@pytest.mark.parametrize("name", AFFINE)
def test_polynomials_and_slow_rates_are_proved(name):
    assert schemes_proofs.step_polynomial_residual(name) == 0
    assert schemes_proofs.slow_rate_residual(name) == 0


@pytest.mark.parametrize("name", ONE_GRADIENT_SCHEMES)
def test_equivalent_rules_and_limits_are_proved(name):
    assert schemes_proofs.equivalent_rule_residuals(name) == [0, 0]
    assert schemes_proofs.stable_limit_residual(name) == 0


def test_bad_input_is_refused():
    w = torch.zeros(2)
    with pytest.raises(ValueError, match=r"scheme = 'leap' is unknown.*Did you mean 'leapfrog'"):
        step_matrix("leap", 1.0, 0.5, 0.0)
    with pytest.raises(ValueError, match="scheme = 'exponential-euler' has no polynomial that is affine in κ"):
        step_polynomial("exponential-euler", 0.5, 0.0)
    with pytest.raises(ValueError, match="alpha = 0 must be finite and positive"):
        ONE_GRADIENT_SCHEMES["leapfrog"].step(w, w, w, eta=0.1, alpha=0)
    with pytest.raises(ValueError, match="chi and beta_flat act on flat directions"):
        ONE_GRADIENT_SCHEMES["leapfrog"].step(w, w, w, eta=0.1, alpha=0.1, chi=2.0)
    with pytest.raises(ValueError, match=r"beta = .* must exceed −1/alpha"):
        stable_limit("leapfrog", 0.5, -2.0)
    with pytest.raises(ValueError, match="scheme = 'heun' is unknown"):
        step_matrix("heun", 1.0, 0.5, 0.0)


@pytest.mark.parametrize("name", ONE_GRADIENT_SCHEMES)
def test_every_scheme_is_its_formula_with_a_split_and_with_a_metric_that_is_not_linear(name, rng):
    """w − hη[PF⁻¹(rm + β₁g) + χQF⁻¹(rm + β₂g)] for a linear F⁻¹, w − hηF⁻¹(rm + βg) for any."""
    scheme, alpha, h, eta, beta, beta_flat, chi = ONE_GRADIENT_SCHEMES[name], 0.4, 0.7, 0.3, 0.6, 1.3, 2.5
    w, m, g = rng.normal(size=(3, 4))
    share, gain, weight = scheme.kick(alpha, h)
    new_m = (1 - share) * m + gain * g
    moving = m if scheme.old_momentum else new_m
    scale, sharp = np.array([1.0, 2.0, 0.5, 1.5]), np.array([1.0, 1.0, 0.0, 0.0])
    step = scheme.step(
        w,
        m,
        g,
        eta=eta,
        alpha=alpha,
        beta=beta,
        beta_flat=beta_flat,
        chi=chi,
        split=lambda *_: lambda x: (1 - sharp) * x,
        precondition=lambda x: scale * x,
        h=h,
    )
    u = scale * (sharp * (weight * moving + beta * g) + chi * (1 - sharp) * (weight * moving + beta_flat * g))
    np.testing.assert_allclose(step.w, w - h * eta * u, rtol=1e-13)
    np.testing.assert_allclose(step.m, new_m, rtol=1e-13)

    def unit(x):
        return x / (1.0 + np.linalg.norm(x))

    step = scheme.step(w, m, g, eta=eta, alpha=alpha, beta=beta, precondition=unit, h=h)
    np.testing.assert_allclose(step.w, w - h * eta * unit(weight * moving + beta * g), rtol=1e-13)


@pytest.mark.parametrize(
    ("registry", "base"),
    [
        (ONE_GRADIENT_SCHEMES, type(ONE_GRADIENT_SCHEMES["leapfrog"])),
        (CURVATURE_SCHEMES, type(CURVATURE_SCHEMES["strang"])),
    ],
)
def test_a_decorated_scheme_is_available_by_name(registry, base, request):
    request.addfinalizer(lambda: registry.pop("of-a-test", None))
    own = type("OfATest", (base,), {"name": "of-a-test"})
    assert registry.register()(own) is own
    assert list(registry)[-1] == "of-a-test" and isinstance(registry["of-a-test"], own)
    assert stable_limit("of-a-test", 0.5, 0.2) == stable_limit(base.name, 0.5, 0.2)
    np.testing.assert_array_equal(step_matrix("of-a-test", 1.0, 0.5, 0.2), step_matrix(base.name, 1.0, 0.5, 0.2))
    with pytest.raises(ValueError, match=r"scheme = 'of-a-test' is registered twice"):
        registry.register()(own)
