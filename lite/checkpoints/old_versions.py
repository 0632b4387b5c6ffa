"""Conversion of state from checkpoints of version 0.1.0 to today's names and form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from riemannian_ode.checks import is_number, shown

_ADAMW = {"first_moment": "momentum", "second_moment": "v"}  # names that all rules use since then
_SOAP = {"m": "momentum"}
_MOMENTUM_MASS, _V_MASS = "momentum_mass", "v_mass"


def converted_state(
    state: Mapping[Any, Any], group: Mapping[str, Any], expected: Mapping[str, Tensor], *, gradients: int, name: str
) -> Mapping[Any, Any]:
    """A parameter's state under today's keys.

    Version 0.1.0 corrected bias by powers 1 − θᵗ with a count t. Now averages of 1, the masses, do so.

    Args:
        state: The saved state.
        group: Settings of its group.
        expected: State before the first step, on the meta device, by today's keys.
        gradients: Number of gradients the parameter has had, for matrix rules.
        name: Name of the parameter, for messages.

    Raises:
        ValueError: for a count that is not a whole number of steps.
    """
    if group["rule"] == "adamw" and set(_ADAMW) <= set(state):
        count, names, betas = _count(state.get("step"), name), _ADAMW, group["adamw_betas"]
    elif group["rule"] == "soap" and "m" in state:
        count, names, betas = max(0, gradients - 1), _SOAP, group["betas"]  # the first gradient only sets the basis
    else:
        return state
    renamed = {names.get(key, key): value for key, value in state.items() if key != "step"}
    masses = {_MOMENTUM_MASS: 1.0 - betas[0] ** count, _V_MASS: 1.0 - betas[1] ** count}
    for key, like in expected.items():
        base = key.split("/", maxsplit=1)[0]
        if base in masses:
            renamed[key] = torch.full(like.shape, masses[base], dtype=like.dtype)
    return renamed


def _count(value: Any, name: str) -> float:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not is_number(number) or not 0 <= number < 2**53 or number != int(number):
        raise ValueError(
            f"parameter {name} has step = {shown(value)} in the checkpoint, where a number of steps (0, 1, 2, …) is "
            "expected; the checkpoint is damaged."
        )
    return float(number)
