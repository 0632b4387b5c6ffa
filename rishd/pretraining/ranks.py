"""Multi-rank runs: the Trainer's arguments for this rank, and sharding of the model."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel, TrainingArguments

from riemannian_ode.checks import one_line
from rishd.pretraining.checkpoint_folders import kept
from rishd.pretraining.config import PretrainConfig

_LOST = re.compile("gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|TCPStore")


def rank_count() -> int:
    """Number of ranks, as set by torchrun and ``accelerate launch``."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding_ranks(config: PretrainConfig) -> int:
    """Number of ranks over which weights and optimizer state are sharded."""
    return rank_count() if config.training.sharding == "fsdp2" else 1


def replicas(config: PretrainConfig) -> ProcessGroup | None:
    """Process group of ranks with the same model, once connected; ``None`` for a single rank or a sharded model."""
    if config.training.sharding != "none" or rank_count() == 1:
        return None
    return dist.group.WORLD


def refuse_fsdp_of_accelerate() -> None:
    """Refuse ``accelerate launch --use_fsdp``.

    With this option transformers' Trainer builds the optimizer itself and does not accept a given one.

    Raises:
        ValueError: naming the remedy.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError(
            "accelerate launch --use_fsdp is not for rishd pretrain: transformers takes no optimizer from outside with "
            "it. Leave --use_fsdp out and give --set training.sharding=fsdp2, which is torch's FSDP2 on any device."
        )


class LostRankError(ConnectionError):
    """Another rank has exited or does not respond."""


@contextmanager
def naming_lost_ranks(folder: Path) -> Iterator[None]:
    """Turn the errors of gloo and NCCL about a lost rank into one line.

    Args:
        folder: Of the run.

    Raises:
        LostRankError: instead of their errors.
    """
    try:
        yield
    except RuntimeError as problem:
        text = one_line(problem, 120)
        if rank_count() == 1 or not (isinstance(problem, dist.DistError) or _LOST.search(text)):
            raise
        raise LostRankError(
            f"rank {os.environ.get('RANK', '?')} has lost another rank, which has ended or does not answer "
            f"({text}); its own message says why. {kept(folder)}"
        ) from problem


def disconnect() -> bool:
    """Disconnect from the other ranks after all work is done; returns whether there were any.

    The process should then end with :func:`leave`.
    """
    if not dist.is_initialized():
        return False
    gc.collect()  # optimizers and meshes also hold references to the group
    dist.destroy_process_group()
    return True


def leave(code: int = 0) -> None:
    """End this process without Python's normal shutdown.

    While Python shuts down, gloo's threads may still be releasing the last messages. C++ then aborts the process
    ("terminate called without an active exception", 4 of 98 runs of two ranks), and torchrun reports a failed run.
    Under DDP the threads end with the group, but under FSDP2 torch keeps a reference to the group.

    Args:
        code: Exit status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def micro_batch_size(config: PretrainConfig) -> int:
    """Sequences per forward pass of a rank.

    Raises:
        ValueError: if the batch cannot be divided over the ranks.
    """
    ranks = rank_count()
    share, rest = divmod(config.training.batch_size, ranks)
    micro = config.training.micro_batch_size or share
    if rest or share % micro:
        raise ValueError(
            f"training.batch_size = {config.training.batch_size} cannot be divided over {ranks} ranks in passes of "
            f"{micro} sequences (training.micro_batch_size); change one of them."
        )
    return micro


def training_arguments(config: PretrainConfig, folder: Path) -> TrainingArguments:
    """The configuration as arguments of the Trainer; connects the ranks.

    Args:
        config: The run.
        folder: Of the run.

    Raises:
        ValueError: if the batch cannot be divided over the ranks, or sharding has only one rank.
    """
    micro = micro_batch_size(config)
    if config.training.sharding == "fsdp2" and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "training.sharding = 'fsdp2' needs ranks to divide the model among; start with torchrun or accelerate "
            "launch, or set training.sharding = none."
        )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=config.training.batch_size // (micro * rank_count()),
        use_cpu=not torch.accelerator.is_available(),
        bf16=config.training.precision == "bfloat16-mixed",
        max_grad_norm=config.training.clip,
        train_sampling_strategy="sequential",  # the blocks are already ordered
        remove_unused_columns=False,
        eval_strategy="steps",
        eval_steps=config.evaluation.every,
        logging_steps=config.logging.every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # non-finite numbers end the run
        save_strategy="steps",
        save_steps=config.checkpoints.every,
        seed=config.seed,
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        report_to=[name for name in config.logging.trackers if name != "tensorboard"],
        run_name=folder.name,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    # A process uses one device: the Trainer would run a single process's passes on all visible devices, each with a
    # whole batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def idle_devices() -> int:
    """Number of visible accelerators that stay unused because no launcher has started ranks for them."""
    return max(0, torch.accelerator.device_count() - 1) if rank_count() == 1 else 0


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Shard a model over all ranks with FSDP2: each layer is a unit, and the rest is another.

    Args:
        model: The model on its device, the same on every rank.
        device: Of this rank.
    """
    mesh = init_device_mesh(device.type, (rank_count(),))
    layers = set(model._no_split_modules or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
