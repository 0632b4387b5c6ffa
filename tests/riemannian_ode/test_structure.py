"""Invariants of integrators: symplectic forms, volumes, energies, linear flows; and how they fail."""

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from riemannian_ode import (
    INTEGRATORS,
    RISHD,
    ConstantMetric,
    PreconditionerMetric,
    TimeDependent,
    simulate,
    total_energy,
)
from riemannian_ode.integrators import PhaseState, integrator
from riemannian_ode.integrators.adaptive import DOP853
from riemannian_ode.integrators.discrete_gradient import DiscreteGradient
from riemannian_ode.integrators.embedded import DORMAND_PRINCE, ERROR_WEIGHTS, EnsembleDormandPrince
from riemannian_ode.integrators.implicit import ImplicitEuler, ImplicitScheme
from riemannian_ode.integrators.runge_kutta import ButcherTableau, ExplicitRungeKutta, advance, rooted_trees
from rishd.claims.instances import rippled_quadratics
from tests.riemannian_ode.problems import REFERENCE, RankOneMetric
from toy_landscapes import Quadratic, RiverValley

METRIC = np.array([[2.0, 0.3], [0.3, 1.0]])
VALLEY = RiverValley([3.0], floor_curvatures=[0.2], amplitudes=0.8)


def step_jacobian(scheme, system, w, m, h):
    """Jacobian of one step in (w, m), by central differences of fourth order."""
    p, e = len(w), 1e-3

    def step(y):
        state = scheme.step(system, 0.0, PhaseState(y[:p], y[p:]), h)
        return np.concatenate(state)

    y = np.concatenate([w, m])
    columns = []
    for unit in np.eye(2 * p):
        near, far = (step(y + k * e * unit) - step(y - k * e * unit) for k in (1, 2))
        columns.append((8 * near - far) / (12 * e))
    return np.stack(columns, axis=-1)


def canonical_form(p):
    return np.block([[np.zeros((p, p)), np.eye(p)], [-np.eye(p), np.zeros((p, p))]])


@pytest.mark.parametrize("name", [n for n, cls in INTEGRATORS.items() if "conformal-symplectic" in cls.structure])
@pytest.mark.parametrize("metric", [ConstantMetric(METRIC), RankOneMetric(2)], ids=["constant", "state"])
def test_splittings_contract_the_symplectic_form_exactly(name, metric, rng):
    alpha, h = 0.7, 0.4
    system = RISHD.from_optimizer(VALLEY, metric, alpha=alpha, eta=0.6)
    w, m = rng.normal(size=(2, 2))
    jacobian, form = step_jacobian(integrator(name), system, w, m, h), canonical_form(2)
    np.testing.assert_allclose(jacobian.T @ form @ jacobian, np.exp(-alpha * h) * form, atol=1e-8)


@pytest.mark.parametrize("metric", [ConstantMetric(METRIC), RankOneMetric(2)], ids=["constant", "state"])
def test_symplectic_schemes_keep_the_form_without_damping(metric, rng):
    system = RISHD.from_coefficients(VALLEY, metric, alpha=0.0, beta=0.0, gamma=1.0)
    w, m = rng.normal(size=(2, 2))
    form = canonical_form(2)
    for name, cls in INTEGRATORS.items():
        if "symplectic" in cls.structure:
            jacobian = step_jacobian(integrator(name), system, w, m, 0.4)
            np.testing.assert_allclose(jacobian.T @ form @ jacobian, form, atol=1e-8)


def test_explicit_schemes_do_not_keep_it(rng):
    system = RISHD.from_optimizer(VALLEY, alpha=0.7, eta=0.6)
    jacobian = step_jacobian(integrator("rk4"), system, *rng.normal(size=(2, 2)), 0.4)
    form = canonical_form(2)
    assert np.abs(jacobian.T @ form @ jacobian - np.exp(-0.28) * form).max() > 1e-5


def test_phase_volume_shrinks_as_liouville_says(rng):
    """log det ∂(w,m)(t)/∂(w,m)(0) = −∫(αd + ηβ tr H) dt (Euclidean)."""
    alpha, beta, eta, h = 0.3, 0.5, 0.6, 1.5
    landscape = Quadratic.random([2.0, 0.7, -0.3], seed=1)
    system = RISHD.from_optimizer(landscape, alpha=alpha, beta=beta, eta=eta)
    p = 3
    start = rng.normal(size=(2 * p, p)), np.eye(2 * p)
    columns = []
    for unit in start[1]:
        ends = [
            simulate(system, sign * unit[:p], sign * unit[p:], h=h, steps=1, integrator=DOP853(rtol=1e-12))
            for sign in (1.0, -1.0)
        ]
        columns.append(np.concatenate([(ends[0].w[-1] - ends[1].w[-1]) / 2, (ends[0].m[-1] - ends[1].m[-1]) / 2]))
    volume = np.linalg.slogdet(np.stack(columns, axis=-1))[1]
    assert volume == pytest.approx(-h * (alpha * p + eta * beta * np.trace(landscape.matrix)), abs=1e-9)


def test_phase_volume_of_a_nonlinear_flow_shrinks_as_liouville_says(rng):
    """The Jacobian by differences of fourth order, the trace of the Hessian along the way by Simpson's rule."""
    alpha, beta, eta, h, steps, e = 0.3, 0.5, 0.6, 0.05, 40, 1e-3
    system = RISHD.from_optimizer(VALLEY, alpha=alpha, beta=beta, eta=eta)
    y0 = rng.normal(size=4)
    shifts = e * np.array([1.0, -1.0, 2.0, -2.0])[:, None, None] * np.eye(4)
    starts = np.concatenate([y0[None], (y0 + shifts).reshape(16, 4)])
    run = simulate(system, starts[:, :2], starts[:, 2:], h=h, steps=steps, integrator=REFERENCE)
    ends = np.concatenate([run.w[-1], run.m[-1]], axis=-1)[1:].reshape(4, 4, 4)
    jacobian = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * e)
    trace = np.trace(VALLEY.hessian(run.w[:, 0]), axis1=-2, axis2=-1)
    expected = -alpha * 2 * h * steps - eta * beta * scipy.integrate.simpson(trace, dx=h)
    assert np.linalg.slogdet(jacobian)[1] == pytest.approx(expected, abs=1e-6)


def test_damping_factor_of_splittings_is_exact():
    """A force-free momentum decays by e^{−αh} to the last digit, also for α that varies."""
    level = Quadratic([0.0, 0.0])
    for name in ("strang", "strang4"):
        run = simulate(
            RISHD.from_optimizer(level, alpha=0.9, eta=0.1), np.ones(2), np.ones(2), h=2.0, steps=3, integrator=name
        )
        np.testing.assert_allclose(run.m[-1], np.exp(-5.4), rtol=1e-14)
    linear = TimeDependent(lambda t: 0.2 + t)
    run = simulate(
        RISHD.from_optimizer(level, alpha=linear, eta=0.1), np.ones(2), np.ones(2), h=0.5, steps=4, integrator="strang"
    )
    np.testing.assert_allclose(run.m[-1], np.exp(-2.4), rtol=1e-14)  # the middle of a linear α is its mean


@pytest.mark.parametrize("h", [0.1, 1.0, 7.0])
def test_exponential_integrator_is_exact_for_quadratics(h, rng):
    landscape = Quadratic.random([50.0, 0.7, -0.3], seed=1, minimizer=[1.0, 2.0, 3.0])
    root = rng.normal(size=(3, 3))
    metric = root @ root.T + np.eye(3)
    alpha, beta, eta = 0.3, 0.5, 0.6
    system = RISHD.from_optimizer(landscape, ConstantMetric(metric), alpha=alpha, beta=beta, eta=eta)
    inverse = np.linalg.inv(metric)
    generator = np.block(
        [[-eta * beta * inverse @ landscape.matrix, -eta * inverse], [landscape.matrix, -alpha * np.eye(3)]]
    )
    w0, m0 = rng.normal(size=(2, 2, 3))
    run = simulate(system, w0, m0, h=h, steps=2, integrator="exponential-euler")
    for i in range(2):
        exact = scipy.linalg.expm(2 * h * generator) @ np.concatenate([w0[i] - landscape.minimizer, m0[i]])
        got = np.concatenate([run.w[-1, i] - landscape.minimizer, run.m[-1, i]])
        np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-11 * np.abs(exact).max())


def test_exponential_integrator_is_exact_with_a_split_too(rng):
    landscape = Quadratic.random([50.0, 0.7, -0.3], seed=1, sharp_rank=1)
    system = RISHD.from_optimizer(landscape, alpha=0.3, eta=0.01, chi=3.0, beta_flat=1.0, flat=landscape.flat_split)
    w0 = rng.normal(size=3)
    run = simulate(system, w0, h=5.0, steps=2, integrator="exponential-euler")
    exact = simulate(system, w0, h=10.0, steps=1, integrator=DOP853(rtol=1e-12))
    np.testing.assert_allclose(run.w[-1], exact.w[-1], atol=1e-10)


def test_exponential_integrator_says_what_it_needs():
    system = RISHD.from_optimizer(VALLEY, RankOneMetric(2), alpha=0.5, eta=0.6)
    with pytest.raises(ValueError, match="needs an objective with a hessian and a constant metric"):
        simulate(system, np.ones(2), steps=1, integrator="exponential-euler")


@pytest.mark.parametrize("h", [0.1, 1.0, 6.0])
@pytest.mark.parametrize(("beta", "gain"), [(0.0, 1.0), (0.8, 1.0), (0.8, 0.7)])
def test_discrete_gradient_keeps_the_energy_identity_at_any_step(h, beta, gain, rng):
    """E(y') − E(y) = −h[ηα m̄ᵀF⁻¹m̄ + (ηβ/c) ḡᵀF⁻¹ḡ], m̄ = (m + m')/2, ḡ from the step itself, α at its middle."""
    eta, t = 0.6, 0.9
    metric = ConstantMetric(METRIC)
    alpha = TimeDependent(lambda t: 0.1 + 0.2 * t)
    system = RISHD.from_optimizer(VALLEY, metric, alpha=alpha, beta=beta, eta=eta, gain=gain)
    state = PhaseState(*rng.normal(size=(2, 5, 2)))
    new = DiscreteGradient().step(system, t, state, h)
    middle, alpha = 0.5 * (state.m + new.m), 0.1 + 0.2 * (t + h / 2)
    force = (new.m - state.m) / h + alpha * middle  # ḡ from m' = m + h(−αm̄ + ḡ)
    lost = (
        h * eta * (alpha * metric.conorm_squared(state.w, middle) + beta / gain * metric.conorm_squared(state.w, force))
    )
    fallen = total_energy(system, 0.0, *state) - total_energy(system, 0.0, *new)
    np.testing.assert_allclose(fallen, lost, atol=1e-10 * (1 + np.abs(lost).max()))
    assert (fallen > 0).all()
    velocity = metric.raise_index(state.w, middle + beta / gain * force)
    np.testing.assert_allclose(new.w, state.w - h * eta * velocity, rtol=0, atol=1e-9 * (1 + h))


@pytest.mark.parametrize("scheme", [cls for cls in INTEGRATORS.values() if issubclass(cls, ImplicitScheme)])
def test_the_derivative_of_an_implicit_step_s_equations_is_that_of_their_residual(scheme, rng):
    seen = []

    class Caught(scheme):
        name = "caught"

        def solved(self, equations, guess, t):
            seen.append((equations, guess))
            return super().solved(equations, guess, t)

    alpha = TimeDependent(lambda t: 0.1 + 0.2 * t, lambda t: 0.2)
    system = RISHD.from_optimizer(VALLEY, ConstantMetric(METRIC), alpha=alpha, beta=0.8, eta=0.6, gain=0.7)
    start = PhaseState(*rng.normal(size=(2, 5, 2)))
    Caught().step(system, 0.9, start, 0.8)
    at, along, e = PhaseState(*rng.normal(size=(2, 5, 2))), PhaseState(*rng.normal(size=(2, 5, 2))), 1e-3

    def moved(equations, k):
        return np.stack(equations.residual(PhaseState(*(x + k * e * d for x, d in zip(at, along, strict=True)))))

    assert seen
    for equations, _ in seen:
        if equations.terms is not None:  # a step of no length has no quotient of differences
            assert not np.any(equations.terms(PhaseState(start.w, at.m)))
        near, far = (moved(equations, k) - moved(equations, -k) for k in (1, 2))
        found = np.stack(equations.derivative(at)(along))
        np.testing.assert_allclose(found, (8 * near - far) / (12 * e), rtol=0, atol=1e-8)


def test_the_discrete_gradient_of_a_state_dependent_metric_keeps_the_identity(rng):
    """E(y') − E(y) = −(α/ηh) ΔwᵀF(w̄)Δw, because the velocity is −∇̄_mE."""
    metric, alpha, eta, h, t = RankOneMetric(2), 0.3, 0.8, 0.7, 0.4
    system = RISHD.from_optimizer(rippled_quadratics(rng, 4, 2), metric, alpha=alpha, eta=eta, gain=0.6)
    state = PhaseState(*rng.normal(size=(2, 4, 2)))
    new = DiscreteGradient().step(system, t, state, h)
    step, middle = new.w - state.w, 0.5 * (state.w + new.w)
    lost = alpha / (eta * h) * (step * metric.lower_index(middle, step)).sum(-1)
    fallen = total_energy(system, t, *state) - total_energy(system, t, *new)
    np.testing.assert_allclose(fallen, lost, rtol=0, atol=1e-10)
    errors = []
    for h in (0.1, 0.05):  # one step of a scheme of order 2
        exact = simulate(system, state.w, state.m, h=h, steps=1, integrator=DOP853(rtol=1e-12))
        errors.append(np.abs(DiscreteGradient().step(system, 0.0, state, h).w - exact.w[-1]).max())
    assert errors[0] / errors[1] == pytest.approx(8.0, rel=0.2)


class Lifted:
    """A valley on a plateau."""

    hvp, gradient = staticmethod(VALLEY.hvp), staticmethod(VALLEY.gradient)

    def value(self, w):
        return VALLEY.value(w) + 1e7


def test_a_constant_in_the_objective_does_not_stop_the_discrete_gradient(rng):
    """Its energies differ by rounding alone, which Newton's method accepts."""
    state = PhaseState(*rng.normal(size=(2, 5, 2)))
    plain, lifted = (
        DiscreteGradient().step(RISHD.from_optimizer(f, alpha=0.4, beta=0.8, eta=0.6), 0.0, state, 0.8)
        for f in (VALLEY, Lifted())
    )
    np.testing.assert_allclose(lifted, plain, rtol=0, atol=1e-6)


def test_a_discrete_gradient_step_that_moves_nothing_is_that_of_the_middle():
    """At rest in the minimum the quotient of the discrete gradient is 0/0."""
    system = RISHD.from_optimizer(Quadratic([1.0, 0.5]), alpha=0.3, eta=0.8)
    rest = PhaseState(np.zeros((1, 2)), np.zeros((1, 2)))
    for part in DiscreteGradient().step(system, 0.0, rest, 0.5):
        np.testing.assert_array_equal(part, 0.0)


def test_discrete_gradient_with_a_state_dependent_metric_never_gains_energy(rng):
    system = RISHD.from_optimizer(rippled_quadratics(rng, 4, 2), RankOneMetric(2), alpha=0.3, eta=0.8)
    run = simulate(system, rng.normal(size=(4, 2)), h=0.7, steps=12, integrator="discrete-gradient")
    assert run.ok, run.message
    energies = np.stack([total_energy(system, 0.0, w, m) for w, m in zip(run.w, run.m, strict=True)])
    assert (np.diff(energies, axis=0) < 1e-12).all()


def test_discrete_gradient_says_where_it_applies():
    damped = RISHD.from_optimizer(VALLEY, RankOneMetric(2), alpha=0.3, beta=0.5, eta=0.8)
    split = RISHD.from_optimizer(VALLEY, alpha=0.3, eta=0.8, chi=2.0, flat=VALLEY.flat_split)
    varying = [
        RISHD.from_optimizer(VALLEY, **{"alpha": 0.3, "eta": 0.8} | {name: TimeDependent(lambda t: 0.5 + t)})
        for name in ("eta", "gain", "beta")
    ]
    history = RISHD.from_optimizer(VALLEY, PreconditionerMetric(np.sign), alpha=0.3, eta=0.8)
    uncorrected = RISHD.from_optimizer(VALLEY, RankOneMetric(2), alpha=0.3, eta=0.8, correction=False)
    for system, reason in (
        (damped, "only at β = 0 with the correction R kept"), (uncorrected, "only at β = 0"),
        (split, "and no split"), *((system, "constant coefficients") for system in (*varying, history)),
        (RISHD.from_optimizer(VALLEY, alpha=0.3, eta=0.0), "divides by eta, which"),
        (RISHD.from_optimizer(VALLEY, alpha=0.3, eta=0.8, beta=0.5, gain=0.0), "divides by gain, which"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"discrete-gradient .*{reason}.*take 'implicit-midpoint'"):
            DiscreteGradient().step(system, 0.0, PhaseState(np.ones(2), np.ones(2)), 0.1)


@pytest.mark.parametrize(
    "cls", [c for c in INTEGRATORS.values() if issubclass(c, ExplicitRungeKutta)], ids=lambda c: c.name
)
def test_tableaus_meet_exactly_the_conditions_of_their_order(cls):
    conditions = cls.tableau.order_conditions()
    assert list(conditions) == [1, 2, 3, 4, 5]
    assert all(violation < 1e-14 for order, violation in conditions.items() if order <= cls.order)
    assert conditions[cls.order + 1] > 1e-3


def test_embedded_pair_meets_the_conditions_of_both_its_orders():
    fifth = DORMAND_PRINCE.order_conditions(6)
    embedded = tuple(b - e for b, e in zip(DORMAND_PRINCE.weights, ERROR_WEIGHTS, strict=True))
    fourth = DORMAND_PRINCE.order_conditions(5, weights=embedded)
    assert max(fifth[order] for order in range(1, 6)) < 1e-15
    assert max(fourth[order] for order in range(1, 5)) < 1e-15
    assert fifth[6] > 1e-4
    assert fourth[5] > 1e-4
    assert DORMAND_PRINCE.stages[-1] == DORMAND_PRINCE.weights[:-1]  # the first slope of the next step


def test_rooted_trees_are_as_many_as_known():
    assert [len(rooted_trees(order)) for order in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]  # OEIS A000081


def test_a_user_adds_a_scheme_with_its_coefficients_only():
    class Kutta3(ExplicitRungeKutta):
        name, order = "kutta3", 3
        tableau = ButcherTableau(((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6))

    system = RISHD.from_optimizer(VALLEY, alpha=0.5, beta=0.3, eta=0.6)
    w0 = np.array([1.0, -0.5])
    exact = simulate(system, w0, h=2.0, steps=1, integrator=DOP853(rtol=1e-12)).w[-1]
    errors = [
        np.abs(simulate(system, w0, h=2 / n, steps=n, integrator=Kutta3()).w[-1] - exact).max() for n in (160, 320)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.1)
    with pytest.raises(ValueError, match="0, 1, 2"):
        ButcherTableau(((), ()), (0.5, 0.5))
    with pytest.raises(ValueError, match=r"weights sum to 0\.9"):
        ButcherTableau(((), (1.0,)), (0.5, 0.4))
    state = PhaseState(w0, w0)
    with pytest.raises(ValueError, match="shorter"):
        advance(state, [state], (0.5, 0.5), 1.0)


def test_implicit_schemes_survive_stiff_walls_that_explicit_ones_do_not():
    valley = RiverValley([1e5], floor_curvatures=[0.1])
    system = RISHD.from_optimizer(valley, alpha=1.0, eta=1.0, beta=1.0)
    w0 = np.array([2.0, 0.5])
    assert simulate(system, w0, h=0.5, steps=40, integrator="implicit-euler").ok
    assert simulate(system, w0, h=0.5, steps=200, integrator="rk4").status == "non-finite"


def test_newton_by_gmres_in_many_dimensions(rng):
    landscape = Quadratic.random(np.geomspace(100.0, 0.1, 60), seed=0)
    system = RISHD.from_optimizer(landscape, alpha=0.5, beta=0.2, eta=0.3)
    state = PhaseState(*rng.normal(size=(2, 3, 60)))
    new = ImplicitEuler(tolerance=1e-10).step(system, 0.0, state, 0.5)
    w_dot, m_dot = system.rates(0.5, *new)
    np.testing.assert_allclose(new.w - 0.5 * w_dot, state.w, atol=1e-7)
    np.testing.assert_allclose(new.m - 0.5 * m_dot, state.m, atol=1e-7)


def test_newton_that_does_not_converge_is_reported_with_its_member():
    class Kinked:
        def value(self, w):
            return np.abs(w).sum(-1)

        def gradient(self, w):
            return np.where(w > 0, 1e3, -1e3) * (w != 0)

    system = RISHD.from_optimizer(Kinked(), alpha=0.5, eta=1.0, beta=1.0)
    run = simulate(system, np.array([[0.0], [1.0]]), h=1.0, steps=5, integrator="implicit-euler")
    assert run.status == "integrator-failed"
    assert "implicit-euler at t = 0: Newton's method did not converge for member (1,)" in run.message


def test_ensemble_steps_are_each_members_own(rng):
    """A stiff member does not change the others' steps: their results are those of single runs."""
    eta = np.array([0.05, 0.3, 40.0])
    w0 = rng.normal(size=(3, 2))

    def run(eta, w0, scheme="ensemble-rk45", h=1.0, steps=4):
        return simulate(RISHD.from_optimizer(VALLEY, alpha=0.5, eta=eta), w0, h=h, steps=steps, integrator=scheme)

    together = run(eta, w0)
    assert together.ok
    for i in range(3):
        np.testing.assert_allclose(together.w[:, i], run(eta[i], w0[i]).w, atol=1e-12)
        exact = run(eta[i], w0[i], DOP853(rtol=1e-12), h=4.0, steps=1)
        np.testing.assert_allclose(together.w[-1, i], exact.w[-1], atol=1e-6)


def test_ensemble_member_that_blows_up_is_named_and_the_others_go_on():
    class Explosive:
        """f = −w⁴/4 reaches −∞ in finite time from w = 1, and rests at w = 0."""

        def value(self, w):
            return -(w**4).sum(-1) / 4

        def gradient(self, w):
            return -(w**3)

    system = RISHD.from_optimizer(Explosive(), alpha=0.1, eta=1.0)
    run = simulate(system, np.array([[0.01], [1.0]]), h=1.0, steps=8, integrator=EnsembleDormandPrince(rtol=1e-4))
    assert run.status == "non-finite"
    assert "member (1,)" in run.message
    assert np.isfinite(run.w[-1, 0]).all()
    assert run.times[-1] == 8.0


def test_ensemble_scheme_takes_time_dependent_coefficients():
    eta = TimeDependent(lambda t: 0.5 / (1 + t))
    system = RISHD.from_optimizer(VALLEY, alpha=0.5, beta=0.2, eta=eta)
    w0 = np.array([[1.0, 0.5], [-1.0, 0.2]])
    ours = simulate(system, w0, h=1.0, steps=3, integrator="ensemble-rk45")
    exact = simulate(system, w0, h=3.0, steps=1, integrator=DOP853(rtol=1e-12))
    np.testing.assert_allclose(ours.w[-1], exact.w[-1], atol=1e-7)


def test_strang_splitting_keeps_its_order_where_the_split_turns():
    """At β = 0 with a split the leapfrog would take Q at the old position; the midpoint rule replaces it."""
    valley = RiverValley([3.0], floor_curvatures=[0.3], amplitudes=0.8, frequency=0.9)
    system = RISHD.from_optimizer(valley, alpha=0.3, eta=0.3, chi=3.0, beta_flat=0.0, flat=valley.flat_split)
    start = np.array([1.5, 0.6])
    exact = simulate(system, start, h=2.0, steps=1, integrator=DOP853(rtol=1e-12, atol=1e-13)).w[-1]
    errors = [
        np.linalg.norm(simulate(system, start, h=2.0 / n, steps=n, integrator="strang").w[-1] - exact) for n in (20, 40)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.2)
