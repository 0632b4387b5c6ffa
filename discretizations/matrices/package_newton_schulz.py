"""Newton–Schulz by the gram-newton-schulz package: CUDA kernels for Hopper and Blackwell GPUs (extra ``gpu``).

It computes in float16, and one half of each symmetric product. With the same coefficients and restarts after every pair
of steps it has the polynomial of :func:`discretizations.matrices.newton_schulz.newton_schulz`.

Source: Zhang, Amsel, Chen and Dao, *Gram Newton-Schulz* (2026), github.com/Dao-AILab/gram-newton-schulz.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from discretizations.matrices.bfloat16_products import define_operator
from discretizations.matrices.newton_schulz import normalized

_IS_INSTALLED = all(map(find_spec, ("gram_newton_schulz", "quack")))  # with its kernels
_SMALLEST_CAPABILITY = (9, 0)  # Hopper
_EPSILON = 1e-7  # the package adds it to norms, so that zero stays zero; norms are 1 here


def serves(x: Tensor) -> bool:
    """Whether the package's kernels are installed and run on the device of ``x``."""
    is_cuda = _IS_INSTALLED and x.device.type == "cuda"
    return is_cuda and torch.cuda.get_device_capability(x.device) >= _SMALLEST_CAPABILITY


def package_newton_schulz(
    x: Tensor,
    coefficients: Sequence[tuple[float, float, float]],
    *,
    scale: tuple[float, float, float],
    pairs: int,
    kernels: bool,
) -> Tensor:
    """:func:`discretizations.matrices.newton_schulz.newton_schulz` of normalised matrices in float16 by the package.

    Args:
        x: Matrices, shape ``(*batch, m, n)``.
        coefficients: (a, b, c) of each step.
        scale: s, 0 and δ of :func:`discretizations.matrices.newton_schulz.normalized`.
        pairs: Number of leading step pairs that work only on the Gram matrix.
        kernels: Whether to use its CUDA kernels rather than torch's products, as it does below 256 rows anyway.

    Returns:
        Shape of ``x``, float32.
    """
    safety, _, smallest = scale
    # The package divides by norms, too. They are 1 then, so that s goes into the first step, where it stands for X / s.
    y = normalized(x, (1.0, 0.0, smallest), torch.float32).reshape(-1, *x.shape[-2:])
    (a, b, c), *others = coefficients
    steps = [(a / safety, b / safety**3, c / safety**5), *others]
    numbers = [number for step in steps for number in step]
    result: Tensor = torch.ops.lite.package_newton_schulz(y, numbers, pairs, kernels)
    return result.reshape(x.shape)


@functools.cache
def _iteration(coefficients: tuple[float, ...], pairs: int, kernels: bool) -> Any:
    from gram_newton_schulz import GramNewtonSchulz

    return GramNewtonSchulz(
        ns_epsilon=_EPSILON,
        ns_use_kernels=kernels,
        ns_coefficients=list(zip(*(coefficients[i::3] for i in range(3)), strict=True)),
        use_gram_newton_schulz=pairs > 0,
        gram_newton_schulz_reset_iterations=list(range(2, len(coefficients) // 3, 2)),
        compile_kwargs=None,
    )


def _call(x: Tensor, coefficients: list[float], pairs: int, kernels: bool) -> Tensor:
    result: Tensor = _iteration(tuple(coefficients), pairs, kernels)(x)
    return result


def _flops(x: Sequence[int], coefficients: Sequence[float], pairs: int, kernels: bool, **_: Any) -> int:
    """Operations of whole products."""
    batch, m, n = x
    side, wide, steps = min(m, n), max(m, n), len(coefficients) // 3
    pair, step = 2 * side * side * wide + 5 * side**3, 2 * side * side * wide + side**3
    return 2 * batch * (pairs * pair + (steps - 2 * pairs) * step)


define_operator(
    "package_newton_schulz(Tensor x, float[] coefficients, int pairs, bool kernels) -> Tensor",
    _call,
    lambda x, coefficients, pairs, kernels: torch.empty_like(x),
    flops=_flops,
    devices=("CPU", "CUDA"),
)
