"""Tensors of equal shape gathered into batches, and the results written back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LARGEST_SHARE = 1 / 40  # of all an optimizer's numbers in one batch: about ten temporaries of it stay below a tenth of
# parameters, gradients and momentum together
_SMALLEST_BATCH = 2**21  # numbers; below that a kernel's launch costs more than its work


class TensorEntry(NamedTuple):
    """A tensor, one matrix view of it, or one stack of experts.

    Args:
        w: View of the parameter, or of what else the result goes to, of any shape; a stack of experts is ``(E, m, n)``.
        inputs: What the rule reads beside it, each of the shape of ``w``: its gradient ``g``.
        state: State tensors, or views of them, to be overwritten.
        step: How many gradients it has had before.
        numbers: Running numbers of its matrices, see :func:`matrix_numbers`; empty where the rule is elementwise.
        stack: E where ``w`` is a stack of experts, else ``None``.
    """

    w: Tensor
    inputs: dict[str, Tensor]
    state: dict[str, Tensor]
    step: int = 0
    numbers: Sequence[int] = ()
    stack: int | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor, or of one expert."""
        return self.w.shape if self.stack is None else self.w.shape[1:]


def matrix_numbers(names: Sequence[Any], views: Sequence[Sequence[Tensor]]) -> list[list[range]]:
    """Running numbers of a group's matrices: consecutive within each shape, in the order of the names.

    They depend on the model alone, not on batches, gradients or ranks, so that work which matrices do in turn (a
    refresh of a basis) is divided in the same way everywhere. A shape starts with the number of matrices before it.

    Args:
        names: Of the group's parameters, or what else orders them.
        views: Matrix views of each, of shape ``(m, n)`` or ``(E, m, n)``.

    Returns:
        The numbers of the matrices of each view of each parameter.
    """
    following: dict[tuple[int, ...], int] = {}
    numbers: list[list[range]] = [[] for _ in names]
    total = 0
    for i in sorted(range(len(names)), key=names.__getitem__):
        for w in views[i]:
            count = w.size(0) if w.ndim == 3 else 1
            shape = tuple(w.shape[-2:])
            first = following.get(shape, total)
            following[shape] = first + count
            total += count
            numbers[i].append(range(first, first + count))
    return numbers


@dataclass(frozen=True)
class TensorBatch:
    """Entries of one shape, dtype and device; a single tensor stays without a batch axis (bits, claim C12)."""

    entries: list[TensorEntry]

    @property
    def dims(self) -> int:
        """Dimensions of one tensor of the batch: those before are the batch axis, if any."""
        return len(self.entries[0].shape)

    @property
    def has_axis(self) -> bool:
        """Whether there is a batch axis."""
        return len(self.entries) > 1 or self.entries[0].stack is not None

    @property
    def w(self) -> Tensor:
        """Parameters, with a batch axis in front unless there is a single one."""
        return self._gathered([entry.w for entry in self.entries])

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the rule reads beside them, each tensor of the shape of :attr:`w`."""
        return {key: self._gathered([entry.inputs[key] for entry in self.entries]) for key in self.entries[0].inputs}

    @property
    def state(self) -> dict[str, Tensor]:
        """State, each tensor with the batch axis of :attr:`w` in front."""
        return {key: self._gathered([entry.state[key] for entry in self.entries]) for key in self.entries[0].state}

    @property
    def numbers(self) -> list[int]:
        """Running number of each matrix."""
        return [number for entry in self.entries for number in entry.numbers]

    def matrices(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One tensor of each entry, cut into those of its matrices."""
        if all(entry.stack is None for entry in self.entries):
            return list(tensors)
        return [y for x, entry in zip(tensors, self.entries, strict=True) for y in (x if entry.stack else [x])]

    def write(self, w: Tensor, state: dict[str, Tensor]) -> None:
        """Copy new parameters and state to where they came from."""
        self._scatter([entry.w for entry in self.entries], w)
        self.write_state(state)

    def write_state(self, state: dict[str, Tensor]) -> None:
        """The same for state alone."""
        for key, value in state.items():
            self._scatter([entry.state[key] for entry in self.entries], value)

    def _gathered(self, tensors: list[Tensor]) -> Tensor:
        if len(tensors) == 1:
            return tensors[0]
        if all(entry.stack is None for entry in self.entries):
            return torch.stack(tensors)
        return torch.cat([x if e.stack is not None else x[None] for x, e in zip(tensors, self.entries, strict=True)])

    def _scatter(self, targets: list[Tensor], values: Tensor) -> None:
        if len(targets) == 1:
            pieces = [values]
        elif all(entry.stack is None for entry in self.entries):
            pieces = list(values.unbind())
        else:
            parts = torch.split(values, [1 if entry.stack is None else entry.stack for entry in self.entries])
            pieces = [part if e.stack is not None else part[0] for part, e in zip(parts, self.entries, strict=True)]
        torch._foreach_copy_(targets, pieces)


def largest_batch(total: int) -> int:
    """How many numbers a batch may hold where all parameters of an optimizer have ``total``."""
    return max(_SMALLEST_BATCH, int(_LARGEST_SHARE * total))


def tensor_batches(entries: list[TensorEntry], largest: Callable[[Tensor], int]) -> Iterator[TensorBatch]:
    """Batches of entries of equal shape, dtype, device and age, in the order of first appearance; empty ones are none.

    Args:
        entries: All tensors of a group.
        largest: How many numbers a batch may hold, from the ``w`` of an entry; a single entry may have more.
    """
    alike: defaultdict[tuple[object, ...], list[TensorEntry]] = defaultdict(list)
    for entry in entries:
        if entry.w.numel():
            alike[entry.shape, entry.w.dtype, entry.w.device, entry.step].append(entry)
    for group in alike.values():
        batch: list[TensorEntry] = []
        most = largest(group[0].w)
        for entry in group:
            if batch and sum(e.w.numel() for e in batch) + entry.w.numel() > most:
                yield TensorBatch(batch)
                batch = []
            batch.append(entry)
        yield TensorBatch(batch)
