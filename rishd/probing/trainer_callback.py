"""A callback that records curvature in runs of transformers' Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rishd.probing.curvature_record import CurvatureRecord


class CurvatureCallback(TrainerCallback):
    """Calls a :class:`rishd.probing.curvature_record.CurvatureRecord` after steps of transformers' Trainer.

    Args:
        record: The record, which says what to measure and how often.
        with_update: Whether to measure the optimizer's next update.
    """

    def __init__(self, record: CurvatureRecord, *, with_update: bool = True) -> None:
        self._record, self._with_update = record, with_update

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Probe on the first rank."""
        if state.is_world_process_zero:
            plain = getattr(model, "module", model)  # without DDP
            with _own_precision(plain):
                self._record(state.global_step, plain, optimizer if self._with_update else None)


@contextmanager
def _own_precision(model: nn.Module) -> Iterator[None]:
    """Run the forward pass without accelerate's autocast."""
    wrapped = vars(model).get("forward")
    original = vars(model).get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped
