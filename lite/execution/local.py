"""Steps on one process: plain or compiled batches, and a watch for non-finite gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would load the compiler for everyone

from lite.execution.batch_step import Batches, step_batches, traced_batch
from lite.execution.compiling import compiled
from lite.execution.executor import Workload
from lite.execution.finiteness import FinitenessWatch, usable_gradients
from lite.execution.fused_step import largest_cpu_batch
from lite.execution.tensor_batches import tensor_batches
from lite.parameters.parameter_entries import TensorEntry, count_gradients, matrix_entries, row_ordered_copies


class LocalExecutor:
    """The :class:`lite.execution.executor.Executor` of one process.

    Args:
        steps_made: Number of earlier steps.
    """

    is_divided = False

    def __init__(self, steps_made: int = 0) -> None:
        self.steps_made = steps_made
        self._watch = FinitenessWatch()
        self._compiled: Callable[..., None] | None = None

    def step(self, work: Workload) -> None:
        traced = self._compiled is not None or torch.compiler.is_compiling()
        batches, usable, copies = self._prepared(work, traced=traced)
        (self._compiled or step_batches)(work.declaration, batches, usable)
        if copies:
            torch._foreach_copy_(list(copies), list(copies.values()))

    def compile(self, **options: Any) -> None:
        self._compiled = compiled(step_batches, options)

    def check(self, work: Workload, *, wait: bool) -> None:
        self._watch.check(wait=wait)

    def settle(self, work: Workload) -> None:
        self._watch.settle()

    def add_parameters(self, work: Workload) -> None:
        """Nothing to do: the executor keeps no record of parameters."""

    def init_state(self, work: Workload) -> None:
        for group in work.groups:
            _init_group(work, group, group["params"])

    def held(self, work: Workload, p: Tensor) -> None:
        """``None``: all state is on this process."""

    def found_together(self, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return find()

    def load_state(self, work: Workload, saved: Mapping[Tensor, dict[str, Any]]) -> None:
        for p, state in saved.items():
            work.state[p] = {key: x.to(p.device, copy=True) if isinstance(x, Tensor) else x for key, x in state.items()}
        self._watch = FinitenessWatch()  # drops what later steps have found

    @_disable_dynamo  # bookkeeping in plain numbers, which a compiled step would treat as constants
    def _prepared(self, work: Workload, *, traced: bool) -> tuple[Batches, Tensor | None, dict[Tensor, Tensor]]:
        """Input of a step: batches with their settings, whether gradients are usable, and copies to write back.

        Args:
            work: The optimizer's workload.
            traced: Whether the step is compiled.
        """
        declaration, groups = work.declaration, work.groups
        copies: dict[Tensor, Tensor] = {}
        for group in groups:
            copies |= row_ordered_copies(group)
        entries = [_entries(work, group, copies) for group in groups]
        for group, each in zip(groups, entries, strict=True):
            if group["rule"] != "adamw":
                declaration.check_matrices(group, each)
        present = [(group, [p.grad is not None for p in group["params"]]) for group in groups]
        usable = usable_gradients(
            groups,
            work.on_nonfinite,
            self._watch,
            step=self.steps_made,
            squares=work.narrowest_squares(),
            undo=partial(_count, present, by=-1) if declaration.counts_gradients else None,
        )
        batches = []
        for group, each in zip(groups, entries, strict=True):
            for batch in tensor_batches(each, partial(_largest_batch, work)):
                batches.append(traced_batch(declaration, group, batch) if traced else (group, batch))
        _count(present)
        self.steps_made += 1
        return batches, usable, copies


def _init_group(work: Workload, group: dict[str, Any], params: list[Tensor]) -> None:
    for p in params:
        if not work.state[p]:
            work.state[p] = work.initial_state(group, p)


def _entries(work: Workload, group: dict[str, Any], copies: dict[Tensor, Tensor]) -> list[TensorEntry]:
    """Entries of a step: whole tensors for AdamW, else matrices. Missing state is created."""
    _init_group(work, group, [p for p in group["params"] if p.grad is not None])
    if group["rule"] == "adamw":
        return [TensorEntry(p, {"g": p.grad}, work.state[p]) for p in group["params"] if p.grad is not None]
    return matrix_entries(work.declaration.elementwise_state(group), group, work.state, copies)


def _largest_batch(work: Workload, w: Tensor) -> int:
    on_cpu = largest_cpu_batch(work.declaration, work.groups, w) if w.device.type == "cpu" else None
    return work.largest_batch(w, on_cpu=on_cpu)


def _count(present: list[tuple[dict[str, Any], list[bool]]], *, by: int = 1) -> None:
    for group, had in present:
        if group["rule"] != "adamw":
            count_gradients(group, had, by=by)
