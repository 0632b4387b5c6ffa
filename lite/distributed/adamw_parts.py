"""AdamW-LITE on parts of tensors: everything is elementwise but the mask, which needs a mean and two fractions."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from discretizations.matrices.sharp_masks import CoordinateThresholds, coordinate_mask, passing_fractions
from discretizations.preconditioners.masks import CoordinateMask, CoordinateProjector
from discretizations.update_rule import UpdateRule
from lite.distributed.division import PlacedParameter
from lite.distributed.sharding import local_part
from riemannian_ode.flow import Projector
from riemannian_ode.preconditioner import Memory


@dataclass(frozen=True, kw_only=True)
class CutMask(CoordinateMask):
    """The mask of coordinates on a part of a tensor; its thresholds are adapted once all parts are counted.

    Args:
        mean: mean(v) of the whole tensor; ``None`` if this part is the whole.
    """

    mean: Tensor | None

    def flat(self, memory: Memory, v: Tensor, *, h: float = 1.0) -> tuple[Projector, Memory]:
        if self.is_all_flat:
            return super().flat(memory, v, h=h)
        thresholds = CoordinateThresholds(memory["hi"], memory["lo"])
        return CoordinateProjector(1.0 - coordinate_mask(v, thresholds, mean=self.mean, floor=self.floor)), memory


class AdamWPart:
    """One step of this rank's part of one parameter.

    First come the moments; with the sum of :meth:`total` over ranks the caller sets ``mean``; then come
    :meth:`position` and :meth:`counts`. So many parameters share two collectives.

    Args:
        parameter: The parameter.
        rule: Its update rule.
        state: State before the step.
        g: This rank's part of the gradient.

    Attributes:
        before: This rank's part of the state before the step.
        after: The same after the step, but for the thresholds.
    """

    def __init__(self, parameter: PlacedParameter, rule: UpdateRule, state: dict[str, Tensor], g: Tensor) -> None:
        self.parameter, self._rule = parameter, rule
        self.before = {key: local_part(x) for key, x in state.items()}
        memory = {key: x for key, x in self.before.items() if key != "momentum"}
        wide = memory["v"].dtype
        self._taken = rule.take_in(self.before["momentum"].to(wide), memory, g.to(wide))
        self.v: Tensor = self._taken.memory["v"]
        averages = ("v", "v_mass", "momentum_mass")
        self.after = {"momentum": self._taken.m, **{key: self._taken.memory[key] for key in averages}}
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

    def position(self, eta: Any) -> Tensor:
        """This part of the parameter after the step.

        Args:
            eta: η.
        """
        settings = {field.name: getattr(self._mask, field.name) for field in fields(self._mask)}
        mask = CutMask(**settings, mean=self.mean)
        w = local_part(self.parameter.p)
        w = w.to(torch.promote_types(w.dtype, self.v.dtype))
        preconditioner: Any = self._rule.preconditioner
        rule = self._rule.with_preconditioner(replace(preconditioner, mask=mask))
        moved: Tensor = rule.move(w, rule.direct(self._taken, w=w), eta=eta)
        return moved

    def counts(self) -> Tensor:
        """How many elements of this part pass hi and lo, shape (2,)."""
        if not self.v.numel():
            return self.v.new_zeros(2, dtype=torch.float64)
        passing = passing_fractions(self.v, self.thresholds, mean=self.mean)
        return (self.share * self.v.numel()) * torch.stack(passing).double()
