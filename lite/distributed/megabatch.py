"""Matrices of one shape on their way through a step: shards to owners, the batched rule there, replies back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lite.distributed.division import Task, Unit
from lite.distributed.exchange import Parcel, Transfer, all_to_all
from lite.distributed.layout import local_part
from lite.execution.tensor_batches import TensorBatch, tensor_batches
from lite.matrix_rule import MatrixRule, rounds_stochastically
from lite.parameters.parameter_entries import TensorEntry, parameter_entries


class Piece(NamedTuple):
    """What comes back for the part of a unit that lies in a shard: state of this name, or (``None``) the reply."""

    task: Task
    unit: Unit
    name: str | None
    value: Tensor


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
        self._travelling = rule.travelling_state if self._team.shards.size > 1 else ()
        self._resting = [name for name in rule.sharded_state if name not in rule.travelling_state]
        self._device = local_part(tasks[0].p).device
        self._sent_dtype, self._reply_dtype = rule.message_dtypes(self._group, local_part(tasks[0].p))
        self._owned = [(task, task.own) for task in tasks if task.own is not None]
        self._inputs: dict[Task, dict[str, Tensor]] = {}  # of this rank's shards
        self._replies: dict[Task, dict[str | None, Tensor]] = {}  # of what this rank owns
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
            if w.ndim > 2:
                w = w.contiguous()  # a convolution may lie in another memory format
            if self._team.shards.size == 1:  # a whole matrix: only its owner works on it
                if task.own is None:
                    continue
                w, g = (x.narrow(0, *task.piece(task.own, 0)) for x in (w, g))
            if usable is not None:
                g = torch.where(usable, g, 0.0)
            state = self._state[task.p]
            before = {name: local_part(state[name]) for name in self._resting}
            inputs, after = self._rule.shard_take_in(self._group, w, g, before)
            self._inputs[task] = inputs | {name: local_part(state[name]) for name in self._travelling}
            new_state += [(task, before[name], value) for name, value in after.items()]
        if self._travels:
            columns = range(self._team.shards.size)
            sent = [
                [
                    (x.narrow(0, *task.piece(unit, self._team.shards.rank)), self._message_dtype(name, x))
                    for task, unit in self._units(column)
                    for name, x in self._inputs[task].items()
                ]
                for column in columns
            ]
            received = [
                [
                    Parcel(task.piece_shape(own, column), self._message_dtype(name, x))
                    for task, own in self._owned
                    for name, x in self._inputs[task].items()
                ]
                for column in columns
            ]
            self._transfer = all_to_all(sent, received, self._team.shards, self._device)
        return new_state

    def compute(self, largest: Callable[[Tensor], int]) -> list[NewState]:
        """Update the whole matrices that this rank owns and send the replies' shards back.

        Args:
            largest: See :func:`lite.execution.tensor_batches.tensor_batches`.

        Returns:
            State of the matrices, not yet written.
        """
        elementwise = self._rule.elementwise_state(self._group)
        entries: list[TensorEntry] = []
        tasks: dict[int, Task] = {}
        for (task, own), inputs in zip(self._owned, self._whole_inputs(), strict=True):
            reply = torch.empty(task.unit_shape(own), dtype=self._reply_dtype, device=self._device)
            state = {key: local_part(x) for key, x in self._state[task.p].items() if key not in self._resting}
            arrived = {name: inputs.pop(name) for name in self._travelling}
            self._replies[task] = dict([(None, reply), *arrived.items()])
            added = parameter_entries(
                elementwise,
                self._group,
                reply,
                inputs,
                state | arrived,
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
            reply, values = self._rule.owner_direct(self._group, inputs, state, step=step, numbers=batch.numbers)
            values = {key: value for key, value in values.items() if value is not state[key]}
            batch.write(reply, {name: values.pop(name) for name in self._travelling if name in values})
            new_states.append(NewState(batch, [tasks[id(entry)] for entry in batch.entries], values))
        if self._travels:
            columns = range(self._team.shards.size)
            sent = [
                [
                    (_part(task, own, column, value), value.dtype)
                    for task, own in self._owned
                    for value in self._replies[task].values()
                ]
                for column in columns
            ]
            received = [[parcel for *_, parcel in self._coming(column)] for column in columns]
            self._transfer = all_to_all(sent, received, self._team.shards, self._device)
        self._inputs.clear()
        return new_states

    def collect(self) -> list[Piece]:
        """Replies of this rank's row of owners for its shards."""
        if self._transfer is None:
            values = [value for task, _ in self._owned for value in self._replies[task].values()]
        else:
            values = [value for each in self._transfer.wait() for value in each]
        self._replies, self._transfer = {}, None  # their memory is free once the shards have moved
        expected = self.expected(self._team.replicas.rank)
        return [Piece(task, unit, name, value) for (task, unit, name, _), value in zip(expected, values, strict=True)]

    def expected(self, replica: int) -> list[tuple[Task, Unit, str | None, Parcel]]:
        """What :meth:`collect` gives on the rank with this one's shard in a replica, in the same order."""
        columns = range(self._team.shards.size) if self._travels else [self._team.shards.rank]
        return [each for column in columns for each in self._coming(column, replica)]

    def _coming(self, column: int, replica: int | None = None) -> Iterator[tuple[Task, Unit, str | None, Parcel]]:
        """What the worker with one shard sends back for this rank's shard; arguments as of :meth:`_units`."""
        for task, unit in self._units(column, replica):
            shape = task.piece_shape(unit, self._team.shards.rank)
            yield task, unit, None, Parcel(shape, self._reply_dtype)
            for name in self._travelling:
                yield task, unit, name, Parcel(shape, self._state[task.p][name].dtype)

    def _message_dtype(self, name: str, x: Tensor) -> torch.dtype:
        """Floating type in which an input travels; state is never rounded."""
        return x.dtype if name in self._travelling else self._sent_dtype or x.dtype

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
                inputs = {name: x if whole else x.narrow(0, *part) for name, x in self._inputs[task].items()}
                yield inputs | {name: inputs[name].clone() for name in self._travelling}  # compute() writes on it
            return
        arrived = [iter(parts) for parts in self._transfer.wait()]
        self._transfer = None  # its memory is free once the parts are together
        for task, _ in self._owned:
            dim = task.layout.dim
            assert dim is not None
            yield {
                name: torch.cat([next(parts) for parts in arrived], dim).to(x.dtype)
                for name, x in self._inputs[task].items()
            }


def _part(task: Task, unit: Unit, column: int, value: Tensor) -> Tensor:
    """Part of a unit's numbers that lies in a shard."""
    dim = task.layout.dim
    assert dim is not None
    before = sum(task.piece_shape(unit, earlier)[dim] for earlier in range(column))
    return value.narrow(dim, before, task.piece_shape(unit, column)[dim])
