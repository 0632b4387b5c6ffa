"""Eigenbases of Kronecker factors: the factors, their first bases, refreshes, and coordinates in them."""

from __future__ import annotations

import torch
from torch import Tensor

from discretizations.matrices.products import orthonormal_columns, product

# Rows of a symmetric product computed at once: few enough to save half, enough for fast products.
_PANELS, _SMALLEST_PANEL = 8, 128


def factor_step_(factor: Tensor, g: Tensor, *, weight: float | Tensor) -> None:
    r"""Lower triangle of Shampoo's factor, :math:`L \leftarrow L + \omega(GG^\top - L)` in place; the rest is kept.

    Only blocks on and below the diagonal are computed, about half of the product for large matrices.

    Args:
        factor: L, shape ``(*batch, m, m)``, at most one batch dimension.
        g: G, shape ``(*batch, m, n)``; pass Gᵀ for the right factor. On a CPU it should be in row order; otherwise
            panels are copied.
        weight: ω in [0, 1], one minus the EMA coefficient; a number or a 0-dimensional tensor. 0 changes nothing.

    Source: Vyas et al., arXiv:2409.11321, Algorithm 3.
    """
    rows = g.size(-2)
    panel = max(_SMALLEST_PANEL, rows // _PANELS)
    if rows <= panel:
        factor.lerp_(product(g, g.mT), weight)
        return
    for start in range(0, rows, panel):
        stop = min(start + panel, rows)
        image = product(g[..., start:stop, :], g[..., :stop, :].mT)
        factor[..., start:stop, :stop].lerp_(image, weight)


def first_eigenbases(g: Tensor, *, both: bool = True) -> tuple[Tensor | None, Tensor | None]:
    r"""Eigenbases Q_L of GGᵀ and Q_R of GᵀG, largest eigenvalue first, computed in float64.

    The shorter side's basis comes from an eigendecomposition, the longer side's is :math:`\mathrm{QR}(GQ_R)`, completed
    by Householder's reflections. Squaring G squares its condition number: in float32, rounding would determine the
    eigenvectors of all singular values below a few thousandths of the largest. In float64 they change only as much as
    the singular vectors of G do when its last bits change. Singular vectors determined by these bits would differ
    between batches, machines and ranks, so they are replaced by the completion that the reflections give for the
    others.

    Args:
        g: G, shape ``(*batch, m, n)``.
        both: Whether the longer side's basis is needed.

    Returns:
        Q_L and Q_R, dtype of ``g``; ``None`` for the longer side unless ``both``.

    Source: the first basis of Vyas et al., arXiv:2409.11321; the completion is ours.
    """
    if g.size(-2) < g.size(-1):
        right, left = first_eigenbases(g.mT, both=both)
        return left, right
    x = g if g.device.type == "mps" else g.double()  # MPS has no double precision
    eps = torch.finfo(x.dtype).eps
    # Rounding G moves its singular values by at most eps·‖G‖_F ≤ eps·√n·σ_max; sums over samples round several times.
    # Measured null eigenvalues of GᵀG were 0.6 to 2.7 eps times the largest, for 16 to 768 columns (LAPACK).
    limit = max(4.0 * eps * g.size(-2) ** 0.5, 16.0 * g.size(-2) * torch.finfo(g.dtype).eps ** 2)
    values, vectors = (y.flip(-1) for y in torch.linalg.eigh(x.mT @ x))
    shorter = _completed(vectors, values, limit)
    if not both:
        return None, shorter.to(g.dtype)
    image = x @ shorter
    return _completed(image, image.square().sum(-2), limit).to(g.dtype), shorter.to(g.dtype)


def _completed(columns: Tensor, squares: Tensor, limit: float) -> Tensor:
    """Complete an orthonormal basis of the columns to a basis of the whole space.

    Args:
        columns: Columns, orthogonal up to rounding, shape ``(*batch, m, n)`` with m ≥ n, the largest first.
        squares: Squared singular values that belong to the columns, shape ``(*batch, n)``.
        limit: Columns whose square is at most this multiple of the largest count as zero.

    Returns:
        Orthogonal matrices, shape ``(*batch, m, m)``, which depend only on the nonzero columns.
    """
    is_zero = squares <= limit * squares.amax(-1, keepdim=True)
    # A column of exact zeros needs no reflection: the earlier reflections map a unit vector to its replacement.
    q: Tensor = torch.linalg.qr(torch.where(is_zero[..., None, :], 0.0, columns), mode="complete")[0]
    return q


def refreshed_eigenbasis(factor: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    r"""One step of orthogonal iteration, :math:`Q \leftarrow \mathrm{QR}(LQ)`, with the order of its columns.

    Columns are first sorted by Rayleigh quotient, the largest first. QR is Householder's, so that Q is orthogonal even
    where L is singular.

    Args:
        factor: Lower triangle of L, shape ``(*batch, m, m)``.
        basis: Q, shape ``(*batch, m, m)``.

    Returns:
        Next Q, and for each new column the index ``(*batch, m)`` of the old column it continues.

    Source: Vyas et al., arXiv:2409.11321, Algorithm 4; the order is that of the authors' code.
    """
    below = torch.ones(factor.shape[-2:], dtype=torch.bool, device=factor.device).tril()
    image = product(torch.where(below, factor, factor.mT), basis)
    quotients = torch.linalg.vecdot(basis, image, dim=-2)
    # QR does not depend on the scale; entries near 1 keep squares of small columns from underflowing.
    scale = quotients.amax(-1).clamp(min=torch.finfo(quotients.dtype).tiny)
    order = quotients.argsort(dim=-1, descending=True, stable=True)
    columns = image.gather(-1, order[..., None, :].expand_as(image)) / scale[..., None, None]
    return orthonormal_columns(columns), order


def to_eigenbasis(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    r"""Coordinates :math:`X' = Q_L^\top X Q_R`.

    Args:
        x: X, shape ``(*batch, m, n)``.
        left: Q_L, shape ``(*batch, m, m)``; ``None`` is the identity.
        right: Q_R, shape ``(*batch, n, n)``; ``None`` is the identity.

    Source: Vyas et al., arXiv:2409.11321, Algorithm 3.
    """
    x = x if left is None else product(left.mT, x)
    return x if right is None else product(x, right)


def from_eigenbasis(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    r"""Transform back from coordinates, :math:`X = Q_L X' Q_R^\top`; see :func:`to_eigenbasis`."""
    x = x if right is None else product(x, right.mT)
    return x if left is None else product(left, x)
