"""Data sets by name, streamed through the ``datasets`` library: C4, The Pile, or a local folder of shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError
from datasets.utils.logging import disable_progress_bar

from rishd.pretraining.config import DataConfig
from rishd.pretraining.corpus import Position, Split
from rishd.pretraining.text_files import BROKEN, CorpusError, Document


class HubCorpus:
    """A data set of the Hugging Face hub, or a folder in one of its formats, read as it is needed.

    Args:
        config: ``dataset``, ``subset``, ``dataset_split``, ``revision`` and ``text_field``.

    Raises:
        CorpusError: for a data set that cannot be opened, or without the text field.
    """

    def __init__(self, config: DataConfig) -> None:
        disable_progress_bar()
        assert config.dataset is not None
        self.name = "/".join(filter(None, (config.dataset, config.subset, config.dataset_split)))
        self.warning = (
            ""
            if config.revision or os.path.isdir(config.dataset)
            else (f"data set {config.dataset} is read at its newest revision; set data.revision to a commit to fix it")
        )
        self.skipped: list[str] = []
        self._config = config
        self._shard = 0
        try:
            self._unread: Any = datasets.load_dataset(
                config.dataset, config.subset, split=config.dataset_split, revision=config.revision, streaming=True
            )
            self._shards = int(self._unread.num_shards)
        except Exception as problem:  # of the network, of the hub, of any file format
            raise CorpusError(f"data set {self.name} cannot be read: {_first_line(problem)}") from None
        self._data = self._unread
        first = next(self._rows(None), None)
        self.skipped.clear()  # reading tells again
        if first is None:
            raise CorpusError(f"data set {self.name} has no rows; check data.subset and data.dataset_split.")
        if not isinstance(first.get(config.text_field), str):
            raise CorpusError(
                f"data set {self.name} has no text in {config.text_field!r}, but columns {', '.join(first)}; set "
                "data.text_field."
            )
        self.content_hash = self._fingerprint(first[config.text_field])

    @property
    def validation_share(self) -> float:
        return self._config.validation_share

    @property
    def is_streamed(self) -> bool:
        return True

    def texts(self, split: Split, position: Position | None = None) -> Iterator[str]:
        for row in self._rows(position):
            text = row.get(self._config.text_field)
            if not isinstance(text, str) or not text.strip():
                continue
            text = text.encode("utf-8", "replace").decode()
            if Document("", text).is_held_back(self._config.validation_share) == (split == "validation"):
                yield text

    def position(self) -> Position:
        # The library goes on changing its own.
        return [self._shard, json.loads(json.dumps(self._data.state_dict()))]

    def _rows(self, position: Position | None) -> Iterator[dict[str, Any]]:
        """Rows of one shard after another: one that is corrupt ends early, those behind it are read all the same."""
        first, state = position or (0, None)
        for shard in range(first, self._shards):
            self._shard = shard
            self._data = self._unread.shard(self._shards, shard)  # a position once loaded stays with the object
            if state is not None:
                self._data.load_state_dict(state)
                state = None
            try:
                yield from self._data
            except Exception as problem:
                if not _is_corrupt(problem):
                    raise CorpusError(
                        f"data set {self.name} cannot be read further: {_first_line(problem)}; start again, it goes on "
                        "where it stopped."
                    ) from None
                what = f"data set {self.name}, shard {shard + 1} of {self._shards}: {_first_line(problem)}"
                if self._config.on_corrupt == "error":
                    raise CorpusError(f"{what}; set data.on_corrupt = skip to leave out the rest of it.") from None
                self.skipped.append(what)

    def fraction_read(self) -> float | None:
        return None

    def _fingerprint(self, first: str) -> str:
        known = self.name, self._shards, self._config.revision, self._config.text_field, first
        digest = hashlib.sha256(repr(known).encode())
        folder = Path(self._config.dataset or "")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else ():
            digest.update(repr((path.relative_to(folder).as_posix(), path.stat().st_size)).encode())
        return digest.hexdigest()


def _is_corrupt(problem: Exception) -> bool:
    """Whether an error speaks of the text, not of the way to it (some of the latter are ValueErrors, too)."""
    problem = problem.__cause__ if isinstance(problem.__cause__, Exception) else problem
    of_text = isinstance(problem, (ValueError, DatasetGenerationError)) and not isinstance(problem, OSError)
    return of_text or isinstance(problem, BROKEN)


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem).strip() else ''}"
