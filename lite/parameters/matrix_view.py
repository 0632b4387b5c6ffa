r"""Matrix views of a parameter, which share its memory.

A matrix rule (Muon, SOAP) works on matrices; a parameter may be a convolution's kernel, a stack of experts, or several
projections side by side. Three plain settings of a parameter group define the view, so that they can be saved with
``state_dict`` and loaded with ``torch.load(weights_only=True)``:

==============  =====================================  ================================
``layout``      the parameter                          its matrix view
==============  =====================================  ================================
``"matrix"``    ``(m, n)``                             itself
``"conv"``      ``(out, in, *kernel)``                 ``(out, in·∏kernel)``
``"experts"``   ``(E, m, n)``                          a batch of E matrices m×n
``"row"``       any shape                              one row ``(1, n)`` of all its numbers
==============  =====================================  ================================

``blocks`` then cuts the rows (``block_axis=-2``) or columns (``-1``) of that view into the given sizes: the query, key
and value of a fused projection, or the groups of a grouped convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from riemannian_ode.checks import require_choice, shown

Layout: TypeAlias = Literal["matrix", "conv", "experts", "row"]
LAYOUTS: tuple[Layout, ...] = ("matrix", "conv", "experts", "row")
BLOCK_AXES = (-2, -1)
_CONV_DIMS = 3  # out, in and at least one kernel dimension


def check_layout(
    shape: Sequence[int],
    *,
    layout: Any = "matrix",
    blocks: Any = None,
    block_axis: Any = -2,
    name: Any = "of this group",
) -> None:
    """Refuse settings that do not fit a parameter.

    Args:
        shape: Shape of the parameter.
        layout: See the table of this module.
        blocks: Sizes along ``block_axis``, which add up to the matrix view's; ``None`` is one block.
        block_axis: −2 (rows) or −1 (columns) of the matrix view.
        name: Name of the parameter, for the message.

    Raises:
        ValueError: for a setting that is unknown or does not fit ``shape``.
    """
    require_choice("layout", layout, LAYOUTS)
    if type(block_axis) is not int or block_axis not in BLOCK_AXES:
        raise ValueError(f"block_axis = {shown(block_axis)} must be −2 (rows) or −1 (columns of the matrix view).")
    fits = {"matrix": len(shape) == 2, "conv": len(shape) >= _CONV_DIMS, "experts": len(shape) == 3, "row": True}
    if not fits[layout]:
        needs = {"matrix": "2", "conv": f"{_CONV_DIMS} or more", "experts": "3"}[layout]
        raise ValueError(
            f"parameter {name} has shape {tuple(shape)}, but layout {layout!r} takes {needs} dimensions; "
            "build the groups with param_groups(model), or give it a group with rule='adamw'."
        )
    if blocks is None:
        return
    if not isinstance(blocks, (tuple, list)) or not all(type(size) is int and size > 0 for size in blocks):
        raise ValueError(f"blocks = {shown(blocks)} must be a tuple of whole numbers above 0, or None.")
    length = _matrix_shape(shape, layout)[block_axis]
    if sum(blocks) != length:
        raise ValueError(
            f"blocks = {tuple(blocks)!r} add up to {sum(blocks)}, but parameter {name} of shape {tuple(shape)} has "
            f"{length} {'rows' if block_axis == -2 else 'columns'}."
        )


def matrix_views(
    tensor: Tensor, *, layout: Layout = "matrix", blocks: Sequence[int] | None = None, block_axis: int = -2
) -> list[Tensor]:
    """Matrix views of a parameter; writing to them writes to the parameter.

    They come in the order of ``blocks``. Gradients and optimizer state are cut in the same way.

    Args:
        tensor: A parameter, or a tensor of its shape.
        layout: See the table of this module.
        blocks: Sizes along ``block_axis``; ``None`` is one block.
        block_axis: −2 (rows) or −1 (columns) of the matrix view.

    Returns:
        Views of shape ``(m, n)``, or ``(E, m, n)`` for experts, which cover every entry exactly once.

    Raises:
        ValueError: if the settings do not fit, or the memory format of a convolution allows no matrix view.
    """
    if layout == "matrix" and blocks is None and tensor.ndim == 2:
        return [tensor]  # quick path for nearly all parameters, used several times per step
    check_layout(tensor.shape, layout=layout, blocks=blocks, block_axis=block_axis)
    matrix = _flattened(tensor, layout) if layout in ("conv", "row") else tensor
    return [matrix] if blocks is None else list(torch.split(matrix, list(blocks), dim=block_axis))


def _matrix_shape(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    if layout == "row":
        return (1, math.prod(shape))
    return (shape[0], math.prod(shape[1:])) if layout == "conv" else tuple(shape)


def _flattened(tensor: Tensor, layout: Layout) -> Tensor:
    try:
        return tensor.view(_matrix_shape(tensor.shape, layout))
    except RuntimeError:
        # A copy would not write back, and columns in memory order would change the meaning of saved state.
        raise ValueError(
            f"a parameter of shape {tuple(tensor.shape)} and strides {tensor.stride()} has no matrix view; take one "
            "of its contiguous() copy."
        ) from None
