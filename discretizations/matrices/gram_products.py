r"""Products of bfloat16 matrices with few columns, for tracked subspaces, on CPUs with AVX-512.

Library products reach half of the machine's rate here. Matrices are divided by a power of two near their norm, which is
exact, so that squares neither underflow nor overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from discretizations.matrices.bfloat16_products import buffers, define_operator, is_supported, padded, program

_ROWS = 8  # rows of a register tile, as in the program


def serves(x: Tensor) -> bool:
    """Whether the products of this module accept ``x`` and are built."""
    return is_supported(x) and not torch.compiler.is_compiling() and program() is not None


def normal_product(x: Tensor, v: Tensor) -> Tensor:
    r"""A positive multiple of :math:`X^\top(XV)`, with XV rounded to bfloat16 but not the result.

    Args:
        x: X, bfloat16, shape ``(*batch, m, n)``.
        v: V, float32 (rounded to bfloat16 first), shape ``(*batch, n, k)``.

    Returns:
        Float32, shape ``(*batch, n, k)``, stored in column order.
    """
    k, n = v.size(-1), v.size(-2)
    result = _flat(x, v, gram=False)[:, :k, :n].mT
    return result.reshape(v.shape) if v.ndim != 3 else result


def projected_gram(x: Tensor, v: Tensor) -> Tensor:
    r"""A positive multiple of :math:`(XV)^\top(XV)`, shape ``(*batch, k, k)``; otherwise as :func:`normal_product`."""
    k = v.size(-1)
    return _flat(x, v, gram=True)[:, :k, :k].reshape(*v.shape[:-2], k, k)


def _flat(x: Tensor, v: Tensor, *, gram: bool) -> Tensor:
    x, v = (y.reshape(-1, *y.shape[-2:]).contiguous() for y in (x, v.float()))
    result: Tensor = torch.ops.lite.gram_product(x, v, gram)
    return result


def _call(x: Tensor, v: Tensor, gram: bool) -> Tensor:
    (batch, m, n), k = x.shape, v.size(-1)
    out = _empty(x, v, gram)
    tall, wide = padded(m), padded(n)
    work, panels = buffers(x, tall * wide + padded(k) * (tall + wide), max(tall, wide))
    built = program()
    assert built is not None
    matrices = (out.data_ptr(), out[0].numel(), x.data_ptr(), v.data_ptr(), batch, m, n, k, int(gram))
    memory = (work.data_ptr(), work.size(1), panels.data_ptr(), panels.size(1), panels.size(0))
    built.gram_product(*matrices, *memory)
    return out


def _empty(x: Tensor, v: Tensor, gram: bool) -> Tensor:
    k = v.size(-1)
    rows, columns = (padded(k), padded(k)) if gram else (-(-k // _ROWS) * _ROWS, padded(x.size(-1)))
    return v.new_empty(x.size(0), rows, columns)


def _flops(x: Sequence[int], v: Sequence[int], gram: bool, **_: Any) -> int:
    (batch, m, n), k = x, v[-1]
    tall, wide, columns, rows = padded(m), padded(n), padded(k), -(-k // _ROWS) * _ROWS
    return 2 * batch * (rows * tall * wide + (columns * columns * tall if gram else rows * tall * wide))


define_operator("gram_product(Tensor x, Tensor v, bool gram) -> Tensor", _call, _empty, flops=_flops)
