"""Results of studies and probes as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np


class Record:
    """Base of dataclasses that a study or probe returns: they turn into plain data for JSON."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data; what is not finite becomes ``None``."""
        data: dict[str, Any] = plain(asdict(self))  # type: ignore[call-overload]
        return data


def plain(value: Any) -> Any:
    """Numbers, strings, lists and dictionaries only; ``None`` for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
