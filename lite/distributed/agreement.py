"""Agreement between ranks: on the same optimizer at construction, and on the available gradients in a step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lite.distributed.division import PlacedParameter
from lite.distributed.sharding import RankMesh
from lite.execution.finiteness import NonFiniteError, nonfinite_message


def check_same_construction(mesh: RankMesh, descriptions: list[str]) -> None:
    """Compare the optimizers that the ranks of a mesh have built; a collective, for construction only.

    Args:
        mesh: The ranks.
        descriptions: One line per shared parameter, in order.

    Raises:
        ValueError: on every rank, naming the first difference.
    """
    digest = hashlib.sha256("\n".join(descriptions).encode()).hexdigest()
    digests: list[Any] = [None] * mesh.size
    dist.all_gather_object(digests, digest, group=mesh.group)
    if len(set(digests)) == 1:
        return
    everything: list[Any] = [None] * mesh.size
    dist.all_gather_object(everything, descriptions, group=mesh.group)
    ranks = mesh.global_ranks
    other = next(i for i, each in enumerate(everything) if each != everything[0])
    pairs = zip(_padded(everything[0], everything[other]), _padded(everything[other], everything[0]), strict=True)
    place, (first, second) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise ValueError(
        f"ranks {ranks[0]} and {ranks[other]} build different optimizers: parameter {place} is {first} on the one and "
        f"{second} on the other; build model, groups and optimizer in the same order on all ranks."
    )


def raise_together(mesh: RankMesh, error: Exception | None) -> None:
    """Raise on every rank an error that some ranks have found; a collective.

    Args:
        mesh: The ranks.
        error: Error on this rank, if any.

    Raises:
        Exception: the rank's own error, or else
        ValueError: with the error of the first rank that has one.
    """
    messages: list[Any] = [None] * mesh.size
    if mesh.size > 1:
        dist.all_gather_object(messages, None if error is None else str(error), group=mesh.group)
    if error is not None:
        raise error
    for rank, message in zip(mesh.global_ranks, messages, strict=True):
        if message is not None:
            raise ValueError(f"on rank {rank}: {message}")


class Verdict(NamedTuple):
    """Outcome of a step's agreement, on the device.

    Args:
        usable: Whether all gradients on all ranks are finite; ``None`` if they are not checked.
        moved: Boolean tensor: whether each parameter moves.
    """

    usable: Tensor | None
    moved: Tensor

    def of(self, number: int) -> Tensor:
        """Whether a given parameter changes in this step."""
        return self.moved[number] if self.usable is None else self.usable & self.moved[number]


class Outcome(NamedTuple):
    """Outcome of a step's agreement, on the host.

    Args:
        moved: Whether each parameter had a gradient that counts.
        error: Error to raise for non-finite gradients.
        warnings: Sentences about gradients that only some ranks have, once per parameter.
    """

    moved: list[bool]
    error: NonFiniteError | None
    warnings: list[str]


class Agreement:
    """Agreement on a step's gradients: a few numbers per parameter, summed over ranks without waiting.

    For sharded parameters a missing gradient of a shard counts as zeros. For replicated parameters a parameter moves
    only if all ranks have its gradient: a gradient missing on some ranks was not synchronised, and no rank may move
    alone. The host learns the outcome of a step at the start of the next one, at the same step on all ranks.

    Args:
        mesh: The ranks.
        parameters: All parameters of the optimizer; of those that another mesh holds, or only this rank, nothing but
            whether they are finite is agreed on here.
        watchers: All these ranks keep what they have if a gradient of one is not finite; ``None`` if nobody looks.
        warned: Names of parameters that a warning was given of; grows.

    Attributes:
        parameters: Those that the mesh holds, then the others: the order of all flags.
        is_of_replicas: Whether it concerns no other ranks, and each holds all of these parameters whole.
    """

    def __init__(
        self, mesh: RankMesh, parameters: list[PlacedParameter], *, watchers: RankMesh | None, warned: set[str]
    ) -> None:
        shared = [parameter for parameter in parameters if parameter.sharding.mesh is mesh]
        is_whole = bool(shared) and not any(each.sharding.is_cut for each in shared)
        self.is_of_replicas = is_whole and mesh.size > 1 and watchers in (None, mesh)
        self.parameters = shared + [parameter for parameter in parameters if parameter.sharding.mesh is not mesh]
        self.mesh, self._shared, self._watchers = mesh, len(shared), watchers
        self._names = [parameter.name for parameter in self.parameters]
        self._pending: tuple[int, Tensor, Any] | None = None
        self._present: tuple[tuple[bool, ...], Tensor] = (), torch.empty(0)
        self._needed = [mesh.size if parameter.sharding.replicas > 1 else 1 for parameter in shared]
        self._needed_there = torch.tensor(self._needed)  # on the device, once that is known
        self._warned = warned

    def flags(self, finite: Tensor | None, present: Sequence[bool], device: torch.device) -> Tensor:
        """This rank's flags, uint8: whether each gradient is non-finite, then whether each gradient is present.

        Args:
            finite: Whether each gradient is finite.
            present: Whether each parameter has a gradient here.
            device: Device of the result.
        """
        if self._present[0] != tuple(present):  # kept, so that it is rarely copied to the device
            self._present = tuple(present), torch.tensor(present, dtype=torch.uint8).to(device)
        bad = torch.zeros_like(self._present[1]) if finite is None else (~finite).to(torch.uint8)
        return torch.cat([bad, self._present[1]])

    def reduced(self, flags: Tensor, sums: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Sum the ranks' :meth:`flags`, and further numbers, in one collective.

        Args:
            flags: This rank's flags.
            sums: 0-dimensional tensors.

        Returns:
            Record for :meth:`verdict`, and the sums over ranks, float64.
        """
        watchers = self._watchers or self.mesh
        on_rank = torch.zeros(watchers.size, dtype=torch.float64, device=flags.device)
        on_rank[watchers.rank] = flags[: len(self._names)].any()
        numbers = torch.cat([flags.double(), *(x.double().reshape(1) for x in sums)])
        if watchers is self.mesh:  # one collective does for both
            both = _summed(torch.cat([numbers, on_rank]), watchers)
            numbers, on_rank = both[: len(numbers)], both[len(numbers) :]
        else:
            numbers, on_rank = _summed(numbers, self.mesh), _summed(on_rank, watchers)
        return torch.cat([numbers[: len(flags)], on_rank]), list(numbers[len(flags) :].unbind())

    def record(self, gathered: list[Tensor]) -> Tensor:
        """Record for :meth:`verdict` from the flags of every rank."""
        flags = torch.stack(gathered).double()
        return torch.cat([flags.sum(0), flags[:, : len(self._names)].amax(1)])

    def verdict(self, record: Tensor, step: int) -> Verdict:
        """Outcome of a step on the device; :meth:`settle` gives it to the host."""
        known, event = record, None
        if record.device.type == "cuda":
            known = record.to("cpu", non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            event.record()
        self._pending = step, known, event
        n = len(self._names)
        present = record[n : n + self._shared]
        self._needed_there = self._needed_there.to(present.device)
        moved = present >= self._needed_there
        own = self._present[1][self._shared :].bool()
        return Verdict(None if self._watchers is None else record[2 * n :].sum() == 0, torch.cat([moved, own]))

    def settle(self) -> Outcome | None:
        """Outcome of the last step, returned once; waits for the device if necessary. ``None`` if nothing is new."""
        if self._pending is None:
            return None
        (step, record, event), self._pending = self._pending, None
        if event is not None:
            event.synchronize()
        n, size = len(self._names), self.mesh.size
        numbers = [int(x) for x in record.tolist()]
        bad, present, on_rank = numbers[:n], numbers[n : n + self._shared], numbers[2 * n :]
        moved = [count >= needed for count, needed in zip(present, self._needed, strict=True)]
        partial = [
            (name, count)
            for name, count, moves in zip(self._names, present, moved, strict=False)
            if count and not moves and name not in self._warned
        ]
        self._warned.update(name for name, _ in partial)
        warnings = [
            f"only {count} of {size} ranks have a gradient of {name}, so no rank moves it; synchronise the gradients "
            "before the step (DistributedDataParallel does)."
            for name, count in partial
        ]
        error = self._error(self._watchers, step, bad, on_rank) if self._watchers and any(on_rank) else None
        return Outcome(moved + list(self._present[0][self._shared :]), error, warnings)

    def _error(self, watchers: RankMesh, step: int, bad: list[int], on_rank: list[int]) -> NonFiniteError:
        names = [name for name, count in zip(self._names, bad, strict=True) if count] or [
            "parameters that are not here"
        ]
        ranks = [str(rank) for rank, count in zip(watchers.global_ranks, on_rank, strict=True) if count]
        where = f" at step {step} of this optimizer on rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}"
        return NonFiniteError(nonfinite_message(names, where))


def _summed(vector: Tensor, mesh: RankMesh) -> Tensor:
    """The sum of the ranks' vectors, in place."""
    if mesh.size > 1:
        dist.all_reduce(vector, group=mesh.group)
    return vector


def _padded(lines: list[str], other: list[str]) -> list[str]:
    return lines + ["nothing"] * max(0, len(other) - len(lines))
