"""Records of curvature every k training steps, one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riemannian_ode.atomic import write_text
from rishd.json_lines import read_json_lines
from rishd.probing.curvature import probe_model
from rishd.probing.curvature_findings import ModelCurvature
from rishd.probing.model_passes import Batch, Loss


class CurvatureRecord:
    """Probes a model every k steps and appends the results to a file, without affecting training.

    Call it after every step with the number of steps done. A resumed run continues the file; lines of later steps are
    dropped.

    Args:
        path: The file, ``.jsonl``.
        loss: As for :func:`rishd.probing.curvature.probe_model`.
        batches: As for :func:`rishd.probing.curvature.probe_model`; the same at every probe.
        every: k.
        settings: Other arguments of :func:`rishd.probing.curvature.probe_model`, except the optimizer.

    Raises:
        ValueError: for a k below 1.
    """

    def __init__(
        self, path: Path | str, loss: Loss | None, batches: Sequence[Batch], *, every: int, **settings: Any
    ) -> None:
        if every < 1:
            raise ValueError(f"every = {every!r} must be at least 1.")
        self.path, self.every = Path(path), every
        self._loss, self._batches, self._settings = loss, batches, settings
        self._is_open = False

    def __call__(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> ModelCurvature | None:
        """Probe if the step is a multiple of k.

        Args:
            step: Steps done.
            model: The model.
            optimizer: Its optimizer, to measure the next update.

        Returns:
            The result, or ``None`` if nothing was measured.
        """
        if step % self.every:
            return None
        found = probe_model(model, self._loss, self._batches, optimizer=optimizer, **self._settings)
        if not self._is_open:
            self._drop_from(step)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step} | found.as_dict(), allow_nan=False) + "\n")
        return found

    def _drop_from(self, step: int) -> None:
        """Keep only complete lines of earlier steps."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [data for _, data in read_json_lines(self.path)] if self.path.exists() else []
        write_text(self.path, "".join(json.dumps(data) + "\n" for data in lines if data["step"] < step))
        self._is_open = True
