"""Optimizers that see the gradients of one point and never leave it, so that their updates there compare."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from discretizations.matrices.eigenbases import from_eigenbasis, to_eigenbasis
from discretizations.matrices.sharp_masks import SubspaceComplement, top_right_subspace
from discretizations.preconditioners.second_moment import SecondMoment
from lite import LITEOptimizer
from lite.muon_lite import sharp_rank
from riemannian_ode.flow import Projector, lookahead
from riemannian_ode.preconditioner import Preconditioner
from rishd.pretraining.config import OptimizerConfig
from rishd.pretraining.optimizers import build_optimizer

_FLOOR = 1e-6  # of the largest singular value: below it float32 gradients hold rounding only


class FrozenOptimizer:
    """An optimizer whose parameters are put back after every step.

    Args:
        model: The model; a copy of it is made.
        config: The optimizer; its learning rate and decay are replaced by 1 and 0.

    Attributes:
        directions: u of the last step by parameter name, with w − u the parameter after a step of learning rate 1.
        gradients: Of the last step.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        own = copy.deepcopy(model)
        self.optimizer = build_optimizer(replace(config, lr=1.0, weight_decay=0.0), own)
        self.directions: dict[str, Tensor] = {}
        self.gradients: Mapping[str, Tensor] = {}
        self._parameters = {name: p for name, p in own.named_parameters() if p.requires_grad}
        self._start = {name: p.detach().clone() for name, p in self._parameters.items()}

    def observe(self, gradients: Mapping[str, Tensor]) -> None:
        """Take a gradient in.

        Args:
            gradients: By parameter name.
        """
        for name, p in self._parameters.items():
            p.grad = gradients[name].clone()
        self.optimizer.step()
        with torch.no_grad():
            for name, p in self._parameters.items():
                self.directions[name] = self._start[name] - p
                p.copy_(self._start[name])
        self.gradients = gradients

    def group(self, name: str) -> dict[str, Any]:
        """Parameter group of a parameter."""
        p = self._parameters[name]
        return next(group for group in self.optimizer.param_groups if any(p is other for other in group["params"]))

    def state(self, name: str) -> dict[str, Any]:
        """State of a parameter."""
        state: dict[str, Any] = self.optimizer.state[self._parameters[name]]
        return state


@dataclass(frozen=True)
class Geometry:
    r"""Metric and mask of one parameter, in the units of the update rule w ← w − ηF⁻¹(m + βg) with m a sum.

    Args:
        alpha: α = 1 − θ.
        beta: β of the base method, theory's units: 1/θ for Muon's Nesterov form, else 0.
        gain: η over the learning rate.
        root: X ↦ F^{-1/2}X.
        flat: X ↦ QX, which commutes with F.
        chance: Share of the directions that are sharp: a random direction's ‖PX‖².
    """

    alpha: float
    beta: float
    gain: float
    root: Projector
    flat: Projector
    chance: float


def muon_geometry(base: FrozenOptimizer, name: str, sharp_fraction: float) -> Geometry | None:
    r"""Muon's metric and the mask of MuonLITE.

    F acts on the shorter side of :math:`\tilde M = U\,\mathrm{diag}(\sigma)V^\top`, with :math:`F^{-1}\tilde M` the
    update as it is: Newton–Schulz and scale included. P keeps the top k right singular directions.

    Args:
        base: Frozen Muon.
        name: Parameter.
        sharp_fraction: r.

    Returns:
        ``None`` for parameters that are not plain matrices of Muon.
    """
    group, g = base.group(name), base.gradients[name]
    if group["rule"] != "muon" or group["layout"] != "matrix" or group["blocks"] is not None:
        return None
    theta = group["momentum"]
    covector = lookahead(base.state(name)["momentum"], g, (1.0 - theta) / theta)
    u, sigma, vh = torch.linalg.svd(covector, full_matrices=False)
    singular = sigma.clamp(min=_FLOOR * float(sigma[0]))
    inverse = ((u.mT @ base.directions[name]) * vh).sum(-1) / singular
    roots = inverse.clamp(min=0.0).sqrt()
    rows, columns = covector.shape
    left = (u * roots) @ u.mT if rows <= columns else None
    right = (vh.mT * roots) @ vh if rows > columns else None
    rank = max(1, sharp_rank(sharp_fraction, g))
    return Geometry(
        alpha=1.0 - theta,
        beta=1.0 / theta,
        gain=1.0 - theta,
        root=lambda x: from_eigenbasis(x, left, right),
        flat=SubspaceComplement(top_right_subspace(covector, rank)),
        chance=rank / columns,
    )


def adam_geometry(base: FrozenOptimizer, name: str, sharp_fraction: float) -> Geometry | None:
    r"""The metric of Adam, or of SOAP in its eigenbasis, and the mask of the coordinates of largest second moment.

    Args:
        base: Frozen AdamW or SOAP.
        name: Parameter.
        sharp_fraction: r.

    Returns:
        ``None`` for parameters of SOAP that are not plain matrices of its rule.
    """
    group, memory = base.group(name), base.state(name)
    theta, beta2 = group["betas"]
    preconditioner: Preconditioner
    if isinstance(base.optimizer, LITEOptimizer):
        if group["rule"] != "soap" or group["layout"] != "matrix" or group["blocks"] is not None:
            return None
        rows, columns = memory["v"].shape
        preconditioner = base.optimizer.update_rule(group, (rows, columns)).preconditioner
    else:  # torch's AdamW
        preconditioner = SecondMoment(beta2=beta2, eps=group["eps"], eps_first=True)
        memory = {"v": memory["exp_avg_sq"], "v_mass": 1.0 - beta2 ** memory["step"].double()}
    v, left, right = memory["v"], memory.get("left_basis"), memory.get("right_basis")
    inverse = preconditioner.raise_index(memory, torch.ones_like(v))
    count = max(1, round(sharp_fraction * v.numel()))
    is_flat = torch.ones(v.numel(), dtype=v.dtype, device=v.device)
    is_flat[v.reshape(-1).topk(count).indices] = 0.0
    is_flat = is_flat.reshape(v.shape)

    def in_basis(scale: Tensor) -> Projector:
        return lambda x: from_eigenbasis(scale * to_eigenbasis(x, left, right), left, right)

    return Geometry(
        alpha=1.0 - theta,
        beta=0.0,
        gain=1.0 - theta,
        root=in_basis(inverse.sqrt()),
        flat=in_basis(is_flat),
        chance=count / v.numel(),
    )
