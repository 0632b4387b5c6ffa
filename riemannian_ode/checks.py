"""Checks of arguments, shared by all packages: every message names the argument, its value and the remedy."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from riemannian_ode.errors import MissingExtraError

_LONGEST = 80  # longest value shown in a message, in characters
_EXACT_BITS = 200  # longer integers are described: Python refuses to print more than 4300 digits


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 60, 60
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 4

    def repr_int(self, x: int, level: int) -> str:
        digits = int(x.bit_length() * math.log10(2)) + 1
        return repr(x) if x.bit_length() <= _EXACT_BITS else f"<integer of about {digits} digits>"


_SHORT = _Short()


def shown(value: Any) -> str:
    """A value as it appears in a message: its ``repr``, shortened to 80 characters, on one line."""
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]} …"


def one_line(text: Any, limit: int = 160) -> str:
    """Another library's message on one line, without line-breaking characters, shortened to ``limit``."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * limit])
    line = " ".join(line.split())
    return line if len(line) <= limit else f"{line[: limit - 2]} …"


def is_number(value: Any) -> bool:
    """Whether a value is one real number; ``True`` and ``False`` are not."""
    if getattr(value, "ndim", None) == 0 and not isinstance(value, np.generic):
        value = value.item()
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, (bool, np.bool_))


def require_positive(name: str, value: float, remedy: str = "", *, allow_zero: bool = False) -> None:
    """Refuse a scalar that is not finite and positive.

    Args:
        name: The argument's name as the caller wrote it.
        value: The value.
        remedy: What to do instead, as one clause.
        allow_zero: Whether 0 is accepted.

    Raises:
        ValueError: naming the argument, its value and the remedy.
    """
    ok = is_number(value) and math.isfinite(value) and (value > 0 or (allow_zero and value == 0))
    if not ok:
        sign = "non-negative" if allow_zero else "positive"
        raise ValueError(f"{name} = {shown(value)} must be finite and {sign}{'; ' + remedy if remedy else ''}.")


def require_count(name: str, value: Any, least: int = 1, remedy: str = "") -> None:
    """Refuse a value that is not a whole number of at least ``least``.

    Args:
        name: Name used in the error.
        value: The value; ``True`` and ``False`` do not count as numbers.
        least: The smallest value allowed.
        remedy: What to do instead, appended to the message.

    Raises:
        ValueError: naming the argument and its value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        end = f"; {remedy}" if remedy else ""
        raise ValueError(f"{name} = {shown(value)} must be a whole number of at least {least}{end}.")


def require_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of the choices, listing them and the closest one.

    Args:
        name: The argument's name as the caller wrote it.
        value: The value.
        choices: Accepted values; a sequence is listed in its own order, anything else is sorted.

    Raises:
        ValueError: naming the argument, its value, the choices and the closest match.
    """
    known = list(choices) if isinstance(choices, Sequence) else sorted(choices)
    if not isinstance(value, str) or value not in known:
        close = difflib.get_close_matches(str(value)[:_LONGEST], known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} = {shown(value)} is unknown. Choose one of: {', '.join(known)}.{hint}")


def require_method(name: str, value: Any, signature: str) -> None:
    """Refuse a value that is not a function.

    Args:
        name: The argument's name as the caller wrote it.
        value: The value.
        signature: What it maps to what, as shown in the message.

    Raises:
        ValueError: naming the argument and what it is instead.
    """
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{name} is of type {type(value).__name__}; give a function {signature}.")


def require_extra(extra: str, purpose: str, libraries: Sequence[str]) -> None:
    """Raise an error if libraries of an optional extra are missing.

    Args:
        extra: The extra's name in ``pyproject.toml``.
        purpose: What needs it, for the message.
        libraries: Top-level modules.

    Raises:
        MissingExtraError: naming what is missing and how to install it.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{purpose} needs {', '.join(missing)}: pip install 'rishd[{extra}]'.")
