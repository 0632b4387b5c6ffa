"""One pre-training run: text, model, optimizer, Trainer, results, resume."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from lite import NonFiniteError
from riemannian_ode.atomic import remove_partials
from rishd.pretraining.blocks import TokenBlocks, left_out, make_collator, training_blocks, validation_blocks
from rishd.pretraining.checkpoint_folders import (
    RunCheckpointError,
    check_checkpoint,
    check_model,
    problems_of_ranks,
    step_of,
)
from rishd.pretraining.clock import StepClock, Times, peak_memory_bytes
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.corpus import Corpus, load_corpus
from rishd.pretraining.cost import StaticCost, estimate, measured_cost, require_memory, static_cost
from rishd.pretraining.models import build_model, describe, model_config
from rishd.pretraining.optimizers import build_optimizer, build_scheduler
from rishd.pretraining.ranks import (
    idle_devices,
    naming_lost_ranks,
    rank_count,
    refuse_fsdp_of_accelerate,
    replicas,
    shard,
    sharding_ranks,
    training_arguments,
)
from rishd.pretraining.recorder import Progress, RunRecorder, tensorboard
from rishd.pretraining.results import (
    RECORD,
    SUMMARY,
    RunResult,
    Status,
    Summary,
    read_metrics,
    read_summary,
    rows_at,
    series,
    write_metrics,
    write_summary,
)
from rishd.pretraining.run_folder import RunFolderError, check_run_folder, claim_run_folder, hold, write_config
from rishd.pretraining.text_files import CorpusError
from rishd.pretraining.tokenizer import load_tokenizer, named_tokenizer
from rishd.pretraining.trainer import PretrainTrainer, save_model
from rishd.pretraining.updates import UpdateNorms


def train(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool | Literal["auto"] = False,
    progress: Progress = lambda what, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> RunResult:
    """Run or continue a pre-training run; under torchrun every rank calls it.

    Args:
        config: The run.
        out: Output folder.
        resume: Whether to continue the run in ``out`` from its last checkpoint; ``"auto"`` continues if there is one
            and starts otherwise. A complete run is not repeated: its result is read.
        progress: Called with (what, done, total) all along.
        say: Called with lines that the user should read.

    Raises:
        RunFolderError: for a folder of another run, or one that another process has.
        ResultsError: for metrics or a summary that are damaged, or not those of the checkpoint.
        LostRankError: if another rank has ended.
        ConfigError: for settings that do not fit each other.
        CorpusError: for a corpus that is missing, corrupt or too small.
        DoesNotFitError: for a run that needs more memory than there is.
        RunCheckpointError: for a checkpoint that cannot be written or read; the last good one is kept.
        NonFiniteError: when a gradient or loss becomes non-finite; the last good checkpoint is kept.
    """
    refuse_fsdp_of_accelerate()
    quiet()
    arguments = training_arguments(config, out)
    with ExitStack() as held, naming_lost_ranks(out):
        return _train(config, out, held, arguments, resume, progress, say)


def _train(
    config: PretrainConfig,
    out: Path,
    held: ExitStack,
    arguments: TrainingArguments,
    resume: bool | Literal["auto"],
    progress: Progress,
    say: Callable[[str], None],
) -> RunResult:
    """Prepare everything that a run needs; ``held`` gets the lock of its folder."""
    if not arguments.should_save:  # another rank than the first
        progress, say = (lambda what, done, total: None), (lambda line: None)
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
    cost = static_cost(config, made, ranks=sharding_ranks(config))  # refuses bad settings of the optimizer, too
    require_memory(cost, arguments.device)
    _hold_run_folder(out, held, is_first_rank=arguments.should_save)
    if resume == "auto":
        resume = (out / RECORD).exists()
    checkpoint = check_run_folder(out, config, corpus.content_hash, resume=resume)
    done = read_summary(out)
    if done is not None and done.status == "complete":
        say(f"{out} is complete")
        return _completed(out, checkpoint, done)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    rows = rows_at(out, checkpoint)
    # One rank of a machine writes what is missing, the others wait at its lock: no collective, which would time out.
    tokenizer = load_tokenizer(config.data, corpus, progress)
    validation = validation_blocks(config, corpus, tokenizer, progress)
    training = training_blocks(config, corpus, tokenizer, progress)
    lacking = _say_left_out(config, corpus, (training, validation), say)
    set_seed(config.seed)
    model = build_model(config, made).to(arguments.device)  # type: ignore[arg-type]  # its types know dtypes only
    if config.training.gradient_checkpointing:
        name = "activation_checkpointing_enable"  # since some version; before, and in its own words, gradient_…
        getattr(model, name, model.gradient_checkpointing_enable)({"use_reentrant": False})
    if config.training.sharding == "fsdp2":
        shard(model, arguments.device)
    say(
        f"{describe(made)}: {cost.parameters:,} parameters, {cost.non_embedding_parameters:,} of them outside "
        f"embedding and head; {cost.flops_per_token:.3g} FLOPs a token"
    )
    say(_heading(config, corpus, checkpoint))
    micro = arguments.per_device_train_batch_size
    # Also when resuming: a first pass may draw random numbers, as BigBird's does for attention to short sequences.
    measured = measured_cost(config, model, most=micro)
    if checkpoint is None:
        require_memory(cost, arguments.device, activation_bytes=measured.activation_bytes * micro)
        say(estimate(config, cost, measured, micro=micro, ranks=rank_count()))
    arguments.distributed_state.wait_for_everyone()  # until all have found the folder fit
    if arguments.should_save:
        if not (out / RECORD).exists():
            claim_run_folder(out, config, corpus.content_hash, _counts(cost))
        write_config(out)
        write_metrics(out, rows)
        (out / SUMMARY).unlink(missing_ok=True)
        remove_partials(out)
    result = _fit(config, out, cost, arguments, model, tokenizer, training, validation, checkpoint, rows, progress, say)
    _say_left_out(config, corpus, (training, validation), say, known=lacking)  # while the run read on
    return result


def _completed(out: Path, checkpoint: Path | None, summary: Summary) -> RunResult:
    """The result of a complete run, if its model and metrics are whole."""
    check_model(out)
    rows_at(out, checkpoint)
    return RunResult(out, read_metrics(out), summary)


def _hold_run_folder(out: Path, held: ExitStack, *, is_first_rank: bool) -> None:
    """Lock the folder for all ranks of this run.

    Raises:
        RunFolderError: on every rank.
    """
    problem: RunFolderError | None = None
    if is_first_rank:
        try:
            held.enter_context(hold(out))
        except RunFolderError as error:
            problem = error
    if failed := problems_of_ranks(problem):
        raise problem or RunFolderError(failed[0])


def _fit(
    config: PretrainConfig,
    out: Path,
    cost: StaticCost,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: TokenBlocks,
    validation: TokenBlocks,
    checkpoint: Path | None,
    rows: list[dict[str, Any]],
    progress: Progress,
    say: Callable[[str], None],
) -> RunResult:
    """Train, save the model, and sum up, however it ends."""
    step = step_of(checkpoint)
    last = rows[-1] if rows else {}
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

    def end(status: Status) -> RunResult:
        clock.pause()
        steps, rows = trainer.state.global_step, read_metrics(out)
        summary = _summary(config, cost, rows, steps, recorder.tokens(steps), clock, status)
        if arguments.should_save:
            with suppress(OSError):  # of a full disk the user hears elsewhere
                write_summary(out, summary)
        return RunResult(out, rows, summary)

    try:
        with warnings.catch_warnings():
            # The Trainer calls get_last_lr and the data loader's pin_memory in ways that warn on every CPU run.
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        save_model(trainer, tokenizer, out)
    except KeyboardInterrupt:
        say(f"interrupted at step {trainer.state.global_step}; --resume continues from the last checkpoint")
        return end("interrupted")
    except NonFiniteError:
        end("failed")
        raise
    except (RunCheckpointError, CorpusError):
        end("interrupted")
        raise
    return end("complete")


def _say_left_out(
    config: PretrainConfig,
    corpus: Corpus,
    parts: tuple[TokenBlocks, ...],
    say: Callable[[str], None],
    *,
    known: Sequence[str] = (),
) -> list[str]:
    """Say what the tokens lack beyond what is known, and return all of it; an error if nothing may be left out."""
    found = left_out(corpus, *parts)
    if found and config.data.on_corrupt == "error":
        raise CorpusError(
            f"the tokens of {corpus.name} were written with data.on_corrupt = skip and lack {'; '.join(found)}; "
            "repair the text, or set data.on_corrupt = skip again."
        )
    for what in found:
        if what not in known:
            say(f"left out: {what}")
    return found


def quiet() -> None:
    """Keep transformers' own progress bars and remarks out of the way of the run's."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _counts(cost: StaticCost) -> dict[str, Any]:
    return {
        "parameters": cost.parameters,
        "non_embedding_parameters": cost.non_embedding_parameters,
        "flops_per_token": cost.flops_per_token,
    }


def _summary(
    config: PretrainConfig,
    cost: StaticCost,
    rows: list[dict[str, Any]],
    steps: int,
    tokens: int,
    clock: StepClock,
    status: Status,
) -> Summary:
    seconds, optimizer_seconds, cpu_seconds = clock.read()
    losses = [loss for _, loss in series(rows, "validation_loss")]
    return Summary(
        status=status,
        optimizer=config.optimizer.name,
        lr=config.optimizer.lr,
        seed=config.seed,
        final_validation_loss=losses[-1] if losses else None,
        best_validation_loss=min(losses) if losses else None,
        steps=steps,
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else None,
        optimizer_seconds=optimizer_seconds,
        optimizer_share=optimizer_seconds / seconds if seconds else None,
        cpu_seconds=cpu_seconds,
        peak_memory_bytes=peak_memory_bytes(),
        **_counts(cost),
    )


def _heading(config: PretrainConfig, corpus: Corpus, checkpoint: Path | None) -> str:
    start = f"continuing from {checkpoint.name}" if checkpoint else "from scratch"
    return (
        f"{config.optimizer.name}, {config.steps} steps of {config.tokens_per_step:,} tokens, {start}; corpus "
        f"{corpus.name}, hash {corpus.content_hash[:16]}"
    )


__all__ = ["RunResult", "quiet", "train"]
