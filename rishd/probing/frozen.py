"""Optimizers that take in gradients at one point without leaving it, so that their updates can be compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from discretizations.matrices.eigenbases import from_eigenbasis
from discretizations.matrices.sharp_masks import SubspaceComplement, top_right_subspace
from discretizations.preconditioners.identity import Identity
from discretizations.preconditioners.polar_factor import PolarFactor
from discretizations.preconditioners.second_moment import SecondMoment
from discretizations.update_rule import UpdateRule
from lite import LITEOptimizer
from lite.declaration import MOMENTUM, matrix_shape
from lite.muon_settings import sharp_rank
from lite.parameters.tensor_settings import set_number
from riemannian_ode.flow import Projector, lookahead
from riemannian_ode.preconditioner import Memory, Preconditioner

if TYPE_CHECKING:
    from rishd.pretraining.config import OptimizerConfig

FLOOR = 1e-6  # relative to the largest singular value; below it float32 gradients contain only rounding


class FrozenOptimizer:
    """An optimizer whose parameters are reset after every step.

    Args:
        model: The model, which is copied.
        build: Creates the optimizer of the copy, with learning rate 1 and without weight decay.

    Attributes:
        directions: u of the last step by parameter name, where w − u is the parameter after a step with learning rate
            1.
        gradients: Gradients of the last step.
    """

    def __init__(self, model: nn.Module, build: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
        own = copy.deepcopy(model)
        self._hold(build(own), {name: p for name, p in own.named_parameters() if p.requires_grad})

    def _hold(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> None:
        self.optimizer = optimizer
        self.directions: dict[str, Tensor] = {}
        self.gradients: Mapping[str, Tensor] = {}
        self._parameters = parameters
        self._start = {name: p.detach().clone() for name, p in parameters.items()}

    @classmethod
    def trained(cls, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> FrozenOptimizer:
        """A frozen copy of an optimizer with its trained state.

        The largest learning rate of its groups becomes 1, and the others are scaled accordingly; weight decay becomes
        0. If all are 0, as in the first step of a warm-up, ``initial_lr`` is used.

        Args:
            optimizer: The optimizer, which is not changed.
            parameters: Its parameters that will get gradients, by name.

        Raises:
            ValueError: for an optimizer that cannot be copied, such as one on several ranks.
        """
        try:
            twin = copy.deepcopy(optimizer)
        except TypeError as problem:
            raise ValueError(f"{type(optimizer).__name__} cannot be copied ({problem}); probe without it.") from None
        own = [p for group in optimizer.param_groups for p in group["params"]]
        copies = [p for group in twin.param_groups for p in group["params"]]
        place = {p: i for i, p in enumerate(own)}
        groups = twin.param_groups
        rates = [float(group["lr"]) for group in groups]
        if not any(rates):
            rates = [float(group.get("initial_lr", 0.0)) or 1.0 for group in groups]
        on_sphere = any(group.get("norm") == "constant" for group in groups)  # a step is not linear in the angle
        for group, rate in zip(groups, rates, strict=True):
            set_number(group, "lr", rate if on_sphere else rate / max(rates))
            if "weight_decay" in group:
                set_number(group, "weight_decay", 0.0)
        held = {name: copies[place[p]] for name, p in parameters.items()}
        if not on_sphere:  # without decay directions do not depend on the point, and starting at 0 avoids rounding
            with torch.no_grad():
                for p in held.values():
                    p.zero_()
        for p in copies:
            p.grad = None
        made = cls.__new__(cls)
        made._hold(twin, held)
        return made

    @classmethod
    def configured(cls, model: nn.Module, config: OptimizerConfig) -> FrozenOptimizer:
        """The optimizer of a run's configuration; its learning rate and decay are replaced by 1 and 0."""
        from rishd.pretraining.optimizers import build_optimizer

        return cls(model, lambda own: build_optimizer(replace(config, lr=1.0, weight_decay=0.0), own))

    def observe(self, gradients: Mapping[str, Tensor]) -> None:
        """Take in a gradient.

        Args:
            gradients: Gradients by parameter name.
        """
        for name, p in self._parameters.items():
            p.grad = gradients[name].to(p.dtype, copy=True)
        self.optimizer.step()
        with torch.no_grad():
            for name, p in self._parameters.items():
                self.directions[name] = self._start[name] - p
                p.copy_(self._start[name])
        self.gradients = gradients

    @property
    def names(self) -> list[str]:
        """Names of the parameters that get gradients."""
        return list(self._parameters)

    def group(self, name: str) -> dict[str, Any]:
        """Parameter group of a parameter."""
        p = self._parameters[name]
        return next(group for group in self.optimizer.param_groups if any(p is other for other in group["params"]))

    def state(self, name: str) -> dict[str, Any]:
        """State of a parameter."""
        state: dict[str, Any] = self.optimizer.state[self._parameters[name]]
        return state

    def rule(self, name: str) -> tuple[UpdateRule, Memory] | None:
        """Update rule of a parameter and its preconditioner's memory.

        Returns:
            ``None`` for parameters of LITE's optimizers that are not single matrices of their rule.
        """
        group, state = self.group(name), self.state(name)
        if isinstance(self.optimizer, LITEOptimizer):
            if group["rule"] != self.optimizer.rule or group["layout"] != "matrix" or group["blocks"] is not None:
                return None
            memory = {key: value for key, value in state.items() if key != MOMENTUM}
            return self.optimizer.update_rule(group, matrix_shape(self._parameters[name])), memory
        return torch_rule(self.optimizer, group, state)


def torch_rule(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[UpdateRule, Memory]:
    """Update rule and memory of a parameter of torch's SGD, Adam or AdamW.

    Raises:
        ValueError: for another optimizer, or a setting that is not a metric of this project.
    """
    if isinstance(optimizer, torch.optim.SGD):
        theta = group["momentum"]
        gain = 1.0 - group["dampening"]
        return UpdateRule(preconditioner=Identity(), alpha=1.0 - theta, gain=gain), {}
    if not isinstance(optimizer, torch.optim.Adam):  # includes AdamW
        raise ValueError(
            f"the metric of {type(optimizer).__name__} is not known here; use one of lite's "
            "optimizers, or torch's SGD, Adam or AdamW."
        )
    if group["amsgrad"]:
        raise ValueError("amsgrad = True divides by a maximum over time, which is not a second moment; set it False.")
    theta, beta2 = group["betas"]
    metric = SecondMoment(beta2=beta2, eps=group["eps"])
    memory = {"v": state["exp_avg_sq"], "v_mass": 1.0 - beta2 ** state["step"].double()}
    return UpdateRule(preconditioner=metric, alpha=1.0 - theta, gain=1.0 - theta), memory


@dataclass(frozen=True)
class Geometry:
    r"""Metric and mask of one parameter, in the units of the update rule w ← w − ηF⁻¹(m + βg) with m a sum.

    Args:
        alpha: α = 1 − θ.
        beta: β of the base method, in the theory's units: 1/θ for Muon's Nesterov form, else 0.
        gain: Ratio of η to the learning rate.
        root: X ↦ F^{-1/2}X.
        flat: X ↦ QX, where Q commutes with F.
        chance: Share of sharp directions, which is a random direction's ‖PX‖².
    """

    alpha: float
    beta: float
    gain: float
    root: Projector
    flat: Projector
    chance: float


def geometry(base: FrozenOptimizer, name: str, sharp_fraction: float) -> Geometry | None:
    """Metric of a parameter from its preconditioner, and LITE's sharp mask for it.

    Args:
        base: Frozen optimizer without a split.
        name: Parameter.
        sharp_fraction: r.

    Returns:
        ``None`` for parameters of LITE's optimizers that are not single matrices of their rule.

    Raises:
        ValueError: for a metric that is neither Muon's nor diagonal.
    """
    found = base.rule(name)
    if found is None:
        return None
    rule, memory = found
    if isinstance(rule.preconditioner, PolarFactor):
        covector = lookahead(base.state(name)[MOMENTUM], base.gradients[name], rule.nesterov)
        parts = _polar_parts(covector, base.directions[name], sharp_fraction)
    else:
        parts = _diagonal_parts(rule.preconditioner, memory, base.gradients[name], sharp_fraction)
    root, flat, chance = parts
    return Geometry(rule.alpha, rule.nesterov / rule.gain, rule.gain, root, flat, chance)


def _polar_parts(covector: Tensor, direction: Tensor, sharp_fraction: float) -> tuple[Projector, Projector, float]:
    r"""Muon's metric and the mask of MuonLITE.

    F acts on the shorter side of :math:`\tilde M = U\,\mathrm{diag}(\sigma)V^\top`, and :math:`F^{-1}\tilde M` is the
    actual update, including Newton–Schulz and scale. P keeps the top k right singular directions.
    """
    rank = max(1, sharp_rank(sharp_fraction, covector))
    flat = SubspaceComplement(top_right_subspace(covector, rank))
    return polar_root(covector, direction), flat, rank / covector.size(1)


def polar_root(covector: Tensor, direction: Tensor) -> Projector:
    """F^{-1/2} on the covector's shorter side, where F⁻¹ is the update over the covector, per singular value.

    Args:
        covector: M̃, shape ``(m, n)``.
        direction: The update.
    """
    u, sigma, vh = torch.linalg.svd(covector, full_matrices=False)
    singular = sigma.clamp(min=max(FLOOR * float(sigma[0]), torch.finfo(sigma.dtype).tiny))
    inverse = ((u.mT @ direction) * vh).sum(-1) / singular
    roots = inverse.clamp(min=0.0).sqrt()
    rows, columns = covector.shape
    left = (u * roots) @ u.mT if rows <= columns else None
    right = (vh.mT * roots) @ vh if rows > columns else None
    return lambda x: from_eigenbasis(x, left, right)


def _diagonal_parts(
    preconditioner: Preconditioner, memory: Memory, g: Tensor, sharp_fraction: float
) -> tuple[Projector, Projector, float]:
    """A metric that is diagonal in its frame, and the mask of its largest coordinates."""
    inverse = diagonal_inverse(preconditioner, memory, g)
    count = max(1, round(sharp_fraction * inverse.numel()))
    is_flat = torch.ones_like(inverse).reshape(-1)
    is_flat[inverse.reshape(-1).topk(count, largest=False).indices] = 0.0

    def in_frame(scale: Tensor) -> Projector:
        return lambda x: preconditioner.from_frame(memory, scale * preconditioner.to_frame(memory, x))

    return in_frame(inverse.sqrt()), in_frame(is_flat.reshape(inverse.shape)), count / inverse.numel()


def diagonal_inverse(preconditioner: Preconditioner, memory: Memory, g: Tensor) -> Tensor:
    """Diagonal of F⁻¹ in the frame.

    Raises:
        ValueError: if F is not diagonal in the frame.
    """
    framed = preconditioner.to_frame(memory, g)
    inverse: Tensor = preconditioner.raise_index(memory, torch.ones_like(framed))
    if not torch.allclose(preconditioner.raise_index(memory, framed), inverse * framed):
        raise ValueError(f"the metric of {preconditioner.name!r} is not diagonal; its square root is not known here.")
    return inverse
