"""Exchange of tensors of any shape and dtype between ranks, packed into bytes for a single collective."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lite.distributed.sharding import RankMesh

_ALIGNMENT = 16  # bytes; any dtype may start at such an offset
# torch 2.13 renamed it; the old name warns from then on.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class MessageSpec(NamedTuple):
    """Shape and dtype of a message."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size in bytes."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return -(-size // _ALIGNMENT) * _ALIGNMENT


class Transfer:
    """Tensors in transfer; :meth:`wait` returns them by rank of the sender."""

    def __init__(self, work: Any, buffer: Tensor, specs: list[list[MessageSpec]], starts: list[int], sent: Any) -> None:
        self._work, self._buffer, self._specs, self._starts = work, buffer, specs, starts
        self._sent = sent  # must stay alive until the transfer is done

    def wait(self) -> list[list[Tensor]]:
        """Views of what came, once it has come (on a GPU: kernels launched later see it)."""
        self._work.wait()
        self._sent = None
        return [_unpacked(self._buffer, each, start) for each, start in zip(self._specs, self._starts, strict=True)]


def all_to_all(
    sent: Sequence[Sequence[tuple[Tensor, torch.dtype]]],
    received: list[list[MessageSpec]],
    mesh: RankMesh,
    device: torch.device,
) -> Transfer:
    """Send each rank its own tensors; does not wait.

    Args:
        sent: Tensors for each rank of the mesh, each with the dtype to travel in.
        received: What comes from each rank.
        mesh: The ranks.
        device: Where the tensors lie.
    """
    specs = [[MessageSpec(tuple(x.shape), dtype) for x, dtype in each] for each in sent]
    out = _packed([x for each in sent for x, _ in each], [spec for each in specs for spec in each], device)
    sizes = [sum(spec.bytes for spec in each) for each in received]
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    split = [sum(spec.bytes for spec in each) for each in specs]
    work = dist.all_to_all_single(buffer, out, sizes, split, group=mesh.group, async_op=True)
    return Transfer(work, buffer, received, list(itertools.accumulate(sizes[:-1], initial=0)), out)


def all_gather(
    sent: Sequence[tuple[Tensor, torch.dtype]], received: list[list[MessageSpec]], mesh: RankMesh, device: torch.device
) -> Transfer:
    """Send all ranks the same tensors; does not wait. Arguments as for :func:`all_to_all`.

    Every rank's share is padded to the largest one, because only then do all backends use their fastest route.
    """
    share = max(sum(spec.bytes for spec in each) for each in received)
    specs = [MessageSpec(tuple(x.shape), dtype) for x, dtype in sent]
    out = _packed([x for x, _ in sent], specs, device, size=share)
    buffer = torch.empty(mesh.size * share, dtype=torch.uint8, device=device)
    work = _all_gather_single(buffer, out, group=mesh.group, async_op=True)
    return Transfer(work, buffer, received, [i * share for i in range(mesh.size)], out)


def _packed(tensors: list[Tensor], specs: list[MessageSpec], device: torch.device, size: int | None = None) -> Tensor:
    needed = sum(spec.bytes for spec in specs)
    buffer = torch.empty(needed if size is None else size, dtype=torch.uint8, device=device)
    places = _unpacked(buffer, specs, 0)
    filled = [(place, x) for place, x in zip(places, tensors, strict=True) if x.numel()]
    if filled:
        torch._foreach_copy_([place for place, _ in filled], [x for _, x in filled])
    return buffer


def _unpacked(buffer: Tensor, specs: Sequence[MessageSpec], start: int) -> list[Tensor]:
    tensors = []
    for spec in specs:
        size = math.prod(spec.shape) * spec.dtype.itemsize
        tensors.append(buffer[start : start + size].view(spec.dtype).view(spec.shape))
        start += spec.bytes
    return tensors
