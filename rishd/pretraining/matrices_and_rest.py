"""Any package's optimizer for matrices, combined with AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Named = list[tuple[str, Tensor]]


class MatricesAndRest(torch.optim.Optimizer):
    """Two optimizers combined into one, with concatenated groups and merged state.

    Args:
        matrices: Named parameters of the first optimizer.
        rest: Named parameters of AdamW.
        build: Creates the first optimizer from its parameters.
        adamw: Settings of AdamW.
    """

    def __init__(
        self, matrices: Named, rest: Named, build: Callable[[Named], torch.optim.Optimizer], adamw: dict[str, Any]
    ) -> None:
        parts = [build(matrices)] if matrices else []
        if rest:
            parts.append(torch.optim.AdamW(rest, **adamw))
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Give the two parts the groups and state of this optimizer."""
        groups = list(self.param_groups)
        for part in self._parts:
            count = len(part.param_groups)
            part.param_groups, groups = groups[:count], groups[count:]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; the closure only computes the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a ``state_dict``."""
        super().load_state_dict(state_dict)
        self._share()
