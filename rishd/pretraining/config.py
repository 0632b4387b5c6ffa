"""The frozen, checked configuration of a pre-training run, which is saved with its results.

A configuration file has one section per class below; :mod:`rishd.pretraining.config_files` reads it.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, field
from typing import Any, Literal, TypeAlias

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from riemannian_ode.checks import require_choice, require_positive, shown
from riemannian_ode.rate_factors import Schedule
from rishd.pretraining.presets import OPTIMIZERS, PRESETS
from rishd.pretraining.setting_types import Count, Number, Switch, Whole

Packing: TypeAlias = Literal["concatenate", "separate", "truncate"]
Sharding: TypeAlias = Literal["none", "fsdp2"]
Precision: TypeAlias = Literal["float32", "bfloat16-mixed", "bfloat16"]
SMALLEST_VOCABULARY = 300  # 256 bytes, one end of text, and some merges
_WARMUP_SHARE = 0.1  # published: 1000 steps of 10 000
_EVALUATION_TOKENS = 16384  # default; gives a standard error of a few hundredths of a nat per token
_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # module:Class, without a path or relative import
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig:
    """The model, always randomly initialised.

    Args:
        preset: A key of :data:`~rishd.pretraining.presets.PRESETS`.
        config: Instead of a preset, a transformers ``config.json`` of any causal language model, or its folder.
        settings: Entries of transformers' configuration to override, e.g. ``{"num_hidden_layers": 6}``.
        attention: transformers' attention implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``,
            ``"flex_attention"``.
    """

    preset: str = "9M"
    config: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    attention: str = "sdpa"

    def __post_init__(self) -> None:
        require_choice("model.preset", self.preset, PRESETS)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """The text, and how it is cut into sequences.

    Args:
        paths: Text in UTF-8, ``.jsonl`` and Parquet files, shards (``.json.gz`` like C4, ``.jsonl.zst`` like The Pile),
            or folders of them. Without ``paths`` and ``dataset`` the default corpus is used.
        dataset: Name of a data set on the Hugging Face hub (``allenai/c4``), or a folder in one of its formats.
        subset: Configuration of the data set (``en``).
        dataset_split: Split of the data set to read.
        revision: Commit of the data set, which fixes its content.
        text_field: Field of a line or row with the text.
        on_corrupt: What to do with a malformed line or a broken shard: ``"error"`` stops and names it; ``"skip"``
            continues without the line, or without the rest of the shard.
        tokenizer: Name or folder of a tokenizer of transformers; ``None`` trains a byte-level BPE on the corpus.
        vocab_size: Vocabulary size of that BPE; the presets are named for 32000.
        sequence_length: Tokens per sequence.
        packing: ``"concatenate"``: documents end to end, cut into sequences. ``"separate"``: the same, but documents do
            not see each other, and each starts at position 0. ``"truncate"``: a sequence is one document, truncated or
            padded, as published.
        validation_share: Share of the documents held back for validation, chosen by the hash of their text.
        epochs: How often the training text may be read.
    """

    paths: tuple[str, ...] | None = None
    dataset: str | None = None
    subset: str | None = None
    dataset_split: str = "train"
    revision: str | None = None
    text_field: str = "text"
    on_corrupt: Literal["error", "skip"] = "error"
    tokenizer: str | None = None
    vocab_size: Whole = 32000
    sequence_length: Whole = 256
    packing: Packing = "concatenate"
    validation_share: Number = 0.02
    epochs: Count = 1

    def __post_init__(self) -> None:
        if self.paths is not None and self.dataset is not None:
            raise ValueError(
                f"data.paths = {shown(self.paths)} and data.dataset = {shown(self.dataset)}: give one of them."
            )
        if self.paths == ():
            raise ValueError("data.paths = () names no file; leave it out for the default corpus.")
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"data.vocab_size = {self.vocab_size!r} must be at least {SMALLEST_VOCABULARY}: 256 bytes, one end of "
                "text, and merges."
            )
        if self.sequence_length < 2:
            raise ValueError(
                f"data.sequence_length = {self.sequence_length!r} leaves no next token to predict; take at least 2."
            )
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"data.validation_share = {self.validation_share!r} must lie strictly between 0 and 1: both parts need "
                "text."
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OptimizerConfig:
    """The optimizer and its settings.

    Args:
        name: A key of :data:`~rishd.pretraining.presets.OPTIMIZERS`, or ``module:Class`` for any torch optimizer.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay; ``None`` uses the class's default.
        settings: Further arguments of the optimizer's class, e.g. ``{"chi": 2.0, "beta_flat": 1.0}`` for MuonLITE.
        groups: Settings of LITE's parameter groups by kind, e.g. ``{"embedding": {"chi": 4.0}}``; see
            :func:`lite.param_groups`.
        matrices_only: Whether a class that is not LITE's gets only the matrices, while AdamW with the same learning
            rate and decay gets all other parameters.

    Source: defaults of lr and decay from arXiv:2602.22681 (LLaMA 0.25B).
    """

    name: str = "muon-lite"
    lr: Number = 3e-3
    weight_decay: Number | None = 0.1
    settings: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    matrices_only: Switch = False

    def __post_init__(self) -> None:
        if not _CLASS.fullmatch(self.name):
            require_choice("optimizer.name", self.name, (*OPTIMIZERS, "module:Class"))
        require_positive("optimizer.lr", self.lr, "3e-3 is the published choice for 250M parameters")
        if self.weight_decay is not None and not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"optimizer.weight_decay = {self.weight_decay!r} must be finite and non-negative.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ScheduleConfig:
    """Learning rate over time, and LITE's χ and β_flat.

    Args:
        name: ``"cosine"``, or ``"wsd"``: warm-up, stable until 80% of the steps, linear decay.
        warmup_steps: Length of the linear warm-up; ``None`` is a tenth of the steps (published: 1000 of 10 000).
        min_ratio: Last learning rate over the peak; ``None`` is 0.1 for cosine and 0 for wsd (published).
        lite: Whether χ and β_flat follow the published schedule; otherwise they are constant.
    """

    name: Schedule = "cosine"
    warmup_steps: Whole | None = None
    min_ratio: Number | None = None
    lite: Switch = True

    def __post_init__(self) -> None:
        if self.min_ratio is not None and not 0 <= self.min_ratio <= 1:
            raise ValueError(f"schedule.min_ratio = {self.min_ratio!r} must lie between 0 and 1: it is a fraction.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    """Length and shape of the run.

    Args:
        steps: Optimizer steps; alternatively give ``tokens``.
        tokens: Tokens to train on, rounded up to whole steps.
        batch_size: Sequences per step, over all ranks.
        micro_batch_size: Sequences per forward pass of a rank; ``None`` is the rank's whole share of the batch.
        clip: Global norm at which gradients are clipped; 0 turns clipping off.
        qk_clip: Threshold of attention logits, see :class:`lite.QKClip`; 0 turns clipping off.
        precision: ``"float32"``; ``"bfloat16-mixed"``: float32 weights, bfloat16 in forward and backward;
            ``"bfloat16"``: weights and optimizer state too (published).
        sharding: With several ranks, ``"none"``: each has the whole model (DDP); ``"fsdp2"``: weights, gradients and
            optimizer state are sharded.
        gradient_checkpointing: Whether backward recomputes layers' activations instead of keeping them.
    """

    steps: Count | None = None
    tokens: Count | None = None
    batch_size: Count = 8
    micro_batch_size: Count | None = None
    clip: Number = 1.0
    qk_clip: Number = 0.0
    precision: Precision = "float32"
    gradient_checkpointing: Switch = False
    sharding: Sharding = "none"

    def __post_init__(self) -> None:
        if self.steps is not None and self.tokens is not None:
            raise ValueError(
                f"training.steps = {self.steps!r} and training.tokens = {self.tokens!r}: give one of them."
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"training.micro_batch_size = {self.micro_batch_size!r} must divide training.batch_size = "
                f"{self.batch_size!r}."
            )
        for name, threshold in (("clip", self.clip), ("qk_clip", self.qk_clip)):
            require_positive(f"training.{name}", threshold, "0 turns clipping off", allow_zero=True)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluationConfig:
    """Validation loss, always on the same tokens.

    Args:
        every: Steps between evaluations; the last step is always evaluated.
        tokens: Number of validation tokens, rounded up to whole sequences; ``None`` uses 16384, or all if there are
            fewer.
    """

    every: Count = 50
    tokens: Count | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CheckpointConfig:
    """Checkpoints to resume from.

    Args:
        every: Steps between checkpoints.
        keep: Number of newest checkpoints to keep.
    """

    every: Count = 50
    keep: Count = 2


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LoggingConfig:
    """What is recorded during a run.

    Args:
        every: Steps between rows of training loss, each a mean since the last row. It divides ``checkpoints.every``, so
            that a resumed run has the same rows.
        updates_every: Steps between measurements of each parameter group's update; 0 turns them off.
        trackers: Trackers of transformers' Trainer that get the same numbers: ``"tensorboard"`` (in the run's folder),
            ``"wandb"``, ``"mlflow"``, …
    """

    every: Count = 1
    updates_every: Whole = 10
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        if self.updates_every < 0:
            raise ValueError(f"logging.updates_every = {self.updates_every!r} must be at least 0 (0: none).")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PretrainConfig:
    """Configuration of a run, with everything that affects its numbers.

    Args:
        model: The model.
        data: The text.
        optimizer: The optimizer.
        schedule: Learning rate, χ and β_flat over time.
        training: Length and shape.
        evaluation: Validation.
        checkpoints: Checkpoints for resuming.
        logging: What is recorded; does not affect any number.
        seed: Seed of initialisation and data order.

    Raises:
        ValueError: for a value out of range, naming it and the remedy.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    seed: Whole = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"schedule.warmup_steps = {self.warmup_steps!r} must be at least 0 and below the {self.steps} steps of "
                "the run (0: none)."
            )
        if self.checkpoints.every % self.logging.every:
            raise ValueError(
                f"logging.every = {self.logging.every!r} must divide checkpoints.every = {self.checkpoints.every!r}: "
                "a resumed run then logs the same means."
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed = {self.seed!r} must lie in 0 … 2³² − 1.")

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step."""
        return self.data.sequence_length * self.training.batch_size

    @property
    def steps(self) -> int:
        """Optimizer steps; 200 if neither steps nor tokens are given."""
        if self.training.tokens is not None:
            return math.ceil(self.training.tokens / self.tokens_per_step)
        return 200 if self.training.steps is None else self.training.steps

    @property
    def warmup_steps(self) -> int:
        """Linear warm-up."""
        given = self.schedule.warmup_steps
        return int(_WARMUP_SHARE * self.steps) if given is None else given

    @property
    def min_lr_ratio(self) -> float:
        """Last learning rate over the peak."""
        given = self.schedule.min_ratio
        if given is None:
            return 0.1 if self.schedule.name == "cosine" else 0.0
        return given

    @property
    def evaluation_sequences(self) -> int:
        """Largest number of sequences per evaluation."""
        tokens = _EVALUATION_TOKENS if self.evaluation.tokens is None else self.evaluation.tokens
        return math.ceil(tokens / self.data.sequence_length)

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, as in a file."""
        return asdict(self)
