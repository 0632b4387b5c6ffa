"""What both pages are laid out with: a grid on a desk, one column on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import panel as pn
import panel_material_ui as pmui

_NARROW = 900  # pixels; below it there is one column


def grid(areas: Sequence[Sequence[str]], **parts: Any) -> pn.Column:
    """Parts in a grid; on a narrow screen one below the other, the first one staying in sight.

    Args:
        areas: Names of the parts by row and column; the first column is that of the controls.
        parts: By name, in the order of the narrow page.
    """
    template = " ".join(f"'{' '.join(row)}'" for row in areas)
    style = f"""
        :host {{ display: grid !important; gap: 12px; align-items: start; width: 100%; padding-top: 10px;
          height: auto; max-height: none;
          grid-template-columns: 320px repeat({len(areas[0]) - 1}, minmax(0, 1fr)); grid-template-areas: {template}; }}
        @media (max-width: {_NARROW}px) {{
          :host {{ grid-template-columns: minmax(0, 1fr); grid-template-areas: none; }}
        }}
    """
    for place, (name, part) in enumerate(parts.items()):
        narrow = "grid-area: auto !important;"
        if place == 0:
            narrow += "position: sticky; top: 0; z-index: 2; background: white;"
        wide = f"grid-area: {name}; min-width: 0; max-height: none;"
        part.margin = 0
        part.stylesheets = [
            *part.stylesheets,
            f":host {{ {wide} }} @media (max-width: {_NARROW}px) {{ :host {{ {narrow} }} }}",
        ]
    return pn.Column(*parts.values(), stylesheets=[style], sizing_mode="stretch_width")


def select(label: str, options: Mapping[str, str] | Sequence[str], value: str) -> pn.widgets.Select:
    """A menu, the browser's own, which opens by keyboard and on a phone.

    Args:
        label: Its name.
        options: Values, by what is shown if that differs.
        value: Of them.
    """
    shown = dict(options) if isinstance(options, Mapping) else list(options)
    style = "label { font-size: 15px; } select.bk-input { font-size: 15px; height: 40px; }"
    return pn.widgets.Select(
        label=label, options=shown, value=value, sizing_mode="stretch_width", margin=(4, 10), stylesheets=[style]
    )


def note(title: str) -> pn.pane.Markdown:
    """A place for words.

    Args:
        title: Its heading.
    """
    return pn.pane.Markdown(
        f"### {title}",
        sizing_mode="stretch_width",
        stylesheets=[":host { padding: 0 10px; } p, li { font-size: 15px; line-height: 1.4; }"],
    )


def alert() -> pmui.Alert:
    """A place for what went wrong, hidden until :func:`warn` fills it."""
    return pmui.Alert(object="", severity="warning", visible=False, sizing_mode="stretch_width")


def warn(place: pmui.Alert, problems: Sequence[str]) -> None:
    """Show problems, or nothing; they may quote a URL, so that markup in them stays text.

    Args:
        place: Of :func:`alert`.
        problems: A sentence or two each.
    """
    place.param.update(object="\n\n".join(escape(text, quote=False) for text in problems), visible=bool(problems))


def page(title: str, *parts: Any, link: tuple[str, str] | None = None) -> pmui.Page:
    """A whole page.

    Args:
        title: In the bar and in the tab.
        parts: From top to bottom.
        link: Address and name of the other page.
    """
    header = []
    if link is not None:
        header.append(pmui.Button(label=link[1], href=link[0], variant="outlined", color="light"))
    return pmui.Page(
        title=title,
        header=header,
        main=[pn.Column(*parts, sizing_mode="stretch_width", stylesheets=[":host { max-height: none; }"])],
        theme_toggle=False,
        busy_indicator="linear",
    )
