r"""The Muon-LITE rule for a batch of equal-shape matrices.

.. math::
    M \leftarrow \theta M + (1-\theta) g, \quad \tilde M = M + \tfrac{1-\theta}{\theta} g, \quad
    O = \mathrm{msign}(\tilde M), \quad D = \mathrm{msign}(g), \quad
    W \leftarrow W - \eta\, 0.2\sqrt{\max(m,n)}\, U - \eta\lambda(\chi_sP + \chi Q)W

U is LITE's direction of :mod:`riemannian_ode.flow` with a = O, d = D.

Source: arXiv:2602.22681, Muon-LITE; the scale 0.2√max(m, n) is Moonlight's, arXiv:2502.16982, section 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from discretizations.matrices.polar import PUBLISHED_FLOOR, exact_polar, fast_dtype, polar_express
from discretizations.matrices.sharp_masks import (
    adapt_threshold,
    initial_threshold,
    mask_complement,
    published_rank,
    subspace_complement,
    threshold_mask,
    top_right_subspace,
)
from discretizations.matrices.symmetric_newton_schulz import is_supported
from discretizations.matrices.tracked_subspace import initial_subspace, track_subspace, tracked_rank
from lite.tensor_settings import acts
from riemannian_ode.flow import Projector, lite_velocity, lookahead, momentum_step, position_step

Mask: TypeAlias = Literal["subspace", "threshold", "exact"]
MASKS: tuple[Mask, ...] = ("subspace", "threshold", "exact")
NSDtype: TypeAlias = Literal["fastest", "parameter", "bfloat16", "float32"]
NS_DTYPES: tuple[NSDtype, ...] = ("fastest", "parameter", "bfloat16", "float32")
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
        chi_sharp: χ_s, learning-rate ratio of sharp directions, 1 but in ablations.
        ns_steps: Newton–Schulz steps; 0 takes the exact polar factor by SVD.
        ns_dtype: Floating type of Newton–Schulz: the ``"fastest"`` where the matrix lies
            (:func:`discretizations.matrices.polar.fast_dtype`), that of the ``"parameter"``, or one by name.
        mask: ``"subspace"`` is the top-k right singular space of M̃, k = round(r·min(m, n)), followed from step to step;
            ``"exact"`` the same by SVD; ``"threshold"`` the published soft mask, whose ρ adapts at every step even
            while χ = 1 and β₁ = β₂; ``None`` is plain Muon.
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
    chi_sharp: float = 1.0
    ns_dtype: NSDtype = "fastest"

    @property
    def is_damped(self) -> bool:
        """Whether msign(g) is needed."""
        return self.mask is not None and (acts(self.beta_sharp, 0.0) or acts(self.beta_flat, 0.0))

    @property
    def is_split(self) -> bool:
        """Whether sharp and flat directions are treated differently."""
        differ = acts(self.chi, self.chi_sharp) or acts(self.beta_flat, self.beta_sharp)
        return self.mask is not None and differ

    @property
    def splits_decay(self) -> bool:
        """Whether weight decay differs between sharp and flat directions, so that W meets the mask."""
        return self.is_split and acts(self.chi, self.chi_sharp) and acts(self.weight_decay, 0.0)

    def iteration_dtype(self, x: Tensor) -> torch.dtype:
        """Floating type of Newton–Schulz on ``x``."""
        if not self.ns_steps:
            return x.dtype
        named = {"parameter": x.dtype, "bfloat16": torch.bfloat16, "float32": torch.float32}
        return named.get(self.ns_dtype) or fast_dtype(x)

    def orthogonalize(self, x: Tensor) -> Tensor:
        """msign(x), dtype of ``x``."""
        if not self.ns_steps:
            return exact_polar(x)
        floor = PUBLISHED_FLOOR if self.mask == "threshold" else 0.0
        return polar_express(x, steps=self.ns_steps, dtype=self.iteration_dtype(x), floor=floor)


class MuonState(NamedTuple):
    """State of a batch of matrices.

    Args:
        momentum: EMA M, shape of the parameters; any floating type.
        rho: ρ of the threshold mask, shape ``(*batch,)``; ``None`` for other masks.
        subspace: V of the tracked mask, shape ``(*batch, n, columns)``; ``None`` for other masks.
    """

    momentum: Tensor
    rho: Tensor | None = None
    subspace: Tensor | None = None


def initial_muon_state(w: Tensor, *, mask: Mask | None, sharp_fraction: float) -> MuonState:
    """State before the first step.

    Args:
        w: Parameters, shape ``(m, n)`` or ``(batch, m, n)``.
        mask: As in :class:`MuonRule`.
        sharp_fraction: r.
    """
    shorter = min(w.shape[-2:])
    momentum = torch.zeros_like(w)
    if mask == "threshold":
        wide = torch.promote_types(w.dtype, torch.float32)
        rho = torch.full(w.shape[:-2], initial_threshold(max(1, shorter)), dtype=wide, device=w.device)
        return MuonState(momentum, rho=rho)
    if mask == "subspace":
        return MuonState(momentum, subspace=initial_subspace(w, tracked_rank(sharp_rank(sharp_fraction, w), shorter)))
    return MuonState(momentum)


def sharp_rank(sharp_fraction: float, w: Tensor) -> int:
    """k = round(r·min(m, n))."""
    return round(sharp_fraction * min(w.shape[-2:]))


def require_state(rule: MuonRule, w: Tensor, *, rho: Tensor | None, subspace: Tensor | None) -> None:
    """Refuse a sharp fraction that was raised beyond what the state was made for.

    Args:
        rule: Hyperparameters.
        w: Matrices, shape ``(*batch, m, n)``.
        rho: See :class:`MuonState`.
        subspace: See :class:`MuonState`.

    Raises:
        ValueError: naming what is missing.
    """
    rank = sharp_rank(rule.sharp_fraction, w)
    followed = 0 if subspace is None else subspace.size(-1)
    if rule.is_split and rule.mask == "subspace" and followed < rank:
        missing = f"needs {rank} directions, but {followed} are followed since the first step"
    elif rule.mask == "threshold" and rho is None:
        missing = "needs a threshold, but there was none at the first step"
    else:
        return
    raise ValueError(
        f"sharp_fraction = {rule.sharp_fraction!r} {missing}; keep it, or build the optimizer anew with the larger one."
    )


def muon_update(rule: MuonRule, w: Tensor, g: Tensor, state: MuonState) -> tuple[Tensor, MuonState]:
    """One step for matrices of equal shape; nothing is changed in place.

    Args:
        rule: Hyperparameters.
        w: Parameters, shape ``(m, n)`` or ``(batch, m, n)``.
        g: Gradients, shape of ``w``.
        state: State before the step.

    Returns:
        New parameters, in at least the floating type of Newton–Schulz, and state.

    Raises:
        ValueError: for a sharp fraction that was raised beyond what the tracked subspace carries.

    Source: arXiv:2602.22681, Muon-LITE.
    """
    m, covector, g = muon_covector(rule, g, state.momentum)
    u, rho, subspace = muon_direction(rule, covector, g, rho=state.rho, subspace=state.subspace, decayed=w)
    return position_step(w, u, eta=rule.lr * update_scale(w)), MuonState(m, rho, subspace)


def update_scale(w: Tensor) -> float:
    """0.2√max(m, n), by which the direction of matrices m×n is multiplied beside η."""
    return _UPDATE_RMS * math.sqrt(max(w.shape[-2:]))


def muon_covector(rule: MuonRule, g: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is done number by number, so that any part of a matrix will do.

    Args:
        rule: Hyperparameters.
        g: Gradients, any shape.
        momentum: M before the step, shape of ``g``.

    Returns:
        M after the step; M̃ and the gradient in the floating type of the matrix products that follow.
    """
    theta = rule.momentum
    g = g.to(momentum.dtype)
    m = momentum_step(momentum, g, alpha=1.0 - theta, gain=1.0 - theta)
    work = rule.iteration_dtype(m)
    if rule.mask in ("threshold", "exact"):  # for comparison with published and exact masks
        work = torch.promote_types(m.dtype, work)
    return m, lookahead(m, g, (1.0 - theta) / theta).to(work), g.to(work)


def muon_direction(
    rule: MuonRule,
    covector: Tensor,
    g: Tensor | None,
    *,
    rho: Tensor | None = None,
    subspace: Tensor | None = None,
    decayed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """LITE's direction u of whole matrices, to be multiplied by η·0.2√max(m, n).

    Args:
        rule: Hyperparameters.
        covector: M̃, shape ``(m, n)`` or ``(batch, m, n)``.
        g: Gradients, shape and dtype of ``covector``; may be ``None`` where β₁ = β₂ = 0.
        rho: See :class:`MuonState`.
        subspace: See :class:`MuonState`.
        decayed: W where u includes its decay, shape of ``covector``.

    Returns:
        u, and ``rho`` and ``subspace`` after the step.

    Raises:
        ValueError: for a sharp fraction that was raised beyond what the tracked subspace carries.
    """
    d: Tensor | None
    # One batch keeps the matrix units busier than two; our own program needs none, and is spared the copies.
    if rule.is_damped and g is not None and g.ndim == 3 and not is_supported(covector):
        a, d = rule.orthogonalize(torch.cat([covector, g])).tensor_split(2)
    else:
        a = rule.orthogonalize(covector)
        d = rule.orthogonalize(g) if rule.is_damped and g is not None else None
    decay = None
    if decayed is not None and acts(rule.weight_decay, 0.0):
        decay = (rule.weight_decay / update_scale(covector)) * decayed.to(covector.dtype)

    flat: Projector | None
    require_state(rule, covector, rho=rho, subspace=subspace)
    if rule.mask == "threshold" and rho is not None:
        mask = threshold_mask(covector, a, rho, orthogonalize=rule.orthogonalize)
        flat = mask_complement(mask)
        u = lite_velocity(
            a, d, twice=True, flat=flat, chi=rule.chi, beta_sharp=rule.beta_sharp, beta_flat=rule.beta_flat
        )
        if decay is not None:
            u = u + lite_velocity(decay, flat=flat, chi=rule.chi)
        rank = published_rank(rule.sharp_fraction, min(covector.shape[-2:]))
        return u, adapt_threshold(rho, mask, rank=rank), None

    rank, flat = sharp_rank(rule.sharp_fraction, covector), None
    if subspace is not None and rule.mask is not None:  # even while χ = 1, for a schedule that will need it
        subspace = track_subspace(covector, subspace)
    if rule.is_split:
        top = top_right_subspace(covector, rank) if subspace is None else subspace[..., :rank]
        flat = subspace_complement(top.to(covector.dtype))
    u = lite_velocity(
        a,
        d,
        flat=flat,
        chi=rule.chi,
        beta_sharp=rule.beta_sharp,
        beta_flat=rule.beta_flat,
        chi_sharp=rule.chi_sharp,
        decay=decay,
    )
    return u, None, subspace
