"""Hyperparameters as 0-dimensional tensors: they may change while a compiled or captured step stays what it is.

As for torch's optimizers, a plain number is a constant of a compiled step and a tensor is one of its inputs. The value
of a tensor is never read, since that would wait for the device: it counts as one that acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TENSOR_SETTINGS = ("lr", "weight_decay", "chi", "beta_flat")
_NOT_TRACED = ("params", "param_names", "steps")


def acts(value: Any, neutral: float) -> bool:
    """Whether a coefficient differs from the value with which it does nothing; a tensor counts as one that does.

    Args:
        value: A number or a 0-dimensional tensor.
        neutral: A number.
    """
    return isinstance(value, Tensor) or bool(value != neutral)


def set_number(group: dict[str, Any], name: str, value: float) -> None:
    """Set a hyperparameter of a group; a tensor is overwritten where it lies, since compiled steps read it there."""
    if isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value


def own_tensors(group: dict[str, Any], *, capturable: bool) -> None:
    """Give a new group tensors of its own: several groups may have come with one, and schedulers change each.

    Args:
        group: A parameter group with all of its settings, changed in place.
        capturable: Whether numbers that act become tensors on the device of its parameters.
    """
    for name in acting_settings(group):
        if isinstance(group[name], Tensor):
            group[name] = group[name].detach().clone()
        elif capturable and group["params"]:
            group[name] = as_tensor(group[name], group["params"][0].device)


def keep_tensors(own: Mapping[str, Any], loaded: dict[str, Any]) -> None:
    """Keep what is a tensor and what a number in a group through the loading of another one's values.

    Args:
        own: The group before.
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
    """Settings of a group for a step that is compiled: tensors for what may change from step to step.

    What does nothing now (χ = 1, β₂ = β₁, no decay) stays a number, so that the compiled step leaves out its work as
    the plain one does.

    Args:
        group: A parameter group.
        device: Where its tensors lie.
    """
    settings = {name: value for name, value in group.items() if name not in _NOT_TRACED}
    return settings | {name: as_tensor(group[name], device) for name in acting_settings(group)}


def acting_settings(group: Mapping[str, Any]) -> list[str]:
    """The learning rate, and those of :data:`TENSOR_SETTINGS` beside it that do something in a group."""
    neutral = {"weight_decay": 0.0, "chi": 1.0, "beta_flat": group["beta_sharp"]}
    return ["lr", *(name for name, value in neutral.items() if acts(group[name], value))]


def as_tensor(value: Any, device: torch.device) -> Tensor:
    """A number as a tensor on a device, without waiting for it; a tensor as it is."""
    if isinstance(value, Tensor):
        return value
    wide = torch.float32 if device.type == "mps" else torch.float64  # MPS has no double
    return torch.full((), value, dtype=wide, device=device)
