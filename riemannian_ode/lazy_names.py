"""Public names of a package: listed once, in its ``__init__.pyi``, and imported on first use.

Source: SPEC 1 of Scientific Python, lazy loading of submodules.
"""

from __future__ import annotations

import os.path
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, init: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, from its stub's lines ``from home import X as X``.

    A submodule must not share a name with a public object of its package: once imported, it would hide that object.

    Args:
        package: The package's ``__name__``.
        init: The package's ``__file__``.
    """
    with open(os.path.join(os.path.dirname(init), "__init__.pyi"), encoding="utf-8") as stub:
        imports = [line.split() for line in stub if line.startswith("from ")]
    homes = {name: home for _, home, _, name, *_ in imports}

    def value_of(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return value_of, lambda: list(homes), list(homes)
