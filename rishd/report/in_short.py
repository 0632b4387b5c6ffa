"""The first screen of a report, and the last lines of a terminal: what was checked, what came out, what to run next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rishd.claims.claim import ClaimResult
from rishd.claims.validation import Validation

NEXT_COMMANDS: Mapping[str, str] = {
    "rishd validate --claim C8": "one claim, with every part of its evidence",
    "rishd study": "the open questions and how to run each of them; rishd report then shows the answers",
    "rishd pretrain --out runs/lite": "train a small Llama with MuonLITE",
    "rishd compare configs/evidence.yaml --out runs/evidence": "optimizers over rates and seeds, with intervals",
}


def in_short(validation: Validation) -> dict[str, str]:
    """Question ↦ answer: what was checked, and what came out, for somebody who knows nothing of the project.

    Args:
        validation: The claims' results.
    """
    results = validation.results
    counts = Counter(result.verdict for result in results)
    kept = [f"{counts['proved']} are proved"] if counts["proved"] else []
    kept += [f"{counts['holds']} hold on every instance"] if counts["holds"] else []
    partial = f" The validation was cut short: {len(validation.missing)} more were not tried." * bool(
        validation.missing
    )
    found = {
        "What was checked": f"{_claims(len(results))} of the theory that makes optimizers from differential equations, "
        f"each on up to {validation.instances} random instances (seed {validation.seed}).{partial}",
        "What holds": f"{' and '.join(kept)}." if kept else "Nothing.",
        "What was refuted": _listed(results, "refuted", "error") or "Nothing.",
        "What was measured": _listed(results, "measured"),
        "What was not tried": _listed(results, "not applicable"),
    }
    return {question: answer for question, answer in found.items() if answer}


def _claims(count: int) -> str:
    return "1 claim" if count == 1 else f"{count} claims"


def _listed(results: Sequence[ClaimResult], *verdicts: str) -> str:
    """Claims with one of the verdicts, in a sentence; empty if there are none."""
    named = [f"{result.title} ({result.key})" for result in results if result.verdict in verdicts]
    return f"{_claims(len(named))}: {', '.join(named)}." if named else ""
