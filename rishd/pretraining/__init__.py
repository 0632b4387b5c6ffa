"""Pre-training of small language models on real text, through transformers' Trainer (needs the ``train`` extra)."""

from __future__ import annotations

from riemannian_ode import checks
from riemannian_ode.errors import MissingExtraError as MissingExtraError

_NEEDED = ("accelerate", "pydantic", "tokenizers", "transformers", "yaml")


def require_extra() -> None:
    """Raise an error if the ``train`` extra is missing.

    Raises:
        MissingExtraError: naming what is missing and how to install it.
    """
    checks.require_extra("train", "pre-training", _NEEDED)
