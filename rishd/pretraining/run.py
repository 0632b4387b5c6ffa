"""One pre-training run: model, optimizer, Trainer, metrics, resume."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LRScheduler
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from lite import (
    LITESchedule,
    Muon,
    MuonLITE,
    NonFiniteError,
    check_finite_gradients,
    learning_rate_factor,
    param_groups,
)
from rishd.pretraining.config import (
    PRESETS,
    PretrainConfig,
    check_run_folder,
    claim_run_folder,
    last_whole_checkpoint,
    write_json,
)
from rishd.pretraining.corpus import Corpus, Split, load_corpus
from rishd.pretraining.tokens import END_OF_TEXT, TokenBlocks, token_blocks, train_tokenizer

Progress = Callable[[str, int, int], None]
_ADAMW_BETAS = (0.9, 0.95)  # the usual choice for language models (Brown et al., arXiv:2005.14165, appendix B)


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Args:
        folder: Output folder: ``run.json``, ``metrics.json``, checkpoints and ``model/``.
        history: Rows of the Trainer's log: ``step`` with ``loss`` and ``learning_rate``, or with ``eval_loss``.
        parameters: Number of parameters.
        interrupted: Whether Ctrl-C ended it; ``--resume`` continues.
    """

    folder: Path
    history: list[dict[str, float]]
    parameters: int
    interrupted: bool

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a logged quantity."""
        return [(int(row["step"]), float(row[key])) for row in self.history if key in row]

    @property
    def final_validation_loss(self) -> float | None:
        """Last validation loss, in nats per token; ``None`` before the first evaluation."""
        losses = self.series("eval_loss")
        return losses[-1][1] if losses else None


def pretrain(
    config: PretrainConfig, folder: Path, *, resume: bool = False, progress: Progress, say: Callable[[str], None]
) -> RunResult:
    """Run or continue a pre-training run.

    Args:
        config: The run.
        folder: Output folder.
        resume: Whether to continue the run in ``folder`` from its last whole checkpoint.
        progress: Called with (what, done, total) all along.
        say: Called with lines that the user should read.

    Raises:
        RunFolderError: for a folder of another run.
        CorpusError: for a corpus that is missing, empty or too small.
        NonFiniteError: when a gradient becomes non-finite; the last checkpoint is kept.
    """
    quiet()
    set_seed(config.seed)
    model = build_model(config)
    optimizer = build_optimizer(config, model)  # refuses settings out of range before anything is read or written
    corpus = load_corpus(None if config.data is None else [Path(path) for path in config.data])
    if corpus.warning:
        say(corpus.warning)
    checkpoint = check_run_folder(folder, config, corpus.content_hash, resume=resume)
    tokenizer = train_tokenizer(corpus, config.vocab_size, progress)
    wanted: dict[Split, int] = {"train": config.steps * config.batch_size, "validation": config.eval_blocks}
    data: dict[Split, TokenBlocks] = {
        split: token_blocks(corpus, split, tokenizer, length=config.seq_len, blocks=blocks, progress=progress)
        for split, blocks in wanted.items()
    }
    if not (folder / "run.json").exists():
        claim_run_folder(folder, config, corpus.content_hash)
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    parameters = sum(p.numel() for p in model.parameters())
    say(_summary(config, corpus, parameters, checkpoint))
    trainer = PretrainTrainer(
        model=model,
        args=_training_arguments(config, folder),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=wrapped,
        optimizers=(optimizer, build_scheduler(config, optimizer)),  # type: ignore[arg-type]  # any scheduler works
        callbacks=[_Report(folder, f"training with {config.optimizer}", progress)],
    )
    trainer.remove_callback(PrinterCallback)
    interrupted = False
    try:
        with warnings.catch_warnings():
            # The Trainer calls get_last_lr and the data loader's pin_memory in ways that warn on every CPU run.
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        model.save_pretrained(folder / "model")
        wrapped.save_pretrained(folder / "model")
    except KeyboardInterrupt:
        interrupted = True
        say(f"interrupted at step {trainer.state.global_step}; --resume continues from the last checkpoint")
    history = [dict(row) for row in trainer.state.log_history]
    _write_metrics(folder, history)
    return RunResult(folder, history, parameters, interrupted)


def quiet() -> None:
    """Keep transformers' own progress bars and remarks out of the way of the run's."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def build_model(config: PretrainConfig) -> LlamaForCausalLM:
    """A randomly initialised Llama of the preset's size."""
    size = PRESETS[config.preset]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=size.hidden,
            intermediate_size=size.ffn,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=max(1024, config.seq_len),
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )


def build_optimizer(config: PretrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer over all trainable parameters."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            model.named_parameters(), lr=config.lr, betas=_ADAMW_BETAS, weight_decay=config.weight_decay
        )
    groups = param_groups(model)
    if config.optimizer == "muon":
        return Muon(groups, config.lr, weight_decay=config.weight_decay)
    return MuonLITE(
        groups,
        config.lr,
        weight_decay=config.weight_decay,
        chi=config.chi,
        beta_sharp=config.beta_sharp,
        beta_flat=config.beta_flat,
        sharp_fraction=config.sharp_fraction,
    )


def build_scheduler(config: PretrainConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The published learning-rate schedule, chained with LITE's schedule of χ and β_flat where there is one."""
    span: dict[str, Any] = {
        "schedule": config.schedule,
        "warmup_steps": config.warmup_steps,
        "total_steps": config.steps,
        "min_ratio": config.min_lr_ratio,
    }
    schedulers: list[LRScheduler] = [LambdaLR(optimizer, lambda k: learning_rate_factor(k, **span))]
    if config.optimizer == "muon-lite":
        schedulers.append(LITESchedule(optimizer, **span))
    return ChainedScheduler(schedulers)


class PretrainTrainer(Trainer):
    """transformers' Trainer, stopped at the first non-finite gradient, before clipping spreads it."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            NonFiniteError: naming step and parameters.
        """
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        try:
            check_finite_gradients(model.named_parameters(), step=self.state.global_step)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} {self._kept()}") from None
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validation loss.

        Raises:
            NonFiniteError: if it is not finite: the parameters are lost, and are not saved.
        """
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if not math.isfinite(metrics.get("eval_loss", 0.0)):
            raise NonFiniteError(
                f"the validation loss is not finite at step {self.state.global_step}; lower the learning rate or "
                f"warm up longer. {self._kept()}"
            )
        return metrics

    def _kept(self) -> str:
        last = last_whole_checkpoint(Path(str(self.args.output_dir)))
        return f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."


class _Report(TrainerCallback):
    """Progress and metrics while the run goes on, so that an interrupted run leaves both."""

    def __init__(self, folder: Path, what: str, progress: Progress) -> None:
        self.folder, self.what, self.progress = folder, what, progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress(self.what, state.global_step, state.max_steps)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            _write_metrics(self.folder, state.log_history)


def _write_metrics(folder: Path, history: list[dict[str, float]]) -> None:
    rows = [{key: value if math.isfinite(value) else None for key, value in row.items()} for row in history]
    write_json(folder / "metrics.json", rows)


def _training_arguments(config: PretrainConfig, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        max_grad_norm=1.0,  # published global clip
        eval_strategy="steps",
        eval_steps=config.eval_every,
        logging_steps=1,  # a logged loss is one step's: the same numbers whether the run was resumed or not
        logging_first_step=True,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _summary(config: PretrainConfig, corpus: Corpus, parameters: int, checkpoint: Path | None) -> str:
    start = f"continuing from {checkpoint.name}" if checkpoint else "from scratch"
    return (
        f"Llama {config.preset} body, vocabulary {config.vocab_size}: {parameters:,} parameters; {config.optimizer}, "
        f"{config.steps} steps of {config.tokens_per_step:,} tokens, {start}; corpus {corpus.name}, "
        f"{len(corpus.documents):,} documents, hash {corpus.content_hash[:16]}"
    )


__all__ = [
    "NonFiniteError",
    "PretrainTrainer",
    "RunResult",
    "build_model",
    "build_optimizer",
    "build_scheduler",
    "pretrain",
]
