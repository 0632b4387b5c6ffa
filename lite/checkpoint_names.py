"""Which parameter of a checkpoint is which of an optimizer: by name up to wrappers of the model, else by order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lite.group_checks import short_text

# Components that torch.compile, FSDP1 and activation checkpointing put into names.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PARALLEL = "module."  # DataParallel and DistributedDataParallel


def matched_groups(saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Groups of a checkpoint in the order of an optimizer's, with their parameters in its order and by its names.

    Names are compared without the prefixes that wrappers of the model add: ``_orig_mod.``, ``module.`` and any other
    that all names of one side have and those of the other lack. Equal sets of names match by name. Other names, or a
    side without names, match by order.

    Args:
        saved: Groups of the checkpoint.
        own: Groups of the optimizer.

    Returns:
        The groups, and what to warn of if the names differ, else an empty text.

    Raises:
        ValueError: if the parameters cannot be matched, naming them.
    """
    if len(saved) != len(own):
        raise ValueError(
            f"the checkpoint has {len(saved)} parameter groups, this optimizer {len(own)}; "
            f"build it from the same model with the same param_groups.{_difference(saved, own)}"
        )
    if not all("param_names" in group for group in (*saved, *own)):
        return _by_order(saved, own), ""
    here, there = _aligned(_plain_names(own), _plain_names(saved))
    ours, theirs = _regrouped(here, own), _regrouped(there, saved)
    if sorted(map(sorted, ours)) == sorted(map(sorted, theirs)) and len(set(here)) == len(here):
        places = {frozenset(names): i for i, names in enumerate(theirs)}
        order = [i if set(names) == set(theirs[i]) else places[frozenset(names)] for i, names in enumerate(ours)]
        places_within = [[theirs[j].index(name) for name in ours[i]] for i, j in enumerate(order)]
        return [_reordered(saved[j], own[i], places_within[i]) for i, j in enumerate(order)], ""
    if set(here) == set(there) and len(set(here)) == len(here):
        i, name = next((i, name) for i, names in enumerate(ours) for name in names if name not in theirs[i])
        j = next(j for j, names in enumerate(theirs) if name in names)
        raise ValueError(
            f"parameter {name} is in group {j} (rule {saved[j].get('rule')!r}) in the checkpoint, but in group {i} "
            f"(rule {own[i]['rule']!r}) here; build the optimizer with the same param_groups."
        )
    groups = _by_order(saved, own)
    pairs = [(old, new) for old, new in zip(there, here, strict=True) if old != new]
    if not pairs:  # names that are not unique
        return groups, ""
    return groups, (
        f"{len(pairs)} parameters have other names in the checkpoint ({pairs[0][0]} is {pairs[0][1]} here); their "
        "state is loaded by order. Check that the model is the same."
    )


def _by_order(saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    for i, (theirs, ours) in enumerate(zip(saved, own, strict=True)):
        if len(theirs["params"]) != len(ours["params"]):
            raise ValueError(
                f"group {i} has {len(theirs['params'])} parameters in the checkpoint, {len(ours['params'])} here."
                f"{_difference(saved, own)}"
            )
    return [_reordered(a, b, range(len(a["params"]))) for a, b in zip(saved, own, strict=True)]


def _reordered(saved: dict[str, Any], own: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """A saved group whose parameters come in another order and have this optimizer's names."""
    group = {key: value for key, value in saved.items() if key != "param_names" or "param_names" in own}
    group["params"] = [saved["params"][i] for i in order]
    if "steps" in saved:
        steps = saved["steps"] + [0] * (len(order) - len(saved["steps"]))
        group["steps"] = [steps[i] for i in order]
    return group | ({"param_names": list(own["param_names"])} if "param_names" in own else {})


def _plain_names(groups: Sequence[dict[str, Any]]) -> list[str]:
    names = [
        ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)
        for group in groups
        for name in group["param_names"]
    ]
    while names and all(name.startswith(_PARALLEL) for name in names):
        names = [name.removeprefix(_PARALLEL) for name in names]
    return names


def _aligned(first: list[str], second: list[str]) -> tuple[list[str], list[str]]:
    """Both lists without the prefixes that wrappers of the model add to all names."""
    while first and second and set(first) != set(second):  # a prefix that both have
        prefix = first[0].partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in [*first, *second]):
            break
        first, second = ([name.removeprefix(prefix) for name in names] for names in (first, second))
    return _unwrapped(first, set(second)), _unwrapped(second, set(first))


def _unwrapped(names: list[str], wanted: set[str]) -> list[str]:
    """Names without the shortest prefix whose removal gives the wanted set, or unchanged if no prefix does."""
    if not names or set(names) == wanted:
        return names
    prefix = ""
    for part in names[0].split(".")[:-1]:
        prefix += f"{part}."
        if not all(name.startswith(prefix) for name in names):
            break
        shorter = [name.removeprefix(prefix) for name in names]
        if set(shorter) == wanted:
            return shorter
    return names


def _regrouped(names: list[str], groups: Sequence[dict[str, Any]]) -> list[list[str]]:
    remaining = iter(names)
    return [[next(remaining) for _ in group["param_names"]] for group in groups]


def _difference(saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> str:
    """Sentence on the names that only one side has, with a space in front."""
    if not all("param_names" in group for group in (*saved, *own)):
        return ""
    ours, theirs = _aligned(_plain_names(own), _plain_names(saved))
    sides = {"in the checkpoint": set(theirs) - set(ours), "here": set(ours) - set(theirs)}
    parts = [f"only {where}: {short_text(', '.join(sorted(names)))}" for where, names in sides.items() if names]
    return f" Parameters {'; '.join(parts)}." if parts else ""
