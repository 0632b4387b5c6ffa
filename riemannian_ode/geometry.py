r"""Riemannian gradient, Hessian and geodesics of a metric, computed from its correction R alone.

Source: derived in docs/theory, sections "Setting" and "The correction without Christoffel symbols".
"""

from __future__ import annotations

from typing import Protocol

from riemannian_ode.arrays import inner
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.metric import Metric
from riemannian_ode.objective import Objective


class Curved(Objective, Protocol):
    """An objective with Hessian-vector products."""

    def hvp(self, w: Array, v: Array) -> Array:
        """∇²f(w)v, shape ``(*ensemble, p)``."""
        ...


class _Level:
    """The zero objective, f = 0."""

    def value(self, w: Array) -> Array:
        return inner(0.0 * w, w)

    def gradient(self, w: Array) -> Array:
        return 0.0 * w


def riemannian_gradient(metric: Metric, objective: Objective, w: Array) -> Array:
    r""":math:`\mathrm{grad} f = F^{-1}\nabla f`.

    Args:
        metric: F.
        objective: f.
        w: Positions, shape ``(*ensemble, p)``.

    Returns:
        Vectors, shape ``(*ensemble, p)``.

    Source: definition.
    """
    return metric.raise_index(w, objective.gradient(w))


def riemannian_hvp(metric: Metric, objective: Curved, w: Array, u: Array) -> Array:
    r"""Riemannian Hessian-vector product.

    .. math:: \mathrm{Hess} f[u] = \nabla_u\,\mathrm{grad} f = F^{-1}(Hu - R(u, \nabla f))

    :math:`R(u, g)_i = \Gamma^k_{ij}u^jg_k` is the metric's correction for velocity u and momentum ∇f.

    Args:
        metric: F.
        objective: f, with ``hvp``.
        w: Positions, shape ``(*ensemble, p)``.
        u: Vectors, shape ``(*ensemble, p)``.

    Returns:
        Vectors, shape ``(*ensemble, p)``; self-adjoint in the metric's inner product.

    Source: derived in docs/theory, claim C1 (lowered Hessian).
    """
    lowered = objective.hvp(w, u)
    correction = metric.correction(w, u, objective.gradient(w))
    return metric.raise_index(w, lowered if correction is None else lowered - correction)


def geodesic_system(metric: Metric) -> RISHD:
    r"""The geodesic flow :math:`\nabla_{\dot w}\dot w = 0`: RISHD with α = β = γ = 0.

    Start it with ``system.momentum_of(w, v)``; it conserves ‖ẇ‖_F.

    Args:
        metric: F.

    Returns:
        The system, for :func:`riemannian_ode.simulate`.

    Source: arXiv:2602.22681, eq. (RISHD) without forces.
    """
    return RISHD.from_coefficients(_Level(), metric, alpha=0.0, beta=0.0, gamma=0.0)
