"""What a checkpoint must have in common with the optimizer that loads it."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lite.checkpoint_names import matched_groups
from lite.group_checks import parameter_names, short_text

_WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def loadable_state(
    state_dict: dict[str, Any],
    groups: list[dict[str, Any]],
    initial_state: Callable[..., dict[str, Tensor]],
    held: Callable[[Tensor], Collection[str]] | None = None,
    *,
    spare: Collection[str] = (),
) -> dict[str, Any]:
    """A checkpoint in the order of this optimizer's parameters, all of its state tensors.

    Args:
        state_dict: What an optimizer's ``state_dict`` gave.
        groups: This optimizer's parameter groups.
        initial_state: (group, tensor like a parameter) ↦ its state before the first step.
        held: Parameter ↦ keys of the state that this rank holds; ``None``: all of them.
        spare: Keys of state that may be there without need, or with more columns: of a sharp fraction since lowered.

    Raises:
        ValueError: for a checkpoint of another model, rule or grouping, for part of one, or for a damaged one, naming
            the first difference.
    """
    _check_form(state_dict)
    own_names = [parameter_names(group) for group in groups]
    saved_groups, warning = matched_groups(state_dict["param_groups"], groups)
    states: dict[Any, Any] = dict(state_dict["state"])
    for i, (saved, own, names) in enumerate(zip(saved_groups, groups, own_names, strict=True)):
        for key in ("rule", "mask", "layout", "blocks"):
            if saved.get(key) != own.get(key):
                raise ValueError(
                    f"group {i} has {key} = {_short(saved.get(key))} in the checkpoint but {_short(own.get(key))} "
                    "here; load it into the optimizer it was saved from."
                )
        settings = {**own, **saved, "params": own["params"]}
        for place, (index, p, name) in enumerate(zip(saved["params"], own["params"], names, strict=True)):
            state = states.get(index, {})
            if not isinstance(state, Mapping):
                raise ValueError(f"parameter {name} has state {_short(state)} in the checkpoint; a dict is expected.")
            like = torch.empty(p.shape, dtype=p.dtype, device="meta")
            with torch.device("meta"):
                expected = initial_state(settings, like)
            needed = set(expected) if held is None else set(held(p))
            steps = saved.get("steps", [])[place : place + 1]
            if state or (needed and steps and steps[0]):
                label = f"{name}{' (loaded by order)' if warning else ''}"
                _check_keys(label, settings["rule"], expected, needed, state, spare)
                states[index] = {
                    key: _loadable_tensor(label, p, key, value, expected.get(key), is_spare=_is_spare(key, spare))
                    for key, value in state.items()
                }
    if warning:
        warnings.warn(warning, stacklevel=5)
    return {"state": states, "param_groups": saved_groups}


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


def _check_form(state_dict: Any) -> None:
    """Refuse what no optimizer's ``state_dict`` gives."""
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(groups, list) or not isinstance(state_dict.get("state"), Mapping):
        raise ValueError("the checkpoint must have a dict 'state' and a list 'param_groups', as state_dict() gives.")
    for i, group in enumerate(groups):
        lists = {} if not isinstance(group, Mapping) else {"params": [], "steps": [], "param_names": [], **group}
        for key in ("params", "steps", "param_names"):
            if not isinstance(lists.get(key), list):
                raise ValueError(
                    f"group {i} of the checkpoint has {key} = {_short(lists.get(key))}; a list is expected."
                )
        if not all(type(step) is int and step >= 0 for step in lists["steps"]):
            raise ValueError(
                f"group {i} of the checkpoint has steps = {_short(lists['steps'])}; whole numbers of gradients are "
                "expected."
            )
        if "param_names" in group and len(group["param_names"]) != len(lists["params"]):
            raise ValueError(
                f"group {i} of the checkpoint has {len(group['param_names'])} names for {len(lists['params'])} "
                "parameters."
            )


def _is_spare(key: Any, spare: Collection[str]) -> bool:
    return str(key).split("/", maxsplit=1)[0] in spare  # "subspace/2"


def _check_keys(
    name: str,
    rule: str,
    expected: dict[str, Tensor],
    needed: set[str],
    saved: Mapping[Any, Any],
    spare: Collection[str],
) -> None:
    keys = sorted(map(str, saved))
    if not {key for key in saved if rule == "adamw" or not _is_spare(key, spare)} <= set(expected):
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


def _loadable_tensor(name: str, p: Tensor, key: str, value: Any, like: Tensor | None, *, is_spare: bool) -> Tensor:
    """A saved value as a tensor: torch takes plain numbers for counts, and so does this.

    Args:
        name: Name of the parameter.
        p: The parameter.
        key: Key of the state.
        value: What was saved.
        like: What is expected, on the meta device; ``None`` for state that is not needed here.
        is_spare: Whether it may have more columns than needed.

    Raises:
        ValueError: if it is no tensor of real numbers of the expected shape.
    """
    here = None if like is None else tuple(like.shape)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    is_count = isinstance(value, Tensor) and not value.ndim and value.dtype in _WHOLE_NUMBERS
    if like is not None and here == () and (is_number or is_count):
        return torch.as_tensor(value, dtype=like.dtype)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else _short(value)
        wanted = "a tensor" if here is None else f"a tensor of shape {here}"
        raise ValueError(
            f"parameter {name} has {key} = {what} in the checkpoint, where {wanted} of real numbers is expected; the "
            "checkpoint is damaged or of another optimizer."
        )
    shape = tuple(value.shape)
    wider = is_spare and here is not None and shape[:-1] == here[:-1] and len(shape) >= 2 and shape[-1] > here[-1]
    if here is not None and shape != here and not wider:
        raise ValueError(
            f"parameter {name} has shape {tuple(p.shape)}, but its saved {key} has {shape}; the checkpoint is of "
            "another model."
        )
    return value


def _short(value: Any) -> str:
    return short_text(repr(value))
