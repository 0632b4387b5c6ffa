"""Division of matrices among ranks, balanced by cost and computed identically on every rank without communication."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from lite.distributed.sharding import Box, RankMesh, Sharding


class Owner(NamedTuple):
    """A rank that updates a parameter or a range of its experts.

    Args:
        rank: Its number in the parameter's mesh.
        box: What it has of the parameter.
    """

    rank: int
    box: Box


class Part(NamedTuple):
    """What a holder's shard and an owner have in common of a parameter.

    Args:
        rank: The owner, or seen from there the holder.
        travels: Whether the owner has it from this holder, and not from another replica.
        shape: Its shape.
        of_shard: Its indices in the holder's local tensor.
        of_owned: Its indices in what the owner has.
    """

    rank: int
    travels: bool
    shape: tuple[int, ...]
    of_shard: tuple[slice, ...]
    of_owned: tuple[slice, ...]


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
        is_stack: Whether it is a stack of experts.
        owners: Its owners, of a stack all ranks of the mesh.
    """

    numbers: list[range]
    is_stack: bool
    owners: list[Owner]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return self.sharding.shape

    @cached_property
    def own(self) -> Owner | None:
        """The part that this rank owns; ``None`` if it owns nothing."""
        return next((owner for owner in self.owners if owner.rank == self.sharding.mesh.rank), None)

    @property
    def owned_numbers(self) -> list[range]:
        """Running numbers of the matrices that this rank owns, of every view."""
        if not self.is_stack or self.own is None:
            return self.numbers
        (experts, *_) = self.own.box.within([0] * len(self.shape))
        return [each[experts] for each in self.numbers]

    @cached_property
    def held(self) -> list[Part]:
        """Parts of this rank's shard, which owners work on."""
        rank = self.sharding.mesh.rank
        return [part._replace(rank=owner.rank) for owner in self.owners for part in self._parts(owner, rank)]

    @cached_property
    def owned(self) -> list[Part]:
        """Parts of what this rank owns, of every rank's shard."""
        if self.own is None:
            return []
        return [part for rank in range(self.sharding.mesh.size) for part in self._parts(self.own, rank)]

    @cached_property
    def is_scattered(self) -> bool:
        """Whether an owner lacks a part in its own shard; the same on all ranks."""
        numbers = [sum(math.prod(part.shape) for part in self._parts(owner, owner.rank)) for owner in self.owners]
        return numbers != [math.prod(owner.box.shape) for owner in self.owners]

    def _parts(self, owner: Owner, holder: int) -> Iterator[Part]:
        near = self.sharding.are_near(holder, owner.rank)
        for piece in self.sharding.pieces[holder]:
            both = piece.box.overlap(owner.box)
            if all(both.shape):
                yield Part(holder, near, both.shape, both.within(piece.origin), both.within(owner.box.start))


class WorkItem(NamedTuple):
    """A parameter whose work has to be divided.

    Args:
        sharding: Its sharding.
        cost: Cost of all its matrices.
        is_stack: Whether it is a stack of experts.
    """

    sharding: Sharding
    cost: float
    is_stack: bool


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
            if item.is_stack:
                owners[i] = self._ranges(item)
            else:
                single[item.sharding.mesh].append(i)
        for mesh, parameters in single.items():
            for i, rank in self._longest_first(mesh, parameters, items).items():
                shape = items[i].sharding.shape
                owners[i] = [Owner(rank, Box((0,) * len(shape), shape))]
        return owners

    def loads(self, mesh: RankMesh) -> list[float]:
        """Total cost assigned to each rank."""
        return self._loads.setdefault(mesh, [0.0] * mesh.size)

    def _ranges(self, item: WorkItem) -> list[Owner]:
        shape, loads = item.sharding.shape, self.loads(item.sharding.mesh)
        nothing = Box((0,) * len(shape), (0, *shape[1:]))
        owners = []
        for rank, pieces in enumerate(item.sharding.by_experts.pieces):
            owners.append(Owner(rank, pieces[0].box if pieces else nothing))
            loads[rank] += item.cost * owners[rank].box.shape[0] / max(1, shape[0])
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
