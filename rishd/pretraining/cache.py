"""Where tokenizers and tokens are kept between runs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Of what is kept. Raise it whenever the same corpus gives other texts, parts, tokenizers or tokens than before: what a
# cache has would go on being used, and runs would differ from those of a fresh machine without a word.
FORMAT = 2
_POLL = 0.05  # seconds between looks whether another process is done


def cache_folder() -> Path:
    """``$RISHD_CACHE``, ``$XDG_CACHE_HOME/rishd`` or ``~/.cache/rishd``."""
    own = os.environ.get("RISHD_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rishd"


def cache_key(*parts: Any) -> str:
    """A short name for what plain data and :data:`FORMAT` describe."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:24]


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep the other processes of this machine out until the block ends; the system frees a dead one's lock.

    Args:
        path: File that stands for what is written; made here.
        waiting: Called again and again while another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(_POLL)
        yield
