"""A traced step as a C++ loop over steps and members.

Sums, products, quotients and roots are rounded one by one, as in numpy. If sine and cosine in float64 are the only
other functions, a member of an ensemble equals the same member run alone to the last bit.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from riemannian_ode.compiled.circular import CIRCLE, FAR
from riemannian_ode.compiled.compiler import shared_library
from riemannian_ode.compiled.components import components, scalar
from riemannian_ode.compiled.expressions import Program
from riemannian_ode.compiled.normals import NORMALS

SUFFIXES = {np.dtype(np.float64): "", np.dtype(np.float32): "f"}
# No reordering and no assumption of finite numbers: only flags that let a loop with sqrt and ?: be vectorised.
# Fused products would break the error terms of circular.py.
_FLAGS = ("-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
# sincos has no vector version. Compilers other than GCC on x86-64 may not know all of these.
_SEPARATE = tuple(f"-fno-builtin-{name}" for name in ("sin", "cos", "sinf", "cosf"))
_EXTRAS = ((*_SEPARATE, "-march=native", "-mprefer-vector-width=512"), (*_SEPARATE, "-march=native"), ())
# Functions in libmvec on x86-64, by glibc version.
_LIBMVEC = {
    (2, 22): {"sin", "cos", "exp", "log", "pow"},
    (2, 35): {"tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "exp2"}
    | {"expm1", "log2", "log10", "log1p", "cbrt", "hypot"},
}
StepFunction: TypeAlias = Callable[[Any, Any, list[Any], Any], tuple[Any, Any]]


def loop_source(
    step: StepFunction, p: int, dtype: np.dtype[Any], of_members: Sequence[bool], lanes: int, *, normals: int = 0
) -> str:
    """C++ source of a traced step: ``advance`` takes any number of steps, with members in blocks.

    Args:
        step: ``(w, m, inputs, normals)`` ↦ (w, m) on component arrays of shape ``(p,)``.
        p: Coordinates.
        dtype: A key of :data:`SUFFIXES`.
        of_members: For each input, whether it has one value per member.
        lanes: Members per block.
        normals: Normal numbers per member and step.

    Raises:
        TypeError: for a step with operations that are not elementwise.
    """
    program = Program(SUFFIXES[dtype])
    loads = [program.variable(f"y[{j}][i]") for j in range(2 * p)]
    inputs = [program.variable(f"input{j}[{'i' if many else '0'}]") for j, many in enumerate(of_members)]
    drawn = components([program.variable(f"normals[{j}][i]") for j in range(normals)])
    new_w, new_m = step(components(loads[:p]), components(loads[p:]), [scalar(value) for value in inputs], drawn)
    results = [*new_w, *new_m]
    if np.shape(new_w) != (p,) or np.shape(new_m) != (p,):
        raise TypeError(f"the formulas gave shapes {np.shape(new_w)} and {np.shape(new_m)} for {p} coordinates")
    where = [f"inputs[{j}] + k * strides[{j}]{' + at' if many else ''}" for j, many in enumerate(of_members)]
    pointers = [f"const T* const input{j} = {place};" for j, place in enumerate(where)]
    is_far = " | ".join(f"(std::abs({angle}) > {FAR})" for angle in sorted(program.angles)) or "false"
    stores = [f"z[{j}][i] = {program.code(value)};" for j, value in enumerate(results)]
    newline = "\n    "
    if normals:
        program.library.add("log")
    pairs = -(-normals // 2)
    noise = NORMALS.replace("PAIRS", str(pairs)).replace("LANES", str(lanes)) if normals else "struct Draws;"
    argument = f", const T (&normals)[{2 * pairs}][{lanes}]" if normals else ""
    given = ", normals" if normals else ""
    buffers = f"alignas(64) uint64_t words[4][{lanes}]; alignas(64) T normals[{2 * pairs}][{lanes}];" if normals else ""
    draw = "draw(*draws, at, k, k == 0, words, normals);" if normals else ""
    return f"""
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
{_vector_functions(program.library)}
using T = {"double" if dtype == np.float64 else "float"};
using Block = T[{2 * p}][{lanes}];
{CIRCLE if program.angles or normals else ""}
{noise}
// A step of a block's members, or anywhere: of those that have a far angle only. Whether some have one.
template <bool anywhere> inline bool step(const Block& y, Block& z, const T* const* inputs, const int64_t* strides,
                                          int64_t k, int64_t at{argument}) {{
  {newline.join(pointers)}
  int any = 0;
#pragma omp simd reduction(|: any)
  for (int i = 0; i < {lanes}; ++i) {{
    {newline.join(program.statements)}
    const int is_far = {is_far};
    any |= is_far;
    if (!anywhere || is_far) {{
    {newline.join(stores)}
    }}
  }}
  return any;
}}
extern "C" void advance(const T* before, T* after, const T* const* inputs, const int64_t* strides, int64_t members,
                        int64_t first, int64_t last, int64_t steps, const Draws* draws) {{
  {buffers}
  for (int64_t at = first; at < last; at += {lanes}) {{
    alignas(64) Block y[2];
    for (int j = 0; j < {2 * p}; ++j)
      for (int i = 0; i < {lanes}; ++i) y[0][j][i] = before[j * members + at + i];
    for (int64_t k = 0; k < steps; ++k) {{
      {draw}
      if (step<false>(y[k & 1], y[~k & 1], inputs, strides, k, at{given}))
        step<true>(y[k & 1], y[~k & 1], inputs, strides, k, at{given});
    }}
    for (int j = 0; j < {2 * p}; ++j)
      for (int i = 0; i < {lanes}; ++i) after[j * members + at + i] = y[steps & 1][j][i];
  }}
}}
"""


def _vector_functions(used: set[str]) -> str:
    """Declarations that tell GCC about the vector versions of library functions."""
    libc, version = platform.libc_ver()
    if libc != "glibc" or platform.machine() != "x86_64":
        return ""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    known = {name for needed, names in _LIBMVEC.items() if numbers >= needed for name in names}
    declarations = []
    for name in sorted(used):
        kind, plain = ("double", name) if name in known else ("float", name.removesuffix("f"))
        if plain in known:
            arguments = ", ".join([kind] * (2 if plain in ("atan2", "hypot", "pow") else 1))
            declarations.append(f"{kind} {name}({arguments}) noexcept;")
    if not declarations:
        return ""
    body = "\n".join(f'  __attribute__((simd("notinbranch"), const)) {line}' for line in declarations)
    return f'#if defined __GNUC__ && !defined __clang__\nextern "C" {{\n{body}\n}}\n#endif'


def built(source: str) -> Any:
    """The function ``advance`` of a C++ program.

    Raises:
        BuildError: if no compiler builds it.
    """
    advance: Any = shared_library(source, [(*_FLAGS, *extras) for extras in _EXTRAS]).advance
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    advance.argtypes = [pointer, pointer, pointer, pointer, number, number, number, number, pointer]
    advance.restype = None
    return advance
