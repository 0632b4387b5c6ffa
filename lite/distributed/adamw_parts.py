"""AdamW-LITE on parts of tensors: everything is elementwise but the mask, which needs a mean and two fractions."""

from __future__ import annotations

import torch
from torch import Tensor

from discretizations.matrices.sharp_masks import CoordinateThresholds, passing_fractions
from lite.adamw import AdamWRule, AdamWState, adamw_moments, adamw_position
from lite.distributed.division import Member
from lite.distributed.layout import local_part


class AdamWPart:
    """One step of this rank's part of one parameter.

    First come the moments; with the sum of :meth:`total` over ranks the caller sets ``mean``; then come
    :meth:`position` and :meth:`counts`. So many parameters share two collectives.

    Args:
        member: The parameter.
        rule: Hyperparameters.
        state: State before the step.
        g: This rank's part of the gradient.
    """

    def __init__(self, member: Member, rule: AdamWRule, state: AdamWState, g: Tensor) -> None:
        self.member, self.rule = member, rule
        self.before = AdamWState(*(local_part(x) for x in state))
        self.m, self.v = adamw_moments(rule, g, self.before)
        self.mean: Tensor | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the mask needs numbers of other ranks."""
        return self.rule.has_mask and self.member.layout.team.shards.size > 1

    @property
    def thresholds(self) -> CoordinateThresholds:
        """hi and lo before the step."""
        return CoordinateThresholds(self.before.hi, self.before.lo)

    @property
    def share(self) -> float:
        """What a sum over this rank's part counts in a sum over all ranks, of which some hold the same."""
        return 1.0 / self.member.layout.team.replicas.size

    def total(self) -> Tensor:
        """Σv over this part."""
        return self.share * self.v.sum(dtype=torch.float64)

    def position(self) -> Tensor:
        """This part of the parameter after the step."""
        return adamw_position(self.rule, local_part(self.member.p), self.m, self.v, self.before, mean=self.mean)

    def counts(self) -> Tensor:
        """How many elements of this part pass hi and lo, shape (2,)."""
        if not self.v.numel():
            return self.v.new_zeros(2, dtype=torch.float64)
        passing = passing_fractions(self.v, self.thresholds, mean=self.mean)
        return (self.share * self.v.numel()) * torch.stack(passing).double()
