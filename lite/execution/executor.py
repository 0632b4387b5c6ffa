"""The interface between an optimizer and the code that runs its steps, on one process or several ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lite.adamw import initial_adamw_state
from lite.declaration import Declaration
from lite.execution.finiteness import OnNonfinite
from lite.execution.tensor_batches import largest_batch


@dataclass(frozen=True)
class Workload:
    """An optimizer's declaration, groups and state, as an executor sees them.

    It is created for every call, because torch replaces groups and state when an optimizer loads a checkpoint.

    Args:
        declaration: The optimizer's declaration of its matrices.
        groups: Parameter groups.
        state: Parameter ↦ its state.
        on_nonfinite: What to do if a gradient is not finite.
    """

    declaration: Declaration
    groups: list[dict[str, Any]]
    state: MutableMapping[Tensor, dict[str, Tensor]]
    on_nonfinite: OnNonfinite

    def initial_state(self, group: dict[str, Any], p: Tensor) -> dict[str, Tensor]:
        """State of a parameter before its first step, on one process.

        Args:
            group: The parameter's group.
            p: The parameter, or a tensor like it.
        """
        return initial_adamw_state(group, p) if group["rule"] == "adamw" else self.declaration.parameter_state(group, p)

    def largest_batch(self, w: Tensor, *, on_cpu: int | None) -> int:
        """Most numbers in a batch of tensors like ``w``.

        Args:
            w: A tensor.
            on_cpu: The limit on a CPU; ``None`` uses the limit of other devices.
        """
        if on_cpu is not None and w.device.type == "cpu":
            return on_cpu
        return largest_batch(sum(p.numel() for group in self.groups for p in group["params"]))

    def narrowest_squares(self) -> torch.dtype:
        """Dtype in which squares of all gradients must stay finite, see :meth:`Declaration.squares_dtype`."""
        for group in self.groups:
            for dtype in {p.dtype for p in group["params"]}:
                wide = torch.promote_types(dtype, torch.float32)
                if group["rule"] != "adamw":
                    wide = self.declaration.squares_dtype(group, dtype)
                if wide != torch.float64:
                    return torch.float32
        return torch.float64


class Executor(Protocol):
    """Runs the steps of one optimizer, which has exactly one executor at a time.

    Attributes:
        is_divided: Whether several ranks share the work, so that each holds a part of the state.
        steps_made: Number of steps so far.
    """

    is_divided: bool
    steps_made: int

    def step(self, work: Workload) -> None:
        """Run one step with the current gradients; parameters without a gradient are skipped."""

    def compile(self, **options: Any) -> None:
        """Compile the following steps; see :func:`lite.execution.compiling.compiled`."""

    def check(self, work: Workload, *, wait: bool) -> None:
        """Raise for an earlier step whose gradients were not finite.

        Args:
            work: The optimizer's workload.
            wait: Whether to wait for outcomes that the device has not computed yet.

        Raises:
            NonFiniteError: naming the step and the parameters.
        """

    def settle(self, work: Workload) -> None:
        """Wait for the outcome of earlier steps and count their gradients, without raising."""

    def add_parameters(self, work: Workload) -> None:
        """Register parameters that were added to the groups."""

    def init_state(self, work: Workload) -> None:
        """Create missing state of parameters."""

    def held(self, work: Workload, p: Tensor) -> Collection[str] | None:
        """Keys of a parameter's state that are kept on this rank; ``None`` if all are."""

    def found_together(self, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what a function returns; if it raises on one rank, raise on all."""

    def load_state(self, work: Workload, saved: Mapping[Tensor, dict[str, Any]]) -> None:
        """Replace the state of parameters with copies of saved state; findings of earlier steps are dropped.

        Args:
            work: The optimizer's workload, with the loaded groups.
            saved: Parameter ↦ its whole state, each tensor in its saved dtype.
        """
