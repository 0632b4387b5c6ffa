"""Typesetting for the report: reStructuredText with MathML, plain text with sub- and superscripts, numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

import numpy as np
from markupsafe import Markup, escape

# Files named in the text are not read, and raw HTML is disabled. Invalid reStructuredText is shown with docutils'
# message, so that a report that took minutes is not lost; tests check that no messages occur.
_SETTINGS = {
    "math_output": "MathML",
    "halt_level": 5,
    "warning_stream": False,
    "embed_stylesheet": False,
    "file_insertion_enabled": False,
    "raw_enabled": False,
}
_MATH = re.compile(r"<math.*?</math>", re.DOTALL)
_PUNCTUATED = re.compile(r"(<math>(?:(?!</math>).)*</math>)([,;.:)]+)", re.DOTALL)  # must not start a line
_TAG = re.compile(r'(<math.*?</math>|<span class="docutils literal">.*?</span>|<[^>]*>)', re.DOTALL)
_CLAIM = re.compile(r"\bC\d+[a-z]?\b")
# A braced script, or a short one: w_k, L_s, λ_max, f*_0 but not the underscores of a name such as lite_step.
SCRIPT = re.compile(r"([_^])(?:\{([^{}]+)\}|\(([^()]+)\)|([-−]?\d+(?:\.\d+)?|max|min|\w|\*)(?!\w))")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def typeset(text: str, *, link_to: Collection[str] = ()) -> Markup:
    """Convert reStructuredText to HTML; formulas become MathML, which browsers render without scripts or network.

    Args:
        text: reStructuredText, e.g. of :attr:`rishd.claims.claim.Claim.sections`.
        link_to: Keys of claims on the same page, whose mentions become links.
    """
    from docutils.core import publish_parts

    fragment = publish_parts(_capitalised(text), writer="html5", settings_overrides=_SETTINGS)["fragment"]
    fragment = _MATH.sub(_compact, fragment)
    fragment = _PUNCTUATED.sub(r'<span class="together">\1\2</span>', fragment)
    fragment = fragment.replace("<div>\n<math", '<div class="display" tabindex="0"><math')
    parts = (part if part[:1] == "<" else _linked(_raised(part), link_to) for part in _TAG.split(fragment))
    return Markup("".join(parts))


def scripts(text: str) -> Markup:
    """Escaped plain text with real subscripts and superscripts, e.g. for ``f(w_k)`` or ``e^{−rt}``."""
    return Markup(_raised(str(escape(text))))


def number(value: float, digits: int = 2) -> str:
    """A number with the given digits, with a power of ten if it is very large or small, e.g. 1.8·10⁻⁶."""
    if not np.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits}g}".replace("-", "−") if abs(value) < 100 else f"{value:.0f}".replace("-", "−")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", "−")


def ratio(value: float, digits: int = 4) -> str:
    """A tightness with the given decimals, rounded away from 1: only a violated bound reads as more than 1."""
    if not abs(value) < 1e4:  # nor a number at all
        return number(value)
    if value == 1.0:
        return "1"
    unit = 10**digits
    rounded = (math.ceil if value > 1 else math.floor)(round(value * unit, 6)) / unit
    return f"{rounded:.{digits}f}" if rounded >= 10 / unit or value == 0 else number(value)


def _capitalised(text: str) -> str:
    """Capitalise the first word unless it is a formula or a name such as arXiv or docs/theory."""
    word = text.split(maxsplit=1)[0] if text.strip() else ""
    return text[:1].upper() + text[1:] if word.rstrip(",;.").replace("-", "").isalpha() and word.islower() else text


def _compact(match: re.Match[str]) -> str:
    """MathML without indentation and the namespace that HTML implies; norm bars stretch only if requested."""
    text = re.sub(r">\s+<", "><", match[0])
    text = text.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    open_bars = 0

    def of_one_height(bar: re.Match[str]) -> str:
        nonlocal open_bars
        if not bar[1] and not open_bars:
            return bar[0]  # of \left, or the matching \right
        open_bars += 1 if bar[1] else -1
        return f'<mo stretchy="false">{bar[2]}'

    return re.sub(r'<mo( class="mathopen")?>([|‖])', of_one_height, text)


def _raised(text: str) -> str:
    def raised(match: re.Match[str]) -> str:
        tag = "sub" if match[1] == "_" else "sup"
        return f"<{tag}>{match[2] or match[3] or match[4]}</{tag}>"

    return SCRIPT.sub(raised, text)


def _linked(text: str, keys: Collection[str]) -> str:
    return _CLAIM.sub(lambda match: f'<a href="#{match[0]}">{match[0]}</a>' if match[0] in keys else match[0], text)
