r"""Size of each parameter group's updates, and their share along sharp directions.

Every few steps the parameters are copied before the optimizer's step and compared after it. This takes three passes
over them, and no device sync until the numbers are logged. For a group with updates :math:`\Delta` and learning rate η,

- ``update_rms/GROUP`` is :math:`\sqrt{\operatorname{mean} \Delta^2} / \eta`;
- ``sharp_share/GROUP`` is :math:`\sum \|P\Delta\|^2 / \sum \|\Delta\|^2` with the sharp projector P from the
  optimizer's state: the tracked right subspace of Muon-LITE's matrices, or the soft mask of AdamW-LITE's coordinates
  and of SOAP-LITE's eigenbasis coordinates (then a weighted sum replaces the norm). Parameters whose state has no
  projector (Muon-LITE with the published mask), parts of fused projections, sharded parameters, and groups without a
  sharp/flat split are excluded.

On several ranks one collective adds up the sums.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from discretizations.matrices.eigenbases import to_eigenbasis
from discretizations.matrices.sharp_masks import PUBLISHED_WIDTH_FLOOR, CoordinateThresholds, coordinate_mask
from lite.declaration import PLAIN_FRACTION
from lite.muon_settings import sharp_rank


class UpdateNorms:
    """Measures a step's updates by group.

    Args:
        every: Steps between measurements; 0 turns them off.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._before: list[list[Tensor]] | None = None
        self._sums: dict[str, Tensor] = {}

    def before(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Copy the parameters if this step will be measured.

        Args:
            optimizer: The optimizer, about to step.
            step: Number of this step, from 1.
        """
        if self.every and step % self.every == 0:
            self._before = [[_local(p).clone() for p in group["params"]] for group in optimizer.param_groups]

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Add up the squares of the updates."""
        if self._before is None:
            return
        self._sums = {}
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        is_first = ranks == 1 or dist.get_rank() == 0
        for group, old in zip(optimizer.param_groups, self._before, strict=True):
            if not group["lr"]:
                continue
            for p, was in zip(group["params"], old, strict=True):
                # In place in the copy, and the learning rate last: each pass over a parameter costs as much as a copy.
                moved = was.sub_(_local(p)) if was.dtype == torch.float32 else was.float() - _local(p).float()
                sharp = None if isinstance(p, DTensor) else _sharp_square(group, moved, optimizer.state.get(p, {}))
                scale = 1.0 / group["lr"]
                square = torch.linalg.vector_norm(moved).mul(scale).square()
                sharp = None if sharp is None else sharp * scale**2
                zero = torch.zeros_like(square)
                # For replicated parameters the first rank counts; for a matrix whose state is on one rank, that rank.
                size = (square, torch.full_like(square, moved.numel())) if is_first or isinstance(p, DTensor) else None
                split = (sharp, square) if sharp is not None and (is_first or group.get("rule") != "adamw") else None
                row = torch.stack([*(size or (zero, zero)), *(split or (zero, zero))])
                name = str(group.get("kind", "all"))
                self._sums[name] = self._sums.get(name, 0) + row
        if ranks > 1 and self._sums:
            rows = torch.stack(list(self._sums.values()))
            dist.all_reduce(rows)
            self._sums = dict(zip(self._sums, rows.unbind(), strict=True))
        self._before = None

    def read(self) -> dict[str, float]:
        """The numbers of the last measurement, returned once."""
        found: dict[str, float] = {}
        for name, row in self._sums.items():
            square, count, sharp, split = row.tolist()
            found[f"update_rms/{name}"] = (square / count) ** 0.5 if count else 0.0
            if split:
                found[f"sharp_share/{name}"] = sharp / split
        self._sums = {}
        return found


def _local(p: Tensor) -> Tensor:
    p = p.detach()
    return p.to_local() if isinstance(p, DTensor) else p


def _sharp_square(group: dict[str, Any], moved: Tensor, state: dict[str, Any]) -> Tensor | None:
    """Squared norm of an update's part along sharp directions; ``None`` if the state has no projector."""
    if not _is_split(group):
        return None  # the thresholds do not adapt then
    if "subspace" in state and moved.ndim == 2:
        rank = sharp_rank(group["sharp_fraction"], moved)
        basis: Tensor = state["subspace"][..., :rank]
        return (moved @ basis.float()).square().sum()
    if not {"v", "hi", "lo"} <= set(state):
        return None
    thresholds = CoordinateThresholds(state["hi"], state["lo"])
    if group.get("rule") == "adamw":
        floor = PUBLISHED_WIDTH_FLOOR if group.get("mask") == "threshold" else 0.0
        return (coordinate_mask(state["v"], thresholds, floor=floor) * moved.square()).sum()
    if moved.ndim != 2:
        return None
    rotated = to_eigenbasis(moved, state.get("left_basis"), state.get("right_basis"))
    return (coordinate_mask(state["v"], thresholds) * rotated.square()).sum()


def _is_split(group: dict[str, Any]) -> bool:
    if not PLAIN_FRACTION < group.get("sharp_fraction", 0.0) < 1.0:
        return False
    has_betas = group.get("rule") != "adamw" and group.get("beta_flat") != group.get("beta_sharp")
    return bool(group.get("chi", 1.0) != 1.0 or has_betas)
