"""Checks of arguments, shared by all packages: every message names the argument, its value and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np


class InvalidSystemError(ValueError):
    """A part of the system is not what the theory asks for; the message names it, its value and the time."""


def shown(value: Any) -> str:
    """A value for a message: its ``repr`` in one line, at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}…"


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
        remedy: What to do instead, one clause.
        allow_zero: Whether 0 is accepted.

    Raises:
        ValueError: naming the argument, its value and the remedy.
    """
    ok = is_number(value) and math.isfinite(value) and (value > 0 or (allow_zero and value == 0))
    if not ok:
        sign = "non-negative" if allow_zero else "positive"
        raise ValueError(f"{name} = {shown(value)} must be finite and {sign}{'; ' + remedy if remedy else ''}.")


def require_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of the choices, listing them and the closest one.

    Raises:
        ValueError: naming the argument, its value, the choices and a likely intention.
    """
    known = sorted(choices)
    if not isinstance(value, str) or value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} = {shown(value)} is unknown. Choose one of: {', '.join(known)}.{hint}")


def require_method(name: str, value: Any, signature: str) -> None:
    """Refuse a value that is not a function.

    Args:
        name: The argument's name as the caller wrote it.
        value: The value.
        signature: What it maps to what, for the message.

    Raises:
        ValueError: naming the argument and what it is instead.
    """
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{name} is a {type(value).__name__}; give a function {signature}.")
