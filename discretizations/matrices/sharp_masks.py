r"""Sharp masks that optimizers can afford: matrices are split by singular value, vectors by coordinate.

A split of matrices acts on the input side: :math:`Q = I - S^\top S` is n×n and is never formed for wide matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from riemannian_ode.flow import Projector

_NORM_FLOOR = 1e-9  # added to the threshold τ, as published
PUBLISHED_WIDTH_FLOOR = 1e-12  # added to the width (hi − lo)·mean(v) of the elementwise mask by the published code
_GROW, _SHRINK = 1.05, 0.95  # per-step adaptation of thresholds, as published


def published_rank(sharp_fraction: float, shorter: int) -> int:
    """Target sharp rank of the threshold mask: k = min(⌊r·min(m,n)⌋ + 1, min(m,n) − 1).

    Args:
        sharp_fraction: r in [0, 1].
        shorter: min(m, n).

    Source: arXiv:2602.22681, published code.
    """
    return min(int(sharp_fraction * shorter) + 1, shorter - 1)


def initial_threshold(shorter: int) -> float:
    """ρ before the first step, 1/√min(m, n): the root mean square of normalised singular values.

    Source: arXiv:2602.22681, published code.
    """
    return 1.0 / math.sqrt(shorter)


def threshold_mask(
    covector: Tensor, polar: Tensor, rho: Tensor | float, *, orthogonalize: Callable[[Tensor], Tensor]
) -> Tensor:
    r"""Soft mask S that keeps the singular directions of M̃ above a threshold.

    .. math:: \tau = \rho\|\tilde M\|_F + 10^{-9}, \qquad S = \tfrac12(O + \mathrm{msign}(\tilde M/\tau - O))

    With exact polar factors S = U diag(s) Vᵀ, s_i = 1 where σ_i > τ and 0 where σ_i < τ.

    Args:
        covector: M̃, shape ``(*batch, m, n)``.
        polar: O = msign(M̃), same shape.
        rho: ρ, shape ``(*batch,)`` or a number.
        orthogonalize: X ↦ msign(X).

    Returns:
        S, shape of ``covector``.

    Source: arXiv:2602.22681, published code (step 3 of docs/algorithm).
    """
    wide = torch.promote_types(covector.dtype, torch.float32)  # in float16 the floor would underflow
    norm = torch.linalg.vector_norm(covector, dim=(-2, -1), dtype=wide)
    tau = (rho * norm + _NORM_FLOOR)[..., None, None]
    scaled = (covector / tau).to(covector.dtype)
    return 0.5 * (polar + orthogonalize(scaled - polar))


def adapt_threshold(rho: Tensor, mask: Tensor, *, rank: int, h: float = 1.0) -> Tensor:
    r"""Next ρ: times 1.05ʰ if ‖S‖_F > √k, else times 0.95ʰ, at most 1; no device sync.

    Args:
        rho: ρ, shape ``(*batch,)``.
        mask: S, shape ``(*batch, m, n)``.
        rank: k, see :func:`published_rank`.
        h: Step size, in units of time; 1 in the published code.

    Source: arXiv:2602.22681, published code.
    """
    too_many = torch.linalg.vector_norm(mask, dim=(-2, -1)) > rank**0.5
    return torch.where(too_many, rho * _GROW**h, rho * _SHRINK**h).clamp(max=1.0)


def mask_complement(mask: Tensor) -> Projector:
    r"""X ↦ XQ with :math:`Q = I - S^\top S`; products go through the shorter side.

    Args:
        mask: S, shape ``(*batch, m, n)``.
    """
    if mask.size(-2) < mask.size(-1):
        return lambda x: x - (x @ mask.mT) @ mask
    gram = mask.mT @ mask
    return lambda x: x - x @ gram


def top_right_subspace(covector: Tensor, rank: int) -> Tensor:
    """Right singular vectors V of the ``rank`` largest singular values, by SVD.

    Args:
        covector: M̃, shape ``(*batch, m, n)``.
        rank: k in 0 … min(m, n).

    Returns:
        V with orthonormal columns, shape ``(*batch, n, k)``.

    Raises:
        ValueError: for a rank out of range.

    Source: P on the top eigenspace of M̃ᵀM̃, arXiv:2602.22681, section on Muon-LITE.
    """
    shorter = min(covector.shape[-2:])
    if not 0 <= rank <= shorter:
        raise ValueError(f"rank = {rank!r} must lie between 0 and min(m, n) = {shorter}.")
    work = covector if covector.dtype in (torch.float32, torch.float64) else covector.float()
    vh: Tensor = torch.linalg.svd(work, full_matrices=False)[2]
    return vh.mT[..., :rank].to(covector.dtype)


@dataclass(frozen=True)
class SubspaceComplement:
    """The flat projector X ↦ X − (XV)Vᵀ off orthonormal columns.

    Args:
        basis: V, shape ``(*batch, n, k)``.
    """

    basis: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        basis = self.basis
        if x.shape[:-2] == basis.shape[:-2] and x.ndim <= 3:  # product and difference in one pass over memory
            subtract = torch.addmm if x.ndim == 2 else torch.baddbmm
            return subtract(x, x @ basis, basis.mT, alpha=-1.0)
        return x - (x @ basis) @ basis.mT


@dataclass(frozen=True)
class GradedComplement:
    r"""X ↦ XQ with :math:`Q = I - (\tilde M^\top\tilde M)^{1/2}/\sigma`: the smaller the singular value, the flatter.

    With the polar factor O of M̃ it is :math:`XQ = X - XO^\top\tilde M/\sigma`, and of O itself
    :math:`OQ = O - \tilde M/\sigma`, without a product.

    Args:
        covector: M̃ or a multiple of it, shape ``(*batch, m, n)``.
        polar: O = msign(M̃), same shape.
        size: σ, scaled by the same factor, shape ``(*batch, 1, 1)``.
    """

    covector: Tensor
    polar: Tensor
    size: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        scaled = self.covector / self.size
        if x is self.polar:
            return x - scaled
        if x.size(-2) <= x.size(-1):
            return x - (x @ self.polar.mT) @ scaled
        return x - x @ (self.polar.mT @ scaled)


def leading_direction(x: Tensor, direction: Tensor) -> Tensor:
    """One power iteration for the top right singular vector of matrices.

    Args:
        x: X, shape ``(*batch, m, n)``.
        direction: Unit vectors from the previous call, shape ``(*batch, n)``; returned unchanged if X is zero.

    Source: Golub and Van Loan, *Matrix Computations*, section 7.3.
    """
    wide = direction.dtype
    x = x / x.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)  # as squares overflow
    image = x.mT @ (x @ direction.to(x.dtype)[..., None])
    image = image[..., 0].to(wide)
    length = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    return torch.where(length > 0, image / length.clamp(min=torch.finfo(wide).tiny), direction)


class CoordinateThresholds(NamedTuple):
    """Thresholds hi and lo of the elementwise mask, in units of mean(v), 0-dimensional or of the batch shape."""

    hi: Tensor
    lo: Tensor


def coordinate_mask(
    v: Tensor,
    thresholds: CoordinateThresholds,
    *,
    dim: tuple[int, ...] | None = None,
    mean: Tensor | None = None,
    floor: float = 0.0,
) -> Tensor:
    r"""Soft elementwise sharp mask p: 1 where v ≥ hi·mean(v), 0 where v < lo·mean(v), linear between.

    .. math:: p = \frac{v - \mathrm{lo}\,\bar v}{(\mathrm{hi} - \mathrm{lo})\,\bar v + \epsilon}

    Args:
        v: Second moment, any shape.
        thresholds: hi > lo > 0.
        dim: Trailing dimensions that form one parameter; the others are a batch. ``None`` is all of them, ``()`` makes
            each element a parameter.
        mean: mean(v) if ``v`` is only a part of the parameter.
        floor: ε in units of v; :data:`PUBLISHED_WIDTH_FLOOR` in the published code. With 0 the mask does not depend on
            the scale of v.

    Returns:
        p in [0, 1], shape of ``v``.

    Source: arXiv:2602.22681, published code of AdamW-LITE.
    """
    hi, lo = (_spread(level, dim) for level in thresholds)
    mean = _kept_mean(v, dim) if mean is None else mean
    if floor:
        hi, lo = hi * mean, lo * mean
        return torch.where(v >= hi, 1.0, ((v - lo) / (hi - lo + floor)).clamp(min=0.0))
    p = v / mean.clamp(min=torch.finfo(v.dtype).tiny)
    if p.requires_grad:
        return ((p - lo) / (hi - lo)).clamp(0.0, 1.0)
    return p.sub_(lo).div_(hi - lo).clamp_(0.0, 1.0)  # the same result without allocating


def passing_fractions(
    v: Tensor, thresholds: CoordinateThresholds, *, dim: tuple[int, ...] | None = None, mean: Tensor | None = None
) -> CoordinateThresholds:
    """Fractions of the elements with v ≥ hi·mean(v) and v ≥ lo·mean(v); arguments as for :func:`coordinate_mask`."""
    mean = _kept_mean(v, dim) if mean is None else mean
    hi, lo = (_mean((v >= _spread(level, dim) * mean).to(v.dtype), dim) for level in thresholds)
    return CoordinateThresholds(hi, lo)


def adapt_coordinate_thresholds(
    thresholds: CoordinateThresholds, passing: CoordinateThresholds, *, sharp_fraction: float, h: float = 1.0
) -> CoordinateThresholds:
    """Next (hi, lo): each times 1.05ʰ if too many elements pass, else times 0.95ʰ; then lo ≤ 0.95·hi. No device sync.

    Too many means a fraction above r for hi, and above r + min(1 − r, 0.1) for lo.

    Args:
        thresholds: hi and lo that the mask just used.
        passing: See :func:`passing_fractions`.
        sharp_fraction: Sharp fraction r.
        h: Step size, in units of time; 1 in the published code.

    Source: arXiv:2602.22681, published code of AdamW-LITE.
    """
    wider = sharp_fraction + min(1.0 - sharp_fraction, 0.1)
    hi, lo = (
        torch.where(fraction > target, level * _GROW**h, level * _SHRINK**h)
        for level, fraction, target in zip(thresholds, passing, (sharp_fraction, wider), strict=True)
    )
    return CoordinateThresholds(hi, torch.minimum(lo, 0.95 * hi))


def _kept_mean(v: Tensor, dim: tuple[int, ...] | None) -> Tensor:
    return _mean(v, dim, keepdim=dim is not None)


def _mean(x: Tensor, dim: tuple[int, ...] | None, *, keepdim: bool = False) -> Tensor:
    return x if dim == () else x.mean(dim, keepdim=keepdim)  # torch reads () as all dimensions


def _spread(level: Tensor, dim: tuple[int, ...] | None) -> Tensor:
    return level if dim is None else level.reshape(*level.shape, *(1 for _ in dim))
