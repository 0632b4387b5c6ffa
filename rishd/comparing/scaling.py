r"""Power laws over sizes or token budgets, as in Fig. 3 of arXiv:2602.22681."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit, nnls

from rishd.comparing.statistics import Comparison, VariantResult
from rishd.record import Record

Axis: TypeAlias = Literal["tokens", "parameters"]
_FOR_FLOOR = 4  # points from which an irreducible loss is also fitted, with one degree of freedom left


@dataclass(frozen=True)
class PowerLaw(Record):
    r"""One variant's fit :math:`L(x) = E + (x/x_0)^{-a}`.

    Args:
        variant: Its name.
        axis: Meaning of x: training tokens, or parameters without embedding and head.
        x: Values, ascending, shape ``(points,)``.
        loss: Mean final validation losses, nats per token, shape ``(points,)``.
        exponent: a.
        scale: x₀.
        floor: E; 0 if there are too few points for it.
        error: Standard error of a; NaN if the fit has no degree of freedom left.
        advantage: Factor by which the baseline needs more x for this variant's loss at the largest x; NaN without a
            baseline.
    """

    variant: str
    axis: Axis
    x: np.ndarray
    loss: np.ndarray
    exponent: float
    scale: float
    floor: float
    error: float
    advantage: float = float("nan")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """L(x)."""
        return self.floor + (np.asarray(x) / self.scale) ** -self.exponent

    def inverse(self, loss: float) -> float:
        """The x at which the law reaches a loss; NaN at or below the floor."""
        return float(self.scale * (loss - self.floor) ** (-1.0 / self.exponent)) if loss > self.floor else float("nan")

    @property
    def sentence(self) -> str:
        """The law, and how far ahead of the baseline it is."""
        floor = f"{self.floor:.3f} + " if self.floor else ""
        error = f" ± {self.error:.3f}" if np.isfinite(self.error) else ""
        text = f"{self.variant}: loss = {floor}({self.axis}/{self.scale:.3g})^-{self.exponent:.3f}{error}"
        if np.isfinite(self.advantage):
            text += f"; at {self.x[-1]:.3g} {self.axis} the baseline needs {self.advantage:.2f} times as many"
        return text


def scaling_laws(comparison: Comparison) -> tuple[list[PowerLaw], list[str]]:
    """A law for each variant with at least two cells that differ in tokens or in parameters, but not in both.

    Args:
        comparison: Statistics of all runs.

    Returns:
        The laws, and the reasons why some variants have none.
    """
    laws: dict[str, PowerLaw] = {}
    complaints = []
    for name in dict.fromkeys(row.variant for row in comparison.results):
        rows = [row for row in comparison.results if row.variant == name and row.loss is not None]
        axis = _axis(rows)
        if axis is None:
            continue
        points = sorted((float(getattr(row, axis)), row.loss.mean) for row in rows if row.loss is not None)
        x, loss = np.array(points).T
        if np.all(np.isfinite(loss)) and np.all(loss > 0):
            try:
                laws[name] = fit_power_law(name, axis, x, loss)
            except (ValueError, ArithmeticError, RuntimeError) as problem:  # no decrease, almost none, no convergence
                complaints.append(f"{name} has no scaling law: {problem}")
    base = laws.get(comparison.baseline or "")
    if base is None:
        return list(laws.values()), complaints
    related = [
        law
        if law is base or law.axis != base.axis
        else replace(law, advantage=base.inverse(float(law(law.x[-1]))) / float(law.x[-1]))
        for law in laws.values()
    ]
    return related, complaints


def fit_power_law(variant: str, axis: Axis, x: np.ndarray, loss: np.ndarray) -> PowerLaw:
    """Least squares in the losses.

    Args:
        variant: Name, for the record.
        axis: Meaning of x.
        x: At least two distinct values, ascending, shape ``(points,)``.
        loss: Positive, shape ``(points,)``.

    Raises:
        ValueError: if no law fits: the losses do not fall with x.
    """
    if not np.polyfit(np.log(x), loss, 1)[0] < 0:
        raise ValueError(
            f"the losses of {variant} do not fall with its {axis} ({', '.join(f'{v:.4f}' for v in loss)}); there is no "
            "power law to fit. Train longer, or look at the learning rates."
        )
    middle = float(np.exp(np.log(x).mean()))  # where exponent and height are nearly independent
    has_floor = len(x) >= _FOR_FLOOR

    def law(x: np.ndarray, exponent: float, height: float, floor: float = 0.0) -> np.ndarray:
        value: np.ndarray = floor + height * (x / middle) ** -exponent
        return value

    start = _best_of_grid(x / middle, loss, has_floor=has_floor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # no covariance without degrees of freedom
        found, covariance = curve_fit(law, x, loss, p0=start, bounds=(0.0, np.inf))
    exponent, height = float(found[0]), float(found[1])
    error = float(np.sqrt(covariance[0, 0])) if len(x) > len(found) else float("nan")
    floor = float(found[2]) if has_floor else 0.0
    return PowerLaw(variant, axis, x, loss, exponent, middle * height ** (1.0 / exponent), floor, error)


def _best_of_grid(x: np.ndarray, loss: np.ndarray, *, has_floor: bool) -> list[float]:
    """Start for the fit: for each exponent of a grid, height and floor are a linear problem."""
    best: tuple[float, list[float]] = (np.inf, [])
    for exponent in np.geomspace(1e-2, 3.0, 60):
        power = x**-exponent
        columns = np.stack([power, np.ones_like(x)], axis=-1)[:, : 1 + has_floor]
        values, residual = nnls(columns, loss)
        if residual < best[0] and values[0] > 0:
            best = (float(residual), [float(exponent), *(max(float(value), 1e-12) for value in values)])
    return best[1]


def _axis(rows: Sequence[VariantResult]) -> Axis | None:
    axes: tuple[Axis, ...] = ("tokens", "parameters")
    distinct = {axis: len({getattr(row, axis) for row in rows}) for axis in axes}
    varying = [axis for axis in axes if distinct[axis] > 1]
    return varying[0] if len(varying) == 1 and distinct[varying[0]] == len(rows) else None
