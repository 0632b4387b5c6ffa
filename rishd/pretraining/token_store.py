"""Token blocks on disk: written once per corpus, tokenizer and length, ahead of the runs that read them.

A store is a folder of the cache with files ``000000.npy``, … of about two million tokens each, written in the order of
the corpus, and ``state.json``: how far the writing has come and where in the corpus it goes on. Every file is written
atomically, one process at a time writes, and a killed one is replaced by whoever waits. A block is then found by its
number alone, so that a resumed run, every rank and every later run read the same data.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rishd.atomic import write_json
from rishd.pretraining.cache import cache_folder, cache_key, locked
from rishd.pretraining.config import Packing
from rishd.pretraining.corpus import Corpus, Split
from rishd.pretraining.text_files import CorpusError

Progress = Callable[[str, int, int], None]
_TOKENS_PER_FILE = 1 << 21
_TEXTS = 64  # encoded at a time, in parallel
_POLL = 0.05  # seconds between looks for a file that another thread or process writes
_START: dict[str, Any] = {
    "files": 0,
    "blocks": 0,
    "rest": [],  # tokens behind the last whole block
    "position": None,  # in the corpus, behind the rest
    "fraction": 0.0,  # of the corpus, if known
    "complete": False,
    "skipped": [],
    "error": None,
}


class TokenStore:
    """Blocks of one part of a corpus.

    Args:
        corpus: The corpus.
        split: Which part.
        tokenizer: Encodes it; every document ends with its ``eos_token``.
        length: Tokens per block.
        packing: ``"truncate"`` gives every document a block of its own, cut off or filled up with the end-of-text
            token; otherwise documents lie end to end.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        packing: Packing,
    ) -> None:
        self.corpus, self.split, self.tokenizer, self.length = corpus, split, tokenizer, length
        self.one_document_a_block = packing == "truncate"
        self.end = int(tokenizer.eos_token_id)
        file = max(1, _TOKENS_PER_FILE // length)
        vocabulary = sorted(tokenizer.get_vocab().items())
        content = corpus.content_hash, corpus.validation_share
        key = cache_key(*content, vocabulary, self.end, split, length, self.one_document_a_block, file)
        self.folder = cache_folder() / f"tokens-{key}"
        self.blocks_per_file = file
        self._dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
        self._open: tuple[int, np.ndarray] | None = None
        self._writer: threading.Thread | None = None

    def state(self) -> dict[str, Any]:
        """How far the writing has come."""
        try:
            return {**_START, **json.loads((self.folder / "state.json").read_text(encoding="utf-8"))}
        except FileNotFoundError:
            return dict(_START)

    def fill(self, wanted: int, progress: Progress = lambda what, done, total: None) -> dict[str, Any]:
        """Write blocks until there are ``wanted``, or the corpus ends; waits for another process that does.

        Args:
            wanted: Number of blocks.
            progress: Called with (what, done, total).

        Returns:
            The state after.

        Raises:
            CorpusError: for a corrupt corpus.
        """
        state = self.state()
        if state["complete"] or state["blocks"] >= wanted:
            return state

        def follow() -> None:  # the process that writes
            progress(f"encoding {self.split} text", min(self.state()["blocks"], wanted), wanted)

        with locked(self.folder / "lock", follow):
            before = self.state()
            state = {**before, "error": None}
            if state["complete"] or state["blocks"] >= wanted:
                return state
            try:
                if before["error"] is not None:  # of an earlier process: others would take it for this one's
                    self._save(state)
                return self._write(state, wanted, progress)
            except (CorpusError, OSError) as problem:
                with suppress(OSError):  # the disk may be full
                    self._save({**self.state(), "error": str(problem)})
                raise

    def fill_in_background(self, wanted: int) -> threading.Thread:
        """:meth:`fill` beside the training; a failure is raised by :meth:`block` where the first block is missing."""

        def work() -> None:
            with suppress(CorpusError, OSError):  # told by the state
                self.fill(wanted)

        thread = threading.Thread(target=work, name=f"tokens of {self.split}", daemon=True)
        self._writer = thread
        thread.start()
        return thread

    def block(self, number: int) -> np.ndarray:
        """Token ids of a block, shape ``(length,)``; waits until it is written.

        Raises:
            CorpusError: if it never will be.
        """
        file, row = divmod(number, self.blocks_per_file)
        blocks: np.ndarray = self.file(file)[row]
        return blocks

    def file(self, number: int) -> np.ndarray:
        """Blocks of one file, shape ``(blocks, length)``, memory-mapped; waits until it is written.

        Raises:
            CorpusError: if it never will be.
        """
        if self._open is None or self._open[0] != number:
            path = self.folder / f"{number:06}.npy"
            while not path.exists():
                # Asked before the state is read: if nobody writes any more, the state is the last one.
                is_writing = self._writer is not None and self._writer.is_alive()
                state = self.state()
                if state["files"] > number:
                    continue  # written since
                if state["error"] is not None and not is_writing:
                    raise CorpusError(f"the {self.split} text of {self.corpus.name} ends early: {state['error']}")
                if state["complete"]:
                    raise CorpusError(
                        f"{self.corpus.name} has only {state['blocks'] * self.length:,} tokens for {self.split}; give "
                        "more text, ask for fewer steps, or set data.epochs."
                    )
                time.sleep(_POLL)
            self._open = (number, np.load(path, mmap_mode="r"))
        return self._open[1]

    def _write(self, state: dict[str, Any], wanted: int, progress: Progress) -> dict[str, Any]:
        parts = [np.array(state["rest"], dtype=self._dtype)]
        have, file = parts[0].size, self.blocks_per_file * self.length
        for batch in _batches(self.corpus.texts(self.split, state["position"])):
            ids = self._encode(batch)
            parts.append(ids)
            have += ids.size
            progress(f"encoding {self.split} text", min(state["blocks"] + have // self.length, wanted), wanted)
            if have < file:
                continue
            joined = np.concatenate(parts)
            whole = have // file
            self._write_files(state["files"], joined[: whole * file])
            parts, have = [joined[whole * file :]], have % file
            state = state | {
                "files": state["files"] + whole,
                "blocks": state["blocks"] + whole * self.blocks_per_file,
                "rest": parts[0].tolist(),
                "position": self.corpus.position(),
                "fraction": self.corpus.fraction_read(),
            }
            self._save(state)
            if state["blocks"] >= wanted:
                return state
        count = have // self.length
        self._write_files(state["files"], np.concatenate(parts)[: count * self.length])
        state = state | {
            "files": state["files"] + bool(count),
            "blocks": state["blocks"] + count,
            "rest": [],
            "position": None,
            "fraction": 1.0,
            "complete": True,
        }
        self._save(state)
        return state

    def _encode(self, texts: list[str]) -> np.ndarray:
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        if self.one_document_a_block:
            rows = np.full((len(encoded), self.length), self.end, dtype=self._dtype)
            for row, ids in zip(rows, encoded, strict=True):
                row[: len(ids)] = ids[: self.length]
            return rows.ravel()
        return np.concatenate([np.array([*ids, self.end], dtype=self._dtype) for ids in encoded])

    def _write_files(self, first: int, ids: np.ndarray) -> None:
        blocks = ids.reshape(-1, self.length)
        for i, start in enumerate(range(0, len(blocks), self.blocks_per_file)):
            path = self.folder / f"{first + i:06}.npy"
            partial = path.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.save(stream, blocks[start : start + self.blocks_per_file])
            partial.replace(path)

    def _save(self, state: dict[str, Any]) -> None:
        write_json(self.folder / "state.json", {**state, "skipped": sorted({*state["skipped"], *self.corpus.skipped})})


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _TEXTS:
            yield batch
            batch = []
    if batch:
        yield batch
