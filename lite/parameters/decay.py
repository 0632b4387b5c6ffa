"""Weight decay and the norm of weights: what the settings ``decay`` and ``norm`` of a group mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from torch import Tensor

from riemannian_ode.checks import require_choice

Decay: TypeAlias = Literal["decoupled", "independent", "cautious"]
DECAYS: tuple[Decay, ...] = ("decoupled", "independent", "cautious")
Norm: TypeAlias = Literal["free", "constant"]
NORMS: tuple[Norm, ...] = ("free", "constant")


def decay_rate(group: Mapping[str, Any]) -> Any:
    """λ beside the group's ``lr``: ``weight_decay``, over the schedule's peak if decay is independent of it.

    Args:
        group: A parameter group. ``initial_lr``, which schedulers leave there, is the peak; without it, ``lr`` itself.
    """
    decay = group["weight_decay"]
    if group["decay"] != "independent" or (not isinstance(decay, Tensor) and decay == 0.0):
        return decay
    return decay / group.get("initial_lr", group["lr"])


def check_decay(group: Mapping[str, Any], *, is_matrix: bool) -> None:
    """Refuse combinations of decay and norm that mean nothing.

    Args:
        group: A parameter group.
        is_matrix: Whether its parameters are matrices of the optimizer's rule.

    Raises:
        ValueError: naming argument, value and remedy.
    """
    require_choice("decay", group["decay"], DECAYS)
    require_choice("norm", group["norm"], NORMS)
    decay, peak = group["weight_decay"], group.get("initial_lr", group["lr"])
    if group["decay"] == "cautious" and is_matrix and not isinstance(decay, Tensor) and decay == 0:
        raise ValueError(
            "decay = 'cautious' has nothing to do with weight_decay = 0; set weight_decay, or leave it out."
        )
    if group["decay"] == "independent" and not isinstance(peak, Tensor) and peak == 0:
        raise ValueError(
            "decay = 'independent' divides by the peak of the learning rate, which lr = 0 is not; set lr to the peak "
            "and let a scheduler lower it."
        )
    if group["norm"] == "constant" and is_matrix and (isinstance(decay, Tensor) or decay != 0):
        raise ValueError(
            f"norm = 'constant' leaves nothing for weight_decay = {decay!r} to shrink; set weight_decay=0, or for "
            'matrices alone param_groups(model, settings={"matrix": {"weight_decay": 0.0}}).'
        )
