"""The test problems of the integrator study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from riemannian_ode import RISHD, ConstantMetric, Euclidean, Metric, StateDependentMetric
from riemannian_ode.coefficients import Coefficient
from riemannian_ode.flow import Array
from riemannian_ode.integrators import StepLimitError
from toy_landscapes import Landscape, Quadratic, RiverValley

ALPHA, ETA, _BETA = 0.5, 0.3, 0.2
_MEMBERS = 4  # random starts per problem
WORK_LIMIT = 10_000  # gradient evaluations per run: more than any scheme needs here, and at most a minute


def stopped_text(limit: int) -> str:
    """Status text of a stopped run.

    Args:
        limit: Number of gradient evaluations.
    """
    return f"work limit: stopped after {limit} gradient evaluations"


class CountedLandscape(Landscape):
    """A landscape that counts gradients and Hessian-vector products (one per whole ensemble), up to a limit.

    Args:
        inner: The landscape.
        limit: Largest number of evaluations.

    Raises:
        StepLimitError: (in ``gradient`` and ``hvp``) beyond the limit; ``simulate`` then ends with status
            ``"step-limit"``.
    """

    def __init__(self, inner: Landscape, *, limit: int = WORK_LIMIT) -> None:
        self.inner, self.gradients, self.limit = inner, 0, limit
        self.dimension, self.sharp_rank = inner.dimension, inner.sharp_rank

    def value(self, w: Array) -> Array:
        return self.inner.value(w)

    def gradient(self, w: Array) -> Array:
        self._count()
        return self.inner.gradient(w)

    def hessian(self, w: Array) -> Array:
        return self.inner.hessian(w)

    def hvp(self, w: Array, v: Array) -> Array:
        self._count()
        return self.inner.hvp(w, v)

    def _count(self) -> None:
        if self.gradients == self.limit:
            raise StepLimitError(stopped_text(self.limit))
        self.gradients += 1


@dataclass(frozen=True)
class Problem:
    """One flow of the study.

    Args:
        name: Name in tables.
        landscape: f.
        metric: F.
        beta: β; 0 for the state-dependent metric, so that every structured scheme applies.
        span: Length in units of time.
    """

    name: str
    landscape: Landscape
    metric: Metric
    beta: float
    span: float

    def system(self, landscape: Landscape, eta: Coefficient = ETA) -> RISHD:
        """The flow on the given (counting) landscape."""
        return RISHD.from_optimizer(landscape, self.metric, alpha=ALPHA, eta=eta, beta=self.beta)

    def starts(self, seed: int) -> np.ndarray:
        """Four random starts, shape ``(4, p)``."""
        return np.random.default_rng(seed).normal(0.0, 1.5, (_MEMBERS, self.landscape.dimension))


def problems() -> dict[str, Problem]:
    """Quadratic of condition number 10⁶, curved river valley, state-dependent metric."""
    import torch

    def curved(w: Any) -> Any:
        wave = torch.sin(w)
        return torch.diag(1.5 + 0.4 * torch.cos(w)) + 0.7 * torch.outer(wave, wave)

    valley = RiverValley([8.0], floor_curvatures=[0.05], floor_width=2.0, amplitudes=0.8, frequency=0.7)
    stiff = Quadratic.random(np.geomspace(1.0, 1e-6, 10), seed=0)
    rows = (
        Problem("quadratic 1e6", stiff, Euclidean(), _BETA, 20.0),
        Problem("curved valley", valley, ConstantMetric(np.diag([1.0, 2.0])), _BETA, 8.0),
        Problem("state-dependent metric", valley, StateDependentMetric(curved), 0.0, 6.0),
    )
    return {problem.name: problem for problem in rows}
