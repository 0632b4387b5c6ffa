"""The shardings of an optimizer's parameters, read from their layouts; what cannot work is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from lite.distributed.sharding import Grid, RankMesh, Sharding


class Shardings:
    """Shardings of an optimizer's parameters; parameters on the same ranks share one :class:`RankMesh`.

    Args:
        process_group: Ranks on each of which plain tensors are whole and alike (DDP); ``None``: each rank is alone
            with its plain tensors.
    """

    def __init__(self, process_group: ProcessGroup | None) -> None:
        self._process_group = process_group
        self._meshes: dict[frozenset[int], RankMesh] = {}
        self._grids: dict[DeviceMesh, tuple[RankMesh, Grid]] = {}
        self._shardings: dict[Any, Sharding] = {}

    @property
    def meshes(self) -> list[RankMesh]:
        """Meshes of several ranks, in an order on which their ranks agree."""
        several = (mesh for mesh in self._meshes.values() if mesh.size > 1)
        return sorted(several, key=lambda mesh: sorted(mesh.global_ranks))

    def of(self, p: Tensor, *, name: Any) -> Sharding:
        """Sharding of a parameter.

        Args:
            p: Plain tensor or DTensor.
            name: Its name, for messages.

        Raises:
            ValueError: for a layout without whole numbers, naming it and the remedy.
        """
        if hasattr(p, "_fsdp_flattened"):
            raise ValueError(
                f"parameter {name} is a piece of FSDP1's flat storage, whose matrices cannot be told; shard the model "
                "with torch.distributed.fsdp.fully_shard instead of FullyShardedDataParallel."
            )
        key = (p.device_mesh, p.placements, p.shape) if isinstance(p, DTensor) else p.shape
        if key not in self._shardings:
            self._shardings[key] = self._of_dtensor(p, name) if isinstance(p, DTensor) else self._of_plain(p)
        return self._shardings[key]

    def _of_plain(self, p: Tensor) -> Sharding:
        group, shape = self._process_group, tuple(p.shape)
        if group is None or group.size() == 1:
            return Sharding(self._meshes.setdefault(frozenset(), RankMesh()), shape)
        mesh = self._mesh(dist.get_process_group_ranks(group), [group])
        grid = Grid(tuple((i,) for i in range(mesh.size)), (mesh.size,), (group,))
        return Sharding(mesh, shape, grid, (Replicate(),))

    def _of_dtensor(self, p: DTensor, name: Any) -> Sharding:
        mesh, grid = self._grid(p.device_mesh)
        placements = tuple(each for i, each in enumerate(p.placements) if p.device_mesh.size(i) > 1)
        for placement in placements:
            if not isinstance(placement, (Replicate, Shard, _StridedShard)):
                raise ValueError(_refusal(name, p, placement))
        sharding = Sharding(mesh, tuple(p.shape), grid, placements)
        if p.to_local().numel() != sum(math.prod(box.shape) for box, _ in sharding.pieces[mesh.rank]):
            raise ValueError(_wrong_shard(name, p))
        return sharding

    def _grid(self, device_mesh: DeviceMesh) -> tuple[RankMesh, Grid]:
        if device_mesh not in self._grids:
            axes = [i for i in range(device_mesh.ndim) if device_mesh.size(i) > 1]
            groups = [device_mesh.get_group(i) for i in axes]
            places = {
                int(device_mesh.mesh[place]): tuple(place[i] for i in axes)
                for place in itertools.product(*map(range, device_mesh.shape))
            }
            mesh = self._mesh(places, groups)
            coordinates = tuple(places[rank] for rank in mesh.global_ranks)
            self._grids[device_mesh] = mesh, Grid(coordinates, tuple(device_mesh.size(i) for i in axes), tuple(groups))
        return self._grids[device_mesh]

    def _mesh(self, global_ranks: Iterable[int], groups: list[ProcessGroup]) -> RankMesh:
        ranks = sorted(global_ranks)
        if (key := frozenset(ranks)) not in self._meshes:
            if not groups:
                self._meshes[key] = RankMesh(tuple(ranks))
            elif len(groups) == 1:
                self._meshes[key] = RankMesh.of_group(groups[0])
            else:
                is_world = len(ranks) == dist.get_world_size()
                group = dist.group.WORLD if is_world else dist.new_group(ranks, use_local_synchronization=True)
                assert group is not None
                self._meshes[key] = RankMesh.of_group(group)
        return self._meshes[key]


def _layout(p: DTensor) -> str:
    names = p.device_mesh.mesh_dim_names or tuple(str(i) for i in range(p.device_mesh.ndim))
    return ", ".join(
        f"{place} along {axis} ({p.device_mesh.size(i)})"
        for i, (axis, place) in enumerate(zip(names, p.placements, strict=True))
    )


def _refusal(name: Any, p: DTensor, placement: Placement) -> str:
    what = "a sum that is not yet reduced" if placement.is_partial() else "a placement that is not known"
    return (
        f"parameter {name} of shape {tuple(p.shape)} has {placement}, {what}: {_layout(p)}. Remedy: redistribute it to "
        "Shard(0) or Replicate()."
    )


def _wrong_shard(name: Any, p: DTensor) -> str:
    return (
        f"parameter {name} of shape {tuple(p.shape)} has a shard of shape {tuple(p.to_local().shape)} here, which "
        f"DTensor does not cut for {_layout(p)}. Remedy: make it with distribute_tensor."
    )
