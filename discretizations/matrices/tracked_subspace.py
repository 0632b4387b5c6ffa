r"""The top right singular space of a matrix that changes slowly, followed by warm-started block iteration.

Each call makes one iteration :math:`Y = X^\top(XV)`, orthonormalises Y and solves the small eigenproblem of
:math:`(XQ)^\top(XQ)` (Rayleigh–Ritz), so that the columns of the new V are ordered by singular value. Carrying a
quarter more columns than the mask needs lets the last needed ones converge quickly.

On the CPU the factorisations are LAPACK's. Elsewhere they use matrix products, because the library's check for success
would sync with the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from discretizations.matrices.gram_products import normal_product, projected_gram, serves

OVERSAMPLING = 1.25  # columns carried per column of the mask
_SHIFT = 10.0  # added to Cholesky QR's diagonal, in units of eps·columns: keeps a rank-deficient block factorisable
_ROTATIONS = 3  # simultaneous Jacobi sweeps per call; they converge quadratically near the last solution


def tracked_rank(rank: int, shorter: int) -> int:
    """Number of columns to carry for a mask of the given rank: a quarter more, at most min(m, n)."""
    return min(math.ceil(OVERSAMPLING * rank), shorter)


def initial_subspace(w: Tensor, columns: int) -> Tensor:
    """Orthonormal start columns, the same for every matrix of one width; they need no gradient.

    Args:
        w: Matrices, shape ``(*batch, m, n)``; gives shape, dtype and device.
        columns: Number of columns.

    Returns:
        V, shape ``(*batch, n, columns)``, dtype of ``w``.
    """
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(w.size(-1), columns, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(gaussian).Q.to(dtype=w.dtype, device=w.device)
    return basis.expand(*w.shape[:-2], *basis.shape).contiguous()


def track_subspace(x: Tensor, basis: Tensor) -> Tensor:
    """One step of block iteration with Rayleigh–Ritz.

    Args:
        x: Matrices, shape ``(*batch, m, n)``. Products with half-precision matrices use their dtype, everything else
            float32.
        basis: V from the previous call, shape ``(*batch, n, k)``.

    Returns:
        The new V in order of descending singular value, shape and dtype of ``basis``; the old V if ``x`` is zero or not
            finite.

    Source: subspace iteration with Rayleigh–Ritz, Golub and Van Loan, *Matrix Computations*, section 8.2.
    """
    if not basis.size(-1):  # a mask of rank 0
        return basis
    wide = torch.promote_types(x.dtype, torch.float32)
    warm = basis.to(wide)
    if is_fast := serves(x):
        block = normal_product(x, warm)
    else:
        image = _near_one((x @ warm.to(x.dtype)).to(wide))
        block = _near_one((x.mT @ image.to(x.dtype)).to(wide))
    length = torch.linalg.vector_norm(block, dim=-2, keepdim=True)
    block = block / length.clamp(min=torch.finfo(wide).tiny)
    on_cpu = x.device.type == "cpu"
    columns = torch.linalg.qr(block).Q if on_cpu else cholesky_orthonormalize(block)
    if is_fast:
        small = projected_gram(x, columns)
    else:
        image = _near_one((x @ columns.to(x.dtype)).to(wide))
        small = image.mT @ image
    if on_cpu:
        # LAPACK's eigensolver raises for non-finite numbers; the columns are non-finite then, too.
        small = torch.where(small.isfinite().all(dim=(-2, -1), keepdim=True), small, 0.0)
        rotated = columns @ torch.linalg.eigh(small).eigenvectors.flip(-1)
    else:
        rotated = columns @ sorted_eigenvectors(small)
    usable = rotated.isfinite().all(dim=(-2, -1), keepdim=True) & (length.amax(dim=-1, keepdim=True) > 0)
    return torch.where(usable, rotated, warm).to(basis.dtype)


def _near_one(x: Tensor) -> Tensor:
    """x divided by its largest magnitude, so that squares neither underflow nor overflow."""
    return x / x.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def cholesky_orthonormalize(block: Tensor) -> Tensor:
    """Orthonormal columns with the same nested spans, by three rounds of Cholesky QR; no device sync.

    Args:
        block: Unit columns, shape ``(*batch, n, k)``.

    Source: shifted Cholesky QR, Fukaya et al., arXiv:1809.11085.
    """
    k = block.size(-1)
    identity = torch.eye(k, dtype=block.dtype, device=block.device)
    shift = _SHIFT * k * torch.finfo(block.dtype).eps
    factor: Tensor
    for level in (shift, 0.0, 0.0):
        factor, _ = torch.linalg.cholesky_ex(block.mT @ block + level * identity)
        block = torch.linalg.solve_triangular(factor.mT, block, upper=True, left=False)
    return block


def sorted_eigenvectors(matrix: Tensor) -> Tensor:
    r"""Approximate eigenvectors of a nearly diagonal symmetric matrix, by descending eigenvalue, without device sync.

    Every pair is rotated at once by Jacobi's angle :math:`\tfrac12\arctan\frac{2t_{ij}}{t_{jj}-t_{ii}}`, and the
    product of the small rotations is made orthogonal by Newton–Schulz.

    Args:
        matrix: T, shape ``(*batch, k, k)``.

    Returns:
        W with TW ≈ W diag, shape of ``matrix``.

    Source: derived here; to first order it is Jacobi's method.
    """
    k = matrix.size(-1)
    identity = torch.eye(k, dtype=matrix.dtype, device=matrix.device)
    vectors = identity.expand_as(matrix)
    for _ in range(_ROTATIONS):
        turned = vectors.mT @ matrix @ vectors
        diagonal = turned.diagonal(dim1=-2, dim2=-1)
        gap = diagonal[..., None, :] - diagonal[..., :, None]
        angle = 0.5 * torch.atan(2.0 * turned / torch.where(gap == 0, torch.full_like(gap, math.inf), gap))
        vectors = vectors @ _orthogonal(identity + angle - torch.diag_embed(angle.diagonal(dim1=-2, dim2=-1)))
    order = (vectors.mT @ matrix @ vectors).diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True)
    return torch.gather(vectors, -1, order[..., None, :].expand_as(vectors))


def _orthogonal(matrix: Tensor) -> Tensor:
    """Polar factor of 1 + K for antisymmetric K."""
    scale = torch.linalg.matrix_norm(matrix, ord="fro", keepdim=True) / matrix.size(-1) ** 0.5
    y: Tensor = matrix / (2.0 * scale).clamp(min=1.0)
    for _ in range(8):
        y = 1.5 * y - 0.5 * (y @ y.mT) @ y
    return y
