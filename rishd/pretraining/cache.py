"""Where tokenizers and tokens are kept between runs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """``$RISHD_CACHE``, ``$XDG_CACHE_HOME/rishd`` or ``~/.cache/rishd``."""
    own = os.environ.get("RISHD_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rishd"


def cache_key(*parts: Any) -> str:
    """A short name for what plain data describe."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
