"""Gather tensors of equal shape into batches, and write the results back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lite.parameters.parameter_entries import TensorEntry

_LARGEST_SHARE = 1 / 40  # share of an optimizer's numbers per batch: about ten temporaries of it stay below a tenth of
# parameters, gradients and momentum together
_SMALLEST_BATCH = 2**21  # numbers below which launching a kernel costs more than its work


@dataclass(frozen=True)
class TensorBatch:
    """Entries of one shape, dtype and device; a single tensor gets no batch axis (for equal bits, claim C12)."""

    entries: list[TensorEntry]
    _is_plain: bool = field(init=False)  # whether no entry is a stack of experts

    def __post_init__(self) -> None:
        object.__setattr__(self, "_is_plain", all(entry.stack is None for entry in self.entries))

    @property
    def has_axis(self) -> bool:
        """Whether there is a batch axis."""
        return len(self.entries) > 1 or self.entries[0].stack is not None

    @property
    def w(self) -> Tensor:
        """Parameters, with a leading batch axis unless there is only one."""
        return self._gathered([entry.w for entry in self.entries])

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Other inputs of the rule, each tensor of the shape of :attr:`w`."""
        return {key: self._gathered([entry.inputs[key] for entry in self.entries]) for key in self.entries[0].inputs}

    @property
    def state(self) -> dict[str, Tensor]:
        """State; each tensor starts with the batch axis of :attr:`w`."""
        if len(self.entries) == 1:
            return self.entries[0].state
        return {key: self._gathered([entry.state[key] for entry in self.entries]) for key in self.entries[0].state}

    @property
    def numbers(self) -> list[int]:
        """Running number of each matrix."""
        return [number for entry in self.entries for number in entry.numbers]

    def matrices(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One tensor of each entry, cut into its matrices."""
        if self._is_plain:
            return list(tensors)
        return [y for x, entry in zip(tensors, self.entries, strict=True) for y in (x if entry.stack else [x])]

    def write(self, w: Tensor, state: dict[str, Tensor]) -> None:
        """Copy new parameters and state back to the entries."""
        self._scatter([entry.w for entry in self.entries], w)
        self.write_state(state)

    def write_state(self, state: dict[str, Tensor]) -> None:
        """Copy only the new state back to the entries."""
        for key, value in state.items():
            self._scatter([entry.state[key] for entry in self.entries], value)

    def _gathered(self, tensors: list[Tensor]) -> Tensor:
        if len(tensors) == 1:
            return tensors[0]
        if self._is_plain:
            return torch.stack(tensors)
        return torch.cat([x if e.stack is not None else x[None] for x, e in zip(tensors, self.entries, strict=True)])

    def _scatter(self, targets: list[Tensor], values: Tensor) -> None:
        if len(targets) == 1:
            pieces = [values]
        elif self._is_plain:
            pieces = list(values.unbind())
        else:
            parts = torch.split(values, [1 if entry.stack is None else entry.stack for entry in self.entries])
            pieces = [part if e.stack is not None else part[0] for part, e in zip(parts, self.entries, strict=True)]
        torch._foreach_copy_(targets, pieces)


def largest_batch(total: int) -> int:
    """Most numbers in a batch if all parameters of an optimizer have ``total``."""
    return max(_SMALLEST_BATCH, int(_LARGEST_SHARE * total))


def tensor_batches(entries: list[TensorEntry], largest: Callable[[Tensor], int]) -> Iterator[TensorBatch]:
    """Batches of entries of equal shape, dtype, device and age, in order of first appearance; empty ones are skipped.

    Args:
        entries: All tensors of a group.
        largest: Entry's ``w`` ↦ most numbers in a batch; a single entry may have more.
    """
    alike: defaultdict[tuple[object, ...], list[TensorEntry]] = defaultdict(list)
    for entry in entries:
        if entry.w.numel():
            alike[entry.shape, entry.w.dtype, entry.w.device, entry.step].append(entry)
    for group in alike.values():
        batch: list[TensorEntry] = []
        most = largest(group[0].w) if len(group) > 1 else 0
        for entry in group:
            if batch and sum(e.w.numel() for e in batch) + entry.w.numel() > most:
                yield TensorBatch(batch)
                batch = []
            batch.append(entry)
        yield TensorBatch(batch)
