"""SOAP's preconditioner with Kronecker factors changed in place: they are the largest part of its memory."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from discretizations.preconditioners.eigenbasis_moment import EigenbasisMoment
from discretizations.update_rule import UpdateRule
from riemannian_ode.preconditioner import Memory

FACTORS = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class _InPlace(EigenbasisMoment):
    """The same preconditioner, whose factors are changed in place.

    Args:
        usable: Whether they may change, 0-dimensional; ``None`` is yes.
    """

    usable: Tensor | None

    def observed_factors(
        self, memory: Memory, g: Tensor, *, h: Any = 1.0, usable: Tensor | None = None, in_place: bool = False
    ) -> Memory:
        return super().observed_factors(memory, g, h=h, usable=self.usable, in_place=True)


def with_factors_in_place(rule: UpdateRule, usable: Tensor | None) -> UpdateRule | None:
    """The same rule, which changes its factors in place where gradients are usable; ``None`` if it has no factors.

    Args:
        rule: An update rule.
        usable: Whether the gradients are finite, 0-dimensional; ``None`` is yes.
    """
    preconditioner: Any = rule.preconditioner
    if type(preconditioner) is not EigenbasisMoment:
        return None
    settings = {field.name: getattr(preconditioner, field.name) for field in fields(preconditioner)}
    return replace(rule, preconditioner=_InPlace(**settings, usable=usable))
