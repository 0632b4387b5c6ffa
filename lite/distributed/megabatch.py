"""A batch of equal matrices in a step: shards go to owners, owners run the batched rule, replies come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lite.declaration import Declaration, rounds_stochastically
from lite.distributed.division import OwnedParameter, Owner
from lite.distributed.exchange import MessageSpec, Transfer, all_to_all
from lite.distributed.sharding import local_part
from lite.execution.tensor_batches import TensorBatch, tensor_batches
from lite.parameters.parameter_entries import TensorEntry, parameter_entries


class Reply(NamedTuple):
    """An owner's reply for a shard: state of this name, or the direction or new values if the name is ``None``."""

    parameter: OwnedParameter
    owner: Owner
    name: str | None
    value: Tensor


class NewState(NamedTuple):
    """State of a batch after the step, not yet written; ``parameters`` belong to its entries."""

    batch: TensorBatch
    parameters: list[OwnedParameter]
    values: dict[str, Tensor]


class Megabatch:
    """One step for parameters of one group, shape and mesh.

    Call :meth:`send`, :meth:`compute` and :meth:`collect` in this order. Data travels asynchronously, so the caller may
    compute another megabatch between the calls.

    Args:
        declaration: The optimizer's declaration of its matrices.
        group: Their parameter group.
        parameters: The parameters.
        state: Parameter ↦ its state.
        steps: Number of earlier gradients of each parameter of the group.
    """

    def __init__(
        self,
        declaration: Declaration,
        group: dict[str, Any],
        parameters: list[OwnedParameter],
        state: Any,
        steps: list[int],
    ) -> None:
        self._declaration, self._group, self.parameters, self._state, self._steps = (
            declaration,
            group,
            parameters,
            state,
            steps,
        )
        self._mesh = parameters[0].sharding.mesh
        self._travels = any(parameter.travels for parameter in parameters)
        self._travelling = declaration.travelling_state if self._mesh.shards.size > 1 else ()
        self._resting = [name for name in declaration.sharded_state if name not in declaration.travelling_state]
        self._device = local_part(parameters[0].p).device
        self._sent_dtype, self._reply_dtype = declaration.message_dtypes(self._group, local_part(parameters[0].p))
        self._owned = [(parameter, parameter.own) for parameter in parameters if parameter.own is not None]
        self._inputs: dict[OwnedParameter, dict[str, Tensor]] = {}  # of this rank's shards
        self._replies: dict[OwnedParameter, dict[str | None, Tensor]] = {}  # of what this rank owns
        self._transfer: Transfer | None = None

    def send(
        self, gradients: dict[Tensor, Tensor], usable: Tensor | None
    ) -> list[tuple[OwnedParameter, Tensor, Tensor]]:
        """Process this rank's shards and send owners what they need.

        Args:
            gradients: Parameter ↦ this rank's part of its gradient.
            usable: Whether they are finite; if not, zeros replace them, because factorisations raise for non-finite
                numbers.

        Returns:
            State of shards, not yet written: parameter, tensor and new value.
        """
        new_state = []
        for parameter in self.parameters:
            w, g = local_part(parameter.p), gradients[parameter.p]
            if w.ndim > 2:
                w = w.contiguous()  # a convolution may have another memory format
            if self._mesh.shards.size == 1:  # a whole matrix: only its owner processes it
                if parameter.own is None:
                    continue
                w, g = (x.narrow(0, *parameter.overlap(parameter.own, 0)) for x in (w, g))
            if usable is not None:
                g = torch.where(usable, g, 0.0)
            state = self._state[parameter.p]
            before = {name: local_part(state[name]) for name in self._resting}
            inputs, after = self._declaration.shard_take_in(self._group, w, g, before)
            self._inputs[parameter] = inputs | {name: local_part(state[name]) for name in self._travelling}
            new_state += [(parameter, before[name], value) for name, value in after.items()]
        if self._travels:
            columns = range(self._mesh.shards.size)
            sent = [
                [
                    (x.narrow(0, *parameter.overlap(owner, self._mesh.shards.rank)), self._message_dtype(name, x))
                    for parameter, owner in self._owners(column)
                    for name, x in self._inputs[parameter].items()
                ]
                for column in columns
            ]
            received = [
                [
                    MessageSpec(parameter.overlap_shape(own, column), self._message_dtype(name, x))
                    for parameter, own in self._owned
                    for name, x in self._inputs[parameter].items()
                ]
                for column in columns
            ]
            self._transfer = all_to_all(sent, received, self._mesh.shards, self._device)
        return new_state

    def compute(self, largest: Callable[[Tensor], int]) -> list[NewState]:
        """Update the whole matrices that this rank owns and send the replies' shards back.

        Args:
            largest: See :func:`lite.execution.tensor_batches.tensor_batches`.

        Returns:
            State of the matrices, not yet written.
        """
        elementwise = self._declaration.elementwise_state(self._group)
        entries: list[TensorEntry] = []
        parameters: dict[int, OwnedParameter] = {}
        for (parameter, own), inputs in zip(self._owned, self._whole_inputs(), strict=True):
            reply = torch.empty(parameter.owned_shape(own), dtype=self._reply_dtype, device=self._device)
            state = {key: local_part(x) for key, x in self._state[parameter.p].items() if key not in self._resting}
            arrived = {name: inputs.pop(name) for name in self._travelling}
            self._replies[parameter] = dict([(None, reply), *arrived.items()])
            added = parameter_entries(
                elementwise,
                self._group,
                reply,
                inputs,
                state | arrived,
                step=self._steps[parameter.index],
                numbers=[each if own.experts is None else each[slice(*own.experts)] for each in parameter.numbers],
            )
            parameters |= {id(entry): parameter for entry in added}
            entries += added
        new_states = []
        for batch in tensor_batches(entries, largest):
            inputs, state, step = batch.inputs, batch.state, batch.entries[0].step
            if rounds_stochastically(self._group, local_part(self.parameters[0].p)) and "w" in inputs:
                inputs["w"] = inputs["w"].float()  # a rule that works in bfloat16 would round to nearest first
            reply, values = self._declaration.owner_direct(self._group, inputs, state, step=step, numbers=batch.numbers)
            values = {key: value for key, value in values.items() if value is not state[key]}
            batch.write(reply, {name: values.pop(name) for name in self._travelling if name in values})
            new_states.append(NewState(batch, [parameters[id(entry)] for entry in batch.entries], values))
        if self._travels:
            columns = range(self._mesh.shards.size)
            sent = [
                [
                    (_part(parameter, own, column, value), value.dtype)
                    for parameter, own in self._owned
                    for value in self._replies[parameter].values()
                ]
                for column in columns
            ]
            received = [[spec for *_, spec in self._coming(column)] for column in columns]
            self._transfer = all_to_all(sent, received, self._mesh.shards, self._device)
        self._inputs.clear()
        return new_states

    def collect(self) -> list[Reply]:
        """Replies of this rank's row of owners for its shards."""
        if self._transfer is None:
            values = [value for parameter, _ in self._owned for value in self._replies[parameter].values()]
        else:
            values = [value for each in self._transfer.wait() for value in each]
        self._replies, self._transfer = {}, None  # their memory can be freed once the shards have moved
        expected = self.expected(self._mesh.replicas.rank)
        return [
            Reply(parameter, owner, name, value)
            for (parameter, owner, name, _), value in zip(expected, values, strict=True)
        ]

    def expected(self, replica: int) -> list[tuple[OwnedParameter, Owner, str | None, MessageSpec]]:
        """Result of :meth:`collect` on the rank with this rank's shard in another replica, in the same order."""
        columns = range(self._mesh.shards.size) if self._travels else [self._mesh.shards.rank]
        return [each for column in columns for each in self._coming(column, replica)]

    def _coming(
        self, column: int, replica: int | None = None
    ) -> Iterator[tuple[OwnedParameter, Owner, str | None, MessageSpec]]:
        """What the rank with one shard sends back for this rank's shard; arguments as for :meth:`_owners`."""
        for parameter, owner in self._owners(column, replica):
            shape = parameter.overlap_shape(owner, self._mesh.shards.rank)
            yield parameter, owner, None, MessageSpec(shape, self._reply_dtype)
            for name in self._travelling:
                yield parameter, owner, name, MessageSpec(shape, self._state[parameter.p][name].dtype)

    def _message_dtype(self, name: str, x: Tensor) -> torch.dtype:
        """Dtype in which an input travels; state is never rounded."""
        return x.dtype if name in self._travelling else self._sent_dtype or x.dtype

    def _owners(self, column: int, replica: int | None = None) -> Iterator[tuple[OwnedParameter, Owner]]:
        """What the rank with one shard owns, in this rank's replica or another."""
        rank = self._mesh.rank_at(column, self._mesh.replicas.rank if replica is None else replica)
        for parameter in self.parameters:
            for owner in parameter.owners:
                if owner.rank == rank:
                    yield parameter, owner

    def _whole_inputs(self) -> Iterator[dict[str, Tensor]]:
        if self._transfer is None:
            for parameter, own in self._owned:
                part = parameter.overlap(own, self._mesh.shards.rank)
                whole = self._mesh.shards.size == 1  # then the inputs are the owner's already
                inputs = {name: x if whole else x.narrow(0, *part) for name, x in self._inputs[parameter].items()}
                yield inputs | {name: inputs[name].clone() for name in self._travelling}  # compute() writes to it
            return
        arrived = [iter(parts) for parts in self._transfer.wait()]
        self._transfer = None  # its memory can be freed once the parts are assembled
        for parameter, _ in self._owned:
            dim = parameter.sharding.dim
            assert dim is not None
            yield {
                name: torch.cat([next(parts) for parts in arrived], dim).to(x.dtype)
                for name, x in self._inputs[parameter].items()
            }


def _part(parameter: OwnedParameter, owner: Owner, column: int, value: Tensor) -> Tensor:
    """The part of an owner's numbers that belongs to a shard."""
    dim = parameter.sharding.dim
    assert dim is not None
    before = sum(parameter.overlap_shape(owner, earlier)[dim] for earlier in range(column))
    return value.narrow(dim, before, parameter.overlap_shape(owner, column)[dim])
