"""Objectives with kinks: a scheme that gives up names the jump; smooth objectives have no false alarms."""

import numpy as np
import pytest
import torch

from riemannian_ode import INTEGRATORS, RISHD, PhaseState, integrator, simulate
from riemannian_ode.integrators.adaptive import RK45
from riemannian_ode.integrators.implicit import ImplicitMidpoint
from riemannian_ode.smoothness import describe_jump
from toy_landscapes import Quadratic, RiverValley


class Kinks:
    """Σ c_i |w_i|."""

    def __init__(self, slopes):
        self.slopes = slopes

    def value(self, w):
        return (abs(w) * self.slopes).sum(-1)

    def gradient(self, w):
        return self.slopes * (np.sign(w) if isinstance(w, np.ndarray) else torch.sign(w))


AT_ONES = PhaseState(np.ones(2), np.ones(2))
GIVES_UP = [name for name, scheme in INTEGRATORS.items() if scheme.implicit or scheme.adaptive]


def scheme(name):
    chosen = integrator(name)
    if INTEGRATORS[name].adaptive:
        chosen.max_steps = 200
    return chosen


@pytest.mark.parametrize("name", GIVES_UP)
def test_a_scheme_that_gives_up_at_a_kink_says_so(name):
    start = np.array([0.1, 0.07])
    if name == "implicit-euler":
        start = torch.as_tensor(start)
    system = RISHD.from_optimizer(Kinks(1.0), alpha=0.5, eta=0.1, beta=0.5)
    run = simulate(system, start, steps=50, integrator=scheme(name))
    assert run.status in ("integrator-failed", "step-limit")
    assert "the gradient jumps by 2 in coordinate" in run.message
    for misleading in ("take a smaller step", "stiff for it", "looser rtol"):
        assert misleading not in run.message


@pytest.mark.parametrize("name", ["implicit-midpoint", "ensemble-rk45", "lsoda"])
def test_the_member_at_the_kink_is_named_and_the_others_go_on(name):
    slopes = np.array([[0.0], [3.0], [0.0]]) if name != "lsoda" else np.array([[0.0], [3.0], [1e-6]])
    system = RISHD.from_optimizer(Kinks(slopes), alpha=0.5, eta=0.1, beta=0.5)
    run = simulate(system, np.full((3, 1), 0.1), steps=10, integrator=scheme(name))
    assert "jumps by 6 in coordinate 0" in run.message
    assert "the gradient of member (1,) jumps" in run.message
    if name != "lsoda":  # which shares its steps, and so its limit
        assert list(run.causes != "") == [False, True, False]


def test_a_split_that_jumps_is_told_from_a_gradient_that_does():
    def flat(point):
        sharp = np.where(point.w[..., :1] > 0.5, np.array([0.0, 1.0]), np.array([1.0, 0.0]))
        return lambda x: sharp * x

    system = RISHD.from_optimizer(Quadratic([1.0, 0.5]), alpha=0.3, eta=1.0, flat=flat, chi=3.0, beta_flat=2.0)
    run = simulate(system, np.ones(2), h=0.5, steps=40, integrator=ImplicitMidpoint(tolerance=1e-15))
    message = run.message if run.status == "integrator-failed" else describe_jump(system, 0.0, AT_ONES, 2.0)
    assert "the metric or the split jumps" in message


@pytest.mark.parametrize(
    ("objective", "eta"), [(RiverValley([1e6]), 1.0), (Quadratic([1e9, 1.0]), 1.0), (Quadratic([-2.0, 5.0]), 0.1)]
)
def test_stiffness_is_not_taken_for_a_jump(objective, eta):
    system = RISHD.from_optimizer(objective, alpha=1.0, eta=eta, beta=1.0)
    start = np.array([2.0, 0.8])
    assert describe_jump(system, 0.0, PhaseState(start, 0.0 * start), 1.0) == ""
    run = simulate(system, start, steps=2, integrator=RK45(max_steps=200))
    assert run.ok or "stiff" in run.message


def test_a_gradient_that_raises_once_the_scheme_has_given_up_does_not_hide_why(monkeypatch):
    system = RISHD.from_optimizer(Kinks(1.0), alpha=0.5, eta=0.1, beta=0.5)

    def outside(*_):
        raise ZeroDivisionError("outside of the objective's domain")

    monkeypatch.setattr("riemannian_ode.run.describe_jump", outside)
    run = simulate(system, np.array([0.1, 0.07]), steps=50, integrator=scheme("rk45"))
    assert run.status == "step-limit"
    assert "rtol" in run.message
