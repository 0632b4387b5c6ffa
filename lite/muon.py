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
_PLAIN_FRACTION = 1e-6  # at or below this sharp fraction a matrix runs plain Muon (published code)
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
        mask: ``"threshold"`` is the published soft mask, ``"exact"`` the top-k right singular space by SVD.
    """

    lr: float
    momentum: float
    weight_decay: float
    chi: float
    beta_sharp: float
    beta_flat: float
    sharp_fraction: float
    ns_steps: int
    mask: Mask

    @property
    def is_plain(self) -> bool:
        """Whether it is Muon without LITE: χ = 1 and β₁ = β₂ = 0, or no sharp part to tell apart."""
        return self.sharp_fraction <= _PLAIN_FRACTION or (self.chi == 1 and self.beta_sharp == self.beta_flat == 0)

    @property
    def is_split(self) -> bool:
        """Whether sharp and flat directions are treated differently."""
        return not self.is_plain and (self.chi != 1 or self.beta_flat != self.beta_sharp)

    def orthogonalize(self, x: Tensor) -> Tensor:
        """msign(x)."""
        return polar_express(x, steps=self.ns_steps) if self.ns_steps else exact_polar(x)


def initial_rho(shape: torch.Size, device: torch.device) -> Tensor:
    """State ρ of the threshold mask before the first step, a float32 scalar."""
    return torch.full((), initial_threshold(min(shape)), dtype=torch.float32, device=device)


def muon_update(
    rule: MuonRule, w: Tensor, g: Tensor, m: Tensor, rho: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One step for matrices of equal shape; nothing is changed in place.

    Args:
        rule: Hyperparameters.
        w: Parameters, shape ``(m, n)`` or ``(batch, m, n)``.
        g: Gradients, shape of ``w``.
        m: Momentum (EMA), shape of ``w``.
        rho: ρ of the threshold mask, shape ``()`` or ``(batch,)``; ``None`` for the exact mask.

    Returns:
        New parameters, momentum and ρ.

    Source: arXiv:2602.22681, Muon-LITE.
    """
    theta = rule.momentum
    m = momentum_step(m, g, alpha=1.0 - theta, gain=1.0 - theta)
    covector = lookahead(m, g, (1.0 - theta) / theta)
    damped = not rule.is_plain and (rule.beta_sharp != 0 or rule.beta_flat != 0)
    d: Tensor | None
    if damped and w.ndim == 3:  # one batch keeps the matrix units busier than two
        a, d = rule.orthogonalize(torch.cat([covector, g])).tensor_split(2)
    else:
        a = rule.orthogonalize(covector)
        d = rule.orthogonalize(g) if damped else None
    rows, columns = w.shape[-2:]
    scale = _UPDATE_RMS * max(rows, columns) ** 0.5
    eta = rule.lr * scale
    decay = (rule.weight_decay / scale) * w if rule.weight_decay else None

    if not rule.is_split:
        u = lite_velocity(a, d, beta_sharp=rule.beta_sharp, decay=decay)
        return position_step(w, u, eta=eta), m, rho
    if rule.mask == "exact" or rho is None:
        rank = round(rule.sharp_fraction * min(rows, columns))
        flat = subspace_complement(top_right_subspace(covector, rank))
        u = lite_velocity(
            a, d, flat=flat, chi=rule.chi, beta_sharp=rule.beta_sharp, beta_flat=rule.beta_flat, decay=decay
        )
        return position_step(w, u, eta=eta), m, rho
    mask = threshold_mask(covector, a, rho, orthogonalize=rule.orthogonalize)
    flat = mask_complement(mask)
    u = soft_lite_velocity(a, d, flat=flat, chi=rule.chi, beta_sharp=rule.beta_sharp, beta_flat=rule.beta_flat)
    if decay is not None:
        u = u + lite_velocity(decay, flat=flat, chi=rule.chi)
    rank = published_rank(rule.sharp_fraction, min(rows, columns))
    return position_step(w, u, eta=eta), m, adapt_threshold(rho, mask, rank=rank)
