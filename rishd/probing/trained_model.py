"""Trained models of ``rishd pretrain``, and their training sequences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from riemannian_ode.checks import one_line
from rishd.pretraining.blocks import IGNORED, make_collator
from rishd.pretraining.checkpoint_folders import last_checkpoint
from rishd.pretraining.checksums import SUMS, check_files, check_listed, read_sums
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.config_files import make_config
from rishd.pretraining.corpus import load_corpus
from rishd.pretraining.models import quiet
from rishd.pretraining.results import RECORD
from rishd.pretraining.run_folder import read_record
from rishd.pretraining.token_store import TokenStore
from rishd.pretraining.tokenizer import load_tokenizer
from rishd.pretraining.weights import WEIGHTS, read_model
from rishd.probing.parameter_choice import ProbeError
from rishd.progress import Advance

# A model's arguments by name (ids, labels, positions for some packings), each of shape ``(sequences, length)``, int64.
Inputs: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A model at a step of its run.

    Args:
        folder: Folder of the model's files.
        model: The model in float32, with attention that can be differentiated twice.
        config: Configuration of its run.
        step: Optimizer steps done.
    """

    folder: Path
    model: PreTrainedModel
    config: PretrainConfig
    step: int


def load_checkpoint(path: Path) -> Checkpoint:
    """Load the last state of a run's folder, or one of its folders ``checkpoint-N`` and ``model``.

    Raises:
        ProbeError: if the path has no run or no model.
    """
    run = next((folder for folder in (path, path.parent) if (folder / RECORD).exists()), None)
    if run is None:
        raise ProbeError(f"{path} is not a run of rishd pretrain: neither it nor the folder above holds {RECORD}.")
    config = make_config(read_record(run)["config"], source=str(run / RECORD))
    folder = path
    if path == run:
        last = run / "model" if (run / "model").is_dir() else last_checkpoint(run)
        if last is None:
            raise ProbeError(f"{run} has no model and no checkpoint yet; let the run get to its first one.")
        folder = last
    if not (folder / "config.json").exists():
        raise ProbeError(f"{folder} holds no model (config.json is missing); name a run, a checkpoint-N or a model.")
    quiet()
    try:
        if (folder / SUMS).exists() or (folder / WEIGHTS).exists():
            sums = read_sums(folder)
            check_listed(folder, sums)
            check_files(folder, sums)
        model = read_model(folder, attn_implementation="eager")
    except Exception as problem:  # transformers and safetensors raise their own errors
        raise ProbeError(
            f"{folder} cannot be read ({one_line(problem, 300)}); name another checkpoint of the run."
        ) from problem
    step = int(folder.name.split("-")[1]) if folder.name.startswith("checkpoint-") else config.steps
    return Checkpoint(folder, model, config, step)


def training_sequences(config: PretrainConfig, count: int, progress: Advance) -> Inputs:
    """The first sequences of the run's training split, packed as in training.

    Args:
        config: The run.
        count: Number of sequences.
        progress: Called with (what, done, total).

    Raises:
        ProbeError: if the split has fewer sequences.
    """
    corpus = load_corpus(config.data, progress)
    tokenizer = load_tokenizer(config.data, corpus, progress)
    store = TokenStore(
        corpus, "train", tokenizer, length=config.data.sequence_length, packing=config.data.packing, progress=progress
    )
    blocks = store.fill(count)["blocks"]
    if blocks < count:
        raise ProbeError(
            f"the probe needs {count} sequences of {config.data.sequence_length} tokens, but the training split has "
            f"{blocks}; ask for fewer --tokens or --gradients."
        )
    return make_collator(config.data.packing, store.end)([store.block(i) for i in range(count)])


def passes(inputs: Inputs, start: int, stop: int, size: int) -> list[Inputs]:
    """Sequences ``start`` to ``stop``, cut into passes of at most ``size``."""
    cuts = [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
    return [{name: values[cut] for name, values in inputs.items()} for cut in cuts]


def loss_and_count(model: torch.nn.Module, inputs: Inputs) -> tuple[Tensor, int]:
    """Mean loss over the tokens that count in training, and their number."""
    count = int((inputs["labels"][..., 1:] != IGNORED).sum())  # the model shifts labels
    return model(**inputs, use_cache=False).loss, count
