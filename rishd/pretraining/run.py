"""One pre-training run: prepare, train, and write a summary in any case."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Literal

from lite import NonFiniteError
from rishd.pretraining.checkpoint_folders import RunCheckpointError
from rishd.pretraining.clock import peak_memory_bytes
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.models import quiet
from rishd.pretraining.prepare import PreparedRun, Say, prepare, say_left_out
from rishd.pretraining.ranks import naming_lost_ranks, refuse_fsdp_of_accelerate, training_arguments
from rishd.pretraining.results import RunResult, Status, Summary, read_metrics, series, write_summary
from rishd.pretraining.run_folder import hold_for_all_ranks
from rishd.pretraining.text_files import CorpusError
from rishd.pretraining.trainer import save_model
from rishd.progress import Advance, silent


def train(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool | Literal["auto"] = False,
    progress: Advance = silent,
    say: Say = lambda line: None,
) -> RunResult:
    """Run or continue a pre-training run; under torchrun every rank calls it.

    Args:
        config: The run.
        out: Output folder.
        resume: Whether to continue the run in ``out`` from its last checkpoint; ``"auto"`` continues if there is one
            and starts a new run otherwise. A complete run is not repeated; its result is read.
        progress: Called with (what, done, total) all along.
        say: Called with lines that the user should read.

    Raises:
        RunFolderError: for a folder of another run, or one in use by another process.
        ResultsError: for metrics or a summary that are damaged or do not match the checkpoint.
        LostRankError: if another rank has exited.
        ConfigError: for inconsistent settings.
        CorpusError: for a corpus that is missing, corrupt or too small.
        DoesNotFitError: for a run that needs more memory than available.
        RunCheckpointError: for a checkpoint that cannot be written or read; the last good one is kept.
        NonFiniteError: when a gradient or loss becomes non-finite; the last good checkpoint is kept.
    """
    refuse_fsdp_of_accelerate()
    quiet()
    arguments = training_arguments(config, out)
    if not arguments.should_save:  # not the first rank
        progress, say = silent, lambda line: None
    with naming_lost_ranks(out), hold_for_all_ranks(out, is_first_rank=arguments.should_save):
        run = prepare(config, out, arguments, resume=resume, progress=progress, say=say)
        return run if isinstance(run, RunResult) else _trained(run, say)


def _trained(run: PreparedRun, say: Say) -> RunResult:
    """Train and save the model; the summary is written in any case."""
    trainer = run.trainer
    try:
        with warnings.catch_warnings():
            # The Trainer calls get_last_lr and the data loader's pin_memory in ways that warn on every CPU run.
            warnings.filterwarnings("ignore", message=".*pin_memory.*")
            trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
        save_model(trainer, run.tokenizer, run.folder)
    except KeyboardInterrupt:
        say(f"interrupted at step {trainer.state.global_step}; --resume continues from the last checkpoint")
        result = _ended(run, "interrupted")
    except NonFiniteError:
        _ended(run, "failed")
        raise
    except (RunCheckpointError, CorpusError):
        _ended(run, "interrupted")
        raise
    else:
        result = _ended(run, "complete")
    say_left_out(run.config, run.corpus, run.blocks, say, known=run.left_out)  # found while the run was reading
    return result


def _ended(run: PreparedRun, status: Status) -> RunResult:
    """Build the summary, and write it on the first rank."""
    run.clock.pause()
    steps, rows = run.trainer.state.global_step, read_metrics(run.folder)
    tokens = run.recorder.tokens(steps)
    seconds, optimizer_seconds, cpu_seconds = run.clock.read()
    losses = [loss for _, loss in series(rows, "validation_loss")]
    summary = Summary(
        status=status,
        optimizer=run.config.optimizer.name,
        lr=run.config.optimizer.lr,
        seed=run.config.seed,
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
        **run.cost.facts,
    )
    if run.trainer.args.should_save:
        with suppress(OSError):  # a full disk is reported elsewhere
            write_summary(run.folder, summary)
    return RunResult(run.folder, rows, summary)
