"""What a claim is: a function that returns evidence, and the verdict that follows from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

Verdict = Literal["proved", "holds", "refuted", "measured", "not applicable", "error"]


@dataclass(frozen=True)
class Identity:
    """An equality tried on random instances: the residuals must vanish up to a tolerance.

    Args:
        name: What is equal to what.
        residuals: One relative residual per instance, shape ``(instances,)``.
        tolerance: Largest residual that counts as zero; 0 asks for equality to the last bit.
        reason: Where the tolerance comes from.
    """

    name: str
    residuals: np.ndarray
    tolerance: float
    reason: str

    @property
    def strain(self) -> float:
        """Worst residual over its tolerance; of an equality to the last bit, the residual itself."""
        worst = float(self.residuals.max())
        return worst / self.tolerance if self.tolerance else worst

    @property
    def holds(self) -> bool:
        """Whether every residual is finite and within the tolerance."""
        return self.residuals.size > 0 and bool(np.all(self.residuals <= self.tolerance))  # NaN compares false


@dataclass(frozen=True)
class Bound:
    """An inequality tried on random instances.

    Args:
        name: What is bounded by what.
        tightness: measured / bound, one per instance, shape ``(instances,)``; above 1 refutes.
        slack: Excess over 1 that numerical error explains.
    """

    name: str
    tightness: np.ndarray
    slack: float = 1e-9

    @property
    def holds(self) -> bool:
        """Whether no instance exceeds the bound."""
        return self.tightness.size > 0 and bool(np.all(self.tightness <= 1.0 + self.slack))


@dataclass(frozen=True)
class Proof:
    """A symbolic proof.

    Args:
        name: What is proved, and in which generality.
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
        name: What it is.
        values: One per instance, shape ``(instances,)``.
    """

    name: str
    values: np.ndarray


Evidence: TypeAlias = Identity | Bound | Proof | Measurement


@dataclass(frozen=True)
class ClaimResult:
    """Verdict on a claim with its evidence.

    Args:
        key: C1, C2, …
        title: A few words.
        verdict: See :func:`verdict`.
        evidence: What was proved and tried.
        seconds: Wall-clock time.
        seed: Random seed of the instances.
        error: Message of an error, with the instances' seed; empty otherwise.
    """

    key: str
    title: str
    verdict: Verdict
    evidence: tuple[Evidence, ...]
    seconds: float
    seed: int
    error: str = ""

    @property
    def instances(self) -> int:
        """Fewest random instances behind any numerical part, 0 if there is none."""
        counts = [_values(part).size for part in self.evidence if not isinstance(part, Proof)]
        return min(counts, default=0)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "claim": self.key,
            "title": self.title,
            "verdict": self.verdict,
            "instances": self.instances,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
            "error": self.error,
            "evidence": [_part_as_dict(part) for part in self.evidence],
        }


def verdict(evidence: Sequence[Evidence]) -> Verdict:
    """Refuted if anything fails; else proved if a proof is there, holds if a trial is, measured otherwise."""
    checks = [part for part in evidence if not isinstance(part, Measurement)]
    if any(not part.holds for part in checks):
        return "refuted"
    if any(isinstance(part, Proof) for part in checks):
        return "proved"
    return "holds" if checks else ("measured" if evidence else "not applicable")


@dataclass(frozen=True)
class Claim:
    """A claim of the theory: its statement and the function that gathers evidence.

    Args:
        key: C1, C2, …
        title: A few words.
        gather: ``(rng, instances)`` ↦ evidence; its docstring has Statement, Hypotheses, Proof and Check.
    """

    key: str
    title: str
    gather: Callable[[np.random.Generator, int], Sequence[Evidence]] = field(repr=False)

    @property
    def statement(self) -> str:
        """The docstring of its function."""
        return self.gather.__doc__ or ""

    def run(self, *, seed: int, instances: int) -> ClaimResult:
        """Gather evidence; an error becomes the verdict "error", so that other claims go on."""
        start = time.perf_counter()
        evidence: tuple[Evidence, ...] = ()
        error = ""
        outcome: Verdict
        try:
            evidence = tuple(self.gather(np.random.default_rng([seed, int(self.key[1:])]), instances))
            outcome = verdict(evidence)
        except Exception as problem:  # a claim that breaks must not take the others with it
            outcome, error = "error", f"{type(problem).__name__}: {problem} (seed {seed})"
        return ClaimResult(self.key, self.title, outcome, evidence, time.perf_counter() - start, seed, error)


def _values(part: Evidence) -> np.ndarray:
    if isinstance(part, Identity):
        return part.residuals
    if isinstance(part, Bound):
        return part.tightness
    return part.values if isinstance(part, Measurement) else np.empty(0)


def _plain(value: Any) -> float | None:
    """A number that JSON has; NaN and infinity become ``None``."""
    return float(value) if np.isfinite(value) else None


def _part_as_dict(part: Evidence) -> dict[str, Any]:
    if isinstance(part, Proof):
        return {"kind": "proof", "name": part.name, "holds": part.holds, "residuals": [str(r) for r in part.residuals]}
    values = _values(part)
    row: dict[str, Any] = {
        "name": part.name,
        "instances": int(values.size),
        "worst": _plain(values.max()),
        "median": _plain(np.median(values)),
    }
    if isinstance(part, Identity):
        return {"kind": "identity", **row, "tolerance": part.tolerance, "reason": part.reason, "holds": part.holds}
    if isinstance(part, Bound):
        return {"kind": "bound", **row, "slack": part.slack, "holds": part.holds}
    return {"kind": "measurement", **row}
