"""The C++ program for bfloat16 products (``bfloat16_products.cpp``): where it is used, its build, and torch operators.

It is built in under a second when first needed. Its functions are torch operators, so that fake tensors, dispatch modes
and torch's flop counter support them.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK = 32  # rows and columns of a block, as in the C++ program
_FLAGS = ("-O3", "-fopenmp", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mfma")


def _cpu_has(name: str) -> bool:
    test = getattr(torch.cpu, name, None)
    return test is not None and bool(test())


# Evaluated once, because torch.compile cannot trace this check.
HAS_VECTORS, HAS_MATRIX_UNITS = _cpu_has("_is_avx512_bf16_supported"), _cpu_has("_is_amx_tile_supported")
_IS_FASTER_HERE = HAS_VECTORS and not HAS_MATRIX_UNITS


def is_supported(x: Tensor) -> bool:
    """Whether the program accepts ``x`` and is faster than the library's products.

    It is not faster on a CPU with matrix units (AMX), and it has no derivative.
    """
    is_half = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    return _IS_FASTER_HERE and is_half and not (x.requires_grad and torch.is_grad_enabled())


def padded(length: int) -> int:
    """A length rounded up to whole blocks."""
    return -(-length // BLOCK) * BLOCK


def buffers(x: Tensor, numbers: int, deepest: int) -> tuple[Tensor, Tensor]:
    """Memory for the program: buffers for the matrices that are processed at a time, and panels for threads.

    Args:
        x: Matrices, shape ``(batch, m, n)``.
        numbers: Numbers in the buffers of one matrix.
        deepest: Longest inner dimension of a product, in whole blocks.
    """
    threads = torch.get_num_threads()
    work = x.new_empty(max(1, min(x.size(0), threads)), numbers)
    return work, torch.empty(threads, deepest // 2 * BLOCK, dtype=torch.int32)


@functools.cache
def program() -> Any | None:
    """The loaded program, or ``None`` if no compiler builds it."""
    from riemannian_ode.compiled.compiler import BuildError, shared_library

    source = Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8")
    try:
        built = shared_library(source, [_FLAGS])
    except BuildError as error:
        logging.getLogger(__name__).info("bfloat16 products are the library's: %s", error)
        return None
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    memory: list[Any] = [pointer, number, pointer, number, number]
    sizes: list[Any] = [number] * 3
    built.newton_schulz.argtypes = [pointer, pointer, *sizes, real, real, real, pointer, number, number, *memory]
    built.gram_product.argtypes = [pointer, number, pointer, pointer, *sizes, number, number, *memory]
    built.newton_schulz.restype = built.gram_product.restype = None
    return built


FLOP_FORMULAS: dict[Any, Callable[..., int]] = {}  # ``custom_mapping`` of torch's FlopCounterMode
_library: Any = torch.library.Library("lite", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch leaves it untyped


def define_operator(
    schema: str,
    call: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    flops: Callable[..., int] | None = None,
    devices: Sequence[str] = ("CPU",),
) -> None:
    """Define a torch operator ``lite::…``; a call costs a quarter of one by ``torch.library.custom_op``.

    Args:
        schema: Its name, arguments and result.
        call: Its implementation.
        fake: Its implementation for tensors without values.
        flops: Its number of operations, given its arguments with tensors replaced by shapes.
        devices: torch's dispatch keys of the devices that it runs on.
    """
    name = schema.split("(", maxsplit=1)[0]
    _library.define(schema)
    for device in devices:
        _library.impl(name, call, device)
    torch.library.register_fake(f"lite::{name}", fake, lib=_library)
    if flops is not None:
        FLOP_FORMULAS[getattr(torch.ops.lite, name)] = flops
