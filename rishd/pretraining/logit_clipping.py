"""QK-clip in a run of transformers' Trainer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lite import QKClip


class LogitClipping(TrainerCallback):
    """Clip attention logits after each optimizer step.

    Args:
        model: The model.
        threshold: See :class:`lite.QKClip`; 0 turns clipping off.

    Raises:
        ValueError: if the model has no attention that can be clipped.
    """

    def __init__(self, model: nn.Module, threshold: float) -> None:
        self._clip = QKClip(model, threshold=threshold) if threshold > 0 else None

    def watching(self) -> AbstractContextManager[None]:
        """Watch forward passes inside the block."""
        return nullcontext() if self._clip is None else self._clip.watching()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._clip is not None:
            self._clip.step()
