"""Data sets by name (C4, The Pile, or a local folder of shards), streamed through the ``datasets`` library."""

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
from rishd.pretraining.file_hashes import HashedFiles
from rishd.pretraining.text_files import BROKEN, CorpusError, Document, Position, Split
from rishd.progress import Advance, silent

_SETTINGS = ("README.md", ".huggingface.yaml")  # files of a data set's folder that say which files are read, and how


class HubCorpus:
    """A data set of the Hugging Face hub, or a folder in one of its formats, read on demand.

    Args:
        config: ``dataset``, ``subset``, ``dataset_split``, ``revision`` and ``text_field``.
        progress: Called with (what, done, total) while local files are hashed.

    Raises:
        CorpusError: for a data set that cannot be opened, or without the text field.
    """

    def __init__(self, config: DataConfig, progress: Advance = silent) -> None:
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
            # The library does not run a data set's code (since version 4 it has no trust_remote_code and refuses
            # scripts).
            builder = datasets.load_dataset_builder(config.dataset, config.subset, revision=config.revision)
            self._unread: Any = builder.as_streaming_dataset(split=config.dataset_split)
            self._shards = int(self._unread.num_shards)
        except Exception as problem:  # errors of the network, the hub, or any file format
            remedy = (
                "; text, jsonl and Parquet files may be given as data.paths" if os.path.isdir(config.dataset) else ""
            )
            raise CorpusError(f"data set {self.name} cannot be read: {_first_line(problem)}{remedy}") from None
        self._data = self._unread
        first = next(self._rows(None), None)
        self.skipped.clear()  # reading will report it again
        if first is None:
            raise CorpusError(f"data set {self.name} has no rows; check data.subset and data.dataset_split.")
        if not isinstance(first.get(config.text_field), str):
            raise CorpusError(
                f"data set {self.name} has no text in {config.text_field!r}, but columns {', '.join(first)}; set "
                "data.text_field."
            )
        self._hash(builder, progress)

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
        # The library keeps changing its own object.
        return [self._shard, json.loads(json.dumps(self._data.state_dict()))]

    def _rows(self, position: Position | None) -> Iterator[dict[str, Any]]:
        """Rows, shard after shard; a corrupt shard ends early, and reading continues with the next one."""
        first, state = position or (0, None)
        for shard in range(first, self._shards):
            self._shard = shard
            self._data = self._unread.shard(self._shards, shard)  # the object keeps a loaded position
            if state is not None:
                self._data.load_state_dict(state)
                state = None
            try:
                yield from self._data
            except Exception as problem:
                if not _is_corrupt(problem):
                    raise CorpusError(
                        f"data set {self.name} cannot be read further: {_first_line(problem)}; start again, it "
                        "continues where it stopped."
                    ) from None
                what = f"data set {self.name}, shard {shard + 1} of {self._shards}: {_first_line(problem)}"
                if self._config.on_corrupt == "error":
                    raise CorpusError(f"{what}; set data.on_corrupt = skip to leave out the rest of it.") from None
                self.skipped.append(what)

    def fraction_read(self) -> float | None:
        return None

    def require_unchanged(self) -> None:
        self._local.require_unchanged()

    def _hash(self, builder: Any, progress: Advance) -> None:
        """Set ``content_hash``: by content for local files, by commit for files of the hub."""
        folder = Path(self._config.dataset or "")
        by_split = builder.config.data_files or {}
        files = [str(file) for split in by_split.values() for file in split]
        files += [str(folder / name) for name in _SETTINGS if (folder / name).is_file()]
        # An address like "zip://inside.txt::archive.zip" ends with the file that is read.
        paths = {file: Path(file.rsplit("::", 1)[-1]) for file in files}
        paths = {file: path for file, path in paths.items() if path.is_file()}
        self._local = HashedFiles(list(paths.values()), progress)
        digests = dict(zip(paths, self._local.digests, strict=True))
        content: list[Any] = []
        for file in files:
            if path := paths.get(file):
                place = os.path.relpath(path.parent.resolve() / path.name, folder.resolve())
                content.append((*file.split("::")[:-1], place, digests[file]))
            else:
                content.append(file)
        if len(digests) < len(files):  # repositories with commits, or versions of other addresses
            content.append(sorted({origin for split in by_split.values() for origin in split.origin_metadata}))
        if not by_split:
            content.append(builder.hash)
        known = self._config.subset, self._config.dataset_split, self._config.text_field, content
        self.content_hash = hashlib.sha256(repr(known).encode()).hexdigest()


def _is_corrupt(problem: Exception) -> bool:
    """Whether an error is about the text, as opposed to access to it (some access errors are also ValueErrors)."""
    problem = problem.__cause__ if isinstance(problem.__cause__, Exception) else problem
    of_text = isinstance(problem, (ValueError, RecursionError, DatasetGenerationError)) and not isinstance(
        problem, OSError
    )
    return of_text or isinstance(problem, BROKEN)


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem).strip() else ''}"
