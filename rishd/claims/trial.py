"""Trials of bounds on random instances from a box of parameters, with an adversary that searches the same box."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from scipy import optimize

from rishd.claims.evidence import Bound, Hypothesis, WorstCase, tightness

_BEYOND = 1e9  # score of a violated bound without a ratio; finite, so that the optimiser can compare
_POPULATION = 48  # members per generation, simulated as one ensemble


@dataclass(frozen=True)
class Range:
    """Range from which a parameter is drawn uniformly.

    Args:
        low: Smallest value.
        high: Largest value.
        size: Numbers per instance; 1 gives arrays of shape ``(n,)``, more of shape ``(n, size)``.
        log: Whether the logarithm is drawn uniformly.
    """

    low: float
    high: float
    size: int = 1
    log: bool = False

    def at(self, unit: np.ndarray) -> np.ndarray:
        """Values at coordinates in [0, 1]."""
        if self.log:
            return np.asarray(self.low * (self.high / self.low) ** unit)
        return self.low + (self.high - self.low) * unit

    def __str__(self) -> str:
        law = "log-uniform" if self.log else "uniform"
        return f"{law} in [{self.low:g}, {self.high:g}]" + (f", {self.size} numbers" if self.size > 1 else "")


Parameters: TypeAlias = Mapping[str, np.ndarray]
Box: TypeAlias = Mapping[str, Range]


@dataclass(frozen=True)
class Inequality:
    """The inequality value ≤ limit on every instance that meets the hypotheses; arrays of shape ``(n,)``."""

    value: np.ndarray
    limit: np.ndarray
    hypotheses: Mapping[str, np.ndarray] = field(default_factory=dict)


Trial: TypeAlias = Callable[[Parameters], Mapping[str, Inequality]]


def draw(box: Box, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Parameters of n random instances."""
    return _parameters(box, rng.random((n, _dimension(box))))


def try_bounds(
    trial: Trial, box: Box, rng: np.random.Generator, instances: int, *, slack: float = 1e-9, attacked: bool = True
) -> list[Bound]:
    """Test bounds on random instances of a box, and attack each by differential evolution over the box.

    The adversary starts from the tightest random instances and evaluates as many more as there were random ones,
    divided among the bounds. Instances that violate a hypothesis count as tightness 0.

    Args:
        trial: Parameters of n instances ↦ the inequalities, by name.
        box: Ranges of the parameters.
        rng: Random generator.
        instances: Number of random instances.
        slack: See :class:`~rishd.claims.evidence.Bound`.
        attacked: Whether there is an adversary.
    """
    points = rng.random((instances, _dimension(box)))
    found = trial(_parameters(box, points))
    return [
        Bound(
            name,
            tried.value,
            tried.limit,
            slack,
            tuple(Hypothesis(condition, met) for condition, met in tried.hypotheses.items()),
            _worst_case(trial, name, box, points, _scores(tried), instances // len(found), rng) if attacked else None,
            {key: str(interval) for key, interval in box.items()},
        )
        for name, tried in found.items()
    ]


def _worst_case(
    trial: Trial,
    name: str,
    box: Box,
    points: np.ndarray,
    scores: np.ndarray,
    evaluations: int,
    rng: np.random.Generator,
) -> WorstCase:
    size = min(_POPULATION, len(points))
    tightest = np.argsort(-scores, kind="stable")[:size]
    fill = rng.random((max(0, 5 - size), points.shape[1]))  # differential evolution wants at least five members
    population = np.concatenate([points[tightest], fill])
    generations = max(1, round(evaluations / len(population)))

    def tried(units: np.ndarray) -> np.ndarray:
        return _scores(trial(_parameters(box, units))[name])

    # The search requests its first members again, whose simulation is already known.
    known = [np.concatenate([scores[tightest], tried(fill) if len(fill) else []])]
    search: Any = optimize.differential_evolution  # its type annotations do not allow vectorised objectives
    result = search(
        lambda unit: -(known.pop() if known else tried(unit.T)),
        [(0.0, 1.0)] * points.shape[1],
        init=population,
        maxiter=generations,
        vectorized=True,
        updating="deferred",
        polish=False,
        tol=0.0,
        seed=rng,
    )
    worst = _parameters(box, np.atleast_2d(result.x))
    found = max(float(-result.fun), 0.0)
    plain = {key: np.round(value[0], 6).tolist() for key, value in worst.items()}
    return WorstCase(found, int(result.nfev) * len(population), plain if found > 0 else {})


def _scores(tried: Inequality) -> np.ndarray:
    """Tightness; 0 if a hypothesis is violated, and huge for NaN, so that such a failure is found."""
    met = np.all([np.ones(tried.value.shape, dtype=bool), *tried.hypotheses.values()], axis=0)
    score = np.nan_to_num(tightness(tried.value, tried.limit), nan=_BEYOND, posinf=_BEYOND, neginf=-_BEYOND)
    return np.where(met, score, 0.0)


def _dimension(box: Box) -> int:
    return sum(interval.size for interval in box.values())


def _parameters(box: Box, unit: np.ndarray) -> dict[str, np.ndarray]:
    out, start = {}, 0
    for name, interval in box.items():
        columns = unit[:, start : start + interval.size]
        out[name] = interval.at(columns[:, 0] if interval.size == 1 else columns)
        start += interval.size
    return out
