r"""Claims: a statement, and a function that gathers evidence for it.

The statement is in the docstring of the function, in reStructuredText. After a summary line come sections, each
starting with its heading: *Statement*, *Hypotheses*, *Proof*, *Check*, *Source*. Proved bounds also have *Sharpness*
(which instances attain the bound, or that none is known), and unexpected results have *Finding* (a published statement
that fails, a better constant). Formulas are written as ``:math:`\dot w = -\eta F^{-1}(m + \beta g)``` within a line, or
as a separate block ``.. math::``; the docs and the report typeset them. Plain Unicode such as β ≥ 0 is shown unchanged.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from riemannian_ode.registry import Registry
from rishd.claims.evidence import (
    Attained,
    Bound,
    Constant,
    Evidence,
    Identity,
    Measurement,
    Panel,
    Verdict,
    as_dict,
    verdict,
)

Gather: TypeAlias = Callable[[np.random.Generator, int], Sequence[Evidence | Panel]]

_HEADING = re.compile(r"^(Statement|Hypotheses|Proof|Check|Sharpness|Finding|Source):\s+", re.MULTILINE)


def claim_keys(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Keys of claims given by key or number, in registry order: C8 means C8 and C8b, C8b only itself.

    Args:
        names: Keys and numbers.
        known: All known keys.

    Returns:
        The keys; unknown names come last.
    """
    ordered, wanted = tuple(known), tuple(names)
    found = {
        name: [key for key in ordered if key == name or re.fullmatch(re.escape(name) + "[a-z]", key)] for name in wanted
    }
    every = {key for keys in found.values() for key in keys}
    return (*(key for key in ordered if key in every), *(name for name, keys in found.items() if not keys))


@dataclass(frozen=True)
class ClaimResult:
    """Verdict on a claim with its evidence.

    Args:
        key: C1, C2, …
        title: Short title.
        verdict: See :func:`rishd.claims.evidence.verdict`.
        expected: The verdict that the registry expects.
        evidence: Proofs and trials.
        panels: Data of illustrations.
        seconds: Wall-clock time.
        seed: Random seed of the instances.
        error: Error message with the instances' seed; empty if there was no error.
    """

    key: str
    title: str
    verdict: Verdict
    expected: Verdict
    evidence: tuple[Evidence, ...]
    panels: tuple[Panel, ...]
    seconds: float
    seed: int
    error: str = ""

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is the one the registry expects."""
        return self.verdict == self.expected

    @property
    def instances(self) -> int:
        """Smallest number of random instances behind any identity or bound (else behind any measurement, else 0)."""
        special = Constant | Attained  # a few hand-picked instances
        trials = [p for p in self.evidence if isinstance(p, Identity | Bound) and not isinstance(p, special)]
        measured = [part for part in self.evidence if isinstance(part, Measurement)]
        return min((part.values.size for part in trials or measured), default=0)

    @property
    def tightest_bound(self) -> Bound | None:
        """The bound that trials come closest to; bounds attacked by an adversary take precedence."""
        bounds = [part for part in self.evidence if isinstance(part, Bound) and part.values.size]
        return max(bounds, key=lambda part: (part.adversary is not None, part.worst), default=None)

    @property
    def closest_identity(self) -> Identity | None:
        """The identity whose residuals come closest to its tolerance, or exceed it most."""
        identities = [p for p in self.evidence if isinstance(p, Identity) and p.values.size]
        return max(identities, key=lambda part: part.strain, default=None)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "claim": self.key,
            "title": self.title,
            "verdict": self.verdict,
            "expected": self.expected,
            "instances": self.instances,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
            "error": self.error,
            "evidence": [as_dict(part) for part in self.evidence],
        }


@dataclass(frozen=True)
class Claim:
    """A claim of the theory: its statement and the function that gathers evidence.

    Args:
        key: C1, C2, …
        title: Short title.
        gather: ``(rng, instances)`` ↦ evidence and panels; its docstring has the statement, see the module docstring.
        expected: The known correct verdict.
        seconds: Approximate time of 1200 instances on one core; long claims start first.
    """

    key: str
    title: str
    gather: Gather = field(repr=False)
    expected: Verdict = "proved"
    seconds: float = 1.0

    @property
    def sections(self) -> dict[str, str]:
        """Sections of the function's docstring by heading, in reStructuredText; the key "" has the summary line."""
        parts = _HEADING.split(inspect.getdoc(self.gather) or "")
        return {"": parts[0].strip()} | {key: text.strip() for key, text in zip(parts[1::2], parts[2::2], strict=True)}

    def run(self, *, seed: int, instances: int) -> ClaimResult:
        """Gather evidence; an exception becomes the verdict "error", so that other claims still run."""
        start = time.perf_counter()
        evidence: tuple[Evidence, ...] = ()
        panels: tuple[Panel, ...] = ()
        error = ""
        outcome: Verdict
        try:
            parts = self.gather(np.random.default_rng([seed, *self.key.encode()]), instances)
            panels = tuple(part for part in parts if isinstance(part, Panel))
            evidence = tuple(part for part in parts if not isinstance(part, Panel))
            outcome = verdict(evidence)
        except Exception as problem:  # a failing claim must not stop the others
            outcome, error = "error", f"{type(problem).__name__}: {problem} (seed {seed})"
        seconds = time.perf_counter() - start
        return ClaimResult(self.key, self.title, outcome, self.expected, evidence, panels, seconds, seed, error)

    def failed(self, message: str, *, seed: int) -> ClaimResult:
        """The result of a claim that could not be run.

        Args:
            message: What happened.
            seed: Random seed of the instances.
        """
        return ClaimResult(self.key, self.title, "error", self.expected, (), (), 0.0, seed, f"{message} (seed {seed})")


CLAIMS: Registry[Claim] = Registry("claim", "rishd.claims")


def register_claim(
    key: str, title: str, *, expected: Verdict = "proved", seconds: float = 1.0
) -> Callable[[Gather], Gather]:
    """Decorator that registers a function that gathers evidence in :data:`CLAIMS`, ordered by number.

    Args:
        key: C and a number, with a letter for a part: C8, C11a.
        title: See :class:`Claim`.
        expected: See :class:`Claim`.
        seconds: See :class:`Claim`.

    Raises:
        ValueError: for a malformed or duplicate key.
    """
    number = re.fullmatch(r"C([0-9]+)[a-z]?", key)
    if number is None:
        raise ValueError(f"claim = {key!r} must be C and a number, with a letter for a part, e.g. C8 or C11a.")

    def register(gather: Gather) -> Gather:
        CLAIMS.add(key, Claim(key, title, gather, expected, seconds), place=int(number[1]))
        return gather

    return register
