"""Trained models of ``rishd pretrain`` with the sequences they were trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rishd.pretraining.checkpoints import last_checkpoint
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.config_files import make_config
from rishd.pretraining.corpus import load_corpus
from rishd.pretraining.results import RECORD
from rishd.pretraining.run import quiet
from rishd.pretraining.token_store import Progress, TokenStore
from rishd.pretraining.tokenizer import load_tokenizer


class ProbeError(ValueError):
    """A checkpoint that cannot be probed; the message says why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A model and where it stands.

    Args:
        folder: Of the model's files.
        model: In float32, with attention that can be differentiated twice.
        config: The run that made it.
        step: Optimizer steps made.
    """

    folder: Path
    model: PreTrainedModel
    config: PretrainConfig
    step: int


def load_checkpoint(path: Path) -> Checkpoint:
    """A run's folder (its last state), or one of its folders ``checkpoint-N`` and ``model``.

    Raises:
        ProbeError: if there is no run or no model.
    """
    run = next((folder for folder in (path, path.parent) if (folder / RECORD).exists()), None)
    if run is None:
        raise ProbeError(f"{path} is no run of rishd pretrain: neither it nor the folder above holds {RECORD}.")
    config = make_config(json.loads((run / RECORD).read_text(encoding="utf-8"))["config"], source=str(run / RECORD))
    folder = path
    if path == run:
        last = run / "model" if (run / "model").is_dir() else last_checkpoint(run)
        if last is None:
            raise ProbeError(f"{run} has no model and no checkpoint yet; let the run get to its first one.")
        folder = last
    if not (folder / "config.json").exists():
        raise ProbeError(f"{folder} holds no model (config.json is missing); name a run, a checkpoint-N or a model.")
    quiet()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    step = int(folder.name.split("-")[1]) if folder.name.startswith("checkpoint-") else config.steps
    return Checkpoint(folder, model, config, step)


def training_sequences(config: PretrainConfig, count: int, progress: Progress) -> Tensor:
    """The first sequences of the run's training split, shape ``(count, length)``, int64.

    Raises:
        ProbeError: if the split has fewer.
    """
    corpus = load_corpus(config.data)
    tokenizer = load_tokenizer(config.data, corpus, progress)
    store = TokenStore(corpus, "train", tokenizer, length=config.data.sequence_length, packing=config.data.packing)
    blocks = store.fill(count, progress)["blocks"]
    if blocks < count:
        raise ProbeError(
            f"the probe needs {count} sequences of {config.data.sequence_length} tokens, but the training split has "
            f"{blocks}; ask for fewer --tokens or --gradients."
        )
    return torch.stack([torch.from_numpy(store.block(i).astype(np.int64)) for i in range(count)])
