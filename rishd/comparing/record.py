"""Recorded runs, one JSON object per line, small enough for version control.

Each line of ``runs.jsonl`` has ``key`` (:func:`rishd.comparing.plan.run_key`), ``label``, ``config``, ``summary``
(:class:`rishd.pretraining.results.Summary`), ``validation`` (rows of step, tokens and nats per token), ``training``
(step and mean loss of about a hundred equal parts), ``first_loss`` (of the first batch, before any update),
``corpus_hash``, ``versions``, ``git``, ``device`` and ``processor``.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # pydantic needs it before Python 3.12
    TypeAlias,
)

import torch
from annotated_types import Ge
from pydantic import AllowInfNan, Strict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from riemannian_ode.checks import one_line
from rishd.comparing.plan import run_key
from rishd.json_lines import bad_line, read_json_lines, whole_size
from rishd.pretraining.results import RECORD, ResultsError, Summary, format_problem, read_metrics, read_summary

RUNS = "runs.jsonl"
_PARTS = 100  # points of the training curve
_Number: TypeAlias = Annotated[float, Strict(), AllowInfNan(False)]
_Count: TypeAlias = Annotated[int, Strict(), Ge(0)]
_SomeText: TypeAlias = Annotated[str, Strict()]


class _SummaryOfLine(TypedDict):
    status: Literal["complete", "failed"]
    final_validation_loss: _Number | None
    steps: _Count
    tokens: _Count
    non_embedding_parameters: _Count
    cpu_seconds: _Number
    seconds: NotRequired[_Number]
    format: NotRequired[Literal[1]]  # results.FORMAT


class _ShapeOfRun(TypedDict):
    batch_size: _Count


class _ConfigOfLine(TypedDict):  # entries that comparisons use
    model: dict[str, Any]
    data: dict[str, Any]
    training: _ShapeOfRun
    seed: _Count


class _Line(TypedDict):
    key: _SomeText
    label: _SomeText
    summary: _SummaryOfLine
    validation: list[tuple[_Count, _Count, _Number | None]]
    training: NotRequired[list[tuple[_Count, _Number]]]
    first_loss: NotRequired[_Number | None]
    config: NotRequired[_ConfigOfLine]
    device: NotRequired[_SomeText]


_LINES = TypeAdapter(_Line)


@dataclass(frozen=True)
class RecordedRun:
    """A finished run.

    Args:
        key: Its key.
        data: The parsed line.
    """

    key: str
    data: Mapping[str, Any]

    @property
    def summary(self) -> Mapping[str, Any]:
        """Summary of the run."""
        found: Mapping[str, Any] = self.data["summary"]
        return found

    @property
    def loss(self) -> float:
        """Final validation loss, nats per token; infinite if the run diverged."""
        value = self.summary["final_validation_loss"]
        return float("inf") if value is None or self.summary["status"] == "failed" else float(value)

    @property
    def seconds_per_step(self) -> float:
        """Seconds per step without evaluations; processor time for runs on a CPU, which others may use, too."""
        clock = "seconds" if self.data.get("device", "cpu") != "cpu" else "cpu_seconds"
        return float(self.summary[clock]) / max(1, int(self.summary["steps"]))

    def steps_to(self, loss: float) -> float | None:
        """First step with validation loss at most ``loss``, interpolated between evaluations; ``None`` if never."""
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
    """Recorded runs by key; a truncated last line is skipped.

    Raises:
        JsonLinesError: for a line that is not a recorded run, naming file, line and entry.
    """
    path = folder / RUNS
    if not path.exists():
        return {}
    runs: dict[str, RecordedRun] = {}
    for number, data in read_json_lines(path):
        try:
            _LINES.validate_python(data)
        except ValidationError as problem:
            error = problem.errors(include_url=False)[0]
            where = one_line(".".join(str(part) for part in error["loc"]), 60)
            raise bad_line(path, number, f"no recorded run ({where}: {one_line(error['msg'], 80)})") from None
        # Keyed by non-default settings, so that lines of versions with fewer settings match, too.
        run = RecordedRun(run_key(data["config"]) if "config" in data else data["key"], data)
        runs[run.key] = run
    return runs


def append_run(folder: Path, data: Mapping[str, Any]) -> RecordedRun:
    """Append a run and sync it to disk; a line truncated by a kill is dropped."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUNS
    line = json.dumps(data, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with path.open("rb+" if path.exists() else "xb+") as stream:
        content = stream.read()
        stream.truncate(whole_size(content))
        end = stream.seek(0, os.SEEK_END)
        stream.write(b"\n" + line if content[end - 1 : end] not in (b"", b"\n") else line)
        stream.flush()
        os.fsync(stream.fileno())
    return RecordedRun(data["key"], data)


def collect(key: str, label: str, folder: Path) -> dict[str, Any]:
    """A finished run's folder as a line of ``runs.jsonl``.

    Args:
        key: Its key.
        label: Label for display.
        folder: Its output folder.

    Raises:
        ResultsError: if the run has not ended or its record is damaged.
    """
    summary = read_summary(folder)
    if summary is None or summary.status == "interrupted":
        raise ResultsError(f"the run in {folder} has not ended.")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        origin = {name: record[name] for name in ("config", "corpus_hash", "versions", "git")}
        problem = format_problem(folder / RECORD, record["format"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ResultsError(
            f"{folder / RECORD} is not readable as a run's record; remove {folder} to make the run again."
        ) from None
    if problem:
        raise ResultsError(problem)
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
        **origin,
        "device": accelerator.type if (accelerator := torch.accelerator.current_accelerator()) else "cpu",
        "processor": processor(),
    }


def processor() -> str:
    """Model of the processor, as reported by the system."""
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
