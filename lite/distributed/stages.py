"""What one rank does with tensors between the exchanges of a step, plain or compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from lite.declaration import Declaration, rounds_stochastically
from lite.execution.compiling import compiled
from lite.parameters.tensor_settings import as_tensor, traced_settings

T = TypeVar("T")


class Stages:
    """Runs the stages of an optimizer's steps; once there are options, each shape has compiled functions of its own.

    Attributes:
        options: Of ``torch.compile``; ``None`` to run functions as they are.
    """

    def __init__(self) -> None:
        self.options: Mapping[str, Any] | None = None
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def compile(self, options: Mapping[str, Any]) -> None:
        """Compile from now on."""
        self.options, self._compiled = options, {}

    def run(self, function: Callable[..., T], key: Any, *arguments: Any) -> T:
        """Call a function.

        Args:
            function: One of the stages.
            key: Kind of arguments; arguments of one kind share a compiled function.
            arguments: Its arguments.
        """
        if self.options is None:
            return function(*arguments)
        if (function, key) not in self._compiled:
            self._compiled[function, key] = compiled(function, self.options)
        result: T = self._compiled[function, key](*arguments)
        return result

    def settings(self, group: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Settings of a group, in which only tensors change from step to step if steps are compiled."""
        return group if self.options is None else traced_settings(group, device)

    def turn(self, declaration: Declaration, group: dict[str, Any], step: int, numbers: Sequence[int]) -> Turn:
        """The turn of a batch of matrices that have had some gradients before."""
        if self.options is None:
            return Turn(step, numbers, None)
        return Turn(declaration.phase(group, step), tuple(numbers), as_tensor(step, torch.device("cpu")))


class Turn(NamedTuple):
    """What a step of matrices depends on beside tensors.

    Args:
        step: How many gradients came before, or the phase of a compiled step.
        numbers: Running numbers of the matrices.
        gradients: How many gradients came before, if ``step`` is a phase.
    """

    step: int
    numbers: Sequence[int]
    gradients: Tensor | None


class Shard(NamedTuple):
    """A shard of a parameter, its gradient, and its state that does not travel."""

    w: Tensor
    g: Tensor
    state: dict[str, Tensor]


def take_in(
    declaration: Declaration, group: dict[str, Any], shards: list[Shard], usable: Tensor | None
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """First stage of shards: what owners need of each, and its state after the step.

    Args:
        declaration: What the optimizer declares of its matrices.
        group: Their parameter group.
        shards: The shards.
        usable: Whether gradients are finite; if not, zeros are worked on in their place: factorisations raise for
            numbers that are not finite. ``None`` if they are not checked.
    """
    found = []
    for w, g, state in shards:
        seen = g if usable is None else torch.where(usable, g, 0.0)
        found.append(declaration.shard_take_in(group, w, seen, state))
    return found


def direct(
    declaration: Declaration, group: dict[str, Any], inputs: dict[str, Tensor], state: dict[str, Tensor], turn: Turn
) -> tuple[Tensor, dict[str, Tensor]]:
    """Second stage of a batch of whole matrices, see :meth:`lite.declaration.Declaration.owner_direct`."""
    if turn.gradients is not None:
        group = group | {"count": turn.gradients}
    return declaration.owner_direct(group, inputs, state, step=turn.step, numbers=turn.numbers)


def move(declaration: Declaration, group: dict[str, Any], shards: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Third stage: shards after the step, from shards and their replies; wide if they will be rounded at random."""
    moved = []
    for shard, reply in shards:
        w = shard.float() if rounds_stochastically(group, shard) else shard
        moved.append(declaration.shard_move(group, w, reply.to(torch.promote_types(w.dtype, reply.dtype))))
    return moved
