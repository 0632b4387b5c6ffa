"""Tokenizers: trained on the corpus and cached, or any of transformers' by name or folder."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from riemannian_ode.checks import one_line
from rishd.pretraining.cache import cache_folder, cache_key, locked, read_record, write_record
from rishd.pretraining.config import DataConfig
from rishd.pretraining.corpus import Corpus
from rishd.progress import Advance

END_OF_TEXT = "<|endoftext|>"
_CHARACTERS = 12_000_000  # characters of training text for the BPE; more text changes few merges
_ANY_LENGTH = 1 << 62


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message says why."""


def load_tokenizer(config: DataConfig, corpus: Corpus, progress: Advance) -> PreTrainedTokenizerBase:
    """The tokenizer of a run: the named one, or one trained on the corpus's training part.

    Args:
        config: ``tokenizer`` and ``vocab_size``.
        corpus: The corpus.
        progress: Called with (what, done, total).

    Raises:
        TokenizerError: for an unusable tokenizer.
    """
    named = named_tokenizer(config)
    if named is not None:
        return named
    trained = train_tokenizer(corpus, config.vocab_size, progress)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=trained, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def named_tokenizer(config: DataConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a run names; ``None`` if it trains one.

    Args:
        config: ``tokenizer`` is a name on the Hugging Face hub or a folder.

    Raises:
        TokenizerError: for a tokenizer that cannot be loaded or has no end-of-text token.
    """
    if config.tokenizer is None:
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(config.tokenizer, trust_remote_code=False)
    except Exception as problem:  # errors of the network, the hub, or any tokenizer's files
        raise TokenizerError(f"data.tokenizer = {config.tokenizer!r} cannot be loaded: {one_line(problem)}") from None
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"data.tokenizer = {config.tokenizer!r} has no end-of-text token (eos_token), which ends every document."
        )
    tokenizer.model_max_length = _ANY_LENGTH  # this package cuts documents into sequences
    return tokenizer


def train_tokenizer(corpus: Corpus, vocab_size: int, progress: Advance) -> Tokenizer:
    """A byte-level BPE of ``vocab_size`` tokens, trained on the corpus's training part or loaded from the cache.

    Args:
        corpus: The corpus.
        vocab_size: Number of tokens, at least :data:`rishd.pretraining.config.SMALLEST_VOCABULARY`.
        progress: Called with (what, done, total).
    """
    key = cache_key(corpus.content_hash, corpus.validation_share, vocab_size, _CHARACTERS)
    path = cache_folder() / f"tokenizer-{key}.json"

    def waiting() -> None:
        progress("waiting for another process to train the tokenizer", 0, 1)

    record = read_record(path)
    if record is None:
        with locked(path.with_suffix(".lock"), "to train the tokenizer", waiting) as alive:  # all ranks come here
            record = read_record(path)
            if record is None:
                tokenizer = _trained(corpus, vocab_size, progress, alive)
                corpus.require_unchanged()
                record = {"tokenizer": tokenizer.to_str()}
                write_record(path, record)
    return Tokenizer.from_str(record["tokenizer"])


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id; ``len(tokenizer)`` is smaller if ids are skipped."""
    return 1 + max(tokenizer.get_vocab().values())


def encoding_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that determines the encoding: vocabulary, merges, normalisation, added tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    with tempfile.TemporaryDirectory() as folder:  # a tokenizer written in Python
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _trained(corpus: Corpus, vocab_size: int, progress: Advance, alive: Callable[[], None]) -> Tokenizer:
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
            if seen >= _CHARACTERS:
                return
            seen += len(text)
            alive()
            progress("training the tokenizer", min(seen, _CHARACTERS), _CHARACTERS)
            yield text

    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


__all__ = [
    "END_OF_TEXT",
    "TokenizerError",
    "encoding_hash",
    "load_tokenizer",
    "named_tokenizer",
    "train_tokenizer",
    "vocabulary_size",
]
