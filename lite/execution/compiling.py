"""Functions of a step, compiled with this package's defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

_MOST_GRAPHS = 64  # of one function; SOAP has one more than steps between refreshes


def compiled(function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """``torch.compile`` of a function: shapes are constants, and its graphs are counted for this call alone.

    Args:
        function: What to compile.
        options: Those of ``torch.compile`` that shall differ.
    """
    known = inspect.signature(torch.compile).parameters  # early torch has no limits here
    own: dict[str, Any] = {"dynamic": False, "recompile_limit": _MOST_GRAPHS, "isolate_recompiles": True}
    made: Callable[..., Any] = torch.compile(
        function, **{name: value for name, value in own.items() if name in known} | dict(options)
    )
    return made
