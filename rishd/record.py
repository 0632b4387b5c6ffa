"""Results of studies and probes as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np


class Record:
    """Base of dataclasses returned by studies and probes, which convert to plain data for JSON."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data; non-finite numbers become ``None``."""
        data: dict[str, Any] = plain(asdict(self))  # type: ignore[call-overload]
        return data


def plain(value: Any) -> Any:
    """Convert to numbers, strings, lists and dictionaries; non-finite numbers become ``None``."""
    if isinstance(value, dict):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
