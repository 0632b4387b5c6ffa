"""A batch of equal matrices in a step: shards go to owners, owners run the batched rule, replies come back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lite.declaration import Declaration, rounds_stochastically
from lite.distributed.division import OwnedParameter, Part
from lite.distributed.exchange import MessageSpec, Transfer, all_to_all
from lite.distributed.sharding import local_part
from lite.distributed.stages import Shard, Stages, direct, move, take_in
from lite.execution.tensor_batches import TensorBatch, tensor_batches
from lite.parameters.parameter_entries import TensorEntry, parameter_entries


class NewState(NamedTuple):
    """State of a batch after the step, not yet written; ``parameters`` belong to its entries."""

    batch: TensorBatch
    parameters: list[OwnedParameter]
    values: dict[str, Tensor]


class Megabatch:
    """One step of parameters of one group, shape and mesh, all cut or all whole on every rank.

    :meth:`send`, :meth:`compute`, :meth:`reply` and :meth:`move` are called in this order. What is sent travels
    meanwhile, so that the caller may compute another megabatch between them.

    Args:
        declaration: The optimizer's declaration of its matrices.
        group: Their parameter group.
        parameters: The parameters.
        state: Parameter ↦ its state.
        steps: Gradients that each parameter of the group has had before.
        stages: Run what is worked on here.
        key: What these parameters have in common at every step.
    """

    def __init__(
        self,
        declaration: Declaration,
        group: dict[str, Any],
        parameters: list[OwnedParameter],
        state: Any,
        steps: list[int],
        stages: Stages,
        key: Any,
    ) -> None:
        self._declaration, self._group, self.parameters, self._state, self._steps = (
            declaration,
            group,
            parameters,
            state,
            steps,
        )
        first = parameters[0]
        self._mesh, self._is_cut = first.sharding.mesh, first.sharding.is_cut
        self._stages, self._key = stages, key
        self._is_scattered = any(parameter.is_scattered for parameter in parameters)
        self._travelling = declaration.travelling_state if self._is_cut else ()
        self._resting = [name for name in declaration.sharded_state if name not in declaration.travelling_state]
        self._device = local_part(first.p).device
        self._settings = stages.settings(group, self._device)
        self._sent_dtype, self._reply_dtype = declaration.message_dtypes(self._group, local_part(first.p))
        self._owned = [parameter for parameter in parameters if parameter.own is not None]
        self._inputs: dict[OwnedParameter, dict[str, Tensor]] = {}  # of this rank's shards
        self._replies: dict[OwnedParameter, dict[str | None, Tensor]] = {}  # of what this rank owns
        self._transfer: Transfer | None = None

    def send(
        self, gradients: dict[Tensor, Tensor], usable: Tensor | None
    ) -> list[tuple[OwnedParameter, Tensor, Tensor]]:
        """Process this rank's shards and send owners what they need.

        Args:
            gradients: Parameter ↦ this rank's part of its gradient.
            usable: Whether they are finite, see :func:`lite.distributed.stages.take_in`.

        Returns:
            State of shards, not yet written: parameter, tensor and new value.
        """
        new_state, shards = [], []
        worked_on = self.parameters if self._is_cut else self._owned
        for parameter in worked_on:
            w, g = local_part(parameter.p), gradients[parameter.p]
            if w.ndim > 2:
                w = w.contiguous()  # a convolution may lie in another memory format
            if not self._is_cut and parameter.own is not None:  # a whole matrix: only its owner works on it
                own = parameter.own.box.within([0] * w.ndim)
                w, g = w[own], g[own]
            state = self._state[parameter.p]
            shards.append(Shard(w, g, {name: local_part(state[name]) for name in self._resting}))
        found = self._stages.run(take_in, self._key, self._declaration, self._settings, shards, usable)
        for parameter, shard, (inputs, after) in zip(worked_on, shards, found, strict=True):
            state = self._state[parameter.p]
            self._inputs[parameter] = inputs | {name: local_part(state[name]) for name in self._travelling}
            new_state += [(parameter, shard.state[name], value) for name, value in after.items()]
        if self._is_scattered:
            sent: list[list[tuple[Tensor, torch.dtype]]] = [[] for _ in range(self._mesh.size)]
            received: list[list[MessageSpec]] = [[] for _ in range(self._mesh.size)]
            for parameter in self.parameters:
                dtypes = {name: self._message_dtype(name, x) for name, x in self._inputs[parameter].items()}
                for part in _travelling(parameter.held):
                    inputs = self._inputs[parameter]
                    sent[part.rank] += [(x[part.of_shard], dtypes[name]) for name, x in inputs.items()]
                for part in _travelling(parameter.owned):
                    received[part.rank] += [MessageSpec(part.shape, dtype) for dtype in dtypes.values()]
            self._transfer = all_to_all(sent, received, self._mesh, self._device)
        return new_state

    def compute(self, largest: Callable[[Tensor], int]) -> list[NewState]:
        """Update the whole matrices that this rank owns.

        Args:
            largest: See :func:`lite.execution.tensor_batches.tensor_batches`.

        Returns:
            State of the matrices, not yet written.
        """
        elementwise = self._declaration.elementwise_state(self._group)
        entries: list[TensorEntry] = []
        parameters: dict[int, OwnedParameter] = {}
        for parameter, inputs in zip(self._owned, self._whole_inputs(), strict=True):
            reply = torch.empty(_owned_shape(parameter), dtype=self._reply_dtype, device=self._device)
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
                numbers=parameter.owned_numbers,
            )
            parameters |= {id(entry): parameter for entry in added}
            entries += added
        new_states = []
        for batch in tensor_batches(entries, largest):
            inputs, state = batch.inputs, batch.state
            turn = self._stages.turn(self._declaration, self._group, batch.entries[0].step, batch.numbers)
            if rounds_stochastically(self._group, local_part(self.parameters[0].p)) and "w" in inputs:
                inputs["w"] = inputs["w"].float()  # a rule that works in bfloat16 would round to nearest first
            reply, values = self._stages.run(direct, self._key, self._declaration, self._settings, inputs, state, turn)
            values = {key: value for key, value in values.items() if value is not state[key]}
            batch.write(reply, {name: values.pop(name) for name in self._travelling if name in values})
            new_states.append(NewState(batch, [parameters[id(entry)] for entry in batch.entries], values))
        self._inputs.clear()
        return new_states

    def replies(self) -> list[list[Tensor]]:
        """Replies of this rank as an owner for every rank's shards."""
        sent: list[list[Tensor]] = [[] for _ in range(self._mesh.size)]
        for parameter in self._owned:
            for part in parameter.owned:
                sent[part.rank] += [value[part.of_owned] for value in self._replies[parameter].values()]
        return sent

    def expected(self) -> list[list[MessageSpec]]:
        """What every owner sends back for this rank's shards."""
        return [[MessageSpec(part.shape, dtype) for *_, part, dtype in each] for each in self._expected]

    def reply(self) -> None:
        """Send replies to those who hold the shards."""
        if self._is_scattered or any(parameter.sharding.replicas > 1 for parameter in self.parameters):
            sent = [[(value, value.dtype) for value in each] for each in self.replies()]
            self._transfer = all_to_all(sent, self.expected(), self._mesh, self._device)

    def move(self, arrived: Sequence[Iterable[Tensor]] = ()) -> list[tuple[OwnedParameter, Tensor | None, Tensor]]:
        """Move this rank's shards by the replies for them.

        Args:
            arrived: Replies of every owner, if they did not come by :meth:`reply`.

        Returns:
            What is not yet written: parameter, state (``None``: the parameter itself) and its new value.
        """
        arrived = arrived or (self.replies() if self._transfer is None else self._transfer.wait())
        self._replies, self._transfer = {}, None  # their memory is free once the shards have moved
        parts: defaultdict[tuple[OwnedParameter, str | None], list[tuple[tuple[slice, ...], Tensor]]]
        parts = defaultdict(list)
        for expected, values in zip(self._expected, arrived, strict=True):
            for (parameter, name, part, _), value in zip(expected, values, strict=False):  # more may follow
                parts[parameter, name].append((part.of_shard, value))
        state: list[tuple[OwnedParameter, Tensor | None, Tensor]] = []
        shards: dict[OwnedParameter, tuple[Tensor, Tensor]] = {}
        for (parameter, name), each in parts.items():
            w = local_part(parameter.p)
            value = _assembled(each[0][1], tuple(w.shape), each)
            if name is None:
                shards[parameter] = w, value
            else:
                state.append((parameter, local_part(self._state[parameter.p][name]), value))
        moved = self._stages.run(move, self._key, self._declaration, self._settings, list(shards.values()))
        return state + [(parameter, None, new) for parameter, new in zip(shards, moved, strict=True)]

    @cached_property
    def _expected(self) -> list[list[tuple[OwnedParameter, str | None, Part, torch.dtype]]]:
        """What comes back from every owner, in its order of parameters, parts and names."""
        found: list[list[tuple[OwnedParameter, str | None, Part, torch.dtype]]] = [[] for _ in range(self._mesh.size)]
        for parameter in self.parameters:
            dtypes: dict[str | None, torch.dtype] = {None: self._reply_dtype}
            dtypes |= {name: self._state[parameter.p][name].dtype for name in self._travelling}
            for part in parameter.held:
                found[part.rank] += [(parameter, name, part, dtype) for name, dtype in dtypes.items()]
        return found

    def _message_dtype(self, name: str, x: Tensor) -> torch.dtype:
        """Dtype in which an input travels; state is never rounded."""
        return x.dtype if name in self._travelling else self._sent_dtype or x.dtype

    def _whole_inputs(self) -> Iterator[dict[str, Tensor]]:
        """Inputs of each parameter that this rank owns, put together."""
        arrived = None if self._transfer is None else [iter(parts) for parts in self._transfer.wait()]
        self._transfer = None  # its memory is free once the parts are together
        for parameter in self._owned:
            inputs = self._inputs[parameter]
            if not self._is_cut:  # they are the owner's already
                yield inputs
                continue
            parts: dict[str, list[tuple[tuple[slice, ...], Tensor]]] = {name: [] for name in inputs}
            for part in _travelling(parameter.owned):
                for name, x in inputs.items():
                    if arrived is not None:
                        parts[name].append((part.of_owned, next(arrived[part.rank])))
                    elif part.rank == self._mesh.rank:
                        value = x[part.of_shard]
                        parts[name].append((part.of_owned, value.clone() if name in self._travelling else value))
            shape = _owned_shape(parameter)
            yield {name: _assembled(inputs[name], shape, each) for name, each in parts.items()}


def _travelling(parts: Iterable[Part]) -> Iterator[Part]:
    return (part for part in parts if part.travels)


def _owned_shape(parameter: OwnedParameter) -> tuple[int, ...]:
    assert parameter.own is not None, "this rank owns nothing of it"
    return parameter.own.box.shape


def _assembled(like: Tensor, shape: tuple[int, ...], parts: list[tuple[tuple[slice, ...], Tensor]]) -> Tensor:
    """A tensor of the dtype of another from parts at indices; a single part that is all of it is not copied."""
    if len(parts) == 1 and tuple(parts[0][1].shape) == shape:
        return parts[0][1].to(like.dtype)
    whole = like.new_empty(shape)
    if parts:
        torch._foreach_copy_([whole[place] for place, _ in parts], [part for _, part in parts])
    return whole
