"""Check values read from a file against the annotations of their dataclass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from riemannian_ode.checks import shown


def require_types(made: Any) -> None:
    """Refuse a dataclass with a field that violates its annotation.

    Args:
        made: An instance whose fields are plain data, arrays and further dataclasses.

    Raises:
        TypeError: naming class, field and value.
    """
    hints = get_type_hints(type(made))
    for field in fields(made):
        value = getattr(made, field.name)
        if not _suits(value, hints[field.name]):
            raise TypeError(f"{type(made).__name__}.{field.name} = {shown(value)}")


def _suits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        found = any(_suits(value, one) for one in inner)
    elif origin is Literal:
        found = isinstance(value, str) and value in inner
    elif origin in (tuple, Sequence):
        found = isinstance(value, (tuple, list)) and all(_suits(part, inner[0]) for part in value)
    elif origin is Mapping:
        found = isinstance(value, Mapping) and all(
            _suits(k, inner[0]) and _suits(v, inner[1]) for k, v in value.items()
        )
    elif hint in (int, float):
        found = isinstance(value, (int, hint)) and not isinstance(value, bool)
    elif hint is np.ndarray:
        found = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "biuf"
    else:
        found = hint is Any or isinstance(value, hint)
    return found
