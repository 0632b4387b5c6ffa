"""The self-contained HTML report: one template for ``rishd report`` and ``rishd demo``."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from joblib import Parallel, delayed
from matplotlib.figure import Figure

from riemannian_ode.atomic import write_text
from rishd.claims import Bound, Identity
from rishd.claims.validation import Validation
from rishd.progress import Advance, silent
from rishd.report.claim_views import claim_view, standing
from rishd.report.in_short import NEXT_COMMANDS, in_short
from rishd.report.notation import NOTATION
from rishd.report.study_records import DPI, StudyRecord
from rishd.report.typeset import number, ratio, scripts, typeset


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        title: Heading.
        text: Its paragraphs.
        figure: Figure below the text, or ``None``.
        caption: Caption of the figure.
    """

    title: str
    text: Sequence[str]
    figure: Figure | None = None
    caption: str = ""


@dataclass(frozen=True)
class Report:
    """Content of a report.

    Args:
        title: Heading of the page.
        validation: The claims' results.
        picture: Figure on the first screen.
        sections: Sections between the findings and the claims.
        studies: Records of studies.
        correspondence: Rows of the table of known optimizers, column ↦ text; empty for none.
        facts: Further facts shown at the end: name to text.
    """

    title: str
    validation: Validation
    picture: Section | None = None
    sections: Sequence[Section] = ()
    studies: Sequence[StudyRecord] = ()
    correspondence: Sequence[Mapping[str, str]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_report(path: Path, report: Report, *, jobs: int = 1, progress: Advance = silent) -> None:
    """Write a self-contained HTML file, atomically.

    Args:
        path: File to write.
        report: Its content.
        jobs: Number of processes for the figures; −1 is one per CPU core.
        progress: Called with (what, done, total) as the claims are drawn.
    """
    validation = report.validation
    keys = [result.key for result in validation.results]
    views = []
    for view in Parallel(n_jobs=jobs, return_as="generator")(
        delayed(claim_view)(result, link_to=keys) for result in validation.results
    ):
        views.append(view)
        progress("drawing claims", len(views), len(keys))
    page = (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            validation=validation,
            claims=views,
            verdicts=Counter(result.verdict for result in validation.results),
            unexpected=[result for result in validation.results if not result.as_expected],
            standing=standing(validation.results),
            in_short=in_short(validation),
            next_commands=NEXT_COMMANDS,
            picture=None if report.picture is None else _drawn(report.picture),
            notation=typeset(NOTATION),
            sections=[_drawn(section) for section in report.sections],
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )
    write_text(path, page)


def _drawn(section: Section) -> dict[str, Any]:
    return {"section": section, "image": None if section.figure is None else _png(section.figure)}


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rishd.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    font = files("rishd.report").joinpath("fonts", "stix-two-math.woff2").read_bytes()
    environment.globals["math_font"] = base64.b64encode(font).decode()
    environment.filters.update(
        number=number,
        ratio=ratio,
        scripts=scripts,
        median=lambda values: float(np.median(values)),
        largest=lambda values: float(np.max(values)),
        missed=_missed,
        place=_place,
        inches=_inches,
        without=lambda row, column: {name: text for name, text in row.items() if name != column},
        met=lambda hypothesis: int(hypothesis.met.sum()),
    )
    return environment


def _missed(part: Identity | Bound) -> int:
    """Number of instances that violate a hypothesis."""
    tried = part.value if isinstance(part, Bound) else part.residuals
    return int(tried.size - part.values.size)


def _place(tightness: float) -> str:
    """Position of a tightness in a strip of width 120 with the limit 1 at 104; larger values and NaN lie beyond."""
    return f"{4 + 100 * np.clip(np.nan_to_num(tightness, nan=1.1), 0.0, 1.1):.1f}"


def _inches(png: str) -> str:
    """Width in inches of a base64 PNG; bytes 16 to 19 have its width in pixels."""
    return f"{int.from_bytes(base64.b64decode(png[:32])[16:20]) / DPI:.2f}"


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return base64.b64encode(buffer.getvalue()).decode()
