"""Weight decay and norm of weights: the group settings ``decay`` and ``norm``."""

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
    """Factor λ of the group's ``lr``: ``weight_decay``, for independent decay divided by the schedule's peak.

    Args:
        group: A parameter group. The peak is ``initial_lr``, which schedulers store there, or else ``lr`` itself.
    """
    decay = group["weight_decay"]
    if group["decay"] != "independent" or (not isinstance(decay, Tensor) and decay == 0.0):
        return decay
    return decay / group.get("initial_lr", group["lr"])


def check_decay(group: Mapping[str, Any], *, is_matrix: bool) -> None:
    """Refuse incompatible combinations of decay and norm.

    Args:
        group: A parameter group.
        is_matrix: Whether its parameters use the optimizer's matrix rule.

    Raises:
        ValueError: naming argument, value and remedy.
    """
    require_choice("decay", group["decay"], DECAYS)
    require_choice("norm", group["norm"], NORMS)
    decay, peak = group["weight_decay"], group.get("initial_lr", group["lr"])
    if group["decay"] == "cautious" and is_matrix and not isinstance(decay, Tensor) and decay == 0:
        raise ValueError("decay = 'cautious' has no effect with weight_decay = 0; set weight_decay, or leave it out.")
    if group["decay"] == "independent" and not isinstance(peak, Tensor) and peak == 0:
        raise ValueError(
            "decay = 'independent' divides by the peak of the learning rate, so lr = 0 is not allowed; set lr to the "
            "peak and let a scheduler lower it."
        )
    if group["norm"] == "constant" and is_matrix and (isinstance(decay, Tensor) or decay != 0):
        raise ValueError(
            f"norm = 'constant' leaves nothing for weight_decay = {decay!r} to shrink; set weight_decay=0, or for "
            'matrices alone param_groups(model, settings={"matrix": {"weight_decay": 0.0}}).'
        )
