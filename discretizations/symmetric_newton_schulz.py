"""Newton–Schulz in bfloat16 that computes half of each symmetric product, on CPUs with AVX-512 bfloat16 instructions.

Of a step's three products two are symmetric, and in the Gram form five of seven; no library has a symmetric product in
bfloat16. The program is C++ (``symmetric_newton_schulz.cpp``), built when first needed, in under a second, and a torch
operator, so that fake tensors, ``torch.compile`` and torch's flop counter know it.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BLOCK = 32  # rows and columns of a block, as in the program
_SQUARES = 3  # square buffers of a matrix, as in the program
_FLAGS = ("-O3", "-fopenmp", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mfma")
_SCHEMA = "(Tensor x, float[] scale, float[] coefficients, int pairs) -> Tensor"


def _is_faster_here() -> bool:
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    has_vectors, has_matrix_units = (test is not None and bool(test()) for test in tests)
    return has_vectors and not has_matrix_units


_IS_FASTER_HERE = _is_faster_here()  # asked once: torch.compile traces no such question


def is_supported(x: Tensor) -> bool:
    """Whether :func:`symmetric_newton_schulz` takes ``x`` and is faster than the library's products.

    It is not on a CPU with matrix units (AMX), and has no derivative.
    """
    is_half = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    return _IS_FASTER_HERE and is_half and not (x.requires_grad and torch.is_grad_enabled())


def symmetric_newton_schulz(
    x: Tensor,
    coefficients: Sequence[tuple[float, float, float]],
    *,
    scale: tuple[float, float, float],
    pairs: int,
) -> Tensor:
    """Newton–Schulz of normalised matrices, the same polynomial as :func:`discretizations.polar.newton_schulz`.

    Results do not depend on the number of threads, nor on what else is in the batch. Where no compiler builds the
    program, it is that function.

    Args:
        x: Matrices, bfloat16, shape ``(*batch, m, n)``.
        coefficients: (a, b, c) of each step.
        scale: See :func:`discretizations.polar.normalized`.
        pairs: How many pairs of steps work on the Gram matrix alone, the first ones.

    Returns:
        Shape and dtype of ``x``.
    """
    y = x.reshape(-1, *x.shape[-2:]).contiguous()
    numbers = [number for step in coefficients for number in step]
    result: Tensor = _operator(y, list(scale), numbers, pairs)
    return result.reshape(x.shape)


@torch.library.custom_op("lite::symmetric_newton_schulz", mutates_args=(), schema=_SCHEMA)
def _operator(x: Tensor, scale: list[float], coefficients: list[float], pairs: int) -> Tensor:
    program = _program()
    if program is None:
        from discretizations.polar import newton_schulz, normalized  # which has this function as its fast way

        steps = [(a, b, c) for a, b, c in zip(*(coefficients[i::3] for i in range(3)), strict=True)]
        safety, floor, smallest = scale
        return newton_schulz(normalized(x, (safety, floor, smallest)), steps, gram=pairs > 0)
    batch, m, n = x.shape
    side, wide = _padded(m, n)
    threads = torch.get_num_threads()
    work = x.new_empty(max(1, min(batch, threads)), side * (wide + _SQUARES * side))
    panels = torch.empty(threads, wide // 2 * _BLOCK, dtype=torch.int32)
    numbers = torch.tensor(coefficients, dtype=torch.float32)
    out = torch.empty_like(x)
    matrices = (out.data_ptr(), x.data_ptr(), batch, m, n, *scale)
    polynomial = (numbers.data_ptr(), len(coefficients) // 3, pairs)
    buffers = (work.data_ptr(), work.size(1), panels.data_ptr(), panels.size(1))
    program(*matrices, *polynomial, *buffers, threads)
    return out


@_operator.register_fake
def _(x: Tensor, scale: list[float], coefficients: list[float], pairs: int) -> Tensor:
    return torch.empty_like(x)


def operations(shape: Sequence[int], steps: int, pairs: int) -> int:
    """Multiplications and additions of the products, those of padding included.

    Args:
        shape: ``(batch, m, n)``.
        steps: Newton–Schulz steps.
        pairs: See :func:`symmetric_newton_schulz`.
    """
    batch, m, n = shape
    side, wide = _padded(m, n)
    half = side * (side + _BLOCK // 2) // 2  # of blocks on the diagonal three quarters are computed
    pair = half * (wide + 4 * side) + side * side * (wide + side)
    step = half * (wide + side) + side * side * wide
    return 2 * batch * (pairs * pair + (steps - 2 * pairs) * step)


def _flops(x: Sequence[int], scale: Sequence[float], coefficients: Sequence[float], pairs: int, **_: Any) -> int:
    """The same for torch's flop counter, which passes the shapes of tensors."""
    return operations(x, len(coefficients) // 3, pairs)


FLOP_FORMULAS = {torch.ops.lite.symmetric_newton_schulz: _flops}  # ``custom_mapping`` of torch's FlopCounterMode


def _padded(m: int, n: int) -> tuple[int, int]:
    side, wide = (-(-length // _BLOCK) * _BLOCK for length in sorted((m, n)))
    return side, wide


@functools.cache
def _program() -> Any | None:
    from riemannian_ode.compiled.compiler import BuildError, shared_library

    source = Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8")
    try:
        program: Any = shared_library(source, [_FLAGS]).newton_schulz
    except BuildError as error:
        logging.getLogger(__name__).info("Newton–Schulz takes the library's products: %s", error)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    matrices, polynomial = [pointer] * 2 + [number] * 3 + [ctypes.c_float] * 3, [pointer, number, number]
    program.argtypes = [*matrices, *polynomial, pointer, number, pointer, number, number]
    program.restype = None
    return program
