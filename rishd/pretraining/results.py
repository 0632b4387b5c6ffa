"""Output files of a run, in a documented format that other programs may rely on.

A run's folder holds:

``run.json``
    Written in one step before the first step; from then on the folder belongs to that run: ``format`` (1), ``config``
    (all settings as plain data), ``corpus_hash``, ``seed``, ``versions`` (Python, machine, packages), ``git``
    (``commit`` and ``dirty`` of the working directory, or ``null``), ``parameters`` and ``non_embedding_parameters``,
    and ``flops_per_token``.
``config.yaml``
    The settings; ``rishd pretrain config.yaml`` repeats the run.
``run.lock``
    While a process works in the folder: its id and start time. The lock itself ends with that process.
``metrics.jsonl``
    One JSON object per line, in the order of steps, each with ``step`` (optimizer steps done), ``tokens`` (trained on
    so far), ``seconds`` (of training so far, without evaluations and checkpoints, over all parts of a resumed run),
    ``optimizer_seconds`` (part of these), ``cpu_seconds`` (processor time of this process in that time), and

    - training rows: ``loss`` (nats per token, mean since the last row), ``grad_norm`` (before clipping) and
      ``learning_rate`` of the last step; every ``logging.updates_every`` steps also ``update_rms/GROUP`` and
      ``sharp_share/GROUP`` (:mod:`rishd.pretraining.updates`);
    - evaluation rows: ``validation_loss``, nats per token.

    Rows beyond the checkpoint from which a run is resumed are dropped, so that each step appears once.
``summary.json``
    Written at the end: :class:`Summary` as plain data. If it exists, only an interrupted run (``status``) can be
    resumed.
``checkpoint-N/``
    Checkpoint for resuming: ``weights.safetensors`` (the model's own ``state_dict``, read by
    :func:`rishd.pretraining.weights.read_model`) with ``config.json``, the states of optimizer, schedule, random
    numbers and Trainer, and a copy of ``metrics.jsonl``.
``model/``
    Model and tokenizer in transformers' format, once the run is complete.

Checkpoints and ``model/`` have ``SHA256SUMS``, which ``sha256sum --check`` reads. A checkpoint is refused if a file
does not match, or if a file that would be read is not listed. ``run.json`` and ``summary.json`` contain the number of
their format; numbers other than this version's are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from riemannian_ode.atomic import write_json, write_text
from riemannian_ode.checks import one_line, shown
from rishd.json_lines import bad_line, read_json_lines

FORMAT = 1
METRICS, SUMMARY, RECORD, CONFIG, MODEL = "metrics.jsonl", "summary.json", "run.json", "config.yaml", "model"
Status = Literal["complete", "interrupted", "failed"]


class ResultsError(ValueError):
    """Results that cannot be read; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of a finished or interrupted run.

    Args:
        status: ``"complete"``, ``"interrupted"`` (can be resumed), or ``"failed"`` (a loss or gradient was not finite).
        optimizer: Name as configured.
        lr: Peak learning rate.
        seed: Seed.
        final_validation_loss: Last validation loss, nats per token; ``None`` before the first one.
        best_validation_loss: Smallest validation loss.
        steps: Optimizer steps done.
        tokens: Training tokens.
        seconds: Time spent training, without evaluations and checkpoints.
        tokens_per_second: ``tokens / seconds``.
        optimizer_seconds: The part of ``seconds`` inside the optimizer's step.
        optimizer_share: ``optimizer_seconds / seconds``.
        cpu_seconds: Processor time of the first rank's threads in ``seconds``, to be compared on shared machines.
        peak_memory_bytes: Largest memory of the first rank, of its accelerator or else of the process.
        parameters: Trainable parameters.
        non_embedding_parameters: The same without embedding and output head.
        flops_per_token: Training FLOPs per token (forward and backward).
        format: Version of this format.
    """

    status: Status
    optimizer: str
    lr: float
    seed: int
    final_validation_loss: float | None
    best_validation_loss: float | None
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float | None
    optimizer_seconds: float
    optimizer_share: float | None
    cpu_seconds: float
    peak_memory_bytes: int
    parameters: int
    non_embedding_parameters: int
    flops_per_token: float
    format: int = FORMAT


@dataclass(frozen=True)
class RunResult:
    """Results of a run.

    Args:
        folder: Output folder, see :mod:`rishd.pretraining.results`.
        rows: Its metrics.
        summary: Its summary.
    """

    folder: Path
    rows: list[dict[str, Any]]
    summary: Summary

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a logged quantity."""
        return series(self.rows, key)

    @property
    def final_validation_loss(self) -> float | None:
        """Last validation loss, in nats per token; ``None`` before the first evaluation."""
        return self.summary.final_validation_loss

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it, so that it can be resumed."""
        return self.summary.status == "interrupted"


def read_summary(folder: Path) -> Summary | None:
    """Summary of the run in a folder; ``None`` if the run has not ended.

    Raises:
        ResultsError: for a file of another format.
    """
    path = folder / SUMMARY
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        summary = Summary(**{field.name: data[field.name] for field in fields(Summary)})
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise ResultsError(
            f"{path} is not readable as a run's summary ({one_line(problem, 80)}); remove it, then --resume."
        ) from None
    if other := format_problem(path, summary.format):
        raise ResultsError(other)
    if summary.status not in get_args(Status):
        raise ResultsError(f"{path}: status is {summary.status!r}; remove the file, then --resume.")
    return summary


def format_problem(path: Path, number: Any) -> str:
    """Message about a file whose format number differs from :data:`FORMAT`; empty if it does not.

    Args:
        path: The file.
        number: Its format number.
    """
    if type(number) is int and number == FORMAT:
        return ""
    return (
        f"{path} has format {shown(number)}; this version of rishd reads format {FORMAT} only. Read it with the "
        "version that wrote it."
    )


def write_summary(folder: Path, summary: Summary) -> None:
    """Write ``summary.json`` atomically."""
    write_json(folder / SUMMARY, {key: _finite(value) for key, value in asdict(summary).items()})


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``; a last line truncated by a kill is skipped.

    Raises:
        JsonLinesError: for a complete line that is malformed.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for number, row in read_json_lines(path):
        if not _is_row(row):
            raise bad_line(path, number, "expected step and numbers (checkpoints have copies of the rows up to them)")
        rows.append(row)
    return rows


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and type(row.get("step")) is int
        and all(value is None or isinstance(value, int | float) for value in row.values())
    )


def series(rows: Iterable[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of a logged quantity, e.g. ``"validation_loss"``."""
    return [(int(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]


def append_metrics(folder: Path, row: Mapping[str, Any]) -> None:
    """Append a row to ``metrics.jsonl``; non-finite numbers become null."""
    with (folder / METRICS).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({key: _finite(value) for key, value in row.items()}, allow_nan=False) + "\n")


def rows_at(folder: Path, checkpoint: Path | None) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl`` up to a checkpoint; the file is not changed.

    Args:
        folder: Of the run.
        checkpoint: Checkpoint to resume from; ``None`` to start.

    Raises:
        ResultsError: if rows are missing or differ from the checkpoint's copy, or are malformed.
    """
    if checkpoint is None:
        return []
    path, copy = folder / METRICS, checkpoint / METRICS
    if copy.exists():
        if not path.exists() or not path.read_bytes().startswith(copy.read_bytes()):
            raise ResultsError(
                f"{path} is missing or differs from what it was at {checkpoint.name}; copy {copy} to its place, then "
                "--resume."
            )
        return read_metrics(checkpoint)
    step = int(checkpoint.name.split("-")[1])
    rows = [row for row in read_metrics(folder) if row["step"] <= step]
    if not rows or rows[-1]["step"] != step:
        raise ResultsError(
            f"{path} has no row of step {step}, where {checkpoint.name} was written; restore it, or start again in "
            "another --out."
        )
    return rows


def write_metrics(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rewrite ``metrics.jsonl`` atomically."""
    write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
