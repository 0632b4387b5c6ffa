"""From a parameter, or a part of it, to the matrices of a batch: views of values and state by one set of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lite.group_checks import parameter_names
from lite.matrix_rule import MatrixRule
from lite.matrix_view import matrix_views
from lite.tensor_batches import TensorEntry, matrix_numbers


def group_views(group: dict[str, Any], tensor: Tensor) -> list[Tensor]:
    """Matrices of a parameter of ``group``, or of a tensor of its shape; see :func:`lite.matrix_view.matrix_views`."""
    return matrix_views(tensor, layout=group["layout"], blocks=group["blocks"], block_axis=group["block_axis"])


def state_key(name: str, view: int, count: int) -> str:
    """Key under which a parameter keeps the state ``name`` of one of its ``count`` views."""
    return name if count == 1 else f"{name}/{view}"


def matrix_state(rule: MatrixRule, group: dict[str, Any], tensor: Tensor) -> dict[str, Tensor]:
    """State of a parameter of ``group``, or of part of a stack of experts, before its first step."""
    tensor = _row_ordered(tensor)
    views = group_views(group, tensor)
    elementwise = rule.elementwise_state(group)
    state: dict[str, Tensor] = {}
    for i, view in enumerate(views):
        for name, value in rule.matrix_state(group, view).items():
            if name in elementwise:
                state[name] = torch.zeros_like(tensor, dtype=value.dtype)
            else:
                state[state_key(name, i, len(views))] = value
    return state


def steps_so_far(group: dict[str, Any]) -> list[int]:
    """Gradients that each parameter has had: a group's plain numbers, since reading a tensor would wait for it."""
    steps: list[int] = group.get("steps", [])
    return steps + [0] * (len(group["params"]) - len(steps))


def count_gradients(group: dict[str, Any], present: list[bool], *, by: int = 1) -> None:
    """Add to :func:`steps_so_far` of the parameters that had a gradient; ``by=-1`` takes a skipped step back."""
    group["steps"] = [step + by * had for step, had in zip(steps_so_far(group), present, strict=True)]


def parameter_entries(
    elementwise: Sequence[str],
    group: dict[str, Any],
    w: Tensor,
    inputs: dict[str, Tensor],
    state: dict[str, Tensor],
    *,
    step: int,
    numbers: list[range],
) -> list[TensorEntry]:
    """One entry for every view of a parameter.

    Args:
        elementwise: Keys of the state that have the parameter's shape.
        group: Its parameter group.
        w: The parameter, or another tensor of its shape, or (experts) that of a part of the stack.
        inputs: What the rule reads beside it, by name, each of the shape of ``w``.
        state: The parameter's state.
        step: How many gradients it has had before.
        numbers: Running numbers of the matrices of every view.
    """
    views = group_views(group, w)
    cut_inputs = {name: group_views(group, value) for name, value in inputs.items()}
    cut_state = {name: group_views(group, state[name]) for name in elementwise if name in state}
    names = sorted({key.split("/", maxsplit=1)[0] for key in state} - set(cut_state))
    return [
        TensorEntry(
            view,
            {name: parts[i] for name, parts in cut_inputs.items()},
            {name: parts[i] for name, parts in cut_state.items()}
            | {name: state[key] for name in names if (key := state_key(name, i, len(views))) in state},
            step,
            numbers[i],
            view.size(0) if view.ndim == 3 else None,
        )
        for i, view in enumerate(views)
    ]


def _row_ordered(tensor: Tensor) -> Tensor:
    """A tensor whose matrices are contiguous views of it; its values matter only where it is contiguous itself."""
    return tensor if tensor.is_contiguous() else torch.empty_like(tensor, memory_format=torch.contiguous_format)


def row_ordered_copies(group: dict[str, Any]) -> dict[Tensor, Tensor]:
    """Copies of a group's matrix parameters that are not contiguous, such as convolutions in ``channels_last``.

    A step works on the copy and writes it back, with the bits that a contiguous parameter would get: kernels depend on
    strides, and a convolution in another memory format has no matrix view at all.

    Args:
        group: A parameter group.
    """
    if group["rule"] == "adamw":
        return {}
    return {p: p.detach().contiguous() for p in group["params"] if p.grad is not None and not p.is_contiguous()}


def matrix_entries(
    rule: MatrixRule,
    group: dict[str, Any],
    state: Mapping[Tensor, dict[str, Tensor]],
    copies: Mapping[Tensor, Tensor],
) -> list[TensorEntry]:
    """One entry for every view of every parameter of a group that has a gradient.

    Args:
        rule: The rule of matrices.
        group: Their group.
        state: Of each parameter with a gradient.
        copies: :func:`row_ordered_copies`.
    """
    # Also of parameters without gradient.
    views = [group_views(group, copies[p] if p in copies else _row_ordered(p)) for p in group["params"]]
    every = matrix_numbers(parameter_names(group), views)
    elementwise = rule.elementwise_state(group)
    entries = []
    for p, step, numbers in zip(group["params"], steps_so_far(group), every, strict=True):
        if p.grad is not None:
            # That of a convolution may come in another memory format than the parameter.
            g = p.grad.contiguous() if p.ndim > 2 or p in copies else p.grad
            w = copies.get(p, p)
            entries += parameter_entries(elementwise, group, w, {"g": g}, state[p], step=step, numbers=numbers)
    return entries
