"""Arrays with one element per coordinate: formulas index them as in numpy, and each element holds a whole ensemble.

The formulas of this package index, sum and concatenate over the p coordinates. Compilers fuse elementwise work far
better than these operations. A :class:`ComponentArray` of shape ``(p,)`` holds in each element a torch tensor over the
ensemble, or an :class:`~riemannian_ode.compiled.expressions.Expression`, so that a formula run on it produces
elementwise operations only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from riemannian_ode.compiled.expressions import Expression

_OPERATORS: dict[
    str, Callable[..., Any]
] = {  # numpy ufuncs whose torch counterparts do not accept Python numbers on both sides
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "power": lambda x, y: x**y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "equal": lambda x, y: x == y,
    "not_equal": lambda x, y: x != y,
    "absolute": abs,
}


class ComponentArray(np.ndarray):
    """Object array whose elements are numbers, expressions, or torch tensors of the ensemble's shape.

    Elementwise functions, comparisons, ``where``, sums, matrix products and everything that only rearranges elements
    work; other numpy functions raise ``TypeError``.
    """

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = [_filled((), [x]) if isinstance(x, torch.Tensor) else np.asarray(x, dtype=object) for x in inputs]
        if ufunc is np.matmul and method == "__call__":
            return _matmul(*arrays)
        function = _elementwise(ufunc)
        if method == "__call__":
            return _view(np.frompyfunc(function, ufunc.nin, 1)(*arrays))
        if method == "reduce":
            return _reduce(function, arrays[0], options.get("axis", 0))
        return NotImplemented

    def __array_function__(self, function: Callable[..., Any], types: Any, arguments: Any, options: Any) -> Any:
        if function is np.where:
            return _view(np.frompyfunc(_choose, 3, 1)(*(np.asarray(x, dtype=object) for x in arguments)))
        return super().__array_function__(function, types, arguments, options)


def components(coordinates: torch.Tensor | Sequence[Expression]) -> ComponentArray:
    """Expressions, or the slices of a tensor of shape ``(p, *ensemble)``, as a component array of shape ``(p,)``."""
    elements = coordinates.unbind(0) if isinstance(coordinates, torch.Tensor) else coordinates
    return _view(_filled((len(elements),), elements))


def scalar(element: Any) -> ComponentArray:
    """A component array of shape ``()``: one number or expression, or one tensor over the ensemble."""
    return _view(_filled((), [element]))


def assemble(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`components`; elements that are numbers become constant over the ensemble.

    Args:
        array: Component array of shape ``(p,)``.
        like: Tensor of the result's shape ``(p, *ensemble)``, dtype and device.

    Raises:
        ValueError: for an array of another shape: the formulas did not give one number per coordinate.
    """
    if array.shape != like.shape[:1]:
        raise ValueError(f"the formulas gave shape {array.shape} for {like.shape[0]} coordinates")
    parts = [torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in array]
    return torch.stack([part.expand(like.shape[1:]) for part in parts])


def _elementwise(ufunc: np.ufunc) -> Callable[..., Any]:
    operator = _OPERATORS.get(ufunc.__name__)
    if operator is not None:
        return operator
    of_tensors = getattr(torch, ufunc.__name__, None)
    if ufunc.nout != 1:
        raise TypeError(f"numpy.{ufunc.__name__} has no counterpart: it has several results.")

    def apply(*values: Any) -> Any:
        like = next((x for x in values if isinstance(x, torch.Tensor)), None)
        if like is None:
            return ufunc(*values)
        if of_tensors is None:
            raise TypeError(f"numpy.{ufunc.__name__} has no counterpart on tensors.")
        return of_tensors(*(torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in values))

    return apply


def _choose(condition: Any, x: Any, y: Any) -> Any:
    if isinstance(condition, Expression):
        return condition.program.where(condition, x, y)
    return torch.where(condition, x, y) if isinstance(condition, torch.Tensor) else (x if condition else y)


def _reduce(function: Callable[..., Any], array: np.ndarray, axis: int | None) -> Any:
    rows = array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, -1)
    shape = () if axis is None else rows.shape[:-1]
    return _view(_filled(shape, [functools.reduce(function, row) for row in rows.reshape(-1, rows.shape[-1])]))


def _matmul(x: np.ndarray, y: np.ndarray) -> Any:
    left = x[None, :] if x.ndim == 1 else x
    right = y[:, None] if y.ndim == 1 else y
    product = _reduce(_OPERATORS["add"], _OPERATORS["multiply"](left[..., :, :, None], right[..., None, :, :]), -2)
    if x.ndim == 1:
        product = product[..., 0, :]
    return product[..., 0] if y.ndim == 1 else product


def _filled(shape: tuple[int, ...], elements: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(elements), dtype=object)
    for i, element in enumerate(elements):  # a slice assignment would convert tensors to numbers
        array[i] = element
    return array.reshape(shape)


def _view(array: Any) -> ComponentArray:
    view: ComponentArray = (array if isinstance(array, np.ndarray) else _filled((), [array])).view(ComponentArray)
    return view
