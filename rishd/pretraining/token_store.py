"""Token blocks on disk, written once per corpus, tokenizer and length, ahead of the runs that read them.

A store is a folder of the cache with files ``000000.npy``, … of about two million tokens each, written in the order of
the corpus, and ``state.json`` with the progress and the position in the corpus. Every file is written atomically, and
one process writes at a time; if it is killed, a waiting process takes over. A block is found by its number alone, so a
resumed run, every rank and every later run read the same data. A file ends with a checksum of its content, its number
and its store. A file that is missing, damaged or copied from elsewhere is rewritten when it is read.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from copy import copy
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from riemannian_ode.atomic import write_bytes
from rishd.pretraining.cache import (
    CacheError,
    cache_folder,
    cache_key,
    locked,
    place,
    read_record,
    warn_of_damage,
    write_record,
)
from rishd.pretraining.config import Packing
from rishd.pretraining.corpus import Corpus
from rishd.pretraining.text_files import CorpusError, Split
from rishd.pretraining.tokenizer import encoding_hash, vocabulary_size
from rishd.progress import Advance, silent

_TOKENS_PER_FILE = 1 << 21
_TEXTS = 64  # documents encoded at a time, in parallel
_POLL = 0.05  # seconds between checks for a file that another thread writes
_CHECKSUM = 32  # bytes at the end of a file: SHA-256 of its path and all preceding bytes
_START: dict[str, Any] = {
    "files": 0,
    "blocks": 0,
    "rest": [],  # tokens after the last complete block
    "position": None,  # position in the corpus after these tokens
    "fraction": 0.0,  # fraction of the corpus, if known
    "complete": False,
    "skipped": [],
}


class TokenStore:
    """Blocks of one part of a corpus.

    Args:
        corpus: The corpus.
        split: Part of the corpus.
        tokenizer: Tokenizer; every document ends with its ``eos_token``.
        length: Tokens per block.
        packing: ``"truncate"`` gives every document its own block, truncated or padded with the end-of-text token;
            otherwise documents are concatenated.
        progress: Called with (what, done, total) while blocks are written or waited for.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        packing: Packing,
        progress: Advance = silent,
    ) -> None:
        # A copy has its own position: one store may be repaired while another is written in the background.
        self.corpus = copy(corpus)
        self.split, self.tokenizer, self.length = split, tokenizer, length
        self.progress = progress
        self.one_document_a_block = packing == "truncate"
        self.end = int(tokenizer.eos_token_id)
        file = max(1, _TOKENS_PER_FILE // length)
        content = corpus.content_hash, corpus.validation_share, encoding_hash(tokenizer)
        key = cache_key(*content, self.end, split, length, self.one_document_a_block, file)
        self.folder = cache_folder() / f"tokens-{key}"
        self.blocks_per_file = file
        self._dtype = np.uint16 if vocabulary_size(tokenizer) <= 1 << 16 else np.uint32
        self._open: tuple[int, np.ndarray] | None = None
        self._writer: threading.Thread | None = None

    def state(self) -> dict[str, Any]:
        """Progress of the writing."""
        return {**_START, **(read_record(self.folder / "state.json") or {})}

    def fill(self, wanted: int) -> dict[str, Any]:
        """Write blocks until there are ``wanted`` or the corpus ends; waits if another process is writing.

        Args:
            wanted: Number of blocks.

        Returns:
            The state afterwards.

        Raises:
            CorpusError: for a corrupt or changed corpus.
            CacheError: if another process holds the store and makes no progress.
        """
        return self._fill(wanted, self.progress)

    def fill_in_background(self, wanted: int) -> threading.Thread:
        """Run :meth:`fill` during training; after a failure :meth:`block` tries again and raises if that also fails."""

        def work() -> None:
            with suppress(Exception):
                self._fill(wanted, silent)

        thread = threading.Thread(target=work, name=f"tokens of {self.split}", daemon=True)
        self._writer = thread
        thread.start()
        return thread

    def block(self, number: int) -> np.ndarray:
        """Token ids of a block, shape ``(length,)``; waits until it is written.

        Raises:
            CorpusError: if it cannot be written.
        """
        file, row = divmod(number, self.blocks_per_file)
        blocks: np.ndarray = self.file(file)[row]
        return blocks

    def file(self, number: int) -> np.ndarray:
        """Blocks of one file, shape ``(blocks, length)``; waits until it is written.

        Raises:
            CorpusError: if it cannot be written.
        """
        if self._open is None or self._open[0] != number:
            self._open = (number, self._written(number))
        return self._open[1]

    def _written(self, number: int) -> np.ndarray:
        wanted = (number + 1) * self.blocks_per_file
        while self._writer is not None and self._writer.is_alive():
            state = self.state()
            if state["files"] > number:
                break
            self.progress(f"waiting for {self.split} text", state["blocks"], wanted)
            time.sleep(_POLL)
        try:
            state = self.fill(wanted)  # returns at once if the file exists; otherwise its writer has died
            if state["files"] > number:
                blocks = self._read(number)
                return self._repaired(number) if blocks is None else blocks
        except (CorpusError, CacheError, OSError) as problem:
            raise CorpusError(f"the {self.split} text of {self.corpus.name} ends early: {problem}") from None
        raise CorpusError(
            f"{self.corpus.name} has only {state['blocks'] * self.length:,} tokens for {self.split}; give more text, "
            "ask for fewer steps, or set data.epochs."
        )

    def _fill(self, wanted: int, progress: Advance) -> dict[str, Any]:
        state = self.state()
        if state["complete"] or state["blocks"] >= wanted:
            return state

        def advance(blocks: int) -> None:
            progress(f"encoding {self.split} text", min(blocks, wanted), wanted)

        with self._locked(lambda: advance(self.state()["blocks"])) as alive:
            state = self.state()
            if state["complete"] or state["blocks"] >= wanted:
                return state
            for blocks, after in self._encoded(state, advance, alive):
                self.corpus.require_unchanged()
                for i, file in enumerate(self._cut(blocks), start=state["files"]):
                    self._write(i, file)
                state = after
                self._save(state)
                if state["blocks"] >= wanted:
                    break
            return state

    def _repaired(self, number: int) -> np.ndarray:
        """Rewrite a missing or damaged file and those before it, and return its blocks.

        The preceding tokens must be encoded again, because the state has only the last position in the corpus.
        """
        warn_of_damage(self._path(number))
        wanted = (number + 1) * self.blocks_per_file

        def advance(blocks: int) -> None:
            self.progress(f"repairing {self.split} text", min(blocks, wanted), wanted)

        with self._locked(lambda: advance(0)) as alive:
            if (repaired := self._read(number)) is not None:  # repaired by another process
                return repaired
            first = 0
            for blocks, state in self._encoded(dict(_START), advance, alive):
                self.corpus.require_unchanged()
                for i, file in enumerate(self._cut(blocks), start=first):
                    if self._read(i) is None:
                        self._write(i, file)
                    if i == number:
                        return file
                first = state["files"]
        raise CorpusError(
            f"{self._path(number)} cannot be repaired: {self.corpus.name} has fewer tokens; remove {self.folder} and "
            "start again."
        )

    def _locked(self, waiting: Callable[[], None]) -> AbstractContextManager[Callable[[], None]]:
        return locked(self.folder / "lock", f"to encode {self.split} text", waiting)

    def _encoded(
        self, state: dict[str, Any], advance: Callable[[int], None], alive: Callable[[], None]
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Yield blocks of whole files from a state on, each with the state after it; the last file may be short."""
        parts = [np.array(state["rest"], dtype=self._dtype)]
        have, file = parts[0].size, self.blocks_per_file * self.length
        for batch in _batches(self.corpus.texts(self.split, state["position"])):
            ids = self._encode(batch)
            parts.append(ids)
            have += ids.size
            alive()
            advance(state["blocks"] + have // self.length)
            if have < file:
                continue
            joined = np.concatenate(parts)
            whole = have // file
            parts, have = [joined[whole * file :]], have % file
            state = state | {
                "files": state["files"] + whole,
                "blocks": state["blocks"] + whole * self.blocks_per_file,
                "rest": parts[0].tolist(),
                "position": self.corpus.position(),
                "fraction": self.corpus.fraction_read(),
            }
            yield joined[: whole * file].reshape(-1, self.length), state
        count = have // self.length
        state = state | {
            "files": state["files"] + bool(count),
            "blocks": state["blocks"] + count,
            "rest": [],
            "position": None,
            "fraction": 1.0,
            "complete": True,
        }
        yield np.concatenate(parts)[: count * self.length].reshape(-1, self.length), state

    def _encode(self, texts: list[str]) -> np.ndarray:
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        if self.one_document_a_block:
            rows = np.full((len(encoded), self.length), self.end, dtype=self._dtype)
            for row, ids in zip(rows, encoded, strict=True):
                row[: len(ids)] = ids[: self.length]
            return rows.ravel()
        return np.concatenate([np.array([*ids, self.end], dtype=self._dtype) for ids in encoded])

    def _cut(self, blocks: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(blocks), self.blocks_per_file):
            yield blocks[start : start + self.blocks_per_file]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.npy"

    def _write(self, number: int, blocks: np.ndarray) -> None:
        stream = io.BytesIO()
        np.save(stream, blocks)
        stream.write(self._checksum(number, stream.getbuffer()))
        write_bytes(self._path(number), stream.getbuffer())

    def _read(self, number: int) -> np.ndarray | None:
        """Blocks of a file; ``None`` if it is missing, damaged or copied from elsewhere."""
        try:
            content = memoryview(self._path(number).read_bytes())
        except FileNotFoundError:
            return None
        body = content[:-_CHECKSUM]
        if self._checksum(number, body) != content[-_CHECKSUM:]:
            return None
        blocks: np.ndarray = np.load(io.BytesIO(body))
        return blocks

    def _checksum(self, number: int, body: memoryview) -> bytes:
        digest = sha256(place(self._path(number)).encode() + b"\n")
        digest.update(body)
        return digest.digest()

    def _save(self, state: dict[str, Any]) -> None:
        skipped = sorted({*state["skipped"], *self.corpus.skipped})
        write_record(self.folder / "state.json", {**state, "skipped": skipped})


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _TEXTS:
            yield batch
            batch = []
    if batch:
        yield batch
