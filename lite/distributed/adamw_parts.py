"""AdamW-LITE on parts of tensors: everything is elementwise except the mask, which needs a mean and two fractions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from discretizations.matrices.sharp_masks import CoordinateThresholds, coordinate_mask, passing_fractions
from discretizations.preconditioners.masks import CoordinateMask, CoordinateProjector
from discretizations.update_rule import UpdateRule
from lite.declaration import MOMENTUM, Declaration
from lite.distributed.division import PlacedParameter
from riemannian_ode.flow import Projector
from riemannian_ode.preconditioner import Memory
from riemannian_ode.stages import TakenIn


@dataclass(frozen=True, kw_only=True)
class CutMask(CoordinateMask):
    """The coordinate mask on a part of a tensor; its thresholds adapt once all parts are counted.

    Args:
        mean: mean(v) of the whole tensor; ``None`` if this part is the whole tensor.
    """

    mean: Tensor | None

    def flat(self, memory: Memory, v: Tensor, *, h: float = 1.0) -> tuple[Projector, Memory]:
        if self.is_all_flat:
            return super().flat(memory, v, h=h)
        thresholds = CoordinateThresholds(memory["hi"], memory["lo"])
        return CoordinateProjector(1.0 - coordinate_mask(v, thresholds, mean=self.mean, floor=self.floor)), memory


def adamw_take_in(
    declaration: Declaration, group: dict[str, Any], parts: list[tuple[dict[str, Tensor], Tensor]]
) -> list[TakenIn]:
    """First stage of parts of parameters, from state and gradient of each.

    Args:
        declaration: Has the update rule.
        group: Their parameter group.
        parts: This rank's parts of state and gradient.
    """
    rule, found = declaration.adamw_rule(group), []
    for before, g in parts:
        memory = {key: x for key, x in before.items() if key != MOMENTUM}
        wide = memory["v"].dtype
        found.append(rule.take_in(before[MOMENTUM].to(wide), memory, g.to(wide)))
    return found


def adamw_positions(
    declaration: Declaration, group: dict[str, Any], parts: list[tuple[Tensor, TakenIn, Tensor | None]]
) -> list[Tensor]:
    """Parts of parameters after the step.

    Args:
        declaration: Has the update rule.
        group: Their parameter group.
        parts: This rank's part of each parameter, what :func:`adamw_take_in` gave, and mean(v) of the whole one.
    """
    rule, moved = declaration.adamw_rule(group), []
    preconditioner: Any = rule.preconditioner
    for w, taken, mean in parts:
        cut = rule.with_preconditioner(replace(preconditioner, mask=CutMask(**vars(preconditioner.mask), mean=mean)))
        wide = w.to(torch.promote_types(w.dtype, taken.memory["v"].dtype))
        moved.append(cut.move(wide, cut.direct(taken, w=wide), eta=group["lr"]))
    return moved


class AdamWPart:
    """One step for this rank's part of one parameter.

    The sum of :meth:`total` over ranks gives ``mean``, with which it moves; then come :meth:`counts`. All
    parameters share these two collectives.

    Args:
        parameter: The parameter.
        rule: Its update rule.
        before: This rank's part of the state before the step.
        taken: What :func:`adamw_take_in` gave.

    Attributes:
        after: This rank's part of the state after the step, except for the thresholds.
        mean: mean(v) of the whole parameter, once it is known; ``None`` if this part is the whole.
    """

    def __init__(self, parameter: PlacedParameter, rule: UpdateRule, before: dict[str, Tensor], taken: TakenIn) -> None:
        self.parameter, self.before, self.taken, self._rule = parameter, before, taken, rule
        self.v: Tensor = taken.memory["v"]
        averages = ("v", "v_mass", "momentum_mass")
        self.after = {MOMENTUM: taken.m, **{key: taken.memory[key] for key in averages}}
        self.mean: Tensor | None = None

    @property
    def sharp_fraction(self) -> float:
        """r."""
        return self._mask.sharp_fraction

    @property
    def has_mask(self) -> bool:
        """Whether the mask depends on v."""
        return self._rule.splits and not self._mask.is_all_flat

    @property
    def is_cut(self) -> bool:
        """Whether the mask needs numbers of other ranks."""
        return self.has_mask and self.parameter.sharding.is_cut

    @property
    def thresholds(self) -> CoordinateThresholds:
        """hi and lo before the step."""
        return CoordinateThresholds(self.before["hi"], self.before["lo"])

    @property
    def share(self) -> float:
        """What a sum over this rank's part counts in a sum over all ranks, of which some hold the same."""
        return 1.0 / self.parameter.sharding.replicas

    @property
    def _mask(self) -> CoordinateMask:
        preconditioner: Any = self._rule.preconditioner
        mask: CoordinateMask = preconditioner.mask
        return mask

    def total(self) -> Tensor:
        """Σv over this part."""
        return self.share * self.v.sum(dtype=torch.float64)

    def counts(self) -> Tensor:
        """How many elements of this part pass hi and lo, shape (2,)."""
        if not self.v.numel():
            return self.v.new_zeros(2, dtype=torch.float64)
        passing = passing_fractions(self.v, self.thresholds, mean=self.mean)
        return (self.share * self.v.numel()) * torch.stack(passing).double()
