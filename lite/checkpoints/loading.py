"""Checks that a checkpoint fits the optimizer that loads it."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lite.checkpoints.names import matched_groups
from lite.checkpoints.old_versions import converted_state
from lite.checkpoints.state_tensors import StateValue, check_values, is_mass, is_spare, loadable_tensor
from lite.parameters.group_checks import LARGEST_COUNT, parameter_names
from riemannian_ode.checks import shown


def loadable_state(
    state_dict: dict[str, Any],
    groups: list[dict[str, Any]],
    initial_state: Callable[..., dict[str, Tensor]],
    check: Callable[[dict[str, Any], Collection[Any]], None],
    held: Callable[[Tensor], Collection[str] | None],
    *,
    spare: Collection[str] = (),
) -> dict[str, Any]:
    """A checkpoint in the order of this optimizer's parameters, with all state as tensors.

    Args:
        state_dict: Result of an optimizer's ``state_dict``.
        groups: This optimizer's parameter groups.
        initial_state: (group, tensor like a parameter) ↦ its state before the first step.
        check: Refuses bad settings of a group; the group may have further keys.
        held: Parameter ↦ keys of the state that this rank holds; ``None`` if it holds all keys.
        spare: Keys of state that may be superfluous or have extra columns, if the sharp fraction was lowered since.

    Raises:
        ValueError: for a checkpoint of another model, rule or grouping, a partial or damaged checkpoint, or settings
            that are unknown or out of range, naming the first difference.
    """
    _check_form(state_dict)
    own_names = [parameter_names(group) for group in groups]
    saved_groups, by_order, warning = matched_groups(state_dict["param_groups"], groups)
    states: dict[Any, Any] = dict(state_dict["state"])
    values: list[StateValue] = []
    for i, (saved, own, names) in enumerate(zip(saved_groups, groups, own_names, strict=True)):
        settings = _checked_settings(i, saved, own, check)
        for place, (index, p, name) in enumerate(zip(saved["params"], own["params"], names, strict=True)):
            state = states.get(index, {})
            if not isinstance(state, Mapping):
                raise ValueError(f"parameter {name} has state {shown(state)} in the checkpoint; a dict is expected.")
            like = torch.empty(p.shape, dtype=p.dtype, device="meta")
            with torch.device("meta"):
                expected = initial_state(settings, like)
            keys = held(p)
            needed = set(expected if keys is None else keys)
            steps = saved.get("steps", [])[place : place + 1]
            gradients = steps[0] if steps else 0
            state = converted_state(state, settings, expected, gradients=gradients, name=name)
            if state or (needed and gradients):
                label = f"{name}{' (loaded by order)' if (i, place) in by_order else ''}"
                _check_keys(label, settings["rule"], expected, needed, state, spare)
                states[index] = {
                    key: loadable_tensor(label, p, key, value, expected.get(key), may_be_wider=is_spare(key, spare))
                    for key, value in state.items()
                }
                for key, value in states[index].items():
                    values.append(StateValue(label, key, value, is_mass(key)))
    check_values(values)
    if warning:
        warnings.warn(warning, stacklevel=6)  # the caller of load_state_dict
    return {"state": states, "param_groups": saved_groups}


def _checked_settings(
    i: int, saved: dict[str, Any], own: dict[str, Any], check: Callable[[dict[str, Any], Collection[Any]], None]
) -> dict[str, Any]:
    """Settings of a group as they would be after loading."""
    always, if_saved = ("rule", "mask", "layout", "blocks"), ("block_axis",)
    for key in (*always, *(key for key in if_saved if key in saved)):
        there, here = saved.get(key), own.get(key)
        if isinstance(there, Tensor) or there != here:  # a tensor would compare elementwise
            raise ValueError(
                f"group {i} has {key} = {shown(there)} in the checkpoint but {shown(here)} here; load it into the "
                "optimizer it was saved from."
            )
    settings = {**own, **saved, "params": own["params"]}
    try:
        check(settings, own.keys())
    except ValueError as problem:
        raise ValueError(f"group {i} of the checkpoint cannot be loaded: {problem}") from None
    return settings


def load_between_hooks(
    optimizer: Optimizer, state_dict: dict[str, Any], load: Callable[[dict[str, Any]], None]
) -> None:
    """Run the ``load_state_dict`` hooks around an optimizer's whole loading instead of around torch's part of it.

    Args:
        optimizer: Owner of the hooks, which are hidden from torch's function meanwhile.
        state_dict: State to load; a pre-hook may change or replace it.
        load: Loads the result of the pre-hooks.
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


def _check_form(state_dict: Any) -> None:
    """Refuse structures that no optimizer's ``state_dict`` returns."""
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(groups, list) or not isinstance(state_dict.get("state"), Mapping):
        raise ValueError("the checkpoint must have a dict 'state' and a list 'param_groups', as state_dict() gives.")
    seen: dict[Any, int] = {}
    for i, group in enumerate(groups):
        lists = {} if not isinstance(group, Mapping) else {"params": [], "steps": [], "param_names": [], **group}
        for key in ("params", "steps", "param_names"):
            if not isinstance(lists.get(key), list):
                raise ValueError(
                    f"group {i} of the checkpoint has {key} = {shown(lists.get(key))}; a list is expected."
                )
        for index in lists["params"]:
            if type(index) is not int and not isinstance(index, str):  # torch.distributed.checkpoint uses names
                raise ValueError(
                    f"group {i} of the checkpoint has params with {shown(index)}; plain whole numbers are expected, as "
                    "state_dict() gives. The checkpoint is damaged."
                )
            if index in seen:
                raise ValueError(
                    f"the checkpoint has parameter {shown(index)} twice, in group {seen[index]} and in group {i}; it "
                    "is damaged."
                )
            seen[index] = i
        if not all(type(step) is int and 0 <= step <= LARGEST_COUNT for step in lists["steps"]):
            raise ValueError(
                f"group {i} of the checkpoint has steps = {shown(lists['steps'])}; whole numbers of gradients are "
                "expected."
            )
        if "param_names" in group and len(group["param_names"]) != len(lists["params"]):
            raise ValueError(
                f"group {i} of the checkpoint has {len(group['param_names'])} names for {len(lists['params'])} "
                "parameters."
            )


def _check_keys(
    name: str,
    rule: str,
    expected: dict[str, Tensor],
    needed: set[str],
    saved: Mapping[Any, Any],
    spare: Collection[str],
) -> None:
    keys = sorted(map(str, saved))
    if not {key for key in saved if rule == "adamw" or not is_spare(key, spare)} <= set(expected):
        raise ValueError(
            f"parameter {name} has state {keys} in the checkpoint, but rule {rule!r} needs {sorted(expected)}; it was "
            "saved by another optimizer."
        )
    if not needed <= set(saved):
        raise ValueError(
            f"parameter {name} has state {keys} in the checkpoint, but here {sorted(needed)} is needed; it was saved "
            "by another optimizer, or it is what one rank of several had: save and load those with "
            "torch.distributed.checkpoint."
        )
