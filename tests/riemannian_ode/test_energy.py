"""Energy identities along trajectories (claims C2 and C4), and how they break."""

import numpy as np
import pytest
import torch

from riemannian_ode import (
    RISHD,
    ConstantSplit,
    Preconditioner,
    PreconditionerMetric,
    StateDependentMetric,
    TimeDependent,
    dissipation,
    energy_identity_residual,
    simulate,
    total_energy,
)
from riemannian_ode.integrators.adaptive import DOP853
from rishd.claims.instances import rippled_quadratics
from toy_landscapes import Quadratic


def curved(w):
    return torch.diag(0.4 + w**2) + 0.2 * torch.outer(torch.cos(w), torch.cos(w))


def _run(system, w0, integrator=None, steps=400, h=0.01):
    return simulate(system, w0, h=h, steps=steps, integrator=integrator or DOP853(rtol=1e-12, atol=1e-13))


@pytest.mark.parametrize("schedule", [False, True])
def test_identity_holds_with_the_correction_and_breaks_without(schedule):
    eta = TimeDependent(lambda t: 0.8 / (1 + 0.2 * t), lambda t: -0.16 / (1 + 0.2 * t) ** 2) if schedule else 0.8
    w0 = np.array([[2.0, -1.5], [0.5, 1.0]])
    residuals = []
    for correction in (True, False):
        system = RISHD.from_optimizer(
            Quadratic([1.0, 0.3]), StateDependentMetric(curved), alpha=0.2, beta=0.3, eta=eta, correction=correction
        )
        residuals.append(energy_identity_residual(system, _run(system, w0)).residual)
    assert residuals[0].max() <= 1e-8
    assert residuals[1].min() > 1e-3


def test_identity_with_a_learning_rate_ratio_that_varies():
    chi = TimeDependent(lambda t: 1.0 + 0.5 * t, lambda t: 0.5)
    system = RISHD.from_optimizer(
        Quadratic([2.0, 0.5]), alpha=0.3, eta=0.1, beta_flat=0.5, chi=chi, flat=ConstantSplit(np.eye(2)[:, :1])
    )
    assert energy_identity_residual(system, _run(system, np.array([1.0, -2.0]))).residual <= 1e-9


@pytest.mark.parametrize("nesterov", [0.0, 0.4])
def test_identity_with_a_split_and_a_gain(nesterov):
    """E = cf + (η/2)mᵀAm: the gain multiplies both parts of the damping."""
    flat = ConstantSplit(np.eye(2)[:, :1])
    system = RISHD.from_optimizer(
        Quadratic([2.0, 0.5]),
        alpha=0.3,
        eta=0.1,
        gain=0.3,
        beta=0.4,
        beta_flat=1.1,
        nesterov=nesterov,
        chi=2.5,
        flat=flat,
    )
    assert energy_identity_residual(system, _run(system, np.array([1.0, -2.0]))).residual <= 1e-9


def test_identity_with_lite_split():
    """C4: A and B constant and commuting; the flat part of the dissipation carries χβ₂."""
    objective = rippled_quadratics(np.random.default_rng(1), 3, 4)
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    system = RISHD.from_optimizer(
        objective, alpha=0.3, eta=0.1, beta=0.2, beta_flat=1.5, chi=2.5, flat=ConstantSplit(basis[:, :1])
    )
    w0 = np.random.default_rng(3).normal(size=(3, 4))
    run = _run(system, w0)
    balance = energy_identity_residual(system, run)
    assert balance.residual.max() <= 1e-9
    g = objective.gradient(w0)
    flat_gradient = g - (g @ basis[:, :1]) @ basis[:, :1].T
    part = dissipation(system, 0.0, w0, np.zeros_like(w0))
    np.testing.assert_allclose(part.flat, 0.1 * 2.5 * 1.5 * (flat_gradient**2).sum(-1), rtol=1e-13)


def test_energy_falls_when_the_hypotheses_hold():
    system = RISHD.from_optimizer(Quadratic([1.0, 0.3]), StateDependentMetric(curved), alpha=0.2, beta=0.3, eta=0.8)
    run = _run(system, np.array([2.0, -1.5]))
    energies = energy_identity_residual(system, run).energy
    assert (np.diff(energies) < 0).all()
    assert total_energy(system, 0.0, run.w[0], run.m[0]) == pytest.approx(energies[0])


def test_residual_is_of_the_integrators_order():
    system = RISHD.from_optimizer(Quadratic([1.0, 0.3]), alpha=0.2, beta=0.3, eta=0.8)
    w0 = np.array([2.0, -1.5])
    residuals = [
        energy_identity_residual(system, _run(system, w0, "rk4", steps=n, h=4.0 / n)).residual for n in (40, 80)
    ]
    assert 3.5 < np.log2(residuals[0] / residuals[1]) < 5.5


def test_second_order_coefficients_have_the_energy_too():
    system = RISHD.from_coefficients(
        Quadratic([1.0, 0.3]), StateDependentMetric(curved), alpha=0.5, beta=0.3, gamma=1.0
    )
    assert energy_identity_residual(system, _run(system, np.array([2.0, -1.5]))).residual <= 1e-9


def test_history_metrics_have_no_energy():
    system = RISHD.from_optimizer(Quadratic([1.0]), PreconditionerMetric(np.sign), alpha=0.2, eta=0.01)
    with pytest.raises(ValueError, match=r"not applicable.*declares its degree"):
        total_energy(system, 0.0, np.ones(1), np.ones(1))


class Power(Preconditioner):
    """∇φ of φ = Σ|m|^q/q, with a declared degree."""

    name = "power"
    is_linear = False

    def __init__(self, exponent, declared):
        self.exponent, self.declared = exponent, declared

    @property
    def degree(self):
        return self.declared

    def raise_index(self, memory, covector):
        return covector.sign() * covector.abs() ** (self.exponent - 1.0)


class SoftSign(Power):
    """∇φ of φ = Σ√(1 + m²), which is not homogeneous."""

    def raise_index(self, memory, covector):
        return covector / (1.0 + covector**2).sqrt()


@pytest.mark.parametrize("exponent", [1.5, 2.0, 3.0])
def test_any_homogeneous_potential_has_an_energy(exponent):
    objective = rippled_quadratics(np.random.default_rng(1), 3, 4)
    eta = TimeDependent(lambda t: 0.3 / (1 + 0.2 * t), lambda t: -0.06 / (1 + 0.2 * t) ** 2)
    system = RISHD.from_optimizer(
        objective, Power(exponent, exponent), alpha=0.3, eta=eta, nesterov=0.2, gain=0.7, decay=0.2, beta=0.1
    )
    w, m = np.random.default_rng(2).normal(size=(2, 3, 4))
    run = simulate(system, w, m + np.sign(m), h=0.005, steps=100, integrator=DOP853(rtol=1e-12, atol=1e-13))
    assert (run.m[0] * run.m[-1] > 0).all()  # no component passed 0, where the potential has a kink
    assert energy_identity_residual(system, run).residual.max() <= 1e-9
    value = objective.value(w) * 0.7 + 0.3 * (np.abs(m) ** exponent).sum(-1) / exponent + 0.3 * 0.2 * (w * m).sum(-1)
    np.testing.assert_allclose(total_energy(system, 0.0, w, m), value, rtol=1e-13)


def test_a_degree_that_is_missing_or_wrong_is_told():
    for preconditioner, message in (
        (SoftSign(1.0, None), "'power' declares no potential"),
        (SoftSign(1.0, 1.0), "declares degree = 1, but its direction at 2m is not 1 times"),
        (Power(3.0, 2.0), "correct the degree"),
    ):
        system = RISHD.from_optimizer(Quadratic([1.0, 2.0]), preconditioner, alpha=0.2, eta=0.01)
        for ask in (total_energy, dissipation):
            with pytest.raises(ValueError, match=message):
                ask(system, 0.0, np.ones(2), np.ones(2))


def test_eta_without_derivative_is_told():
    system = RISHD.from_optimizer(Quadratic([1.0]), alpha=0.2, eta=TimeDependent(lambda t: 0.1))
    with pytest.raises(ValueError, match="eta varies in time and its derivative is needed"):
        dissipation(system, 0.0, np.ones(1), np.ones(1))


def test_too_few_or_broken_states_are_told():
    system = RISHD.from_optimizer(Quadratic([1.0]), alpha=0.2, eta=0.1)
    with pytest.raises(ValueError, match="at least 6"):
        energy_identity_residual(system, simulate(system, np.ones(1), steps=2))
    broken = RISHD.from_optimizer(Quadratic([1.0]), alpha=0.2, eta=60.0)
    with pytest.raises(ValueError, match="non-finite energies"):
        energy_identity_residual(broken, simulate(broken, np.ones(1), steps=500))
