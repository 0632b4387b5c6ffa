"""Matplotlib figures as inline SVG in the page's colours and fonts, and samples of their lines for legends."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from riemannian_ode.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW

# Variables of the style sheet, which lightens the colours in dark mode.
_VARIABLES = {
    BLACK: "currentColor",
    BLUE: "var(--blue)",
    GREEN: "var(--green)",
    ORANGE: "var(--orange)",
    PURPLE: "var(--purple)",
    SKY: "var(--sky)",
    VERMILION: "var(--vermilion)",
    YELLOW: "var(--yellow)",
    "#ffffff": "var(--paper)",
    "#b0b0b0": "var(--grid)",  # matplotlib's grid
}
_COLOURS = {colour.lower(): variable for colour, variable in _VARIABLES.items()}
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_FONT = re.compile(r"font: ((?:italic |bold )*)([\d.]+px)[^;]*")
_LONG = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"#([\w.-]+)")
_DASHES = {"--": "5 3", ":": "1.5 2.5", "-.": "5 2 1.5 2"}


def inline_svg(figure: Figure, *, name: str, alt: str) -> Markup:
    """The figure as an SVG element for an HTML page: scalable, in the page's colours, with text as text.

    Args:
        figure: Figure drawn with this package's colours.
        name: Prefix of its identifiers, unique on the page.
        alt: Alternative text.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ET.fromstring(buffer.getvalue())
    referenced = {
        match for node in root.iter() for value in node.attrib.values() for match in _REFERENCE.findall(value)
    }
    for node in root.iter():
        for child in [child for child in node if _plain(child.tag) in ("metadata", "style")]:
            node.remove(child)
        node.tag = _plain(node.tag)
        node.tail = None
        node.attrib = {
            _plain(key): _value(_plain(key), value, name)
            for key, value in node.attrib.items()
            if _plain(key) != "id" or value in referenced
        }
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return Markup(ET.tostring(root, encoding="unicode"))


def line_marks(figure: Figure) -> list[Markup]:
    """Samples of a figure's labelled curves, in order, for a legend in the page's text."""
    return [line_mark(line) for axes in figure.axes for line in axes.get_legend_handles_labels()[0]]


def line_mark(line: Any) -> Markup:
    """Sample of a line with its colour, dashes and marker.

    Args:
        line: Matplotlib's ``Line2D``.
    """
    colour = _themed(matplotlib.colors.to_hex(line.get_color()))
    style = line.get_linestyle()
    dashes = f' stroke-dasharray="{_DASHES[style]}"' if style in _DASHES else ""
    stroke = "" if style in ("None", "") else f'<path d="M0 5H26"{dashes}/>'
    marker = '<circle cx="13" cy="5" r="3"/>' if line.get_marker() == "o" else ""
    begin = f'<svg class="mark" viewBox="0 0 26 10" aria-hidden="true" style="stroke: {escape(colour)}">'
    return Markup(f"{begin}{stroke}{marker}</svg>")


def _plain(name: str) -> str:
    return name.rpartition("}")[2]


def _value(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key in ("href", "clip-path"):
        return _REFERENCE.sub(lambda match: f"#{prefix}-{match[1]}", value)
    if key == "style":
        return _themed(_FONT.sub(lambda match: f"font: {match[1]}{match[2]} var(--font)", value))
    return _LONG.sub(lambda match: f"{float(match[0]):.2f}", value)


def _themed(text: str) -> str:
    return _HEX.sub(lambda match: _COLOURS.get(match[0].lower(), match[0]), text)
