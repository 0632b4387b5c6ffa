"""What a checkpoint must have in common with the optimizer that loads it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def check_loadable(
    state_dict: dict[str, Any],
    groups: list[dict[str, Any]],
    initial_state: Callable[..., dict[str, Tensor]],
    held: Callable[[Tensor], Collection[str]] | None = None,
    *,
    spare: Collection[str] = (),
) -> None:
    """Refuse a checkpoint of another model, rule or grouping, or of another part of one, naming the difference.

    Args:
        state_dict: What an optimizer's ``state_dict`` gave.
        groups: This optimizer's parameter groups.
        initial_state: (group, tensor like a parameter) ↦ its state before the first step.
        held: Parameter ↦ keys of the state that this rank holds; ``None``: all of them.
        spare: Keys of state that may be there without need, or with more columns: of a sharp fraction since lowered.

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
        settings = {**own, **saved, "params": own["params"]}
        for place, (index, p) in enumerate(zip(saved["params"], own["params"], strict=True)):
            state = state_dict["state"].get(index, {})
            like = torch.empty(p.shape, dtype=p.dtype, device="meta")
            with torch.device("meta"):
                expected = initial_state(settings, like)
            needed = set(expected) if held is None else set(held(p))
            steps = saved.get("steps", [])[place : place + 1]
            if state or (needed and steps and steps[0]):
                _check_state(_name(own, place, index), p, settings["rule"], expected, needed, state, spare)


def load_between_hooks(
    optimizer: Optimizer, state_dict: dict[str, Any], load: Callable[[dict[str, Any]], None]
) -> None:
    """Run the hooks of ``load_state_dict`` around all of an optimizer's loading, not around torch's part of it.

    Args:
        optimizer: Has the hooks, which torch's function finds none of meanwhile.
        state_dict: What is to be loaded; a hook before may change or replace it.
        load: Loads what the hooks before give.
    """
    before, after = optimizer._optimizer_load_state_dict_pre_hooks, optimizer._optimizer_load_state_dict_post_hooks
    state_dict = state_dict.copy()
    for pre_hook in before.values():
        changed = pre_hook(optimizer, state_dict)
        state_dict = state_dict if changed is None else changed
    optimizer._optimizer_load_state_dict_pre_hooks = OrderedDict()
    optimizer._optimizer_load_state_dict_post_hooks = OrderedDict()
    try:
        load(state_dict)
    finally:
        optimizer._optimizer_load_state_dict_pre_hooks = before
        optimizer._optimizer_load_state_dict_post_hooks = after
    for post_hook in after.values():
        post_hook(optimizer)


def copied(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A parameter's saved state on its device, each tensor in the dtype that it was saved in."""
    return {key: x.to(device, copy=True) if isinstance(x, Tensor) else x for key, x in state.items()}


def _check_state(
    name: str,
    p: Tensor,
    rule: str,
    expected: dict[str, Tensor],
    needed: set[str],
    saved: dict[str, Any],
    spare: Collection[str],
) -> None:
    spared = {key for key in saved if rule != "adamw" and key.split("/", maxsplit=1)[0] in spare}  # "subspace/2"
    if not set(saved) <= {*expected, *spared}:
        raise ValueError(
            f"parameter {name} has state {sorted(saved)} in the checkpoint, but rule {rule!r} needs "
            f"{sorted(expected)}; it was saved by another optimizer."
        )
    if not needed <= set(saved):
        raise ValueError(
            f"parameter {name} has state {sorted(saved)} in the checkpoint, but here {sorted(needed)} is needed; it "
            "was saved by another optimizer, or it is what one rank of several had: save and load those with "
            "torch.distributed.checkpoint."
        )
    for key, value in saved.items():
        here = tuple(expected[key].shape) if key in expected else tuple(value.shape)
        wider = key in spared and value.ndim >= 2 and value.shape[:-1] == here[:-1] and value.shape[-1] > here[-1]
        if tuple(value.shape) != here and not wider:
            raise ValueError(
                f"parameter {name} has shape {tuple(p.shape)}, but its saved {key} has {tuple(value.shape)}; "
                "the checkpoint is of another model."
            )


def _name(group: dict[str, Any], place: int, index: Any) -> str:
    return str(group["param_names"][place] if "param_names" in group else index)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
