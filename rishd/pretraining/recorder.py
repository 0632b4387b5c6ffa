"""Recording during a run: progress, times, losses."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rishd.pretraining.blocks import TokenBlocks
from rishd.pretraining.clock import StepClock
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.results import append_metrics
from rishd.pretraining.updates import UpdateNorms
from rishd.progress import Advance

_FLUSH_SECONDS = 10  # seconds until TensorBoard shows a number; metrics.jsonl has it at once


def tensorboard(config: PretrainConfig, folder: Path, step: int) -> list[TrainerCallback]:
    """TensorBoard's callback if the run uses it; its events after a given step are dropped.

    Args:
        config: The run.
        folder: Folder of the run; the events are in ``tensorboard/``.
        step: Steps done in earlier parts of the run.
    """
    if "tensorboard" not in config.logging.trackers:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    class Writer(SummaryWriter):
        def flush(self) -> None:
            """Do nothing: waiting for the writer's thread at every step costs more than all other logging."""

    writer = Writer(str(folder / "tensorboard"), purge_step=step + 1, flush_secs=_FLUSH_SECONDS)
    close = writer._get_file_writer().close  # type: ignore[no-untyped-call]
    weakref.finalize(writer, close)  # even if training ends early
    return [TensorBoardCallback(writer)]  # type: ignore[no-untyped-call]


class RunRecorder(TrainerCallback):
    """Writes ``metrics.jsonl`` on the first rank during the run, so that it survives an interruption.

    Args:
        folder: Of the run.
        config: The run.
        clock: Counts training time.
        blocks: Training data.
        updates: Measures updates.
        tokens: Training tokens in earlier parts of the run.
        step: Steps in earlier parts of the run.
        progress: Called with (what, done, total).
    """

    def __init__(
        self,
        folder: Path,
        config: PretrainConfig,
        clock: StepClock,
        blocks: TokenBlocks,
        *,
        updates: UpdateNorms,
        tokens: int,
        step: int,
        progress: Advance,
    ) -> None:
        self.folder, self.config, self.clock, self.blocks = folder, config, clock, blocks
        self.progress, self.updates = progress, updates
        self._tokens, self._step = tokens, step

    def tokens(self, step: int) -> int:
        """Training tokens up to a step, without the padding of truncated documents."""
        size = self.config.training.batch_size
        self._tokens += self.blocks.tokens(range(self._step * size, step * size))
        self._step = step
        return self._tokens

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.clock.pause()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.updates.before(kwargs["optimizer"], state.global_step + 1)
        self.clock.optimizer_begins()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clock.optimizer_ends()
        self.updates.after(kwargs["optimizer"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress(f"training with {self.config.optimizer.name}", state.global_step, state.max_steps)
        if state.global_step == state.max_steps:
            control.should_log = control.should_evaluate = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if not state.is_world_process_zero or not {"loss", "eval_loss"} & set(logs):
            return
        row: dict[str, Any] = {
            "step": state.global_step,
            "tokens": self.tokens(state.global_step),
            **self.clock.read()._asdict(),
        }
        if "eval_loss" in logs:
            row["validation_loss"] = logs["eval_loss"]
        else:
            row |= {key: value for key, value in logs.items() if key not in ("epoch", "num_input_tokens_seen")}
        append_metrics(self.folder, row)
