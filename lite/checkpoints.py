"""What a checkpoint must have in common with the optimizer that loads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def check_loadable(
    state_dict: dict[str, Any], groups: list[dict[str, Any]], initial_state: Callable[..., dict[str, Tensor]]
) -> None:
    """Refuse a checkpoint of another model, rule or grouping, naming the difference.

    Args:
        state_dict: What an optimizer's ``state_dict`` gave.
        groups: This optimizer's parameter groups.
        initial_state: (group, parameter) ↦ its state before the first step.

    Raises:
        ValueError: for the first difference.
    """
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"the checkpoint has {len(saved_groups)} parameter groups, this optimizer {len(groups)}; "
            "build it from the same model with the same param_groups."
        )
    for i, (saved, own) in enumerate(zip(saved_groups, groups, strict=True)):
        for key in ("rule", "mask", "layout", "blocks", "param_names"):
            if saved.get(key) != own.get(key):
                raise ValueError(
                    f"group {i} has {key} = {_short(saved.get(key))} in the checkpoint but {_short(own.get(key))} "
                    "here; load it into the optimizer it was saved from."
                )
        if len(saved["params"]) != len(own["params"]):
            raise ValueError(
                f"group {i} has {len(saved['params'])} parameters in the checkpoint, {len(own['params'])} here."
            )
        for index, p in zip(saved["params"], own["params"], strict=True):
            if index in state_dict["state"]:
                settings = {**own, **saved, "params": own["params"]}
                with torch.device("meta"):
                    expected = initial_state(settings, torch.empty_like(p, device="meta"))
                _check_state(index, p, settings["rule"], expected, state_dict["state"][index])


def _check_state(index: int, p: Tensor, rule: str, expected: dict[str, Tensor], saved: dict[str, Any]) -> None:
    if set(saved) != set(expected):
        raise ValueError(
            f"parameter {index} has state {sorted(saved)} in the checkpoint, but rule {rule!r} needs "
            f"{sorted(expected)}; it was saved by another optimizer."
        )
    for key, value in saved.items():
        if tuple(value.shape) != tuple(expected[key].shape):
            raise ValueError(
                f"parameter {index} has shape {tuple(p.shape)}, but its saved {key} has {tuple(value.shape)}; "
                "the checkpoint is of another model."
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
