"""Data sets by name, streamed through the ``datasets`` library: C4, The Pile, or a local folder of shards."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rishd.pretraining.config import DataConfig
from rishd.pretraining.corpus import Position, Split
from rishd.pretraining.text_files import CorpusError, Document


class HubCorpus:
    """A data set of the Hugging Face hub, or a folder in one of its formats, read as it is needed.

    Args:
        config: ``dataset``, ``subset``, ``dataset_split``, ``revision`` and ``text_field``.

    Raises:
        CorpusError: for a data set that cannot be opened, or without the text field.
    """

    def __init__(self, config: DataConfig) -> None:
        import datasets
        from datasets.utils.logging import disable_progress_bar

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
        try:
            self._unread: Any = datasets.load_dataset(
                config.dataset, config.subset, split=config.dataset_split, revision=config.revision, streaming=True
            )
            first = next(iter(self._unread))
        except Exception as problem:  # of the network, of the hub, of any file format
            raise CorpusError(f"data set {self.name} cannot be read: {_first_line(problem)}") from None
        if not isinstance(first.get(config.text_field), str):
            raise CorpusError(
                f"data set {self.name} has no text in {config.text_field!r}, but columns {', '.join(first)}; set "
                "data.text_field."
            )
        self._data = self._unread
        self.content_hash = self._fingerprint(first[config.text_field])

    @property
    def validation_share(self) -> float:
        return self._config.validation_share

    @property
    def is_streamed(self) -> bool:
        return True

    def texts(self, split: Split, position: Position | None = None) -> Iterator[str]:
        self._data = copy.deepcopy(self._unread)  # a position once loaded stays with the object
        if position is not None:
            self._data.load_state_dict(position)
        try:
            for row in self._data:
                text = row[self._config.text_field]
                if not isinstance(text, str) or not text.strip():
                    continue
                text = text.encode("utf-8", "replace").decode()
                if Document("", text).is_held_back(self._config.validation_share) == (split == "validation"):
                    yield text
        except Exception as problem:
            what = f"data set {self.name} cannot be read further: {_first_line(problem)}"
            if self._config.on_corrupt == "error":
                raise CorpusError(f"{what}; try again, or set data.on_corrupt = skip to end there.") from None
            self.skipped.append(what)

    def position(self) -> Position:
        return json.loads(json.dumps(self._data.state_dict()))  # the library goes on changing its own

    def fraction_read(self) -> float | None:
        return None

    def _fingerprint(self, first: str) -> str:
        digest = hashlib.sha256(repr((self.name, self._config.revision, self._config.text_field, first)).encode())
        folder = Path(self._config.dataset or "")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else ():
            digest.update(repr((path.relative_to(folder).as_posix(), path.stat().st_size)).encode())
        return digest.hexdigest()


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem).strip() else ''}"
