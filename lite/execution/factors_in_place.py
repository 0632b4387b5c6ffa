"""SOAP's preconditioner with Kronecker factors updated in place, since they are the largest part of its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from discretizations.preconditioners.eigenbasis_moment import EigenbasisMoment
from discretizations.update_rule import UpdateRule
from lite.execution.finiteness import Guard
from riemannian_ode.preconditioner import Memory

FACTORS = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class _InPlace(EigenbasisMoment):
    """The preconditioner with in-place updates of its factors.

    Args:
        guard: Keeps the factors unchanged if the gradients are not finite.
    """

    guard: Guard

    def observed_factors(
        self, memory: Memory, g: Tensor, *, h: Any = 1.0, usable: Tensor | None = None, in_place: bool = False
    ) -> Memory:
        return super().observed_factors(memory, g, h=h, usable=self.guard.weight(g.dtype), in_place=True)


def with_factors_in_place(rule: UpdateRule, guard: Guard) -> UpdateRule | None:
    """The rule with in-place updates of its factors if gradients are usable; ``None`` if it has no factors.

    Args:
        rule: An update rule.
        guard: Keeps the factors unchanged if the gradients are not finite.
    """
    preconditioner: Any = rule.preconditioner
    if type(preconditioner) is not EigenbasisMoment:
        return None
    return rule.with_preconditioner(_InPlace(**vars(preconditioner), guard=guard))
