r"""Square root :math:`D^{1/2}` of an optimizer's metric at its next step, with direction :math:`u = D\tilde m`.

D is F⁻¹ times further factors: the learning rate of the group over the largest one, the scale of the matrix, and χ
along flat directions. The edge of stability concerns sharpness in this metric,
:math:`\lambda_{\max}(D^{1/2}\nabla^2L\,D^{1/2})`: 2(1 + θ)/((1 − θ)η) for Adam with momentum θ.

Source: Cohen et al., *Adaptive gradient methods at the edge of stability*, arXiv:2207.14484.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from discretizations.preconditioners.kronecker_root import KroneckerRoot
from discretizations.preconditioners.normalized_polar_factor import NormalizedPolarFactor
from discretizations.preconditioners.polar_factor import PolarFactor
from discretizations.preconditioners.sign import Sign
from discretizations.update_rule import UpdateRule
from lite import LITEOptimizer
from lite.declaration import MOMENTUM, matrix_shape
from lite.parameters.parameter_entries import group_views, parameter_entries
from riemannian_ode.flow import Projector, lookahead
from riemannian_ode.preconditioner import Memory
from rishd.probing.frozen import FLOOR, FrozenOptimizer, diagonal_inverse, polar_root, torch_rule


def metric_root(frozen: FrozenOptimizer, name: str) -> Projector:
    """The map X ↦ D^{1/2}X of one parameter, for tensors of its shape.

    For nonlinear maps (Muon's polar factor and Lion's sign), D is the ratio of the step to its covector, per singular
    value or per entry.

    Args:
        frozen: An optimizer that has taken a step.
        name: The parameter.

    Raises:
        ValueError: for an optimizer whose metric has no known square root, with name and reason.
    """
    optimizer, group, state, g = frozen.optimizer, frozen.group(name), frozen.state(name), frozen.gradients[name]
    u = frozen.directions[name].to(g.dtype)
    if not isinstance(optimizer, LITEOptimizer):
        rule, memory = torch_rule(optimizer, group, state)
        return _root(rule, memory, None, g, u, lr=group["lr"])
    if group["norm"] == "constant":
        raise ValueError("norm = 'constant' moves on a sphere, where a step is not linear; probe with norm = 'free'.")
    if group["rule"] == "adamw" and optimizer.rule != "adamw":
        memory = {key: value for key, value in state.items() if key != MOMENTUM}
        return _root(optimizer.adamw_rule(group), memory, state[MOMENTUM], g, u, lr=group["lr"])
    entries = parameter_entries(
        optimizer.elementwise_state(group),
        group,
        u,  # parameters that are cut into matrices
        {"g": g.contiguous()},
        state,
        step=0,
        numbers=[range(0)] * len(group_views(group, u)),
    )
    roots: list[list[Projector]] = []
    for entry in entries:
        rule = optimizer.update_rule(group, matrix_shape(entry.w))
        lr = optimizer.learning_rate(group, matrix_shape(entry.w))
        memory = {key: value for key, value in entry.state.items() if key != MOMENTUM}
        values = (memory, entry.state[MOMENTUM], entry.inputs["g"], entry.w)
        members = [values] if entry.stack is None else [_member(values, e) for e in range(entry.stack)]
        roots.append([_root(rule, *member, lr=lr) for member in members])
    return lambda x: _on_views(group, roots, x)


def _member(values: tuple[Memory, Tensor, Tensor, Tensor], place: int) -> tuple[Memory, Tensor, Tensor, Tensor]:
    memory, m, g, u = values
    return {key: value[place] for key, value in memory.items()}, m[place], g[place], u[place]


def _on_views(group: dict[str, Any], roots: Sequence[Sequence[Projector]], x: Tensor) -> Tensor:
    """Apply each root to its matrix of a parameter."""
    x = x.contiguous()
    image = torch.empty_like(x)
    for own, source, target in zip(roots, group_views(group, x), group_views(group, image), strict=True):
        if source.ndim == 2:
            target.copy_(own[0](source))
        else:
            for root, one, into in zip(own, source, target, strict=True):
                into.copy_(root(one))
    return image


def _root(rule: UpdateRule, memory: Memory, m: Tensor | None, g: Tensor, u: Tensor, *, lr: Any) -> Projector:
    """D^{1/2} of one matrix, or of a tensor whose metric is elementwise."""
    preconditioner = rule.preconditioner
    framed = preconditioner.to_frame(memory, g)
    covector = framed if m is None else lookahead(m.to(framed.dtype), framed, rule.nesterov)
    if isinstance(preconditioner, NormalizedPolarFactor) and u.size(0) <= u.size(1):
        raise ValueError(
            "NorMuon's metric of a matrix without more rows than columns is not symmetric: rows are scaled on the side "
            "on which the polar factor acts. Its directional sharpness needs no metric."
        )
    if isinstance(preconditioner, NormalizedPolarFactor):
        polar = preconditioner.polar(covector)
        rows = (u.norm(dim=1) / polar.norm(dim=1).clamp(min=torch.finfo(polar.dtype).tiny))[:, None]
        root, scale = polar_root(covector, polar), rows.sqrt()
        return lambda x: scale * root(x)
    if isinstance(preconditioner, PolarFactor):
        return polar_root(covector, u)
    if isinstance(preconditioner, Sign):
        size = covector.abs().clamp(min=max(FLOOR * float(covector.abs().max()), torch.finfo(covector.dtype).tiny))
        return _elementwise((u * covector.sign() / size).clamp(min=0.0).sqrt())
    flat = preconditioner.flat(memory, covector, None)[0] if rule.splits else None
    if isinstance(preconditioner, KroneckerRoot):
        left, right = (_symmetric_root(side) for side in preconditioner.roots(memory))
        plain = left @ (left @ covector.to(left.dtype) @ right) @ right
        tiny = torch.finfo(plain.dtype).tiny
        size = lr * preconditioner.raise_index(memory, covector).norm() / plain.norm().clamp(min=tiny)  # of grafting
        sharp_size, flat_size = (rule.chi_sharp * size) ** 0.5, (rule.chi * size) ** 0.5

        def of_factors(x: Tensor) -> Tensor:
            image: Tensor = left @ x.to(left.dtype) @ right
            part = torch.zeros_like(image) if flat is None else flat(image)
            sized: Tensor = sharp_size * (image - part) + flat_size * part
            return sized.to(x.dtype)

        return of_factors
    inverse = lr * diagonal_inverse(preconditioner, memory, g)
    if flat is not None:
        inverse = inverse * (rule.chi_sharp + (rule.chi - rule.chi_sharp) * flat(torch.ones_like(inverse)))
    half = inverse.sqrt()

    def in_frame(x: Tensor) -> Tensor:
        image: Tensor = preconditioner.from_frame(memory, half * preconditioner.to_frame(memory, x))
        return image

    return in_frame


def _elementwise(scale: Tensor) -> Projector:
    return lambda x: scale * x


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.mT
    return root
