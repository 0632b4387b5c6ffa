r"""Polar factors: :math:`\mathrm{msign}(X) = U V^\top` for :math:`X = U\Sigma V^\top`, exactly or by Newton–Schulz."""

from __future__ import annotations

import torch
from torch import Tensor

from discretizations.matrices.bfloat16_products import HAS_MATRIX_UNITS, HAS_VECTORS
from discretizations.matrices.newton_schulz import gram_pairs, newton_schulz, normalized
from discretizations.matrices.package_newton_schulz import package_newton_schulz, serves
from discretizations.matrices.symmetric_newton_schulz import is_supported, symmetric_newton_schulz

# Polar Express (Amsel et al., arXiv:2505.16932, Algorithm 1 and its Appendix), odd quintic a x + b x³ + c x⁵ of each
# step for singular values in [1e−3, 1], as in the published LITE code.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_FIXED_POINT = (1.875, -1.25, 0.375)  # Newton–Schulz of degree 5: the limit of the schedule
_SAFETY = 1.01  # iterates are treated as 1% larger than they are, to allow for rounding up in bfloat16 (same source)
# The same for the Gram form in half precision. There two steps form one matrix, with 33 on the diagonal, that must
# multiply a dominant direction by at most 2. Two exact steps give at most 1.97, but rounding exceeds that (2.07,
# measured on 9000 matrices with a dominant direction). Later steps diverge beyond 1.99 with a safety of 1% (norms of
# 10¹¹ on 12 of 1500 matrices 128 x 256), and beyond 2.18 with 10%.
_HALF_GRAM_SAFETY = 1.1
PUBLISHED_FLOOR = 1e-8  # added to 1.01‖X‖_F by the published code
_SMALLEST_NORM = 1e-18  # below it float32 squares underflow; a matrix of such entries counts as zero
_CPU_MULTIPLIES_BFLOAT16 = HAS_VECTORS or HAS_MATRIX_UNITS


def polar_express_coefficients(steps: int, *, safety: float = _SAFETY) -> list[tuple[float, float, float]]:
    """Coefficients (a, b, c) of each step, safety factor included.

    Args:
        steps: Number of steps, at least 1.
        safety: s ≥ 1, the factor by which rounding may enlarge iterates.

    Raises:
        ValueError: if ``steps`` < 1.

    Source: arXiv:2505.16932; every triple but the limiting one is divided by (s, s³, s⁵), s = 1.01 as published.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps!r} must be at least 1; 6 is the published choice.")
    safe = [(a / safety, b / safety**3, c / safety**5) for a, b, c in _POLAR_EXPRESS]
    return (safe + [_FIXED_POINT] * steps)[:steps]


def polar_express(x: Tensor, *, steps: int = 6, dtype: torch.dtype | None = None, floor: float = 0.0) -> Tensor:
    r"""Approximate polar factor by the Polar Express Newton–Schulz iteration.

    .. math::
        X_0 = X / (1.01\|X\|_F + \epsilon), \qquad X_{j+1} = p_j(A_j)X_j, \quad A_j = X_jX_j^\top, \quad
        p_j(A) = a_j + b_jA + c_jA^2

    Elongated matrices use the Gram form of :func:`newton_schulz`,
    :math:`X_{j+2} = p_{j+1}(p_j(A_j)^2A_j)\,p_j(A_j)X_j`, in half precision with a safety factor of 1.1 instead of 1.01
    in the coefficients.

    Matrices become float16 only after they are normalised, so that any scale of ``x`` fits its range. Then no number
    exceeds 33, the largest value on the diagonal of two steps' polynomial, and the largest number of float16 is 65504.

    Args:
        x: Matrices, shape ``(*batch, m, n)``.
        steps: Number of iterations.
        dtype: Dtype of the iteration; that of ``x`` by default. In float16, GPUs with the package of
            :mod:`discretizations.matrices.package_newton_schulz` use its kernels.
        floor: ε. With the published value (:data:`PUBLISHED_FLOOR`) the results for tiny matrices are smaller than
            their polar factors; with 0 the result does not depend on the scale of ``x``.

    Returns:
        Singular vectors of ``x`` with singular values near 1, shape and dtype of ``x``; 0 for x = 0.

    Raises:
        ValueError: for fewer than two axes or ``steps`` < 1.

    Source: Amsel et al., arXiv:2505.16932; normalisation as in arXiv:2602.22681.
    """
    if x.ndim < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; a polar factor needs matrices (*batch, m, n).")
    dtype = dtype or x.dtype
    y = before_normalisation(x, dtype)
    pairs = gram_pairs(y.shape, steps, dtype)
    is_half = dtype not in (torch.float32, torch.float64)
    coefficients = polar_express_coefficients(steps, safety=_HALF_GRAM_SAFETY if pairs and is_half else _SAFETY)
    scale = (_SAFETY, floor, _SMALLEST_NORM)
    if dtype == torch.bfloat16 and is_supported(y):
        return symmetric_newton_schulz(y, coefficients, scale=scale, pairs=pairs).to(x.dtype)
    if dtype == torch.float16 and not floor and serves(y):
        return package_newton_schulz(y, coefficients, scale=scale, pairs=pairs, kernels=True).to(x.dtype)
    return newton_schulz(normalized(y, scale, dtype), coefficients).to(x.dtype)


def before_normalisation(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the dtype of an iteration; unchanged for float16, in whose range only normalised matrices surely fit."""
    return x if dtype == torch.float16 else x.to(dtype)


def fast_dtype(x: Tensor) -> torch.dtype:
    """The fastest dtype for Newton–Schulz on the device of ``x`` that is accurate enough for optimizers.

    It is bfloat16 on GPUs and on CPUs with bfloat16 instructions, else float32 (other CPUs multiply bfloat16 ten times
    slower than float32, measured); float64 stays float64. GPUs with the kernels of
    :mod:`discretizations.matrices.package_newton_schulz` take float16, the dtype of these kernels.
    """
    if x.dtype == torch.float64:
        return torch.float64
    if serves(x):
        return torch.float16
    fast = _CPU_MULTIPLIES_BFLOAT16 if x.device.type == "cpu" else x.device.type == "cuda"
    return torch.bfloat16 if fast else torch.float32


def exact_polar(x: Tensor) -> Tensor:
    r"""Polar factor :math:`U V^\top` by SVD; singular values below ``max(m, n)·eps·σ_1`` count as zero.

    Args:
        x: Matrices, shape ``(*batch, m, n)``.

    Returns:
        Shape and dtype of ``x`` (half precisions are computed in float32).

    Source: definition; Higham, *Functions of Matrices*, chapter 8.
    """
    work = x if x.dtype in (torch.float32, torch.float64) else x.float()
    u, sigma, vh = torch.linalg.svd(work, full_matrices=False)
    floor = sigma[..., :1] * (max(x.shape[-2:]) * torch.finfo(work.dtype).eps)
    polar: Tensor = (u * (sigma > floor)[..., None, :]) @ vh
    return polar.to(x.dtype)
