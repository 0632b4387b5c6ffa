"""Matrices of one shape on their way through a step: shards to owners, the batched rule there, replies back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lite.distributed.division import Task, Unit
from lite.distributed.exchange import Parcel, Transfer, all_to_all
from lite.distributed.layout import local_part
from lite.matrix_rule import MatrixRule
from lite.parameter_entries import parameter_entries
from lite.rounding import rounds_stochastically
from lite.tensor_batches import TensorBatch, TensorEntry, tensor_batches


class Piece(NamedTuple):
    """Reply for the part of a unit that lies in this rank's shard."""

    task: Task
    unit: Unit
    reply: Tensor


class NewState(NamedTuple):
    """State of a batch after the step, not yet written; ``tasks`` are the parameters of its entries."""

    batch: TensorBatch
    tasks: list[Task]
    values: dict[str, Tensor]


class Megabatch:
    """One step of parameters of one group, shape and team.

    :meth:`send`, :meth:`compute` and :meth:`collect` are called in this order. What is sent travels meanwhile, so
    that the caller may compute another megabatch between them.

    Args:
        rule: The rule of matrices.
        group: Their parameter group.
        tasks: The parameters.
        state: Parameter ↦ its state.
        steps: Gradients that each parameter of the group has had before.
    """

    def __init__(
        self, rule: MatrixRule, group: dict[str, Any], tasks: list[Task], state: Any, steps: list[int]
    ) -> None:
        self._rule, self._group, self.tasks, self._state, self._steps = rule, group, tasks, state, steps
        self._team = tasks[0].layout.team
        self._travels = any(task.travels for task in tasks)
        self._device = local_part(tasks[0].p).device
        self._sent_dtype, self._reply_dtype = rule.message_dtypes(self._group, local_part(tasks[0].p))
        self._owned = [(task, task.own) for task in tasks if task.own is not None]
        self._inputs: dict[Task, dict[str, Tensor]] = {}  # of this rank's shards
        self._replies: dict[Task, Tensor] = {}  # of what this rank owns
        self._transfer: Transfer | None = None

    def send(self, gradients: dict[Tensor, Tensor], usable: Tensor | None) -> list[tuple[Task, Tensor, Tensor]]:
        """Work on this rank's shards and send owners what they need.

        Args:
            gradients: Parameter ↦ this rank's part of its gradient.
            usable: Whether they are finite; if not, zeros are worked on in their place: factorisations raise for
                numbers that are not finite.

        Returns:
            State of shards, not yet written: parameter, tensor and its new value.
        """
        new_state = []
        for task in self.tasks:
            w, g = local_part(task.p), gradients[task.p]
            if self._team.shards.size == 1:  # a whole matrix: only its owner works on it
                if task.own is None:
                    continue
                w, g = (x.narrow(0, *task.piece(task.own, 0)) for x in (w, g))
            if usable is not None:
                g = torch.where(usable, g, 0.0)
            state = self._state[task.p]
            before = {name: local_part(state[name]) for name in self._rule.sharded_state}
            self._inputs[task], after = self._rule.shard_update(self._group, w, g, before)
            new_state += [(task, before[name], value) for name, value in after.items()]
        if self._travels:
            columns = range(self._team.shards.size)
            sent = [
                [
                    (x.narrow(0, *task.piece(unit, self._team.shards.rank)), self._sent_dtype or x.dtype)
                    for task, unit in self._units(column)
                    for x in self._inputs[task].values()
                ]
                for column in columns
            ]
            received = [
                [
                    Parcel(task.piece_shape(own, column), self._sent_dtype or x.dtype)
                    for task, own in self._owned
                    for x in self._inputs[task].values()
                ]
                for column in columns
            ]
            self._transfer = all_to_all(sent, received, self._team.shards, self._device)
        return new_state

    def compute(self, largest: Callable[[Tensor], int]) -> list[NewState]:
        """Update the whole matrices that this rank owns and send the replies' shards back.

        Args:
            largest: See :func:`lite.tensor_batches.tensor_batches`.

        Returns:
            State of the matrices, not yet written.
        """
        entries: list[TensorEntry] = []
        tasks: dict[int, Task] = {}
        for (task, own), inputs in zip(self._owned, self._whole_inputs(), strict=True):
            self._replies[task] = torch.empty(task.unit_shape(own), dtype=self._reply_dtype, device=self._device)
            state = self._state[task.p]
            owned = {key: local_part(x) for key, x in state.items() if key not in self._rule.sharded_state}
            added = parameter_entries(
                self._rule,
                self._group,
                self._replies[task],
                inputs,
                owned,
                step=self._steps[task.index],
                numbers=[each if own.experts is None else each[slice(*own.experts)] for each in task.numbers],
            )
            tasks |= {id(entry): task for entry in added}
            entries += added
        new_states = []
        for batch in tensor_batches(entries, largest):
            inputs, state, step = batch.inputs, batch.state, batch.entries[0].step
            if rounds_stochastically(self._group, local_part(self.tasks[0].p)) and "w" in inputs:
                inputs["w"] = inputs["w"].float()  # a rule that works in bfloat16 would round to nearest first
            reply, values = self._rule.whole_update(self._group, inputs, state, step=step, numbers=batch.numbers)
            values = {key: value for key, value in values.items() if value is not state[key]}
            batch.write(reply, {})
            new_states.append(NewState(batch, [tasks[id(entry)] for entry in batch.entries], values))
        if self._travels:
            columns = range(self._team.shards.size)
            sent = [
                [(self._part(task, own, column), self._reply_dtype) for task, own in self._owned] for column in columns
            ]
            received = [
                [
                    Parcel(task.piece_shape(unit, self._team.shards.rank), self._reply_dtype)
                    for task, unit in self._units(column)
                ]
                for column in columns
            ]
            self._transfer = all_to_all(sent, received, self._team.shards, self._device)
        self._inputs.clear()
        return new_states

    def collect(self) -> list[Piece]:
        """Replies of this rank's row of owners for its shards."""
        if self._transfer is None:
            return [Piece(task, own, self._replies[task]) for task, own in self._owned]
        pieces = []
        for column, replies in enumerate(self._transfer.wait()):
            pieces += [
                Piece(task, unit, reply) for (task, unit), reply in zip(self._units(column), replies, strict=True)
            ]
        return pieces

    def expected(self, replica: int) -> list[tuple[Task, Unit, Parcel]]:
        """What :meth:`collect` gives on the rank with this one's shard in another replica, in the same order."""
        shard = self._team.shards.rank
        columns = range(self._team.shards.size) if self._travels else [shard]
        return [
            (task, unit, Parcel(task.piece_shape(unit, shard), self._reply_dtype))
            for column in columns
            for task, unit in self._units(column, replica)
        ]

    def _units(self, column: int, replica: int | None = None) -> Iterator[tuple[Task, Unit]]:
        """Units of the worker with one shard, in this rank's replica or another."""
        worker = self._team.worker_at(column, self._team.replicas.rank if replica is None else replica)
        for task in self.tasks:
            for unit in task.units:
                if unit.worker == worker:
                    yield task, unit

    def _whole_inputs(self) -> Iterator[dict[str, Tensor]]:
        if self._transfer is None:
            for task, own in self._owned:
                part = task.piece(own, self._team.shards.rank)
                whole = self._team.shards.size == 1  # then the inputs are the unit's already
                yield {name: x if whole else x.narrow(0, *part) for name, x in self._inputs[task].items()}
            return
        arrived = [iter(parts) for parts in self._transfer.wait()]
        for task, _ in self._owned:
            dim = task.layout.dim
            assert dim is not None
            yield {
                name: torch.cat([next(parts) for parts in arrived], dim).to(x.dtype)
                for name, x in self._inputs[task].items()
            }

    def _part(self, task: Task, own: Unit, column: int) -> Tensor:
        """Part of an owned reply that lies in a shard."""
        dim, reply = task.layout.dim, self._replies[task]
        assert dim is not None
        before = sum(task.piece_shape(own, earlier)[dim] for earlier in range(column))
        return reply.narrow(dim, before, task.piece_shape(own, column)[dim])
