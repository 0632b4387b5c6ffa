"""Preparation of a run from its configuration, with all checks before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainingArguments,
    set_seed,
)

from riemannian_ode.atomic import remove_partials
from rishd.pretraining.blocks import TokenBlocks, left_out, make_collator, training_blocks, validation_blocks
from rishd.pretraining.checkpoint_folders import check_checkpoint, check_model, step_of
from rishd.pretraining.clock import StepClock, Times
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.corpus import Corpus, load_corpus
from rishd.pretraining.cost import StaticCost, estimate, measured_cost, require_memory, static_cost
from rishd.pretraining.logit_clipping import LogitClipping
from rishd.pretraining.models import build_model, describe, model_config
from rishd.pretraining.optimizers import build_optimizer, build_scheduler
from rishd.pretraining.ranks import idle_devices, rank_count, replicas, shard, sharding_ranks
from rishd.pretraining.recorder import RunRecorder, tensorboard
from rishd.pretraining.results import (
    RECORD,
    SUMMARY,
    RunResult,
    read_metrics,
    read_summary,
    rows_at,
    write_metrics,
)
from rishd.pretraining.run_folder import check_run_folder, claim_run_folder, write_config
from rishd.pretraining.text_files import CorpusError
from rishd.pretraining.tokenizer import load_tokenizer, named_tokenizer
from rishd.pretraining.trainer import PretrainTrainer
from rishd.pretraining.updates import UpdateNorms
from rishd.progress import Advance

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run with a claimed folder whose text, model and optimizer are built.

    Args:
        config: Its settings.
        folder: Output folder.
        cost: Its parameters, FLOPs and memory.
        corpus: The text.
        blocks: Training and validation blocks of the text.
        left_out: One sentence for each part that the blocks lack because text was corrupt.
        tokenizer: Tokenizer of the text.
        checkpoint: Checkpoint to continue from; ``None`` starts at the first step.
        clock: Counts training time.
        recorder: Writes the metrics.
        trainer: Holds the model, the optimizer and its schedule.
    """

    config: PretrainConfig
    folder: Path
    cost: StaticCost
    corpus: Corpus
    blocks: tuple[TokenBlocks, TokenBlocks]
    left_out: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    checkpoint: Path | None
    clock: StepClock
    recorder: RunRecorder
    trainer: PretrainTrainer


def prepare(
    config: PretrainConfig,
    out: Path,
    arguments: TrainingArguments,
    *,
    resume: bool | Literal["auto"],
    progress: Advance,
    say: Say,
) -> PreparedRun | RunResult:
    """Check and build everything that a run needs, and claim its folder; all ranks call it together.

    Args:
        config: The run.
        out: Output folder, held by this process.
        arguments: The configuration as arguments of the Trainer.
        resume: As for :func:`rishd.pretraining.run.train`.
        progress: Called with (what, done, total).
        say: Called with lines that the user should read.

    Returns:
        The run, or the result of a complete run.

    Raises:
        ValueError, OSError: as in :func:`rishd.pretraining.run.train`.
    """
    corpus = load_corpus(config.data, progress)
    if corpus.warning:
        say(corpus.warning)
    if unused := idle_devices():
        say(f"one device of {unused + 1} is used; torchrun --nproc-per-node {unused + 1} -m rishd.cli … takes all")
    made = model_config(
        config.model,
        tokenizer=named_tokenizer(config.data),
        vocab_size=config.data.vocab_size,
        sequence_length=config.data.sequence_length,
    )
    cost = static_cost(config, made, ranks=sharding_ranks(config))  # also refuses bad settings of the optimizer
    require_memory(cost, arguments.device)
    if resume == "auto":
        resume = (out / RECORD).exists()
    checkpoint = check_run_folder(out, config, corpus.content_hash, resume=resume)
    done = read_summary(out)
    if done is not None and done.status == "complete":
        say(f"{out} is complete")
        check_model(out)
        rows_at(out, checkpoint)  # refuses damaged metrics
        return RunResult(out, read_metrics(out), done)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    rows = rows_at(out, checkpoint)

    # One rank per machine writes missing files while the others wait at its lock; a collective would time out.
    tokenizer = load_tokenizer(config.data, corpus, progress)
    validation = validation_blocks(config, corpus, tokenizer, progress)
    training = training_blocks(config, corpus, tokenizer, progress)
    lacking = say_left_out(config, corpus, (training, validation), say)
    set_seed(config.seed)
    model = _model(config, made, arguments.device)
    say(
        f"{describe(made)}: {cost.parameters:,} parameters, {cost.non_embedding_parameters:,} of them outside "
        f"embedding and head; {cost.flops_per_token:.3g} FLOPs a token"
    )
    say(
        f"{config.optimizer.name}, {config.steps} steps of {config.tokens_per_step:,} tokens, "
        f"{f'continuing from {checkpoint.name}' if checkpoint else 'from scratch'}; corpus {corpus.name}, hash "
        f"{corpus.content_hash[:16]}"
    )
    micro = arguments.per_device_train_batch_size
    # Also when resuming: a first pass may draw random numbers, like BigBird's for attention to short sequences.
    measured = measured_cost(config, model, most=micro)
    if checkpoint is None:
        require_memory(cost, arguments.device, activation_bytes=measured.activation_bytes * micro)
        say(estimate(config, cost, measured, micro=micro, ranks=rank_count()))

    arguments.distributed_state.wait_for_everyone()  # until all ranks have accepted the folder
    if arguments.should_save:
        if not (out / RECORD).exists():
            claim_run_folder(out, config, corpus.content_hash, cost.facts)
        write_config(out)
        write_metrics(out, rows)
        (out / SUMMARY).unlink(missing_ok=True)
        remove_partials(out)
    step, last = step_of(checkpoint), rows[-1] if rows else {}
    clock = StepClock(arguments.device, **{key: last.get(key, 0.0) for key in Times._fields})
    updates = UpdateNorms(config.logging.updates_every)
    recorder = RunRecorder(
        out, config, clock, training, updates=updates, tokens=last.get("tokens", 0), step=step, progress=progress
    )
    optimizer = build_optimizer(config.optimizer, model, process_group=replicas(config))
    trainer = PretrainTrainer(
        clock=clock,
        updates=updates,
        keep=config.checkpoints.keep,
        logits=LogitClipping(model, config.training.qk_clip),
        model=model,
        args=arguments,
        train_dataset=training,
        eval_dataset=validation,
        data_collator=make_collator(
            config.data.packing, training.store.end, flatten=config.model.attention == "flash_attention_2"
        ),
        optimizers=(optimizer, build_scheduler(config, optimizer)),
        callbacks=[recorder, *tensorboard(config, out, step)],
    )
    trainer.remove_callback(PrinterCallback)
    return PreparedRun(
        config=config,
        folder=out,
        cost=cost,
        corpus=corpus,
        blocks=(training, validation),
        left_out=lacking,
        tokenizer=tokenizer,
        checkpoint=checkpoint,
        clock=clock,
        recorder=recorder,
        trainer=trainer,
    )


def _model(config: PretrainConfig, made: PreTrainedConfig, device: torch.device) -> PreTrainedModel:
    """The model on its device, with gradient checkpointing and sharding as configured."""
    model: PreTrainedModel = build_model(config, made).to(device)  # type: ignore[arg-type]  # its types know dtypes only
    if config.training.gradient_checkpointing:
        name = "activation_checkpointing_enable"  # the name in newer versions of transformers
        getattr(model, name, model.gradient_checkpointing_enable)({"use_reentrant": False})
    if config.training.sharding == "fsdp2":
        shard(model, device)
    return model


def say_left_out(
    config: PretrainConfig, corpus: Corpus, blocks: tuple[TokenBlocks, ...], say: Say, *, known: Sequence[str] = ()
) -> Sequence[str]:
    """Report and return the parts that the tokens lack because text was corrupt.

    Args:
        config: The run.
        corpus: Its text.
        blocks: Of that text.
        say: Called with a line for each part.
        known: Parts that were reported before.

    Raises:
        CorpusError: if the run does not allow skipping.
    """
    found = left_out(corpus, *blocks)
    if found and config.data.on_corrupt == "error":
        raise CorpusError(
            f"the tokens of {corpus.name} were written with data.on_corrupt = skip and lack {'; '.join(found)}; "
            "repair the text, or set data.on_corrupt = skip again."
        )
    for what in found:
        if what not in known:
            say(f"left out: {what}")
    return found
