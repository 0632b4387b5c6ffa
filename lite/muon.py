r"""The Muon-LITE rule for a batch of equal-shape matrices.

.. math::
    M \leftarrow \theta M + (1-\theta) g, \quad \tilde M = M + \tfrac{1-\theta}{\theta} g, \quad
    O = \mathrm{msign}(\tilde M), \quad D = \mathrm{msign}(g), \quad
    W \leftarrow W - \eta\, 0.2\sqrt{\max(m,n)}\, U - \eta\lambda(P + \chi Q)W

U is LITE's direction of :mod:`riemannian_ode.flow` with a = O, d = D.

Source: arXiv:2602.22681, Muon-LITE; the scale 0.2√max(m, n) is Moonlight's, arXiv:2502.16982, section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from discretizations.flat_split import (
    adapt_threshold,
    initial_threshold,
    mask_complement,
    published_rank,
    subspace_complement,
    threshold_mask,
    top_right_subspace,
)
from discretizations.polar import exact_polar, polar_express
from riemannian_ode.flow import lite_velocity, lookahead, momentum_step, position_step, soft_lite_velocity

Mask: TypeAlias = Literal["threshold", "exact"]
MASKS: tuple[Mask, ...] = ("threshold", "exact")
PLAIN_FRACTION = 1e-6  # at or below this sharp fraction a matrix runs plain Muon (published code)
_UPDATE_RMS = 0.2  # root mean square of the update's entries, AdamW's typical one (arXiv:2502.16982, section 2.2)


@dataclass(frozen=True, kw_only=True)
class MuonRule:
    """Hyperparameters of one group at one step, in the published units of β.

    Args:
        lr: η.
        momentum: θ in (0, 1).
        weight_decay: λ, decoupled.
        chi: χ ≥ 1.
        beta_sharp: β₁ beside msign(M̃).
        beta_flat: β₂.
        sharp_fraction: r in [0, 1].
        ns_steps: Newton–Schulz steps; 0 takes the exact polar factor by SVD.
        mask: ``"threshold"`` is the published soft mask, whose ρ adapts at every step even while χ = 1 and β₁ = β₂;
            ``"exact"`` the top-k right singular space by SVD; ``None`` is plain Muon.
    """

    lr: float
    momentum: float
    weight_decay: float
    chi: float
    beta_sharp: float
    beta_flat: float
    sharp_fraction: float
    ns_steps: int
    mask: Mask | None

    @property
    def is_damped(self) -> bool:
        """Whether msign(g) is needed."""
        return self.mask is not None and (self.beta_sharp != 0 or self.beta_flat != 0)

    @property
    def is_split(self) -> bool:
        """Whether sharp and flat directions are treated differently."""
        return self.mask is not None and (self.chi != 1 or self.beta_flat != self.beta_sharp)

    def orthogonalize(self, x: Tensor) -> Tensor:
        """msign(x)."""
        return polar_express(x, steps=self.ns_steps) if self.ns_steps else exact_polar(x)


def initial_rho(w: Tensor) -> Tensor:
    """State ρ of the threshold mask before the first step: 0-dimensional, at least float32."""
    wide = torch.promote_types(w.dtype, torch.float32)
    return torch.full((), initial_threshold(max(1, min(w.shape))), dtype=wide, device=w.device)


def muon_update(
    rule: MuonRule, w: Tensor, g: Tensor, m: Tensor, rho: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One step for matrices of equal shape; nothing is changed in place.

    Args:
        rule: Hyperparameters.
        w: Parameters, shape ``(m, n)`` or ``(batch, m, n)``.
        g: Gradients, shape of ``w``.
        m: Momentum (EMA), shape of ``w``.
        rho: ρ of the threshold mask, shape ``()`` or ``(batch,)``; ``None`` for other masks.

    Returns:
        New parameters, momentum and ρ.

    Source: arXiv:2602.22681, Muon-LITE.
    """
    theta = rule.momentum
    m = momentum_step(m, g, alpha=1.0 - theta, gain=1.0 - theta)
    covector = lookahead(m, g, (1.0 - theta) / theta)
    d: Tensor | None
    if rule.is_damped and w.ndim == 3:  # one batch keeps the matrix units busier than two
        a, d = rule.orthogonalize(torch.cat([covector, g])).tensor_split(2)
    else:
        a = rule.orthogonalize(covector)
        d = rule.orthogonalize(g) if rule.is_damped else None
    rows, columns = w.shape[-2:]
    scale = _UPDATE_RMS * max(rows, columns) ** 0.5
    eta = rule.lr * scale
    decay = (rule.weight_decay / scale) * w if rule.weight_decay else None

    if rule.mask == "threshold" and rho is not None:
        return _soft_masked(rule, w, m, rho, covector, a, d, decay, eta)
    flat = None
    if rule.is_split:
        rank = round(rule.sharp_fraction * min(rows, columns))
        flat = subspace_complement(top_right_subspace(covector, rank))
    u = lite_velocity(a, d, flat=flat, chi=rule.chi, beta_sharp=rule.beta_sharp, beta_flat=rule.beta_flat, decay=decay)
    return position_step(w, u, eta=eta), m, rho


def _soft_masked(
    rule: MuonRule,
    w: Tensor,
    m: Tensor,
    rho: Tensor,
    covector: Tensor,
    a: Tensor,
    d: Tensor | None,
    decay: Tensor | None,
    eta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The published soft mask: two projections of the gradient's part, and the threshold's adaptation."""
    mask = threshold_mask(covector, a, rho, orthogonalize=rule.orthogonalize)
    flat = mask_complement(mask)
    u = soft_lite_velocity(a, d, flat=flat, chi=rule.chi, beta_sharp=rule.beta_sharp, beta_flat=rule.beta_flat)
    if decay is not None:
        u = u + lite_velocity(decay, flat=flat, chi=rule.chi)
    rank = published_rank(rule.sharp_fraction, min(w.shape[-2:]))
    return position_step(w, u, eta=eta), m, adapt_threshold(rho, mask, rank=rank)
