"""Pre-training of small language models on real text, through transformers' Trainer (needs the ``train`` extra)."""

from __future__ import annotations

from importlib.util import find_spec

_NEEDED = ("accelerate", "pydantic", "tokenizers", "transformers", "yaml")


class MissingExtraError(RuntimeError):
    """The libraries of the ``train`` extra are not installed."""


def require_extra() -> None:
    """Refuse to go on without the ``train`` extra.

    Raises:
        MissingExtraError: naming what is missing and how to install it.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"pre-training needs {', '.join(missing)}: pip install 'rishd[train]'.")
