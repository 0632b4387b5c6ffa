"""Saved results of ``rishd study``, written by the command and read by the report."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from riemannian_ode.atomic import write_text
from riemannian_ode.checks import one_line, shown
from rishd.provenance import versions
from rishd.saved_types import require_types
from rishd.study import STUDIES, StudyResult, summary

DPI = 140  # resolution of figures as images
_PACKAGES = ("rishd", "numpy", "scipy", "torch", "matplotlib")


class StudyFolderError(ValueError):
    """A folder without readable results of studies; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class StudyRecord:
    """A study's results for the report.

    Args:
        name: Name of the study.
        title: Its question.
        quick: Whether it was a first look.
        seed: Random seed.
        answer: Its answer in a sentence or two; empty in records of version 0.1.0.
        conclusion: The numbers behind the answer.
        table: Rows as column ↦ text.
        figures: PNG files.
        made_with: Versions of software.
        when: Time, UTC.
    """

    name: str
    title: str
    quick: bool
    seed: int
    answer: str
    conclusion: str
    table: Sequence[Mapping[str, str]] = ()
    figures: Sequence[Path] = ()
    made_with: Mapping[str, str] = field(default_factory=dict)
    when: str = ""

    @property
    def images(self) -> list[str]:
        """The figures' content in base64."""
        return [base64.b64encode(path.read_bytes()).decode() for path in self.figures]


def write_study(folder: Path, name: str, result: StudyResult, *, quick: bool, seed: int) -> dict[str, Any]:
    """Write a study's figures and then its record, ``NAME.json``, atomically.

    Args:
        folder: Folder to write to.
        name: Name of the study.
        result: Its result.
        quick: Whether it was a first look.
        seed: Random seed.

    Returns:
        The record as plain data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stem, draw in result.figures.items():
        draw().savefig(folder / f"{stem}.png", dpi=DPI)
    record = {
        "study": name,
        "title": summary(name),
        "quick": quick,
        "seed": seed,
        "answer": result.answer,
        "conclusion": result.conclusion,
        "table": [dict(row) for row in result.table],
        "figures": [f"{stem}.png" for stem in result.figures],
        "made_with": versions(_PACKAGES),
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "data": result.data,
    }
    write_text(folder / f"{name}.json", json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return record


def read_studies(folder: Path, *, required: bool = True) -> list[StudyRecord]:
    """Results in ``folder/NAME/NAME.json`` or ``folder/NAME.json``, in the order of the registry.

    Args:
        folder: Output folder of ``rishd study``, by default runs/studies.
        required: Whether a folder without results is an error.

    Raises:
        StudyFolderError: for a folder without results if they are required, or an unreadable file.
    """
    places = [place for name in STUDIES for place in (folder / name / f"{name}.json", folder / f"{name}.json")]
    found = [place for place in places if place.exists()]
    if required and not found:
        raise StudyFolderError(f"{folder} holds no results of studies; `rishd study NAME` writes runs/studies/NAME.")
    return [_read(path) for path in found]


def _read(path: Path) -> StudyRecord:
    name = path.stem
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        record = StudyRecord(
            name,
            data["title"],
            data["quick"],
            data["seed"],
            data.get("answer", ""),
            data["conclusion"],
            data["table"],
            [path.parent / file for file in data["figures"]],
            data["made_with"],
            data["when"],
        )
        require_types(record)
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        told = f"{type(problem).__name__}: {one_line(problem, 100)}"
        raise StudyFolderError(
            f"{path} is not readable as results of a study ({told}); write them again with: rishd study {name}"
        ) from None
    for figure in record.figures:
        if not figure.is_file():
            raise StudyFolderError(f"{path} names {shown(figure.name)}, which is missing; run: rishd study {name}")
    return record
