"""From text to fixed-length token blocks: a byte-level BPE trained on the corpus, and both cached."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset

from rishd.pretraining.corpus import Corpus, CorpusError, Split

END_OF_TEXT = "<|endoftext|>"
_TOKENIZER_CHARACTERS = 12_000_000  # of training text that the BPE sees: more changes few merges
_BATCH = 64  # documents encoded at a time, in parallel

Progress = Callable[[str, int, int], None]


def cache_folder() -> Path:
    """Where tokenizers and tokens are kept: ``$RISHD_CACHE``, ``$XDG_CACHE_HOME/rishd`` or ``~/.cache/rishd``."""
    own = os.environ.get("RISHD_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rishd"


def train_tokenizer(corpus: Corpus, vocab_size: int, progress: Progress) -> Tokenizer:
    """A byte-level BPE of ``vocab_size`` tokens, trained on the corpus's training split, from the cache if it is there.

    Args:
        corpus: The corpus.
        vocab_size: Number of tokens, at least :data:`rishd.pretraining.config.SMALLEST_VOCABULARY`.
        progress: Called with (what, done, total).
    """
    path = cache_folder() / f"tokenizer-{_key(corpus.content_hash, vocab_size, _TOKENIZER_CHARACTERS)}.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        seen = 0
        for text in corpus.texts("train"):
            if seen >= _TOKENIZER_CHARACTERS:
                return
            seen += len(text)
            progress("training the tokenizer", min(seen, _TOKENIZER_CHARACTERS), _TOKENIZER_CHARACTERS)
            yield text

    tokenizer.train_from_iterator(texts(), trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    tokenizer.save(str(partial))
    partial.replace(path)
    return tokenizer


@dataclass(frozen=True)
class TokenBlocks(Dataset[dict[str, torch.Tensor]]):
    """Fixed-length blocks of token ids, memory-mapped.

    Args:
        ids: Shape ``(blocks, length)``, uint32.
    """

    ids: np.ndarray

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Inputs and labels (the model shifts them) of one block, int64."""
        row = torch.from_numpy(self.ids[index].astype(np.int64))
        return {"input_ids": row, "labels": row}


def token_blocks(
    corpus: Corpus, split: Split, tokenizer: Tokenizer, *, length: int, blocks: int, progress: Progress
) -> TokenBlocks:
    """Documents of a split, each ended by a special token, laid end to end and cut into blocks; cached.

    Args:
        corpus: The corpus.
        split: Which documents.
        tokenizer: Of :func:`train_tokenizer`.
        length: Tokens per block.
        blocks: How many blocks are wanted; fewer if the split is shorter.
        progress: Called with (what, done, total).

    Raises:
        CorpusError: if the split has not even one block.
    """
    key = _key(corpus.content_hash, tokenizer.to_str(), split, length, blocks)
    path = cache_folder() / f"tokens-{key}.npy"
    if not path.exists():
        ids = _encode(corpus, split, tokenizer, length * blocks, progress)
        count = len(ids) // length
        if count == 0:
            raise CorpusError(
                f"the {split} split of {corpus.name} has {len(ids)} tokens, less than one block of {length}; give more "
                "text or a smaller --seq-len."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as stream:
            np.save(stream, ids[: count * length].reshape(count, length))
        partial.replace(path)
    return TokenBlocks(np.load(path, mmap_mode="r"))


def _encode(corpus: Corpus, split: Split, tokenizer: Tokenizer, wanted: int, progress: Progress) -> np.ndarray:
    end = tokenizer.token_to_id(END_OF_TEXT)
    parts: list[np.ndarray] = []
    have = 0
    batch: list[str] = []

    def flush() -> None:
        nonlocal have
        for encoding in tokenizer.encode_batch_fast(batch):
            parts.append(np.array([*encoding.ids, end], dtype=np.uint32))
            have += len(parts[-1])
        batch.clear()
        progress(f"encoding {split} text", min(have, wanted), wanted)

    for text in corpus.texts(split):
        batch.append(text)
        if len(batch) == _BATCH:
            flush()
            if have >= wanted:
                break
    if batch:
        flush()
    return np.concatenate(parts)[:wanted] if parts else np.empty(0, np.uint32)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
