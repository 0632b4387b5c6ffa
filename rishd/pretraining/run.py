"""One pre-training run: model, optimizer, Trainer, results, resume."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from lite import NonFiniteError
from rishd.pretraining.clock import StepClock, Times, peak_memory_bytes
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.corpus import Corpus, Split, load_corpus
from rishd.pretraining.models import build_model, parameter_count, training_flops_per_token
from rishd.pretraining.optimizers import build_optimizer, build_scheduler
from rishd.pretraining.results import (
    RECORD,
    SUMMARY,
    Status,
    Summary,
    read_metrics,
    read_summary,
    series,
    truncate_metrics,
    write_summary,
)
from rishd.pretraining.run_folder import check_run_folder, claim_run_folder
from rishd.pretraining.tokens import END_OF_TEXT, TokenBlocks, token_blocks, train_tokenizer
from rishd.pretraining.trainer import PretrainTrainer, Progress, Recorder


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Args:
        folder: Output folder, see :mod:`rishd.pretraining.results`.
        rows: Its metrics.
        summary: How it ended.
    """

    folder: Path
    rows: list[dict[str, Any]]
    summary: Summary

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a logged quantity."""
        return series(self.rows, key)

    @property
    def final_validation_loss(self) -> float | None:
        """Last validation loss, in nats per token; ``None`` before the first evaluation."""
        return self.summary.final_validation_loss

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it; resuming goes on."""
        return self.summary.status == "interrupted"


def train(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool | Literal["auto"] = False,
    progress: Progress = lambda what, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> RunResult:
    """Run or continue a pre-training run.

    Args:
        config: The run.
        out: Output folder.
        resume: Whether to continue the run in ``out`` from its last whole checkpoint; ``"auto"`` continues if there is
            one and starts otherwise. A complete run is not repeated: its result is read.
        progress: Called with (what, done, total) all along.
        say: Called with lines that the user should read.

    Raises:
        RunFolderError: for a folder of another run.
        CorpusError: for a corpus that is missing, empty or too small.
        NonFiniteError: when a gradient or loss becomes non-finite; the last checkpoint is kept.
    """
    if resume == "auto":
        resume = (out / RECORD).exists()
    quiet()
    set_seed(config.seed)
    model = build_model(config)
    optimizer = build_optimizer(config.optimizer, model)  # refuses bad settings before anything is read or written
    corpus = load_corpus(None if config.data.paths is None else [Path(path) for path in config.data.paths])
    if corpus.warning:
        say(corpus.warning)
    checkpoint = check_run_folder(out, config, corpus.content_hash, resume=resume)
    done = read_summary(out)
    if done is not None and done.status == "complete":
        say(f"{out} is complete")
        return RunResult(out, read_metrics(out), done)
    tokenizer = train_tokenizer(corpus, config.data.vocab_size, progress)
    wanted: dict[Split, int] = {
        "train": config.steps * config.training.batch_size,
        "validation": config.evaluation_sequences,
    }
    data: dict[Split, TokenBlocks] = {
        split: token_blocks(
            corpus, split, tokenizer, length=config.data.sequence_length, blocks=blocks, progress=progress
        )
        for split, blocks in wanted.items()
    }
    if not (out / RECORD).exists():
        claim_run_folder(out, config, corpus.content_hash, _counts(config, model))
    (out / SUMMARY).unlink(missing_ok=True)
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    say(_heading(config, corpus, parameter_count(model), checkpoint))
    arguments = training_arguments(config, out)
    clock = _clock(out, checkpoint, arguments.device)
    trainer = PretrainTrainer(
        clock=clock,
        model=model,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=wrapped,
        optimizers=(optimizer, build_scheduler(config, optimizer)),
        callbacks=[Recorder(out, config, clock, progress)],
    )
    trainer.remove_callback(PrinterCallback)

    def end(status: Status) -> RunResult:
        summary = _summary(config, model, read_metrics(out), trainer.state.global_step, clock, status)
        write_summary(out, summary)
        return RunResult(out, read_metrics(out), summary)

    try:
        with warnings.catch_warnings():
            # The Trainer calls get_last_lr and the data loader's pin_memory in ways that warn on every CPU run.
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        model.save_pretrained(out / "model")
        wrapped.save_pretrained(out / "model")
    except KeyboardInterrupt:
        say(f"interrupted at step {trainer.state.global_step}; --resume continues from the last checkpoint")
        return end("interrupted")
    except NonFiniteError:
        end("failed")
        raise
    return end("complete")


def quiet() -> None:
    """Keep transformers' own progress bars and remarks out of the way of the run's."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def training_arguments(config: PretrainConfig, folder: Path) -> TrainingArguments:
    """The configuration in the Trainer's terms.

    Raises:
        ValueError: if the batch cannot be divided over the ranks.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun and accelerate launch set it
    share, rest = divmod(config.training.batch_size, ranks)
    micro = config.training.micro_batch_size or share
    if rest or share % micro:
        raise ValueError(
            f"training.batch_size = {config.training.batch_size} cannot be divided over {ranks} ranks in passes of "
            f"{micro} sequences (training.micro_batch_size); change one of them."
        )
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        use_cpu=not torch.accelerator.is_available(),
        bf16=config.training.precision == "bfloat16-mixed",
        max_grad_norm=config.training.clip,
        eval_strategy="steps",
        eval_steps=config.evaluation.every,
        logging_steps=config.logging.every,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=config.checkpoints.every,
        save_total_limit=config.checkpoints.keep,
        seed=config.seed,
        data_seed=config.seed,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _counts(config: PretrainConfig, model: PreTrainedModel) -> dict[str, Any]:
    return {
        "parameters": parameter_count(model),
        "non_embedding_parameters": parameter_count(model, embeddings=False),
        "flops_per_token": training_flops_per_token(model, config.data.sequence_length),
    }


def _clock(out: Path, checkpoint: Path | None, device: torch.device) -> StepClock:
    """A clock that goes on from the checkpoint's step; rows beyond it are dropped."""
    rows = truncate_metrics(out, int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    last = rows[-1] if rows else {}
    return StepClock(device, **{key: last.get(key, 0.0) for key in Times._fields})


def _summary(
    config: PretrainConfig,
    model: PreTrainedModel,
    rows: list[dict[str, Any]],
    steps: int,
    clock: StepClock,
    status: Status,
) -> Summary:
    clock.pause()
    seconds, optimizer_seconds, cpu_seconds = clock.read()
    losses = [loss for _, loss in series(rows, "validation_loss")]
    tokens = steps * config.tokens_per_step
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
        **_counts(config, model),
    )


def _heading(config: PretrainConfig, corpus: Corpus, parameters: int, checkpoint: Path | None) -> str:
    start = f"continuing from {checkpoint.name}" if checkpoint else "from scratch"
    return (
        f"Llama {config.model.preset} body, vocabulary {config.data.vocab_size}: {parameters:,} parameters; "
        f"{config.optimizer.name}, {config.steps} steps of {config.tokens_per_step:,} tokens, {start}; corpus "
        f"{corpus.name}, {len(corpus.documents):,} documents, hash {corpus.content_hash[:16]}"
    )


__all__ = ["RunResult", "quiet", "train", "training_arguments"]
