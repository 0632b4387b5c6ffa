"""Flows that test every integrator, from the most general one to those that special schemes need."""

import numpy as np

from riemannian_ode import RISHD, ConstantMetric, Metric, TimeDependent, simulate
from riemannian_ode.integrators.adaptive import DOP853
from rishd.claims.instances import rippled_quadratics
from toy_landscapes import Quadratic, RiverValley

REFERENCE = DOP853(rtol=1e-13, atol=1e-14)


class RankOneMetric(Metric):
    """F(w) = D + s(w) aaᵀ with s(w) = 1.3 + sin(c·w): state-dependent, coupled, and quick (no autograd)."""

    variation = "state"

    def __init__(self, p):
        rng = np.random.default_rng(7)
        self.diagonal, self.a, self.c = rng.uniform(0.8, 1.5, p), rng.normal(size=p), rng.normal(size=p)

    def strength(self, w):
        return 1.3 + np.sin((w * self.c).sum(-1, keepdims=True))

    def raise_index(self, w, covector):
        s, x = self.strength(w), covector / self.diagonal
        along = (self.a * x).sum(-1, keepdims=True)
        return x - s * along / (1.0 + s * (self.a**2 / self.diagonal).sum()) * self.a / self.diagonal

    def lower_index(self, w, vector):
        return self.diagonal * vector + self.strength(w) * (self.a * vector).sum(-1, keepdims=True) * self.a

    def correction(self, w, velocity, momentum):
        n, v = self.raise_index(w, momentum), velocity
        slope = np.cos((w * self.c).sum(-1, keepdims=True)) * self.c  # ∇s
        along_v, along_n = ((slope * x).sum(-1, keepdims=True) for x in (v, n))  # D_v s, D_n s
        a_v, a_n = ((self.a * x).sum(-1, keepdims=True) for x in (v, n))
        return 0.5 * ((along_v * a_n - along_n * a_v) * self.a + a_v * a_n * slope)


def random_metric(p):
    root = np.random.default_rng(11).normal(size=(p, p))
    return root @ root.T + np.eye(p)


def general(p=2):
    """Nonlinear, non-separable, a state-dependent metric, β ≠ 0, η(t)."""
    objective = rippled_quadratics(np.random.default_rng(3), 4, p)
    eta = TimeDependent(lambda t: 0.8 * np.exp(-0.05 * t), lambda t: -0.04 * np.exp(-0.05 * t))
    return RISHD.from_optimizer(objective, RankOneMetric(p), alpha=0.05, beta=0.05, eta=eta)


def undamped(p=2):
    """The general flow with β = 0 and constant coefficients."""
    objective = rippled_quadratics(np.random.default_rng(3), 4, p)
    return RISHD.from_optimizer(objective, RankOneMetric(p), alpha=0.05, eta=0.8)


def constant_metric():
    """A curved valley, with a Hessian, under a constant metric."""
    return RISHD.from_optimizer(
        RiverValley([3.0], amplitudes=0.8), ConstantMetric(random_metric(2)), alpha=0.05, beta=0.05, eta=0.8
    )


NONLINEAR = {"general": general, "undamped": undamped, "constant metric": constant_metric}
START = np.random.default_rng(5).normal(size=(4, 2))


def linear():
    """A quadratic with a random constant metric, and the generator of its flow on (w, m)."""
    alpha, beta, eta, p = 0.05, 0.05, 1.0, 3
    landscape, metric = Quadratic.random([2.0, 0.7, 0.3], seed=1), random_metric(p)
    inverse, h = np.linalg.inv(metric), landscape.matrix
    generator = np.block([[-eta * beta * inverse @ h, -eta * inverse], [h, -alpha * np.eye(p)]])
    return RISHD.from_optimizer(landscape, ConstantMetric(metric), alpha=alpha, beta=beta, eta=eta), generator


def hardest_for(scheme, problems=NONLINEAR):
    """The first problem that a scheme accepts, and its errors for the previous ones."""
    refusals = []
    for build in problems.values():
        system = build()
        try:
            simulate(system, START, h=0.01, steps=1, integrator=scheme)
        except ValueError as refusal:
            refusals.append(str(refusal))
        else:
            return system, refusals
    raise AssertionError(f"{scheme.name} takes none of the problems: {refusals}")


class Bowl:
    """½‖w‖² in two dimensions."""

    dimension = 2

    def value(self, w):
        return 0.5 * (w * w).sum(-1)

    def gradient(self, w):
        return w
