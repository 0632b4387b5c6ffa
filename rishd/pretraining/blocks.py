"""The token blocks of a run: their choice, their order, and their form as model inputs.

Training reads the blocks of a store file by file, and within a file in an order given by the seed. Validation always
reads the first blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from rishd.pretraining.config import Packing, PretrainConfig
from rishd.pretraining.corpus import Corpus
from rishd.pretraining.text_files import CorpusError
from rishd.pretraining.token_store import TokenStore
from rishd.progress import Advance

IGNORED = -100  # label of tokens without a loss, in transformers and torch
# The size of a streamed corpus is estimated from its first blocks, and counted if within this factor of the request.
_DOUBT = 1.25


@dataclass(frozen=True)
class TokenBlocks(Dataset[np.ndarray]):
    """Blocks by their index in a run.

    Args:
        store: Store of the blocks.
        count: Number of blocks that the run reads.
        seed: Seed of the order; ``None`` keeps the store's order.
        available: Number of blocks in the store if the run reads them more than once.
    """

    store: TokenStore
    count: int
    seed: int | None = None
    available: int | None = None

    def __len__(self) -> int:
        """Number of blocks."""
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        """Token ids of one block, shape ``(length,)``."""
        epoch, number = divmod(index, self.available) if self.available else (0, index)
        if self.seed is None:
            return self.store.block(number)
        file, row = divmod(number, self.store.blocks_per_file)
        blocks = self.store.file(file)
        block: np.ndarray = blocks[_order(len(blocks), (self.seed, epoch, file))[row]]
        return block

    def tokens(self, indices: range) -> int:
        """Number of text tokens in some blocks, without the padding of truncated documents."""
        if not self.store.one_document_a_block:
            return len(indices) * self.store.length
        return sum(int(_text_length(self[i], self.store.end)) for i in indices)


def training_blocks(
    config: PretrainConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, progress: Advance
) -> TokenBlocks:
    """Blocks to train on; for a large corpus most are written during training.

    Args:
        config: The run.
        corpus: The corpus.
        tokenizer: Its tokenizer.
        progress: Called with (what, done, total).

    Raises:
        CorpusError: if the corpus has fewer tokens than the run needs.
    """
    wanted = config.steps * config.training.batch_size
    store = TokenStore(
        corpus, "train", tokenizer, length=config.data.sequence_length, packing=config.data.packing, progress=progress
    )
    state = store.fill(min(wanted, store.blocks_per_file) if corpus.is_streamed else wanted)
    while state["fraction"] == 0.0 and state["blocks"] < wanted:
        state = store.fill(state["blocks"] + 1)
    if not state["complete"] and state["blocks"] < wanted:
        fraction = state["fraction"]
        # Text of unknown size is assumed to suffice, unless it may be read again: then its end must be known.
        guess = state["blocks"] / fraction if fraction else math.inf if config.data.epochs == 1 else 0.0
        if fraction and guess * config.data.epochs * _DOUBT < wanted:
            raise _too_small(config, corpus, guess, "about ")
        if guess > _DOUBT * wanted:
            store.fill_in_background(wanted)
            return TokenBlocks(store, wanted, config.seed)
        state = store.fill(wanted)
    if state["blocks"] >= wanted:
        return TokenBlocks(store, wanted, config.seed)
    if not state["blocks"] or state["blocks"] * config.data.epochs < wanted:
        raise _too_small(config, corpus, state["blocks"])
    return TokenBlocks(store, wanted, config.seed, available=state["blocks"])


def validation_blocks(
    config: PretrainConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, progress: Advance
) -> TokenBlocks:
    """Blocks to evaluate on, always the same.

    Args:
        config: The run.
        corpus: The corpus.
        tokenizer: Its tokenizer.
        progress: Called with (what, done, total).

    Raises:
        CorpusError: if the held-back documents have fewer tokens than requested.
    """
    store = TokenStore(
        corpus,
        "validation",
        tokenizer,
        length=config.data.sequence_length,
        packing=config.data.packing,
        progress=progress,
    )
    wanted = config.evaluation_sequences
    state = store.fill(wanted)
    if state["blocks"] < (1 if config.evaluation.tokens is None else wanted):
        raise CorpusError(
            f"the documents of {corpus.name} that are held back for validation have "
            f"{state['blocks'] * store.length:,} tokens in sequences of {store.length}, evaluation.tokens asks for "
            f"{wanted * store.length:,}; give more text, a larger data.validation_share, or ask for fewer."
        )
    return TokenBlocks(store, min(wanted, state["blocks"]))


def left_out(corpus: Corpus, *parts: TokenBlocks) -> list[str]:
    """One sentence for each part of the text that is missing from the tokens because it was corrupt.

    Args:
        corpus: The corpus; a corpus in memory has been read completely and knows, for a streamed one the stores know.
        parts: Parts of that corpus.
    """
    if not corpus.is_streamed:
        return list(corpus.skipped)
    return sorted({what for part in parts for what in part.store.state()["skipped"]})


def make_collator(
    packing: Packing, end_of_text: int, *, flatten: bool = False
) -> Callable[[Sequence[np.ndarray]], dict[str, torch.Tensor]]:
    """Inputs and labels (the model shifts them) of some blocks, int64.

    Args:
        packing: ``"concatenate"``: a block counts as one text, whatever documents it contains. ``"separate"``: each
            document starts at position 0 and sees nothing before it; transformers builds the block-diagonal mask from
            ``position_ids``. ``"truncate"``: one document, without loss on the padding.
        end_of_text: Id of the token that ends documents.
        flatten: Whether to put the blocks of a pass into one row, as attention kernels for variable lengths need
            (``flash_attention_2``).
    """

    def collate(blocks: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        ids = np.stack(blocks).astype(np.int64)
        labels = ids.copy()
        batch = {"input_ids": ids, "labels": labels}
        if packing == "truncate":
            lengths = _text_length(ids, end_of_text)
            labels[np.arange(ids.shape[1]) >= lengths[:, None]] = IGNORED
        if packing == "separate" or flatten:
            starts = _starts(ids, end_of_text) if packing == "separate" else np.zeros(ids.shape, dtype=bool)
            starts[:, 0] = True
            labels[starts] = IGNORED  # nothing precedes a document's first token
            places = np.arange(ids.shape[1])
            batch["position_ids"] = places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)
        if flatten:
            batch = {key: value.reshape(1, -1) for key, value in batch.items()}
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in batch.items()}

    return collate


def _starts(ids: np.ndarray, end_of_text: int) -> np.ndarray:
    starts = np.zeros(ids.shape, dtype=bool)
    starts[:, 1:] = ids[:, :-1] == end_of_text
    return starts


def _text_length(ids: np.ndarray, end_of_text: int) -> np.ndarray:
    """Number of tokens up to and including the first end of text; all if there is none."""
    ends = ids == end_of_text
    lengths: np.ndarray = np.where(ends.any(axis=-1), ends.argmax(axis=-1) + 1, ids.shape[-1])
    return lengths


@lru_cache(maxsize=4)  # blocks of one file are read one after another
def _order(count: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def _too_small(config: PretrainConfig, corpus: Corpus, blocks: float, about: str = "") -> CorpusError:
    length, epochs = config.data.sequence_length, config.data.epochs
    wanted = config.steps * config.training.batch_size
    passes = f" {epochs} passes over" if epochs > 1 else ""
    enough = f", or set data.epochs = {math.ceil(wanted / blocks)}" if blocks >= 1 else ""
    return CorpusError(
        f"the run asks for {wanted * length:,} tokens ({config.steps} steps of {config.tokens_per_step:,}), "
        f"and{passes} {corpus.name} has {about}{int(blocks) * length:,} in sequences of {length} for training; give "
        f"more text or ask for fewer steps{enough}."
    )
