"""bfloat16 Newton–Schulz that computes only half of each symmetric product, on CPUs with AVX-512 bfloat16.

Two of a step's three products are symmetric, and five of seven in the Gram form; no library has a symmetric product in
bfloat16. The program is :mod:`discretizations.matrices.bfloat16_products`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from discretizations.matrices.bfloat16_products import BLOCK, buffers, define_operator, is_supported, padded
from discretizations.matrices.bfloat16_products import program as _program
from discretizations.matrices.newton_schulz import newton_schulz, normalized

__all__ = ["is_supported", "operations", "symmetric_newton_schulz"]

_SQUARES = 3  # square buffers per matrix, as in the C++ program


def symmetric_newton_schulz(
    x: Tensor,
    coefficients: Sequence[tuple[float, float, float]],
    *,
    scale: tuple[float, float, float],
    pairs: int,
) -> Tensor:
    """A faster :func:`discretizations.matrices.newton_schulz.newton_schulz` of normalised matrices.

    Results depend neither on the number of threads nor on the other matrices of the batch. If no compiler builds the
    program, that function is called.

    Args:
        x: Matrices, bfloat16, shape ``(*batch, m, n)``.
        coefficients: (a, b, c) of each step.
        scale: See :func:`discretizations.matrices.newton_schulz.normalized`.
        pairs: Number of leading step pairs that work only on the Gram matrix.

    Returns:
        Shape and dtype of ``x``.
    """
    y = x.reshape(-1, *x.shape[-2:]).contiguous()
    numbers = [number for step in coefficients for number in step]
    result: Tensor = torch.ops.lite.symmetric_newton_schulz(y, list(scale), numbers, pairs)
    return result.reshape(x.shape)


def _call(x: Tensor, scale: list[float], coefficients: list[float], pairs: int) -> Tensor:
    program = _program()
    if program is None:
        steps = [(a, b, c) for a, b, c in zip(*(coefficients[i::3] for i in range(3)), strict=True)]
        safety, floor, smallest = scale
        return newton_schulz(normalized(x, (safety, floor, smallest)), steps, gram=pairs > 0)
    batch, m, n = x.shape
    side, wide = _padded(m, n)
    work, panels = buffers(x, side * (wide + _SQUARES * side), wide)
    numbers = torch.tensor(coefficients, dtype=torch.float32)
    out = torch.empty_like(x)
    matrices = (out.data_ptr(), x.data_ptr(), batch, m, n, *scale)
    polynomial = (numbers.data_ptr(), len(coefficients) // 3, pairs)
    memory = (work.data_ptr(), work.size(1), panels.data_ptr(), panels.size(1), panels.size(0))
    program.newton_schulz(*matrices, *polynomial, *memory)
    return out


def operations(shape: Sequence[int], steps: int, pairs: int) -> int:
    """Number of multiplications and additions in the products, including padding.

    Args:
        shape: ``(batch, m, n)``.
        steps: Newton–Schulz steps.
        pairs: See :func:`symmetric_newton_schulz`.
    """
    batch, m, n = shape
    side, wide = _padded(m, n)
    half = side * (side + BLOCK // 2) // 2  # three quarters of each diagonal block are computed
    pair = half * (wide + 4 * side) + side * side * (wide + side)
    step = half * (wide + side) + side * side * wide
    return 2 * batch * (pairs * pair + (steps - 2 * pairs) * step)


def _flops(x: Sequence[int], scale: Sequence[float], coefficients: Sequence[float], pairs: int, **_: Any) -> int:
    """The same for torch's flop counter, which passes the shapes of tensors."""
    return operations(x, len(coefficients) // 3, pairs)


def _padded(m: int, n: int) -> tuple[int, int]:
    return padded(min(m, n)), padded(max(m, n))


define_operator(
    "symmetric_newton_schulz(Tensor x, float[] scale, float[] coefficients, int pairs) -> Tensor",
    _call,
    lambda x, scale, coefficients, pairs: torch.empty_like(x),
    flops=_flops,
)
