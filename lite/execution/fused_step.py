"""The stages of a Muon step on a CPU with bfloat16 products, in few passes over memory.

They are alternative implementations of :func:`riemannian_ode.stages.take_in`, of the velocity in
:func:`riemannian_ode.stages.direct`, and of :func:`riemannian_ode.stages.move`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discretizations.matrices.sharp_masks import SubspaceComplement
from discretizations.preconditioners.masks import GradedMask, TrackedSubspace
from discretizations.preconditioners.polar_factor import PolarFactor
from discretizations.update_rule import UpdateRule
from lite.declaration import MOMENTUM, Declaration, matrix_shape
from lite.execution import fused_muon
from lite.execution.finiteness import Guard
from lite.execution.tensor_batches import TensorBatch
from riemannian_ode.flow import lite_velocity
from riemannian_ode.preconditioner import Memory
from riemannian_ode.stages import TakenIn

LARGEST_BATCH = 2**22  # numbers: few temporaries are needed, and each thread gets its own matrices (measured)


def step_batch_(rule: UpdateRule, eta: Any, batch: TensorBatch, guard: Guard) -> bool:
    """One step for a batch, which is changed in place together with its state.

    Args:
        rule: The update rule.
        eta: η.
        batch: Parameters, gradients and state.
        guard: Keeps everything unchanged if the gradients are not finite.

    Returns:
        Whether the step was run; if not, the rule or the tensors are not supported, and nothing has changed.
    """
    if type(rule.preconditioner) is not PolarFactor:  # quick exit for other rules
        return False
    entries = batch.entries
    w = batch.matrices([entry.w for entry in entries])
    g = batch.matrices([entry.inputs["g"] for entry in entries])
    momentum = batch.matrices([entry.state[MOMENTUM] for entry in entries])
    if not is_supported(rule, eta, w, g, momentum):
        return False
    memory = {key: batch.matrices([e.state[key] for e in entries]) for key in entries[0].state if key != MOMENTUM}
    fused_step_(rule, w, g, momentum, memory, eta=eta, guard=guard)
    return True


def largest_cpu_batch(declaration: Declaration, groups: Iterable[dict[str, Any]], w: Tensor) -> int | None:
    """Most numbers in a batch on a CPU; ``None`` if the rule sets no limit.

    Args:
        declaration: The optimizer's declaration of its matrices.
        groups: All parameter groups; batches are larger only if the steps of all matrices are fused.
        w: A tensor of the batch.
    """
    if declaration.largest_cpu_batch is None:
        return None
    matrix, shape = [w[0] if w.ndim == 3 else w], matrix_shape(w)
    matrices = [group for group in groups if group["rule"] == declaration.rule]
    fuses = (is_supported(declaration.update_rule(group, shape), group["lr"], *[matrix] * 3) for group in matrices)
    return LARGEST_BATCH if matrices and all(fuses) else declaration.largest_cpu_batch


def is_supported(
    rule: UpdateRule, eta: Any, w: Sequence[Tensor], g: Sequence[Tensor], momentum: Sequence[Tensor]
) -> bool:
    """Whether :func:`fused_step_` supports these matrices and settings.

    Args:
        rule: The update rule; its coefficients must be plain numbers.
        eta: η, also a plain number.
        w: Parameters, matrices of one shape and dtype.
        g: Gradients.
        momentum: M.
    """
    polar = rule.preconditioner
    if type(polar) is not PolarFactor:  # a subclass may use other formulas
        return False
    if rule.is_cautious or rule.keeps_norm or rule.ratio is not None:
        return False
    if polar.iteration == "svd" or not polar.narrows or rule.corrects_momentum or rule.gain != rule.alpha:
        return False
    if polar.mask is not None and not isinstance(polar.mask, (TrackedSubspace, GradedMask)):
        return False
    if polar.iteration_dtype(momentum[0]) != torch.bfloat16:
        return False
    settings = (eta, rule.decay, rule.chi, rule.beta_flat)
    return not any(isinstance(x, Tensor) for x in settings) and fused_muon.is_supported([*w, *g, *momentum])


def fused_step_(
    rule: UpdateRule,
    w: Sequence[Tensor],
    g: Sequence[Tensor],
    momentum: Sequence[Tensor],
    memory: dict[str, list[Tensor]],
    *,
    eta: float,
    guard: Guard,
) -> None:
    """One step for matrices of equal shape, which are changed in place together with their state.

    Args:
        rule: The update rule.
        w: Parameters, each ``(m, n)``.
        g: Gradients.
        momentum: M.
        memory: The preconditioner's memory: by key, one tensor per matrix.
        eta: η.
        guard: Keeps everything unchanged if the gradients are not finite.
    """
    usable, both = guard.usable, rule.is_damped
    taken = fused_muon.covectors(momentum, g, rate=rule.alpha, nesterov=rule.nesterov, usable=usable, both=both)
    covector, gradient = taken[0], taken[1] if both else taken[0]
    polar: Any = rule.preconditioner  # without a mask, memory left by a mask is not used
    before = {key: torch.stack(tensors) for key, tensors in memory.items()} if polar.mask is not None else {}
    velocity = _Velocity(w if rule.splits_decay else None, rule.decay, damps_inside=rule.damps_inside)
    raising = rule if rule.damps_inside else _raising(rule, taken)
    directed = raising.direct(TakenIn(covector, before, gradient, covector), velocity=velocity)
    for key, value in directed.memory.items():
        if value is not before[key]:
            torch._foreach_copy_(memory[key], list(guard.chosen(value, before[key]).unbind()))
    apart = 0.0 if rule.splits_decay else eta * rule.chi_sharp * rule.decay
    fused_muon.move_(w, directed.u, size=eta, decay=apart, usable=usable)


@dataclass(frozen=True)
class _Velocity:
    """In-place :func:`riemannian_ode.flow.lite_velocity` of a batch, with the decay of its parameters.

    Args:
        w: Parameters if the mask acts on their decay; ``None`` if it does not.
        decay: λ, in the units of the direction.
        damps_inside: Whether the gradient is added to the covectors before the map, where nothing decays.
    """

    w: Sequence[Tensor] | None
    decay: float
    damps_inside: bool

    def __call__(
        self, a: Tensor, d: Tensor | None, *, flat: Any, decay: Any = None, twice: bool = False, **rates: float
    ) -> Tensor:
        settings: dict[str, Any] = {"chi": 1.0, "chi_sharp": 1.0} | rates
        if not isinstance(flat, SubspaceComplement):  # no other mask acts on decay
            u: Tensor = lite_velocity(a, d, flat=flat, **settings)
            return u
        w = None if self.damps_inside and d is not None else self.w
        extra = fused_muon.split_direction_(a, d, w, decay=self.decay, **settings)
        v = flat.basis.to(a.dtype)
        return a.baddbmm_(extra @ v, v.mT, alpha=-1.0)


@dataclass(frozen=True, kw_only=True)
class _OfBoth(PolarFactor):
    """The polar factor of covectors and gradients that are already stored as one batch.

    Args:
        both: Covectors, followed by gradients, shape ``(2, count, m, n)``.
    """

    both: Tensor

    def raise_two(self, memory: Memory, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        a, d = self.polar(self.both)
        return a, d


def _raising(rule: UpdateRule, taken: Tensor) -> UpdateRule:
    return rule.with_preconditioner(_OfBoth(**vars(rule.preconditioner), both=taken))
