"""Division of matrices among ranks, balanced by cost and computed identically on every rank without communication."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lite.distributed.sharding import RankMesh, Sharding


class Owner(NamedTuple):
    """A rank that updates a parameter or a range of its experts.

    Args:
        rank: The rank's number in the parameter's mesh.
        experts: First expert and one past the last; ``None`` for a parameter that is not a stack.
    """

    rank: int
    experts: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class PlacedParameter:
    """A parameter of the optimizer and its sharding; for AdamW's parameters that is all.

    Args:
        p: The parameter.
        group: Number of its parameter group.
        index: Its index in the group.
        name: Its name, for messages.
        sharding: Its sharding.
    """

    p: Tensor
    group: int
    index: int
    name: str
    sharding: Sharding


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnedParameter(PlacedParameter):
    """A parameter of the matrix rule, and the ranks that update it.

    Args:
        numbers: Running numbers of the matrices of every view.
        owners: Its owners, in the order of experts.
    """

    numbers: list[range]
    owners: list[Owner]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return tuple(self.p.shape)

    @property
    def own(self) -> Owner | None:
        """The part that this rank owns; ``None`` if it owns nothing."""
        return next((owner for owner in self.owners if owner.rank == self.sharding.mesh.rank), None)

    def overlap(self, owner: Owner, shard: int) -> tuple[int, int]:
        """An owner's part of a shard: start and length along the experts; the whole shard if it is not a stack."""
        length = self.sharding.shard_shape(self.shape, shard)[0]
        if owner.experts is None:
            return 0, length
        first = self.sharding.bounds(self.shape[0], shard)[0] if self.sharding.dim == 0 else 0
        start, stop = (min(max(expert - first, 0), length) for expert in owner.experts)
        return start, stop - start

    def overlap_shape(self, owner: Owner, shard: int) -> tuple[int, ...]:
        """Shape of an owner's part of a shard."""
        return (self.overlap(owner, shard)[1], *self.sharding.shard_shape(self.shape, shard)[1:])

    def owned_shape(self, owner: Owner) -> tuple[int, ...]:
        """Shape of everything that an owner has."""
        return self.shape if owner.experts is None else (owner.experts[1] - owner.experts[0], *self.shape[1:])

    @property
    def travels(self) -> bool:
        """Whether an owner has parts of other ranks' shards."""
        return any(
            self.overlap_shape(owner, self.sharding.mesh.place(owner.rank)[0]) != self.owned_shape(owner)
            for owner in self.owners
        )


class WorkItem(NamedTuple):
    """A parameter whose work has to be divided.

    Args:
        sharding: Its sharding.
        cost: Cost of all its matrices.
        experts: Number of experts; ``None`` for a parameter that is not a stack.
    """

    sharding: Sharding
    cost: float
    experts: int | None


class Division:
    """Assigns parameters to owners among the ranks of their meshes; loads accumulate over calls.

    A stack of experts is divided among all ranks in equal ranges, so that its state is a DTensor; experts that lie
    whole on shards stay there. Other parameters go, most costly first, to the rank with the smallest load (at most 4/3
    of the shortest possible time; R. L. Graham, SIAM J. Appl. Math. 17, 1969).
    """

    def __init__(self) -> None:
        self._loads: dict[RankMesh, list[float]] = {}

    def divide(self, items: list[WorkItem]) -> list[list[Owner]]:
        """Owners of every parameter."""
        owners: list[list[Owner]] = [[] for _ in items]
        single: defaultdict[RankMesh, list[int]] = defaultdict(list)
        for i, item in enumerate(items):
            if item.experts is None:
                single[item.sharding.mesh].append(i)
            else:
                owners[i] = self._ranges(item, item.experts)
        for mesh, parameters in single.items():
            for i, rank in self._longest_first(mesh, parameters, items).items():
                owners[i] = [Owner(rank)]
        return owners

    def loads(self, mesh: RankMesh) -> list[float]:
        """Total cost assigned to each rank."""
        return self._loads.setdefault(mesh, [0.0] * mesh.size)

    def _ranges(self, item: WorkItem, experts: int) -> list[Owner]:
        mesh, owners = item.sharding.mesh, []
        for shard in range(mesh.shards.size):
            first, stop = Sharding(mesh, 0).bounds(experts, shard)
            part = -(-(stop - first) // mesh.replicas.size)
            for replica in range(mesh.replicas.size):
                start = min(first + replica * part, stop)
                end = min(start + part, stop)
                rank = mesh.rank_at(shard, replica)
                self.loads(mesh)[rank] += item.cost * (end - start) / max(1, experts)
                owners.append(Owner(rank, (start, end)))
        return owners

    def _longest_first(self, mesh: RankMesh, parameters: list[int], items: list[WorkItem]) -> dict[int, int]:
        loads, owners = self.loads(mesh), {}
        queue = [(load, rank) for rank, load in enumerate(loads)]
        heapq.heapify(queue)
        for i in sorted(parameters, key=lambda i: -items[i].cost):
            load, owners[i] = heapq.heappop(queue)
            loads[owners[i]] = load + items[i].cost
            heapq.heappush(queue, (loads[owners[i]], owners[i]))
        return owners
