"""Choice of parameters by name patterns, and the error for impossible probes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from torch import nn


class ProbeError(ValueError):
    """A model or checkpoint that cannot be probed; the message gives the reason and the remedy."""


def matching_names(model: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Names of the trainable parameters that match; a shared parameter counts once.

    Args:
        model: The model.
        patterns: Name patterns, in which ``*`` matches anything; ``None`` matches all.

    Raises:
        ProbeError: for a pattern that matches no trainable parameter, or a model without trainable parameters.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if not names:
        raise ProbeError("no parameter of the model has requires_grad = True; unfreeze those to probe.")
    if patterns is None:
        return names
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ProbeError(f"no parameter is called {pattern!r}; there are {', '.join(names)}.")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
