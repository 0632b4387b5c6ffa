"""Evidence for claims: proofs, identities, bounds and measurements, and the resulting verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

Verdict = Literal["proved", "holds", "refuted", "measured", "not applicable", "error"]


@dataclass(frozen=True)
class Hypothesis:
    """A condition of a claim, checked on every instance.

    Args:
        name: Description of the condition.
        met: Whether each instance meets it, shape ``(instances,)``.
    """

    name: str
    met: np.ndarray


@dataclass(frozen=True)
class WorstCase:
    """The instance found by an optimiser that comes closest to a bound (or exceeds it most).

    Args:
        tightness: Its value/limit; 0 if no instance that meets the hypotheses was found.
        evaluations: Number of instances that the optimiser evaluated.
        parameters: The instance's parameters: name to number, or list of numbers.
    """

    tightness: float
    evaluations: int
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Identity:
    """An equality tested on random instances: the residuals must vanish up to a tolerance.

    Args:
        name: Description of the equality.
        residuals: One relative residual per instance, shape ``(instances,)``.
        tolerance: Largest residual that counts as zero; 0 asks for equality to the last bit.
        reason: Reason for the tolerance.
        hypotheses: Conditions; instances that violate one are "not applicable" and do not count.
    """

    name: str
    residuals: np.ndarray
    tolerance: float
    reason: str
    hypotheses: tuple[Hypothesis, ...] = ()

    @property
    def values(self) -> np.ndarray:
        """Residuals of the instances that meet the hypotheses."""
        return np.asarray(self.residuals[_applicable(self.residuals, self.hypotheses)])

    @property
    def strain(self) -> float:
        """Worst residual over the tolerance; the residual itself for equality to the last bit."""
        worst = float(self.values.max(initial=0.0))
        return worst / self.tolerance if self.tolerance else worst

    @property
    def holds(self) -> bool:
        """Whether every residual is finite and within the tolerance."""
        return bool(np.all(self.values <= self.tolerance))  # comparisons with NaN are false


@dataclass(frozen=True)
class Constant(Identity):
    """A number in the code, compared with the number from the proof."""


@dataclass(frozen=True)
class Attained(Identity):
    """A bound on instances that attain it: residuals are 1 − tightness, so zero shows that no smaller bound holds."""


@dataclass(frozen=True)
class Bound:
    """An inequality value ≤ limit tested on random instances and by an adversary.

    Args:
        name: Description of the bound.
        value: The smaller side, one per instance, shape ``(instances,)``.
        limit: The larger side, the same shape.
        slack: Excess of value/limit over 1 allowed for numerical error.
        hypotheses: Conditions; instances that violate one are "not applicable" and do not count.
        adversary: Worst case found by an optimiser over the instance's parameters.
        ranges: Ranges of the instances' parameters: name to description.
    """

    name: str
    value: np.ndarray
    limit: np.ndarray
    slack: float = 1e-9
    hypotheses: tuple[Hypothesis, ...] = ()
    adversary: WorstCase | None = None
    ranges: Mapping[str, str] = field(default_factory=dict)

    @property
    def values(self) -> np.ndarray:
        """Tightness, value/limit, of the instances that meet the hypotheses; above 1 refutes."""
        return np.asarray(tightness(self.value, self.limit)[_applicable(self.value, self.hypotheses)])

    @property
    def worst(self) -> float:
        """Largest tightness found, at random or by the adversary."""
        found = 0.0 if self.adversary is None else self.adversary.tightness
        return max(float(self.values.max(initial=0.0)), found)

    @property
    def holds(self) -> bool:
        """Whether no instance exceeds the bound."""
        seen = self.values if self.adversary is None else np.append(self.values, self.adversary.tightness)
        return bool(np.all(seen <= 1.0 + self.slack))  # comparisons with NaN are false


@dataclass(frozen=True)
class Proof:
    """A symbolic proof.

    Args:
        name: What is proved, and how generally.
        residuals: SymPy expressions that must all be zero.
    """

    name: str
    residuals: Sequence[Any]

    @property
    def holds(self) -> bool:
        """Whether every residual simplified to zero."""
        return all(residual == 0 for residual in self.residuals)


@dataclass(frozen=True)
class Measurement:
    """A quantity reported without a bound.

    Args:
        name: Description of the quantity.
        values: One per instance, shape ``(instances,)``.
    """

    name: str
    values: np.ndarray


Evidence: TypeAlias = Identity | Bound | Proof | Measurement


@dataclass(frozen=True)
class Curve:
    """A curve of a panel.

    Args:
        label: Label in the legend; empty for none.
        x: Abscissae.
        y: Ordinates, the same shape.
        role: How it is drawn: as a measurement, a bound, a reference, or points.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    role: Literal["measured", "bound", "reference", "points"] = "measured"


@dataclass(frozen=True)
class Panel:
    """Data of a claim's illustration; :mod:`rishd.report.claim_figures` draws it.

    Args:
        title: Title.
        xlabel: Label of the x-axis with its unit.
        ylabel: Label of the y-axis with its unit.
        curves: The curves.
        log: Which axes are logarithmic: "", "x", "y" or "xy".
    """

    title: str
    xlabel: str
    ylabel: str
    curves: tuple[Curve, ...]
    log: Literal["", "x", "y", "xy"] = ""


def tightness(value: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Ratio value/limit; if the limit is not positive, 0 if the value does not exceed it, else ∞."""
    positive = limit > 0
    ratio = np.divide(value, np.where(positive, limit, 1.0))
    ratio = np.where(positive, ratio, np.where(value <= limit, 0.0, np.inf))
    return np.asarray(np.where(np.isnan(value) | np.isnan(limit), np.nan, ratio))


def verdict(evidence: Sequence[Evidence]) -> Verdict:
    """Refuted if anything fails; not applicable if a trial has no valid instance; else proved, holds or measured."""
    if any(not part.holds for part in evidence if not isinstance(part, Measurement)):
        return "refuted"
    if not evidence or any(part.values.size == 0 for part in evidence if not isinstance(part, Proof)):
        return "not applicable"
    if any(isinstance(part, Proof) for part in evidence):
        return "proved"
    return "measured" if all(isinstance(part, Measurement) for part in evidence) else "holds"


def as_dict(part: Evidence) -> dict[str, Any]:
    """Plain data of one piece of evidence for JSON; NaN and infinity become ``None``."""
    if isinstance(part, Proof):
        return {"kind": "proof", "name": part.name, "holds": part.holds, "residuals": [str(r) for r in part.residuals]}
    values = part.values
    row: dict[str, Any] = {
        "name": part.name,
        "instances": int(values.size),
        "worst": _plain(values.max(initial=-np.inf)),
        "median": _plain(np.median(values)) if values.size else None,
    }
    if isinstance(part, Measurement):
        return {"kind": "measurement", **row}
    row["hypotheses"] = {hypothesis.name: int(hypothesis.met.sum()) for hypothesis in part.hypotheses}
    if isinstance(part, Identity):
        row["not_applicable"] = int(part.residuals.size - values.size)
        return {"kind": "identity", **row, "tolerance": part.tolerance, "reason": part.reason, "holds": part.holds}
    row["not_applicable"] = int(part.value.size - values.size)
    row["ranges"] = dict(part.ranges)
    if part.adversary is not None:
        row["adversary"] = {
            "tightness": _plain(part.adversary.tightness),
            "evaluations": part.adversary.evaluations,
            "parameters": dict(part.adversary.parameters),
        }
    return {"kind": "bound", **row, "slack": part.slack, "holds": part.holds}


def _applicable(values: np.ndarray, hypotheses: Sequence[Hypothesis]) -> np.ndarray:
    return np.asarray(np.all([np.ones(values.shape, dtype=bool), *(part.met for part in hypotheses)], axis=0))


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
