"""Tables of the documentation, generated from the registries."""

from __future__ import annotations

from discretizations.known_optimizers import CORRESPONDENCES


def correspondence_rows() -> list[dict[str, str]]:
    """Rows of known optimizers: column ↦ text."""
    return [row.as_text() for row in CORRESPONDENCES.values()]


def correspondence_table() -> str:
    """Markdown table of known optimizers, one row each, with formulas as text."""
    rows = correspondence_rows()
    code = ("implementation",)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [f"`{text}`" if column in code else text.replace("_", "\\_") for column, text in row.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
