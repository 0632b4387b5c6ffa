r"""Derivative of a flow's right-hand side, using the objective's Hessian where possible.

Differences of gradients have an error of :math:`10^{-8}` of the largest curvature, which hides flat directions. Here
the Hessian enters through its products with vectors; only the parts that a moving metric or split adds use differences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from riemannian_ode.arrays import is_torch, namespace, to_numpy
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.objective import Objective
from riemannian_ode.split import ConstantSplit

Product: TypeAlias = Callable[[Array], Array]


def linearised(
    system: RISHD, t: float, w: Array, m: Array, *, hessian: Product | None = None, central: bool = False
) -> Callable[[Array, Array], tuple[Array, Array]]:
    r"""The linear map (δw, δm) ↦ derivative of (ẇ, ṁ) along it, all of shape ``(*ensemble, p)``.

    With :math:`\delta g = \nabla^2f\,\delta w` it is exact for a constant metric without a moving split; otherwise it
    is a difference quotient along (δw, δm, δg).

    Args:
        system: The dynamics.
        t: Time.
        w: Position.
        m: Momentum.
        hessian: v ↦ ∇²f(w)v; by default :func:`hessian_product`.
        central: Whether differences are central (ten digits) or forward (seven, at half the cost).
    """
    product = hessian_product(system.objective, w) if hessian is None else hessian
    if system.metric.variation == "constant" and (system.flat is None or isinstance(system.flat, ConstantSplit)):
        return lambda dw, dm: system.rates_with(t, w, dm, product(dw))
    g = system.objective.gradient(w)
    base = None if central else system.rates_with(t, w, m, g)
    epsilon = float(np.finfo(to_numpy(w).dtype).eps) ** (1 / 3 if central else 1 / 2)

    def derivative(dw: Array, dm: Array) -> tuple[Array, Array]:
        dg = product(dw)
        step = difference_step(epsilon, (w, dw), (m, dm))
        ahead = system.rates_with(t, w + step * dw, m + step * dm, g + step * dg)
        behind = system.rates_with(t, w - step * dw, m - step * dm, g - step * dg) if base is None else base
        length = 2.0 * step if base is None else step
        return (ahead[0] - behind[0]) / length, (ahead[1] - behind[1]) / length

    return derivative


def rates_jacobian(system: RISHD, t: float, w: Array, m: Array, *, hessian: Product, central: bool) -> Array:
    """The matrix of :func:`linearised`, shape ``(*ensemble, 2p, 2p)``."""
    derivative, xp = linearised(system, t, w, m, hessian=hessian, central=central), namespace(w)
    zero, columns = xp.zeros_like(w), []
    for part in range(2):
        for j in range(w.shape[-1]):
            unit = unit_like(w, j)
            columns.append(xp.concat(derivative(*((zero, unit) if part else (unit, zero))), axis=-1))
    return xp.stack(columns, axis=-1)


def unit_like(x: Array, j: int) -> Array:
    """The j-th unit vector for every member, shape of ``x``."""
    unit = namespace(x).zeros_like(x)
    unit[..., j] = 1.0
    return unit


def hessian_product(objective: Objective, w: Array) -> Product:
    """v ↦ ∇²f(w)v by the objective's ``hvp``, else torch's derivative of its gradient, else a forward difference.

    Args:
        objective: f.
        w: Positions, shape ``(*ensemble, p)``.
    """
    hvp = getattr(objective, "hvp", None)
    if hvp is not None:
        return lambda v: hvp(w, v)
    by_autograd = _autograd_product(objective, w) if is_torch(w) else None
    if by_autograd is not None:
        return by_autograd
    g, epsilon = objective.gradient(w), float(np.finfo(to_numpy(w).dtype).eps) ** 0.5

    def differenced(v: Array) -> Array:
        step = difference_step(epsilon, (w, v))
        return (objective.gradient(w + step * v) - g) / step

    return differenced


def _autograd_product(objective: Objective, w: Array) -> Product | None:
    """The product by a backward pass (∇²f is symmetric); ``None`` if the gradient has no graph."""
    import torch

    with torch.enable_grad():
        x = w.detach().requires_grad_()
        try:
            g = objective.gradient(x)
        except RuntimeError:  # it leaves torch
            return None
    if not g.requires_grad:
        return None
    return lambda v: torch.autograd.grad(g, x, v, retain_graph=True, materialize_grads=True)[0]


def difference_step(epsilon: float, *parts: tuple[Array, Array]) -> Array:
    """Step length, shape ``(*ensemble, 1)``, that moves no part of the state by more than ε(1 + its largest entry).

    Args:
        epsilon: ε.
        parts: Pairs (x, δx).
    """
    relative: Array = None
    for x, change in parts:
        xp = namespace(x)
        share = xp.max(xp.abs(change), axis=-1, keepdims=True) / (1.0 + xp.max(xp.abs(x), axis=-1, keepdims=True))
        relative = share if relative is None else xp.maximum(relative, share)
    return epsilon / xp.where(relative > 0, relative, 1.0)
