"""Match a checkpoint's parameters with an optimizer's: by name, ignoring prefixes of wrappers, else by order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from lite.parameters.group_checks import short_text

# Name components added by torch.compile, FSDP1 and activation checkpointing.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PARALLEL = "module"  # DataParallel and DistributedDataParallel


class Matched(NamedTuple):
    """Result of matching a checkpoint's parameters with an optimizer's.

    Args:
        groups: The checkpoint's groups in the optimizer's order, with parameters in its order and under its names.
        by_order: (group, place) of the optimizer's parameters with different names in the checkpoint.
        warning: Warning about them; empty if there are none.
    """

    groups: list[dict[str, Any]]
    by_order: frozenset[tuple[int, int]] = frozenset()
    warning: str = ""


def matched_groups(saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> Matched:
    """Match the parameters of a checkpoint with those of an optimizer.

    Names are compared without prefixes that wrappers of the model add: ``_orig_mod.``, ``module.``, and any other
    prefix that all names of one side have and the other side does not. Names on both sides match by name, the rest of a
    group by order. If a side has no names or duplicate names, everything matches by order.

    Args:
        saved: The checkpoint's groups.
        own: The optimizer's groups.

    Raises:
        ValueError: if the parameters cannot be matched, naming them.
    """
    if len(saved) != len(own):
        raise ValueError(
            f"the checkpoint has {len(saved)} parameter groups, this optimizer {len(own)}; "
            f"build it from the same model with the same param_groups.{_difference(saved, own)}"
        )
    if not all("param_names" in group for group in (*saved, *own)):
        return Matched(_by_order(saved, own))
    here, there = _aligned(_plain_names(own), _plain_names(saved))
    ours, theirs = _regrouped(here, own), _regrouped(there, saved)
    groups: list[dict[str, Any]] = []
    pairs: list[tuple[int, int, str, str]] = []  # group, place, name in the checkpoint, name here
    if len(set(here)) < len(here) or len(set(there)) < len(there):
        groups = _by_order(saved, own)
        pairs = [(i, k, theirs[i][k], name) for i, names in enumerate(ours) for k, name in enumerate(names)]
    else:
        for i, j in enumerate(_matching_groups(ours, theirs, saved, own)):
            if len(ours[i]) != len(theirs[j]):
                raise ValueError(_unequal(i, theirs[j], ours[i], saved, own))
            wanted, found = set(ours[i]), {name: place for place, name in enumerate(theirs[j])}
            left = iter([place for name, place in found.items() if name not in wanted])
            places = [found[name] if name in found else next(left) for name in ours[i]]
            groups.append(_reordered(saved[j], own[i], places))
            pairs += [(i, k, theirs[j][place], ours[i][k]) for k, place in enumerate(places)]
    other = [pair for pair in pairs if pair[2] != pair[3]]
    return Matched(groups, frozenset(pair[:2] for pair in other), _warning(other, len(pairs)))


def _matching_groups(
    ours: list[list[str]], theirs: list[list[str]], saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]
) -> list[int]:
    """For each group, the checkpoint's group with the same names; groups without common names get the remaining ones.

    Raises:
        ValueError: naming a parameter that is in another group in the checkpoint.
    """
    places = {name: j for j, names in enumerate(theirs) for name in names}
    free, found = set(range(len(theirs))), dict[int, int]()
    for i, names in enumerate(ours):
        shared = Counter(places[name] for name in names if name in places)
        best = max(shared, key=lambda j: (shared[j], j == i), default=None)
        if best is not None and best in free:
            free.discard(best)
            found[i] = best
    for i in range(len(ours)):
        if i not in found:
            found[i] = i if i in free else min(free)
            free.discard(found[i])
    for i, names in enumerate(ours):
        for name in names:
            if (j := places.get(name, found[i])) != found[i]:
                raise ValueError(
                    f"parameter {name} is in group {j} (rule {saved[j].get('rule')!r}) in the checkpoint, but in group "
                    f"{i} (rule {own[i]['rule']!r}) here; build the optimizer with the same param_groups."
                )
    return [found[i] for i in range(len(ours))]


def _warning(other: list[tuple[int, int, str, str]], count: int) -> str:
    if not other:
        return ""
    what, which = f"{len(other)} parameters have other names", "their state is"
    if len(other) == 1:
        what, which = "1 parameter has another name", "its state is"
    rest = f" and that of the other {count - len(other)} by name" if len(other) < count else ""
    return (
        f"{what} in the checkpoint ({other[0][2]} is {other[0][3]} here); {which} loaded by order{rest}. Check that "
        "the model is the same."
    )


def _by_order(saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    for i, (theirs, ours) in enumerate(zip(saved, own, strict=True)):
        if len(theirs["params"]) != len(ours["params"]):
            raise ValueError(_unequal(i, theirs["params"], ours["params"], saved, own))
    return [_reordered(a, b, range(len(a["params"]))) for a, b in zip(saved, own, strict=True)]


def _unequal(
    i: int, theirs: list[Any], ours: list[Any], saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]
) -> str:
    return f"group {i} has {len(theirs)} parameters in the checkpoint, {len(ours)} here.{_difference(saved, own)}"


def _reordered(saved: dict[str, Any], own: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """A saved group with its parameters reordered and under this optimizer's names."""
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
    while names and all(name.startswith(f"{_PARALLEL}.") for name in names):
        names = [name.removeprefix(f"{_PARALLEL}.") for name in names]
    return names


def _aligned(first: list[str], second: list[str]) -> tuple[list[str], list[str]]:
    """Both lists of names without prefixes of model wrappers, or ``module`` around a part of the model.

    A model may itself have a component called ``module``; it is removed only where that makes the names equal.
    """
    plain = _without_prefixes(first, second)
    if set(plain[0]) == set(plain[1]):
        return plain
    bare_first, bare_second = ([_without_parallel(name) for name in names] for names in (first, second))
    for pair in ((first, bare_second), (bare_first, second), (bare_first, bare_second)):
        aligned = _without_prefixes(*pair)
        if set(aligned[0]) == set(aligned[1]) and all(len(set(names)) == len(names) for names in aligned):
            return aligned
    return plain


def _without_parallel(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _PARALLEL)


def _without_prefixes(first: list[str], second: list[str]) -> tuple[list[str], list[str]]:
    while first and second and set(first) != set(second):  # a common prefix
        prefix = first[0].partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in [*first, *second]):
            break
        first, second = ([name.removeprefix(prefix) for name in names] for names in (first, second))
    first = _unwrapped(first, set(second))
    return first, _unwrapped(second, set(first))


def _unwrapped(names: list[str], wanted: set[str]) -> list[str]:
    """Names without their shortest common prefix whose removal gives the most wanted names."""
    best, prefix = names, ""
    for part in names[0].split(".")[:-1] if names else ():
        prefix += f"{part}."
        if not all(name.startswith(prefix) for name in names):
            break
        shorter = [name.removeprefix(prefix) for name in names]
        if len(wanted.intersection(shorter)) > len(wanted.intersection(best)):
            best = shorter
    return best


def _regrouped(names: list[str], groups: Sequence[dict[str, Any]]) -> list[list[str]]:
    remaining = iter(names)
    return [[next(remaining) for _ in group["param_names"]] for group in groups]


def _difference(saved: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> str:
    """Sentence about names that only one side has, with a leading space."""
    if not all("param_names" in group for group in (*saved, *own)):
        return ""
    ours, theirs = _aligned(_plain_names(own), _plain_names(saved))
    sides = {"in the checkpoint": set(theirs) - set(ours), "here": set(ours) - set(theirs)}
    parts = [f"only {where}: {short_text(', '.join(sorted(names)))}" for where, names in sides.items() if names]
    return f" Parameters {'; '.join(parts)}." if parts else ""
