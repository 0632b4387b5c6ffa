"""Entries of a batch: matrix views of a parameter's values and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lite.parameters.group_checks import parameter_names
from lite.parameters.matrix_view import matrix_views


class TensorEntry(NamedTuple):
    """A tensor, one matrix view of it, or one stack of experts.

    Args:
        w: View of the parameter, or of another destination of the result, of any shape; a stack of experts is ``(E, m,
            n)``.
        inputs: Other inputs of the rule, each of the shape of ``w``: the gradient ``g``.
        state: State tensors, or views of them, to be overwritten.
        step: Number of earlier gradients.
        numbers: Running numbers of its matrices, see :func:`matrix_numbers`; empty for an elementwise rule.
        stack: E if ``w`` is a stack of experts, else ``None``.
    """

    w: Tensor
    inputs: dict[str, Tensor]
    state: dict[str, Tensor]
    step: int = 0
    numbers: Sequence[int] = ()
    stack: int | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor, or of one expert."""
        return self.w.shape if self.stack is None else self.w.shape[1:]


def matrix_numbers(names: Sequence[Any], views: Sequence[Sequence[Tensor]]) -> list[list[range]]:
    """Running numbers of a group's matrices: consecutive within each shape, in the order of the names.

    They depend only on the model, not on batches, gradients or ranks, so that work which matrices do in turn
    (refreshing a basis) is scheduled in the same way everywhere. The numbers of a shape start at the number of matrices
    before it.

    Args:
        names: Names of the group's parameters, or other sort keys.
        views: Matrix views of each, of shape ``(m, n)`` or ``(E, m, n)``.

    Returns:
        The numbers of the matrices of each view of each parameter.
    """
    following: dict[tuple[int, ...], int] = {}
    numbers: list[list[range]] = [[] for _ in names]
    total = 0
    for i in sorted(range(len(names)), key=names.__getitem__):
        for w in views[i]:
            count = w.size(0) if w.ndim == 3 else 1
            shape = tuple(w.shape[-2:])
            first = following.get(shape, total)
            following[shape] = first + count
            total += count
            numbers[i].append(range(first, first + count))
    return numbers


def group_views(group: dict[str, Any], tensor: Tensor) -> list[Tensor]:
    """:func:`lite.parameters.matrix_view.matrix_views` of a parameter of ``group``, or of a tensor of its shape."""
    return matrix_views(tensor, layout=group["layout"], blocks=group["blocks"], block_axis=group["block_axis"])


def state_key(name: str, view: int, count: int) -> str:
    """Key under which a parameter keeps the state ``name`` of one of its ``count`` views."""
    return name if count == 1 else f"{name}/{view}"


def steps_so_far(group: dict[str, Any]) -> list[int]:
    """Number of gradients of each parameter, as plain numbers, since reading a tensor would sync with the device."""
    steps: list[int] = group.get("steps", [])
    return steps + [0] * (len(group["params"]) - len(steps))


def count_gradients(group: dict[str, Any], present: list[bool], *, by: int = 1) -> None:
    """Increase :func:`steps_so_far` for the parameters that had a gradient; ``by=-1`` undoes a skipped step."""
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
        w: The parameter, or another tensor of its shape, or (for experts) of the shape of a part of the stack.
        inputs: Other inputs of the rule by name, each of the shape of ``w``.
        state: The parameter's state.
        step: Number of earlier gradients.
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


def row_ordered(tensor: Tensor) -> Tensor:
    """A tensor whose matrices are contiguous views; its values matter only if it is contiguous itself."""
    return tensor if tensor.is_contiguous() else torch.empty_like(tensor, memory_format=torch.contiguous_format)


def row_ordered_copies(group: dict[str, Any]) -> dict[Tensor, Tensor]:
    """Copies of a group's matrix parameters that are not contiguous, such as convolutions in ``channels_last``.

    A step updates the copy and writes it back, with the same bits as for a contiguous parameter. Results of kernels
    depend on strides, and a convolution in another memory format has no matrix view at all.

    Args:
        group: A parameter group.
    """
    if group["rule"] == "adamw":
        return {}
    return {p: p.detach().contiguous() for p in group["params"] if p.grad is not None and not p.is_contiguous()}


def matrix_entries(
    elementwise: Sequence[str],
    group: dict[str, Any],
    state: Mapping[Tensor, dict[str, Tensor]],
    copies: Mapping[Tensor, Tensor],
) -> list[TensorEntry]:
    """One entry for every view of every parameter of a group that has a gradient.

    Args:
        elementwise: Keys of the state that have the parameter's shape.
        group: Their group.
        state: State of each parameter with a gradient.
        copies: :func:`row_ordered_copies`.
    """
    # This includes parameters without gradient.
    views = [group_views(group, copies[p] if p in copies else row_ordered(p)) for p in group["params"]]
    every = matrix_numbers(parameter_names(group), views)
    entries = []
    for p, step, numbers in zip(group["params"], steps_so_far(group), every, strict=True):
        if p.grad is not None:
            # A convolution's gradient may have another memory format than the parameter.
            in_order = p.ndim > 2 or p in copies or group["layout"] == "row"
            g = p.grad.contiguous() if in_order else p.grad
            w = copies.get(p, p)
            entries += parameter_entries(elementwise, group, w, {"g": g}, state[p], step=step, numbers=numbers)
    return entries
