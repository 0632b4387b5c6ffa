"""The Muon-LITE step of a batch on a CPU with bfloat16 products: :func:`lite.muon.muon_update` in few passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from discretizations.matrices.tracked_subspace import track_subspace
from lite import fused_muon
from lite.finiteness import guarded
from lite.muon import MuonRule, sharp_rank, update_scale
from riemannian_ode.flow import lite_velocity


def is_supported(rule: MuonRule, w: Sequence[Tensor], g: Sequence[Tensor], momentum: Sequence[Tensor]) -> bool:
    """Whether :func:`muon_step_` takes these matrices and settings.

    Args:
        rule: Hyperparameters, which must be plain numbers.
        w: Parameters, matrices of one shape and dtype.
        g: Gradients.
        momentum: M.
    """
    if rule.mask not in ("subspace", None) or not rule.ns_steps or rule.iteration_dtype(momentum[0]) != torch.bfloat16:
        return False
    settings = (rule.lr, rule.weight_decay, rule.chi, rule.beta_flat)
    return not any(isinstance(x, Tensor) for x in settings) and fused_muon.is_supported([*w, *g, *momentum])


def muon_step_(
    rule: MuonRule,
    w: Sequence[Tensor],
    g: Sequence[Tensor],
    momentum: Sequence[Tensor],
    subspace: Sequence[Tensor] | None,
    usable: Tensor | None,
) -> None:
    """One step for matrices of equal shape, changed in place with their state.

    Args:
        rule: Hyperparameters.
        w: Parameters, each ``(m, n)``.
        g: Gradients.
        momentum: M.
        subspace: V of the tracked mask, each ``(n, columns)``.
        usable: Whether the gradients are finite, 0-dimensional, else nothing changes; ``None`` is yes.
    """
    theta = rule.momentum
    inputs = fused_muon.covectors(
        momentum, g, rate=1.0 - theta, nesterov=(1.0 - theta) / theta, usable=usable, both=rule.is_damped
    )
    polar = rule.orthogonalize(inputs)
    a, d = polar[0], polar[1] if rule.is_damped else None
    scale, decay = update_scale(w[0]), rule.weight_decay
    tracked = None
    if subspace is not None and rule.mask is not None:
        before = torch.stack(list(subspace))
        tracked = track_subspace(inputs[0], before)
        torch._foreach_copy_(list(subspace), list(guarded(usable, tracked, before).unbind()))
    if rule.is_split and tracked is not None:
        extra = fused_muon.split_direction_(
            a,
            d,
            w if rule.splits_decay else None,
            chi=rule.chi,
            beta_sharp=rule.beta_sharp,
            beta_flat=rule.beta_flat,
            chi_sharp=rule.chi_sharp,
            decay=decay / scale,
        )
        v = tracked[..., : sharp_rank(rule.sharp_fraction, w[0])].to(a.dtype)
        u = a.baddbmm_(extra @ v, v.mT, alpha=-1.0)
    else:
        u = lite_velocity(a, d, beta_sharp=rule.beta_sharp, chi_sharp=rule.chi_sharp)
    apart = 0.0 if rule.splits_decay else rule.lr * rule.chi_sharp * decay
    fused_muon.move_(w, u, size=rule.lr * scale, decay=apart, usable=usable)
