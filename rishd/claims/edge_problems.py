"""Full-batch training at the edge of stability for claim C21: four problems, three methods, and their flows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from discretizations.central_flow import CentralFlow, CentralPath
from discretizations.constant_rule import ConstantRule, split_rule
from toy_landscapes import BigramModel, Quadratic, StraightValley, TinyTransformer, TwoLayerNetwork

_FILTER = 8  # times that the filter (1, 2, 1)/4 is applied: it removes period-2 oscillation and keeps slow motion
_POINTS = 10  # number of times at which the averages' sharpness is evaluated
_START = 4  # the flow starts after this fraction of a run, since the claim does not cover the approach to the edge


@dataclass(frozen=True)
class Setting:
    """A method on a problem.

    Args:
        problem: Key of :data:`PROBLEMS`.
        method: Key of :func:`coefficients`.
        alpha: α.
        steps: Steps of the update rule.
        h: Step size of the flow.
        jitter: Standard deviation of gradient noise, which an oscillation needs in order to grow.
        sharpness: ηS at the start, which sets η.
        own: χ, β₁ and β₂ instead of the method's.
    """

    problem: str
    method: str
    alpha: float
    steps: int
    h: int = 2
    jitter: float = 1e-4
    sharpness: float = 1.9
    own: tuple[float, float, float] | None = None

    @property
    def clock_ratio(self) -> float:
        """ρ of the block with less damping, which has the larger ρ."""
        _, *dampings = self.own or coefficients(self.method, self.alpha)
        return clock_ratio(self.alpha, min(dampings))


@dataclass(frozen=True)
class Comparison:
    """Averages of training, the central flow and gradient flow over the second half of the flows' time.

    Args:
        setting: The setting.
        loss: Mean loss of training (at the averaged iterate), the central flow and gradient flow.
        sharpness: Mean ηS of the same three.
        variance: Mean variance of the oscillation in the norm of D⁻¹, in training and in the central flow.
        path: The central flow.
        plain: Gradient flow.
        averaged: Loss at the averaged iterate, at the times of ``path``.
        measured: The oscillation's variance at these times.
    """

    setting: Setting
    loss: tuple[float, float, float]
    sharpness: tuple[float, float, float]
    variance: tuple[float, float]
    path: CentralPath
    plain: CentralPath
    averaged: np.ndarray
    measured: np.ndarray

    @property
    def variance_ratio(self) -> float:
        """The oscillation's mean variance over the central flow's; 0 if the flow does not oscillate."""
        return self.variance[0] / self.variance[1] if self.variance[1] else 0.0

    @property
    def gap_ratio(self) -> float:
        """Distance of the loss to the central flow's, relative to its distance to gradient flow's."""
        own, central, plain = self.loss
        return abs(central - own) / abs(plain - own)


def coefficients(method: str, alpha: float) -> tuple[float, float, float]:
    """χ, β₁ and β₂ of a method, in the theory's units."""
    nesterov = 1.0 / (1.0 - alpha)
    return {"momentum": (1.0, 0.0, 0.0), "Nesterov": (1.0, nesterov, nesterov), "LITE": (2.0, 1.0, 5.0)}[method]


def clock_ratio(alpha: float, beta: float) -> float:
    """ρ, the ratio of the clocks of the average and of the oscillation."""
    return (1.0 / alpha + beta) / (1.0 / (2.0 - alpha) + beta)


def _valley() -> tuple[Any, np.ndarray]:
    basis = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    walls = StraightValley(
        Quadratic([0.02, 0.015, 0.01, 0.005]),
        [4.0, 3.9, 3.7],
        variation=basis @ np.diag([1.2, 1.0, 0.8]) @ basis.T,
        frequency=np.array([0.3, 0.35, 0.4, 0.45]),
    )
    return walls, np.array([-2.0, -1.5, -1.0, -1.0, 0.3, 0.2, 0.1])


def _tanh() -> tuple[Any, np.ndarray]:
    network = TwoLayerNetwork.teacher_student(inputs=5, width=6, outputs=2, samples=24, noise=0.5, seed=0)
    return network, network.initial(1)


def _softplus() -> tuple[Any, np.ndarray]:
    network = TwoLayerNetwork.teacher_student(
        inputs=4, width=8, outputs=3, samples=20, noise=0.7, activation="softplus", seed=2
    )
    return network, network.initial(5)


def _transformer() -> tuple[Any, np.ndarray]:
    """A tiny transformer after 260 steps of momentum, which bring it to the edge."""
    chain = np.random.default_rng(0).dirichlet(np.full(4, 0.3), size=4) + 1e-3
    model = BigramModel(chain / chain.sum(1, keepdims=True))
    landscape = TinyTransformer.on_bigrams(model, sequences=8, length=4, width=4, hidden=4, seed=0)
    w = landscape.initial(1)
    for name in ("embedding.weight", "position.weight"):
        w[landscape.layout[name].coordinates] *= 3.0  # RMSNorm is well behaved for large inputs
    rule = split_rule(eta=0.36, alpha=0.5, sharp=np.zeros((landscape.dimension, 0)))
    m = np.zeros_like(w)
    for _ in range(260):
        w, m = rule.step(w, m, landscape.gradient(w))
    return landscape, w


PROBLEMS: dict[str, Callable[[], tuple[Any, np.ndarray]]] = {
    "valley": _valley,
    "tanh network": _tanh,
    "softplus network": _softplus,
    "transformer": _transformer,
}
SETTINGS = (
    Setting("valley", "momentum", 0.6, 800),
    Setting("valley", "Nesterov", 0.3, 800),
    Setting("valley", "LITE", 0.3, 800),
    Setting("tanh network", "momentum", 0.6, 800),
    Setting("tanh network", "Nesterov", 0.3, 1000),
    Setting("tanh network", "LITE", 0.3, 700),
    Setting("softplus network", "momentum", 0.6, 1000),
    Setting("softplus network", "Nesterov", 0.3, 1000),
    Setting("softplus network", "LITE", 0.3, 700),
    Setting("transformer", "momentum", 0.5, 240, 4, 1e-5),
    Setting("transformer", "Nesterov", 0.5, 300, 5, 1e-5),
    Setting("transformer", "LITE", 0.5, 120, 4, 1e-5),
)


def compare_at_drawn_start(
    landscape: Any, start: np.ndarray, setting: Setting, rng: np.random.Generator
) -> Comparison | None:
    """:func:`compare` with random initial sharpness and random weights of a two-layer network."""
    sharpness, seed = float(rng.uniform(1.6, 1.9)), int(rng.integers(1000))
    start = landscape.initial(seed) if isinstance(landscape, TwoLayerNetwork) else start
    return compare(landscape, start, replace(setting, sharpness=sharpness), rng)


def compare(landscape: Any, start: np.ndarray, setting: Setting, rng: np.random.Generator) -> Comparison | None:
    """Train, average the iterates, and follow the averages with both flows.

    Args:
        landscape: The problem.
        start: Start of training.
        setting: Method and lengths.
        rng: Random generator of the jitter.

    Returns:
        The comparison; ``None`` if training diverges.
    """
    rule = edge_rule(landscape, start, setting)
    path, m = [start], np.zeros_like(start)
    for _ in range(setting.steps):
        noise = setting.jitter * rng.normal(size=start.shape)
        w, m = rule.step(path[-1], m, landscape.gradient(path[-1]) + noise)
        if not np.abs(w).max() < 1e3:
            return None
        path.append(w)
    whole = np.array(path)
    mean = _smoothed(whole)
    oscillation = whole[_FILTER:-_FILTER] - mean
    variance = np.einsum("ki,ij,kj->k", oscillation, np.linalg.inv(rule.edge_metric), oscillation)
    begin = setting.steps // _START
    steps = (len(mean) - 1 - begin) // setting.h
    at = begin + setting.h * np.arange(steps + 1)
    flow, plain = (CentralFlow(landscape, rule, oscillates=on) for on in (True, False))
    first, late = mean[begin], steps // 2
    paths = (
        flow.simulate(first, h=float(setting.h), steps=steps),
        plain.simulate(first, h=2.0 * setting.h, steps=steps // 2),
    )
    averaged = landscape.value(mean[at])
    points = at[late :: max(1, (steps - late) // _POINTS)]
    own = np.mean([flow.modes(landscape.hessian(w)).sharpness[0] for w in mean[points]])
    return Comparison(
        setting,
        (_mean(averaged), _mean(landscape.value(paths[0].w)), _mean(landscape.value(paths[1].w))),
        (float(own), _mean(paths[0].sharpness), _mean(paths[1].sharpness)),
        (float(variance[at[late] :].mean()), _mean(paths[0].variance)),
        *paths,
        averaged,
        variance[at],
    )


def _mean(values: np.ndarray) -> float:
    """Mean over the second half."""
    return float(_late(values).mean())


def _late(values: np.ndarray) -> np.ndarray:
    return values[len(values) // 2 :]


def edge_rule(landscape: Any, start: np.ndarray, setting: Setting) -> ConstantRule:
    """The method's rule, with η from the sharpness at the start and the split from the Hessian there."""
    chi, beta_sharp, beta_flat = setting.own or coefficients(setting.method, setting.alpha)
    hessian = landscape.hessian(start)
    rank = max(1, landscape.dimension // 10) if landscape.dimension > 8 else landscape.sharp_rank
    rule = split_rule(
        eta=1.0,
        alpha=setting.alpha,
        sharp=np.linalg.eigh(hessian)[1][:, -rank:],
        chi=chi,
        beta_sharp=beta_sharp,
        beta_flat=beta_flat,
    )
    return replace(rule, eta=setting.sharpness / float(CentralFlow(landscape, rule).modes(hessian).sharpness[0]))


def _smoothed(path: np.ndarray) -> np.ndarray:
    for _ in range(_FILTER):
        path = 0.25 * (path[:-2] + 2.0 * path[1:-1] + path[2:])
    return path
