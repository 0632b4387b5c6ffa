"""What a pre-training run is: one frozen, checked configuration that is saved with its results."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from riemannian_ode.errors import require_choice, require_positive

OptimizerName: TypeAlias = Literal["adamw", "muon", "muon-lite"]
Schedule: TypeAlias = Literal["cosine", "wsd"]


@dataclass(frozen=True)
class ModelSize:
    """Width, feed-forward width, layers and heads of a Llama."""

    hidden: int
    ffn: int
    layers: int
    heads: int


# Sizes of the published runs and their small relatives (arXiv:2602.22681, settings); vocabulary 32000 gives the names.
PRESETS: dict[str, ModelSize] = {
    "9M": ModelSize(128, 352, 4, 4),
    "60M": ModelSize(512, 1376, 8, 8),
    "130M": ModelSize(768, 2048, 12, 12),
    "250M": ModelSize(768, 2560, 24, 16),
    "350M": ModelSize(1024, 2736, 24, 16),
    "500M": ModelSize(1280, 3456, 22, 20),
    "1B": ModelSize(2048, 5461, 24, 32),
}


SMALLEST_VOCABULARY = 300  # 256 bytes, one end of text, and some merges


class RunFolderError(ValueError):
    """An output folder that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Configuration of a run; everything that changes its numbers is here.

    Args:
        optimizer: Which optimizer.
        preset: Model size, a key of :data:`PRESETS`.
        vocab_size: Tokens of the BPE; 32000 gives the preset its name.
        seq_len: Tokens per sequence.
        batch_size: Sequences per step.
        steps: Optimizer steps.
        lr: Peak learning rate.
        warmup_steps: Linear warm-up.
        schedule: Learning-rate schedule, and LITE's for χ and β_flat.
        weight_decay: Decoupled.
        chi: χ of matrices (muon-lite).
        beta_sharp: β₁ of matrices, published units (muon-lite).
        beta_flat: β₂ of matrices, published units (muon-lite).
        sharp_fraction: r of matrices (muon-lite).
        seed: Of initialisation and data order.
        eval_every: Steps between evaluations.
        eval_blocks: Validation sequences per evaluation, always the same.
        save_every: Steps between checkpoints.
        data: Corpus paths; ``None`` is the default corpus.

    Raises:
        ValueError: for a value out of range, naming it and the remedy.

    Source: defaults of lr, schedule, decay and LITE from arXiv:2602.22681 (LLaMA 0.25B).
    """

    optimizer: OptimizerName = "muon-lite"
    preset: str = "9M"
    vocab_size: int = 32000
    seq_len: int = 256
    batch_size: int = 8
    steps: int = 200
    lr: float = 3e-3
    warmup_steps: int = 20
    schedule: Schedule = "cosine"
    weight_decay: float = 0.1
    chi: float = 2.0
    beta_sharp: float = -0.25
    beta_flat: float = 1.0
    sharp_fraction: float = 0.1
    seed: int = 0
    eval_every: int = 50
    eval_blocks: int = 64
    save_every: int = 50
    data: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require_choice("optimizer", self.optimizer, get_args(OptimizerName))
        require_choice("preset", self.preset, PRESETS)
        require_choice("schedule", self.schedule, get_args(Schedule))
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"vocab_size = {self.vocab_size!r} must be at least {SMALLEST_VOCABULARY}: 256 bytes, one end of "
                "text, and merges."
            )
        if self.seq_len == 1:
            raise ValueError("seq_len = 1 leaves no next token to predict; take at least 2.")
        for name in ("seq_len", "batch_size", "steps", "eval_every", "eval_blocks", "save_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value!r} must be a whole number of at least 1.")
        require_positive("lr", self.lr, "3e-3 is the published choice for 250M parameters")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay = {self.weight_decay!r} must be finite and non-negative.")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps!r} must be at least 0 and below steps = {self.steps!r} (0: none)."
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed = {self.seed!r} must lie in 0 … 2³² − 1.")

    @property
    def min_lr_ratio(self) -> float:
        """Last learning rate over the peak: 0.1 for cosine, 0 for wsd (published settings)."""
        return 0.1 if self.schedule == "cosine" else 0.0

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step."""
        return self.seq_len * self.batch_size

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def versions() -> dict[str, str]:
    """Versions that a run's numbers depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("rishd", "torch", "transformers", "accelerate", "tokenizers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def check_run_folder(folder: Path, config: PretrainConfig, corpus_hash: str, *, resume: bool) -> Path | None:
    """Whether an output folder can take a run, before anything is written.

    Args:
        folder: Output folder.
        config: The run.
        corpus_hash: Content hash of its corpus.
        resume: Whether to continue the run that is there.

    Returns:
        The last whole checkpoint to continue from, ``None`` to start.

    Raises:
        RunFolderError: if the folder holds a run and ``resume`` is off, or another run than this one.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file; --out takes a folder.")
    record = folder / "run.json"
    here = {"config": json.loads(json.dumps(config.to_json())), "corpus_hash": corpus_hash}
    if record.exists():
        try:
            there = json.loads(record.read_text())
            there["config"], there["corpus_hash"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise RunFolderError(f"{record} is not readable as a run's record; give another --out.") from None
        if not resume:
            raise RunFolderError(f"{folder} already holds a run; give --resume to continue it, or another --out.")
        differing = [
            f"{key} is {there['config'].get(key)!r} there, {value!r} here"
            for key, value in here["config"].items()
            if there["config"].get(key) != value
        ]
        if there["corpus_hash"] != corpus_hash:
            differing.append(f"the corpus hash is {there['corpus_hash'][:16]} there, {corpus_hash[:16]} here")
        if differing:
            raise RunFolderError(
                f"{folder} holds another run ({'; '.join(differing)}); resume with its settings, or give another --out."
            )
        return last_whole_checkpoint(folder)
    if folder.exists() and any(folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty and holds no run of rishd; give another --out.")
    if resume:
        raise RunFolderError(f"{folder} holds no run to resume; check the path, or leave --resume out to start one.")
    return None


def claim_run_folder(folder: Path, config: PretrainConfig, corpus_hash: str) -> None:
    """Write a new run's record: from here on the folder is that run's.

    Args:
        folder: Output folder, checked by :func:`check_run_folder`.
        config: The run.
        corpus_hash: Content hash of its corpus.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {"config": config.to_json(), "corpus_hash": corpus_hash, "versions": versions()})


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end (the Trainer writes ``trainer_state.json`` last)."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        whole.append((int(path.name.split("-")[1]), path))
    return max(whole)[1] if whole else None


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically: the file is whole or as it was."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n")
    partial.replace(path)
