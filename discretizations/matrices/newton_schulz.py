r"""Newton–Schulz iteration with given odd quintics, by matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# From this aspect ratio r on, a pair of steps costs less on the Gram matrix: 10 + 4r against 4 + 8r products.
_GRAM_ASPECT = 1.9
# Half precision needs this many rows: rounding shifts eigenvalues of smaller Gram matrices so far that the iteration
# may diverge (measured: norms up to 10⁷ at 16 rows, 1.018 from 96 rows on).
_SMALLEST_HALF_GRAM = 128


def normalized(x: Tensor, scale: tuple[float, float, float], dtype: torch.dtype | None = None) -> Tensor:
    r"""Matrices divided by :math:`\max(s\|X\|_F + \epsilon, \delta)`.

    Args:
        x: Matrices, shape ``(*batch, m, n)``.
        scale: s, ε and δ.
        dtype: Dtype of the result, that of ``x`` by default. The division is in float32 at least.
    """
    safety, floor, smallest = scale
    wide = torch.promote_types(x.dtype, torch.float32)  # in float16 the norm would overflow and the floor underflow
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wide)
    scaled: Tensor = x / (safety * norm + floor).clamp(min=smallest)
    return scaled.to(dtype or x.dtype)


def newton_schulz(x: Tensor, coefficients: Sequence[tuple[float, float, float]], *, gram: bool = True) -> Tensor:
    r"""Odd quintic iteration on singular values, :math:`X \leftarrow p(A)X`, :math:`A = XX^\top`.

    Tall matrices are multiplied from the right. From an aspect ratio of 1.9 on, two steps at a time work only on the
    smaller Gram matrix: the same polynomial with fewer operations. Small matrices in half precision are excluded.

    Args:
        x: Matrices with singular values at most about 1, shape ``(*batch, m, n)``.
        coefficients: (a, b, c) of each step, p(A) = a + bA + cA².
        gram: Whether elongated matrices use the Gram form.

    Returns:
        Shape and dtype of ``x``.

    Source: Bernstein and Newhouse, arXiv:2409.20325; Jordan et al., *Muon* (2024); the Gram form is derived here.
    """
    y, batch = x, x.shape[:-2]
    if y.ndim > 3:
        y = y.flatten(0, -3)
    remaining = list(coefficients)
    for _ in range(gram_pairs(x.shape, len(remaining), x.dtype) if gram else 0):
        first, second, *remaining = remaining
        y = _gram_pair(y, first, second)
    for step in remaining:
        y = _apply(_polynomial(_gram(y), step, identity=False), y, step[0])
    return y.reshape(*batch, *y.shape[-2:])


def gram_pairs(shape: Sequence[int], steps: int, dtype: torch.dtype) -> int:
    """Number of step pairs in the Gram form; each recomputes the Gram matrix, as bfloat16 would overflow otherwise.

    Args:
        shape: Of the matrices, ``(*batch, m, n)``.
        steps: Newton–Schulz steps.
        dtype: Of the iteration.
    """
    shorter, longer = min(shape[-2:]), max(shape[-2:])
    is_safe = shorter >= _SMALLEST_HALF_GRAM or dtype in (torch.float32, torch.float64)
    return steps // 2 if is_safe and longer >= _GRAM_ASPECT * shorter else 0


def _gram(y: Tensor) -> Tensor:
    return y @ y.mT if y.size(-2) <= y.size(-1) else y.mT @ y


def _polynomial(gram: Tensor, coefficients: tuple[float, float, float], *, identity: bool) -> Tensor:
    """The polynomial bA + cA², optionally plus a on the diagonal."""
    a, b, c = coefficients
    polynomial = _multiply_add(gram)(gram, gram, gram.mT, beta=b, alpha=c)  # A = Aᵀ: oneDNN is faster this way
    if identity:
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
    return polynomial


def _apply(polynomial: Tensor, y: Tensor, a: float) -> Tensor:
    """Apply aY + pY from the side of the shorter dimension."""
    left, right = (polynomial, y) if y.size(-2) <= y.size(-1) else (y, polynomial)
    return _multiply_add(y)(y, left, right, beta=a)


def _gram_pair(y: Tensor, first: tuple[float, float, float], second: tuple[float, float, float]) -> Tensor:
    gram = _gram(y)
    p = _polynomial(gram, first, identity=True)
    q = _polynomial(p @ gram @ p, second, identity=True) @ p
    return q @ y if y.size(-2) <= y.size(-1) else y @ q


def _multiply_add(y: Tensor) -> Callable[..., Tensor]:
    return torch.addmm if y.ndim == 2 else torch.baddbmm
