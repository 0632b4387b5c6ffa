"""Recorded runs: one JSON object a line, small enough to keep under version control.

Each line of ``runs.jsonl`` has ``key`` (:func:`rishd.comparing.plan.run_key`), ``label``, ``config``, ``summary``
(:class:`rishd.pretraining.results.Summary`), ``validation`` (rows of step, tokens and nats per token), ``training``
(step and mean loss of about a hundred equal parts), ``first_loss`` (of the first batch, before anything has moved),
``corpus_hash``, ``versions``, ``git``, ``device`` and ``processor``.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rishd.comparing.plan import run_key
from rishd.pretraining.results import RECORD, ResultsError, Summary, read_metrics, read_summary

RUNS = "runs.jsonl"
_PARTS = 100  # of the training curve


@dataclass(frozen=True)
class RecordedRun:
    """A finished run.

    Args:
        key: What it is found by.
        data: The whole line.
    """

    key: str
    data: Mapping[str, Any]

    @property
    def summary(self) -> Mapping[str, Any]:
        """How it ended."""
        found: Mapping[str, Any] = self.data["summary"]
        return found

    @property
    def loss(self) -> float:
        """Final validation loss, nats per token; infinite if the run diverged."""
        value = self.summary["final_validation_loss"]
        return float("inf") if value is None or self.summary["status"] == "failed" else float(value)

    @property
    def seconds_per_step(self) -> float:
        """Seconds of a step, evaluations left out: the processor's where it computes, since others may use it too."""
        clock = "seconds" if self.data.get("device", "cpu") != "cpu" else "cpu_seconds"
        return float(self.summary[clock]) / max(1, int(self.summary["steps"]))

    def steps_to(self, loss: float) -> float | None:
        """First step with a validation loss of at most ``loss``, on lines between evaluations; ``None``: never."""
        before: tuple[float, float] | None = None
        points: list[tuple[float, float | None]] = [(step, value) for step, _, value in self.data["validation"]]
        for step, value in points:
            if value is None:
                return None
            if value <= loss:
                if before is None or before[1] <= value:
                    return float(step)
                return before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
            before = (step, value)
        return None


def read_runs(folder: Path) -> dict[str, RecordedRun]:
    """Recorded runs by key; a last line that was cut short is left out.

    Raises:
        ResultsError: for a malformed line before the last.
    """
    path = folder / RUNS
    if not path.exists():
        return {}
    runs: dict[str, RecordedRun] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
            # Found by what it sets, so that lines of versions with fewer settings are found too.
            run = RecordedRun(run_key(data["config"]) if "config" in data else data["key"], data)
            run.loss, run.data["validation"]
        except (json.JSONDecodeError, KeyError, TypeError):
            if number == len(lines):
                break
            raise ResultsError(
                f"{path}, line {number}: no recorded run; restore the file, or take the line out."
            ) from None
        runs[run.key] = run
    return runs


def append_run(folder: Path, data: Mapping[str, Any]) -> RecordedRun:
    """Add a run and make sure that it is on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUNS
    with path.open("ab+") as stream:
        if stream.tell():  # a line that was cut short by a kill ends here
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(json.dumps(data, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    return RecordedRun(data["key"], data)


def collect(key: str, label: str, folder: Path) -> dict[str, Any]:
    """A finished run's folder as a line of ``runs.jsonl``.

    Args:
        key: Its key.
        label: For people.
        folder: Its output folder.

    Raises:
        ResultsError: if the run has not ended.
    """
    summary = read_summary(folder)
    if summary is None or summary.status == "interrupted":
        raise ResultsError(f"the run in {folder} has not ended.")
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    rows = read_metrics(folder)
    return {
        "key": key,
        "label": label,
        "summary": _summary(summary),
        "validation": [
            [row["step"], row["tokens"], row["validation_loss"]] for row in rows if "validation_loss" in row
        ],
        "training": _thinned([(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]),
        "first_loss": next((row["loss"] for row in rows if row["step"] == 1 and row.get("loss") is not None), None),
        "config": record["config"],
        "corpus_hash": record["corpus_hash"],
        "versions": record["versions"],
        "git": record["git"],
        "device": accelerator.type if (accelerator := torch.accelerator.current_accelerator()) else "cpu",
        "processor": processor(),
    }


def processor() -> str:
    """Model of the processor, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _summary(summary: Summary) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(summary).items()}


def _thinned(rows: Sequence[tuple[int, float]]) -> list[list[float]]:
    """Means over about a hundred equal parts, at their last steps."""
    size = max(1, -(-len(rows) // _PARTS))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [[part[-1][0], round(sum(loss for _, loss in part) / len(part), 4)] for part in parts]
