"""How parameters lie on ranks: the boxes of a tensor that each rank holds, in any layout of DTensor's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard


class Box(NamedTuple):
    """A rectangular part of a tensor: where it begins and its length, along each dimension."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    def overlap(self, other: Box) -> Box:
        """What two boxes have in common, which may be empty."""
        start = tuple(map(max, self.start, other.start))
        ends = (min(a + m, b + n) for a, m, b, n in zip(self.start, self.shape, other.start, other.shape, strict=True))
        return Box(start, tuple(max(0, end - first) for first, end in zip(start, ends, strict=True)))

    def within(self, origin: Sequence[int]) -> tuple[slice, ...]:
        """Indices of the box in a tensor whose first element is at ``origin``."""
        return tuple(
            slice(first - zero, first - zero + length)
            for first, zero, length in zip(self.start, origin, self.shape, strict=True)
        )


class Piece(NamedTuple):
    """A box of a parameter that a rank holds, inside a local tensor that would begin at ``origin``."""

    box: Box
    origin: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class RankMesh:
    """Ranks that hold parameters together, numbered as in their process group.

    Args:
        global_ranks: Global rank of each.
        rank: Number of this rank.
        group: Their process group; ``None`` for a single rank.
    """

    global_ranks: tuple[int, ...] = (0,)
    rank: int = 0
    group: ProcessGroup | None = None

    @classmethod
    def of_group(cls, group: ProcessGroup) -> RankMesh:
        """All ranks of a process group."""
        return cls(tuple(dist.get_process_group_ranks(group)), dist.get_rank(group), group)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.global_ranks)


@dataclass(frozen=True, eq=False)
class Grid:
    """Ranks arranged along axes, each of several ranks.

    Args:
        coordinates: Place of every rank of a mesh along every axis.
        sizes: Number of ranks along each axis.
        groups: Process groups of this rank along the axes.
    """

    coordinates: tuple[tuple[int, ...], ...] = ((),)
    sizes: tuple[int, ...] = ()
    groups: tuple[ProcessGroup, ...] = ()

    def permuted(self, order: Sequence[int]) -> Grid:
        """The same ranks with the axes in another order."""
        return Grid(
            tuple(tuple(each[i] for i in order) for each in self.coordinates),
            tuple(self.sizes[i] for i in order),
            tuple(self.groups[i] for i in order) if self.groups else (),
        )


@dataclass(frozen=True, eq=False)
class Sharding:
    """How parameters of one shape lie on their ranks.

    Ranks with the same place along the axes of replicas hold a whole parameter between them, each element once.

    Args:
        mesh: The ranks.
        shape: Shape of a whole parameter.
        grid: The axes along which the ranks lie.
        placements: What each axis does with a parameter: cut it, or hold it again.
    """

    mesh: RankMesh
    shape: tuple[int, ...]
    grid: Grid = field(default_factory=Grid)
    placements: tuple[Placement, ...] = ()
    _device_meshes: dict[str, DeviceMesh] = field(default_factory=dict, init=False)

    @cached_property
    def cut_axes(self) -> tuple[int, ...]:
        """Axes along which parameters are cut."""
        return tuple(i for i, placement in enumerate(self.placements) if not isinstance(placement, Replicate))

    @property
    def is_cut(self) -> bool:
        """Whether no rank holds a whole parameter."""
        return bool(self.cut_axes)

    @property
    def shards(self) -> int:
        """Among how many ranks a parameter is cut."""
        return math.prod(self.grid.sizes[i] for i in self.cut_axes)

    @property
    def replicas(self) -> int:
        """How many ranks hold each element."""
        return self.mesh.size // self.shards

    @cached_property
    def shard(self) -> int:
        """Number of this rank's shard: the same on all ranks that hold it."""
        number = 0
        for i in self.cut_axes:
            number = number * self.grid.sizes[i] + self.grid.coordinates[self.mesh.rank][i]
        return number

    def are_near(self, rank: int, other: int) -> bool:
        """Whether two ranks have the same place along the axes of replicas."""
        here, there = self.grid.coordinates[rank], self.grid.coordinates[other]
        return all(here[i] == there[i] for i in range(len(here)) if i not in self.cut_axes)

    @cached_property
    def pieces(self) -> list[list[Piece]]:
        """Pieces of a parameter on every rank; none of an empty shard, several where its indices have gaps."""
        return [self._pieces_at(place) for place in self.grid.coordinates]

    def _pieces_at(self, place: tuple[int, ...]) -> list[Piece]:
        runs = []
        for dim, length in enumerate(self.shape):
            cuts = [(self.placements[i], self.grid.sizes[i], place[i]) for i in self.cut_axes]
            runs.append(_runs(length, dim, tuple(cut for cut in cuts if getattr(cut[0], "dim", None) == dim)))
        return [
            Piece(Box(*(tuple(run[i] for run in each) for i in (0, 1))), tuple(origin for *_, origin in each))
            for each in itertools.product(*runs)
        ]

    @cached_property
    def by_experts(self) -> Sharding:
        """The same ranks with a stack cut along its experts alone: those that lie whole on a rank stay there."""

        def turn(axis: int) -> int:
            placement = self.placements[axis]
            if getattr(placement, "dim", None) != 0:
                return 2
            return int(isinstance(placement, _StridedShard))  # a strided cut comes after the others

        order = sorted(range(len(self.placements)), key=turn)
        return Sharding(self.mesh, self.shape, self.grid.permuted(order), (Shard(0),) * len(order))

    def device_mesh(self, device_type: str) -> DeviceMesh:
        """The grid for torch."""
        if device_type not in self._device_meshes:
            groups = list(self.grid.groups)
            if len(groups) == 1:
                made = DeviceMesh.from_group(groups[0], device_type)
            else:
                ranks = torch.empty(self.grid.sizes, dtype=torch.int)
                for place, rank in zip(self.grid.coordinates, self.mesh.global_ranks, strict=True):
                    ranks[place] = rank
                names = tuple(f"axis{i}" for i in range(len(groups)))
                made = DeviceMesh.from_group(groups, device_type, mesh=ranks, mesh_dim_names=names)
            self._device_meshes[device_type] = made
        return self._device_meshes[device_type]


@lru_cache(maxsize=4096)
def _runs(length: int, dim: int, cuts: tuple[tuple[Any, int, int], ...]) -> list[tuple[int, int, int]]:
    """Consecutive indices of a dimension that a rank holds: first one, number, and the index at which it would begin.

    Args:
        length: Of the dimension.
        dim: Its number.
        cuts: What cuts it, in order: placement, ranks along its axis, this rank's place there.
    """
    index = torch.arange(length).reshape([1] * dim + [length])
    for placement, size, place in cuts:  # DTensor's own way of cutting
        index = placement._split_tensor(index, size, with_padding=False, contiguous=False)[0][place]
    held = index.flatten()
    ends = [*(held.diff() != 1).nonzero().flatten().add(1).tolist(), len(held)]
    found = zip([0, *ends[:-1]], ends, held[[0, *ends[:-1]]].tolist() if len(held) else [0], strict=True)
    return [(first, end - start, first - start) for start, end, first in found if end > start]


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
