"""transformers' Trainer, made to stop at bad numbers and to record what a run's results hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lite import NonFiniteError, check_finite_gradients
from rishd.pretraining.clock import StepClock
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.results import append_metrics
from rishd.pretraining.run_folder import last_whole_checkpoint

Progress = Callable[[str, int, int], None]


class PretrainTrainer(Trainer):
    """transformers' Trainer, stopped at the first non-finite gradient, before clipping spreads it.

    Args:
        clock: Counts training time.
        arguments: Those of transformers' Trainer.
    """

    def __init__(self, *, clock: StepClock, **arguments: Any) -> None:
        self.clock = clock
        super().__init__(**arguments)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
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

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        other_work = self.control.should_evaluate or self.control.should_save
        if other_work:
            self.clock.pause()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if other_work:
            self.clock.start()

    def _kept(self) -> str:
        last = last_whole_checkpoint(Path(str(self.args.output_dir)))
        return f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."


class Recorder(TrainerCallback):
    """Progress, times and metrics while the run goes on, so that an interrupted run leaves them.

    Args:
        folder: Receives ``metrics.jsonl``.
        config: The run.
        clock: Counts training time.
        progress: Called with (what, done, total).
    """

    def __init__(self, folder: Path, config: PretrainConfig, clock: StepClock, progress: Progress) -> None:
        self.folder, self.config, self.clock, self.progress = folder, config, clock, progress

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.clock.pause()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.clock.optimizer_begins()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.clock.optimizer_ends()

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
            "tokens": state.global_step * self.config.tokens_per_step,
            **self.clock.read()._asdict(),
        }
        if "eval_loss" in logs:
            row["validation_loss"] = logs["eval_loss"]
        else:
            row |= {key: value for key, value in logs.items() if key not in ("epoch", "num_input_tokens_seen")}
        append_metrics(self.folder, row)
