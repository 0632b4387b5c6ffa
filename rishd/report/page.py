"""The self-contained HTML report."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from rishd.claims import ClaimResult, Identity, Measurement, Proof

_DPI = 140


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        title: Heading.
        text: Paragraphs.
        figure: Figure below them; ``None`` is none.
        caption: Under the figure.
    """

    title: str
    text: Sequence[str]
    figure: Figure | None = None
    caption: str = ""


def write_report(
    path: Path, *, claims: Sequence[ClaimResult], sections: Sequence[Section], facts: Mapping[str, Any]
) -> None:
    """Write one HTML file that needs no other, atomically.

    Args:
        path: Where.
        claims: Results, in order.
        sections: After the claims.
        facts: Versions, seeds and hashes, shown at the end.
    """
    environment = Environment(
        loader=PackageLoader("rishd.report"), autoescape=select_autoescape(), undefined=StrictUndefined
    )
    page = environment.get_template("report.html").render(
        claims=[
            {
                "result": claim,
                "parts": [part_text(part) for part in claim.evidence],
            }
            for claim in claims
        ],
        sections=[
            {"section": section, "image": None if section.figure is None else _png(section.figure)}
            for section in sections
        ],
        facts=facts,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def part_text(part: Any) -> str:
    """One line of evidence for people."""
    if isinstance(part, Proof):
        return f"{'proved' if part.holds else 'NOT PROVED'}: {part.name}"
    if isinstance(part, Identity):
        verdict = "≤" if part.holds else "EXCEEDS"
        worst = float(part.residuals.max())
        return f"{part.name}: worst {worst:.2g} {verdict} {part.tolerance:g} over {part.residuals.size} instances"
    if isinstance(part, Measurement):
        return f"{part.name}: median {np.median(part.values):.2g}, largest {float(part.values.max()):.2g}"
    verdict = "≤ 1" if part.holds else "EXCEEDS 1"
    worst = float(part.tightness.max())
    return (
        f"{part.name}: tightness (measured/bound) largest {worst:.4f} {verdict}, median "
        f"{np.median(part.tightness):.3f} over {part.tightness.size} instances"
    )


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return base64.b64encode(buffer.getvalue()).decode()
