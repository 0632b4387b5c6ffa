"""Hyperparameters as 0-dimensional tensors, which can change without recompiling or recapturing a step.

As for torch's optimizers, a plain number is a constant of a compiled step and a tensor is one of its inputs. The value
of a tensor is never read, since that would wait for the device; a tensor always counts as having an effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TENSOR_SETTINGS = ("lr", "weight_decay", "chi", "beta_flat")
_NOT_TRACED = ("params", "param_names", "steps")


def acts(value: Any, neutral: float) -> bool:
    """Whether a coefficient differs from its neutral value; a tensor always counts as different.

    Args:
        value: A number or a 0-dimensional tensor.
        neutral: Value without effect.
    """
    return isinstance(value, Tensor) or bool(value != neutral)


def set_number(group: dict[str, Any], name: str, value: float) -> None:
    """Set a hyperparameter of a group; a tensor is overwritten in place, since compiled steps read that tensor."""
    if isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value


def own_tensors(group: dict[str, Any], *, capturable: bool) -> None:
    """Give a new group its own tensors: several groups may share one, but schedulers change each group's.

    Args:
        group: A parameter group with all of its settings, changed in place.
        capturable: Whether numbers with an effect become tensors on the device of its parameters.
    """
    for name in acting_settings(group):
        if isinstance(group[name], Tensor):
            group[name] = group[name].detach().clone()
        elif capturable and group["params"]:
            group[name] = as_tensor(group[name], group["params"][0].device)


def keep_tensors(own: Mapping[str, Any], loaded: dict[str, Any]) -> None:
    """Keep tensors tensors and numbers numbers in a group when values of another group are loaded.

    Args:
        own: The group before loading.
        loaded: The group with loaded values, changed in place.
    """
    for name in TENSOR_SETTINGS:
        before, value = own[name], loaded[name]
        if isinstance(before, Tensor):
            is_tensor = isinstance(value, Tensor)
            loaded[name] = before.copy_(value.reshape(before.shape)) if is_tensor else before.fill_(value)
        elif isinstance(value, Tensor):
            loaded[name] = float(value)


def traced_settings(group: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Settings of a group for a compiled step, with tensors for settings that may change between steps.

    Settings without effect (χ = 1, β₂ = β₁, no decay) stay numbers, so that the compiled step skips their work like the
    plain step.

    Args:
        group: A parameter group.
        device: Device of its tensors.
    """
    settings = {name: value for name, value in group.items() if name not in _NOT_TRACED}
    return settings | {name: as_tensor(group[name], device) for name in acting_settings(group)}


def acting_settings(group: Mapping[str, Any]) -> list[str]:
    """The learning rate, and those of the other :data:`TENSOR_SETTINGS` that have an effect in a group."""
    neutral = {"weight_decay": 0.0, "chi": 1.0, "beta_flat": group["beta_sharp"]}
    return ["lr", *(name for name, value in neutral.items() if acts(group[name], value))]


def as_tensor(value: Any, device: torch.device) -> Tensor:
    """A number as a tensor on a device, without waiting for the device; a tensor is returned unchanged."""
    if isinstance(value, Tensor):
        return value
    wide = torch.float32 if device.type == "mps" else torch.float64  # MPS has no double precision
    return torch.full((), value, dtype=wide, device=device)
