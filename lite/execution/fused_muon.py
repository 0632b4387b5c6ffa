"""Muon-LITE's elementwise formulas on CPUs, each in place and in one pass over memory.

They are the formulas of :mod:`riemannian_ode.flow`. :func:`lite.declaration.rule_update` runs these one by one, which
reads and writes every number each time and first gathers a batch into new memory. The C++ program (``fused_muon.cpp``)
is built in about a second when first needed; without a compiler, on other devices and in compiled steps the plain
formulas are used. The operators are registered with torch, so that fake tensors and dispatch modes see them.
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

from discretizations.matrices.bfloat16_products import define_operator

_FLAGS = ("-O3", "-fopenmp", "-march=native"), ("-O3", "-fopenmp"), ("-O3",)
_DTYPES = (torch.float32, torch.bfloat16)


def is_supported(tensors: Sequence[Tensor]) -> bool:
    """Whether the operators of this module accept these tensors: on a CPU, with contiguous rows, not in compiled steps.

    Args:
        tensors: Matrices.
    """
    if torch.compiler.is_compiling():
        return False
    fits = all(x.device.type == "cpu" and x.dtype in _DTYPES and x.ndim == 2 and x.stride(1) == 1 for x in tensors)
    return fits and _program() is not None


def covectors(
    momentum: Sequence[Tensor],
    g: Sequence[Tensor],
    *,
    rate: float,
    nesterov: float,
    usable: Tensor | None,
    both: bool,
) -> Tensor:
    r"""Nesterov momentum M̃ of several matrices and their gradients as batches; the momentum is updated in place.

    It is :func:`riemannian_ode.flow.momentum_step`, :math:`M \leftarrow M + (1-\theta)(g - M)`, then
    :func:`riemannian_ode.flow.lookahead`, :math:`\tilde M = M + \nu g`.

    Args:
        momentum: M, matrices of one shape and dtype.
        g: Gradients.
        rate: 1 − θ.
        nesterov: ν.
        usable: Whether the gradients are finite, 0-dimensional; if not, M is unchanged and g counts as zero. ``None``
            means yes.
        both: Whether to return the gradients, too.

    Returns:
        M̃, followed by g if requested, bfloat16, shape ``(1 or 2, count, m, n)``.
    """
    torch.autograd.graph.increment_version(momentum)  # as torch's in-place operators do
    result: Tensor = torch.ops.lite.muon_covectors(list(momentum), list(g), usable, rate, nesterov, both)
    return result


def split_direction_(
    a: Tensor,
    d: Tensor | None,
    w: Sequence[Tensor] | None,
    *,
    chi: float,
    beta_sharp: float,
    beta_flat: float,
    chi_sharp: float,
    decay: float,
) -> Tensor:
    r"""LITE's direction before the projection; ``a`` is changed in place.

    The direction of :func:`riemannian_ode.flow.lite_velocity` is :math:`s + Qe` with
    :math:`s = \chi_s(a + \beta_1 d + c)` and :math:`e = (\chi-\chi_s)(a+c) + (\chi\beta_2-\chi_s\beta_1)d`.

    Args:
        a: Preconditioned momentum, bfloat16, contiguous, shape ``(count, m, n)``; becomes s + e.
        d: Preconditioned gradient, shape and dtype of ``a``.
        w: Matrices W that decay by c.
        chi: χ.
        beta_sharp: β₁.
        beta_flat: β₂.
        chi_sharp: χ_s.
        decay: c/W.

    Returns:
        e, shape and dtype of ``a``: the direction is ``a`` − (e − Qe).
    """
    numbers = (decay, chi_sharp, beta_sharp, chi - chi_sharp, chi * beta_flat - chi_sharp * beta_sharp)
    result: Tensor = torch.ops.lite.lite_directions(a, d, None if w is None else list(w), numbers)
    return result


def move_(w: Sequence[Tensor], u: Tensor, *, size: float, decay: float, usable: Tensor | None) -> None:
    r"""W ← W − size·U − decay·W in place, :func:`riemannian_ode.flow.position_step` with decoupled decay.

    Args:
        w: Matrices of one shape and dtype.
        u: Directions, bfloat16, contiguous, shape ``(count, m, n)``.
        size: η times the scale of U.
        decay: η·λ.
        usable: Whether anything may change, 0-dimensional; ``None`` means yes.
    """
    torch.autograd.graph.increment_version(w)
    torch.ops.lite.muon_move(list(w), u, usable, size, decay)


def _covectors(
    momentum: list[Tensor],
    g: list[Tensor],
    usable: Tensor | None,
    rate: float,
    nesterov: float,
    both: bool,
) -> Tensor:
    result = _empty_covectors(g, both)
    second = result[1].data_ptr() if both else None
    batch = (result.data_ptr(), second, _flag(usable), len(g), *g[0].shape)
    _program().muon_covectors(*_matrices(momentum), *_matrices(g), *batch, rate, nesterov, torch.get_num_threads())
    return result


def _empty_covectors(g: list[Tensor], both: bool) -> Tensor:
    return g[0].new_empty(1 + both, len(g), *g[0].shape, dtype=torch.bfloat16)


def _directions(a: Tensor, d: Tensor | None, w: list[Tensor] | None, numbers: list[float]) -> Tensor:
    result = torch.empty_like(a)
    batch = (a.data_ptr(), None if d is None else d.data_ptr(), result.data_ptr())
    positions = (None, None, 0) if w is None else _matrices(w)
    _program().lite_directions(*batch, *positions, *a.shape, *numbers, torch.get_num_threads())
    return result


def _move(w: list[Tensor], u: Tensor, usable: Tensor | None, size: float, decay: float) -> None:
    batch = (u.data_ptr(), _flag(usable), *u.shape)
    _program().muon_move(*_matrices(w), *batch, -size, -decay, torch.get_num_threads())


define_operator(
    "muon_covectors(Tensor(a!)[] momentum, Tensor[] g, Tensor? usable, float rate, float nesterov, bool both) -> "
    "Tensor",
    _covectors,
    lambda momentum, g, usable, rate, nesterov, both: _empty_covectors(g, both),
)
define_operator(
    "lite_directions(Tensor(a!) a, Tensor? d, Tensor[]? w, float[] numbers) -> Tensor",
    _directions,
    lambda a, d, w, numbers: torch.empty_like(a),
)
define_operator(
    "muon_move(Tensor(a!)[] w, Tensor u, Tensor? usable, float size, float decay) -> ()",
    _move,
    lambda w, u, usable, size, decay: None,
)


def _matrices(tensors: list[Tensor]) -> tuple[Any, Any, int]:
    """Pointers, row strides and dtype."""
    count = len(tensors)
    pointers = (ctypes.c_void_p * count)(*(x.data_ptr() for x in tensors))
    strides = (ctypes.c_int64 * count)(*(x.stride(0) for x in tensors))
    return pointers, strides, int(tensors[0].dtype == torch.bfloat16)


def _flag(usable: Tensor | None) -> int | None:
    return None if usable is None else usable.data_ptr()


@functools.cache
def _program() -> Any:
    from riemannian_ode.compiled.compiler import BuildError, shared_library

    source = Path(__file__).with_suffix(".cpp").read_text(encoding="utf-8")
    try:
        program = shared_library(source, _FLAGS)
    except BuildError as error:
        logging.getLogger(__name__).info("Muon takes several passes over memory: %s", error)
        return None
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    matrices: list[Any] = [pointer, pointer, number]
    sizes: list[Any] = [number] * 3
    program.muon_covectors.argtypes = [*matrices, *matrices, *[pointer] * 3, *sizes, real, real, number]
    program.lite_directions.argtypes = [*[pointer] * 3, *matrices, *sizes, *[real] * 5, number]
    program.muon_move.argtypes = [*matrices, *[pointer] * 2, *sizes, real, real, number]
    for function in (program.muon_covectors, program.lite_directions, program.muon_move):
        function.restype = None
    return program
