"""Sharding of parameters over ranks: replicated (DDP), cut along one dimension (FSDP2), or both (HSDP)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

# Dimensions of a parameter along which shards can be assembled to whole matrices.
_CUTTABLE = {"matrix": (0, 1), "conv": (0, 1), "experts": (0, 1, 2)}


class MeshAxis(NamedTuple):
    """Ranks along one direction of a mesh; ``group`` is needed for more than one rank."""

    size: int = 1
    rank: int = 0
    group: ProcessGroup | None = None


@dataclass(frozen=True, eq=False)
class RankMesh:
    """Ranks that hold the same parameters; each holds one of ``shards`` in one of ``replicas``.

    Ranks are numbered shard by shard, so that replicas of one shard are neighbours.

    Args:
        shards: Axis along which each rank has a different part.
        replicas: Axis along which all ranks have the same part.
        group: Process group of all its ranks.
        global_ranks: Global rank of every rank of the mesh, in this order.
    """

    shards: MeshAxis
    replicas: MeshAxis
    group: ProcessGroup | None
    global_ranks: tuple[int, ...]
    _device_meshes: dict[str, DeviceMesh] = field(default_factory=dict, init=False)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.shards.size * self.replicas.size

    @property
    def rank(self) -> int:
        """Number of this rank in the mesh."""
        return self.rank_at(self.shards.rank, self.replicas.rank)

    def rank_at(self, shard: int, replica: int) -> int:
        """Number of the rank with a shard in a replica."""
        return shard * self.replicas.size + replica

    def place(self, rank: int) -> tuple[int, int]:
        """Shard and replica of a rank."""
        return divmod(rank, self.replicas.size)

    def device_mesh(self, device_type: str) -> DeviceMesh:
        """The mesh for torch: the dimensions shards and replicas, without those of a single rank."""
        if device_type not in self._device_meshes:
            self._device_meshes[device_type] = self._device_mesh(device_type)
        return self._device_meshes[device_type]

    def _device_mesh(self, device_type: str) -> DeviceMesh:
        axes = [axis for axis in (self.shards, self.replicas) if axis.size > 1]
        groups = [axis.group for axis in axes if axis.group is not None]
        if len(groups) == 1:
            return DeviceMesh.from_group(groups[0], device_type)
        ranks = torch.tensor(self.global_ranks).reshape(self.shards.size, self.replicas.size)
        return DeviceMesh.from_group(groups, device_type, mesh=ranks, mesh_dim_names=("shards", "replicas"))


class Sharding(NamedTuple):
    """Sharding of one parameter on its mesh: cut along ``dim`` among the shards, or whole if ``dim`` is ``None``."""

    mesh: RankMesh
    dim: int | None

    def bounds(self, length: int, shard: int) -> tuple[int, int]:
        """A shard's range of a length, as cut by ``torch.chunk``: equal parts, the last ones shorter or empty."""
        part = math.ceil(length / self.mesh.shards.size)
        return min(shard * part, length), min((shard + 1) * part, length)

    def shard_shape(self, shape: Sequence[int], shard: int) -> tuple[int, ...]:
        """Shape of a shard of a parameter."""
        if self.dim is None:
            return tuple(shape)
        start, stop = self.bounds(shape[self.dim], shard)
        return (*shape[: self.dim], stop - start, *shape[self.dim + 1 :])


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Shardings:
    """Shardings of an optimizer's parameters; parameters on the same ranks share one :class:`RankMesh`.

    Args:
        process_group: Ranks with identical whole plain tensors (DDP); ``None`` if each rank's plain tensors are its
            own.
    """

    def __init__(self, process_group: ProcessGroup | None) -> None:
        self._process_group = process_group
        self._meshes: dict[Any, RankMesh] = {}

    @property
    def meshes(self) -> list[RankMesh]:
        """Meshes with several ranks, in an order that is the same on all ranks."""
        return sorted(
            (mesh for mesh in self._meshes.values() if mesh.size > 1), key=lambda mesh: sorted(mesh.global_ranks)
        )

    def of(self, p: Tensor, *, name: Any, group: dict[str, Any]) -> Sharding:
        """Sharding of a parameter.

        Args:
            p: Plain tensor or DTensor.
            name: Its name, for messages.
            group: Its parameter group.

        Raises:
            ValueError: for shards that cannot be assembled to matrices, naming the parameter and the remedy.
        """
        if hasattr(p, "_fsdp_flattened"):
            raise ValueError(
                f"parameter {name} is a piece of FSDP1's flat storage, whose matrices cannot be told; shard the model "
                "with torch.distributed.fsdp.fully_shard instead of FullyShardedDataParallel."
            )
        if not isinstance(p, DTensor):
            return Sharding(self._plain_mesh(), None)
        is_matrix = group["rule"] != "adamw"
        device_mesh, axes = p.device_mesh, [i for i in range(p.device_mesh.ndim) if p.device_mesh.size(i) > 1]
        shards = [i for i in axes if not isinstance(p.placements[i], Replicate)]
        if any(p.placements[i].is_partial() for i in axes):
            raise ValueError(_refusal(name, p, "holds a sum that is not yet reduced", "redistribute it to Shard(0)"))
        if not is_matrix:  # updated elementwise, so any cut will do
            return Sharding(self._mesh(device_mesh, shards, axes), None)
        if len(shards) > 1:
            raise ValueError(
                _refusal(
                    name,
                    p,
                    "is cut along several axes of the mesh (tensor parallelism beside sharding, say)",
                    "shard it along one axis (fully_shard on a one-dimensional mesh; HSDP adds an axis of replicas)",
                )
            )
        if len(axes) - len(shards) > 1:
            raise ValueError(_refusal(name, p, "is replicated along several axes of the mesh", "merge those axes"))
        if not shards:
            return Sharding(self._mesh(device_mesh, shards, axes), None)
        placement = p.placements[shards[0]]
        cuttable = _CUTTABLE.get(group["layout"], range(p.ndim))
        if type(placement) is not Shard or placement.dim % p.ndim not in cuttable:
            raise ValueError(
                _refusal(
                    name, p, f"is cut in a way that layout {group['layout']!r} has no matrices for", "use Shard(0)"
                )
            )
        sharding = Sharding(self._mesh(device_mesh, shards, axes), placement.dim % p.ndim)
        if tuple(p.to_local().shape) != sharding.shard_shape(p.shape, sharding.mesh.shards.rank):
            raise ValueError(
                _refusal(name, p, f"has a shard of shape {tuple(p.to_local().shape)} here, not torch.chunk's", "use it")
            )
        return sharding

    def _plain_mesh(self) -> RankMesh:
        group = self._process_group
        if None not in self._meshes:
            if group is None or group.size() == 1:
                self._meshes[None] = RankMesh(MeshAxis(), MeshAxis(), None, (0,))
            else:
                replicas = MeshAxis(group.size(), group.rank(), group)
                self._meshes[None] = RankMesh(MeshAxis(), replicas, group, tuple(dist.get_process_group_ranks(group)))
        return self._meshes[None]

    def _mesh(self, device_mesh: DeviceMesh, shards: list[int], axes: list[int]) -> RankMesh:
        key = (device_mesh, tuple(shards))
        if key not in self._meshes:
            replicas = [i for i in axes if i not in shards]
            order = [*shards, *replicas, *(i for i in range(device_mesh.ndim) if i not in axes)]
            coordinate = device_mesh.get_coordinate()
            assert coordinate is not None, "a parameter lies on ranks that this one is not among"
            # Only ranks that differ along `axes` count; along the other axes the mesh has a single rank.
            ranks = tuple(device_mesh.mesh.permute(order).flatten().tolist())
            self._meshes[key] = RankMesh(
                _axis(device_mesh, shards, coordinate),
                _axis(device_mesh, replicas, coordinate),
                _spanning(device_mesh, axes, ranks),
                ranks,
            )
        return self._meshes[key]


def _axis(device_mesh: DeviceMesh, dims: list[int], coordinate: Sequence[int]) -> MeshAxis:
    if len(dims) == 1:
        return MeshAxis(device_mesh.size(dims[0]), coordinate[dims[0]], device_mesh.get_group(dims[0]))
    rank = 0
    for i in dims:
        rank = rank * device_mesh.size(i) + coordinate[i]
    return MeshAxis(
        math.prod(device_mesh.size(i) for i in dims), rank
    )  # several or none: nothing is exchanged along this axis


def _spanning(device_mesh: DeviceMesh, axes: list[int], ranks: tuple[int, ...]) -> ProcessGroup | None:
    group: ProcessGroup | None = None
    if len(axes) == 1:
        group = device_mesh.get_group(axes[0])
    elif axes and len(ranks) == dist.get_world_size():
        group = dist.group.WORLD
    elif axes:
        group = dist.new_group(sorted(ranks), use_local_synchronization=True)
    return group


def _refusal(name: Any, p: DTensor, what: str, remedy: str) -> str:
    device_mesh = p.device_mesh
    names = device_mesh.mesh_dim_names or tuple(str(i) for i in range(device_mesh.ndim))
    where = ", ".join(
        f"{place} along {axis} ({device_mesh.size(i)})"
        for i, (axis, place) in enumerate(zip(names, p.placements, strict=True))
    )
    return (
        f"parameter {name} of shape {tuple(p.shape)} {what}: {where}. Remedy: {remedy}, or give it a group with "
        "rule='adamw'."
    )
