r"""Modified equations: the flow that a discretisation with step size h follows up to O(h²) (claim C22).

A scheme is a map :math:`y \mapsto y + hX_0(y) + h^2Y(y) + O(h^3)` of :math:`y = (w, m)`, with the flow's field

.. math:: X_0 = \bigl(-\eta A(m + Bg),\ -\alpha m + g\bigr) .

The flow of :math:`X_0 + hX_1` over the time h is :math:`y + hX_0 + h^2(X_1 + \tfrac12X_0'X_0) + O(h^3)`. So the two
agree up to O(h³) per step, and O(h²) over a fixed time, exactly if :math:`X_1 = Y - \tfrac12X_0'X_0`.

Source: backward error analysis, Hairer, Lubich and Wanner, *Geometric Numerical Integration*, IX; the terms are derived
in docs/theory, claim C22.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import sympy as sp

from discretizations.constant_rule import ConstantRule
from discretizations.schemes import ONE_GRADIENT_SCHEMES, Kick, OneGradientScheme
from riemannian_ode.arrays import inner, matvec
from riemannian_ode.checks import require_choice, require_positive
from riemannian_ode.flow import Array, momentum_rate

Operator = Callable[[Any], Any]  # x ↦ Mx


class WithHessianProduct(Protocol):
    """f with its gradient and Hessian–vector products."""

    def gradient(self, w: Array) -> Array:
        """∇f(w)."""

    def hvp(self, w: Array, v: Array) -> Array:
        """∇²f(w)v."""


class Field(NamedTuple):
    """A vector field at a point: ẇ and ṁ."""

    w: Any
    m: Any


@cache
def kick_expansion(scheme: str) -> Kick:
    """Coefficients beyond first order as functions of α: the h² terms of α' and c, and the h term of r.

    Args:
        scheme: A key of :data:`discretizations.schemes.ONE_GRADIENT_SCHEMES`.
    """
    alpha, h = sp.symbols("alpha h", positive=True)
    kick = ONE_GRADIENT_SCHEMES[scheme].kick(alpha, h, expm1=lambda x: sp.exp(x) - 1)
    orders = Kick(share=2, gain=2, weight=1)
    terms = (sp.series(sp.nsimplify(x), h, 0, 3).removeO().coeff(h, n) for x, n in zip(kick, orders, strict=True))
    return Kick(*(sp.lambdify(alpha, sp.simplify(term)) for term in terms))


def flow_field(m: Any, g: Any, *, eta: Any, alpha: Any, raised: Operator, lagged: Operator) -> Field:
    """The flow's field X₀.

    Args:
        m: Momentum.
        g: Gradient.
        eta: η.
        alpha: α.
        raised: x ↦ Ax.
        lagged: x ↦ ABx.
    """
    return Field(-eta * (raised(m) + lagged(g)), momentum_rate(m, g, alpha=alpha))


def leading_term(
    scheme: OneGradientScheme,
    beyond: Kick,
    m: Any,
    g: Any,
    *,
    eta: Any,
    alpha: Any,
    raised: Operator,
    lagged: Operator,
    curvature: Operator,
) -> Field:
    r"""X₁ of a scheme with one gradient, for any scalars (numbers, arrays, SymPy symbols).

    With :math:`\alpha' = h\alpha + h^2a_2`, :math:`c = h + h^2c_2`, :math:`r = 1 + hr_1`, and s = 1 if the position
    moves with the new momentum, s = 0 if with the old one,

    .. math::
        W_1 = -\eta A\bigl[(s - \tfrac12)\dot m + r_1m\bigr] + \tfrac\eta2AB\,H\dot w, \qquad
        M_1 = -a_2m + c_2g + \tfrac\alpha2\dot m - \tfrac12H\dot w .

    Args:
        scheme: The scheme.
        beyond: (a₂, c₂, r₁), see :func:`kick_expansion`.
        m: Momentum as the scheme stores it.
        g: Gradient.
        eta: η.
        alpha: α.
        raised: x ↦ Ax.
        lagged: x ↦ ABx.
        curvature: x ↦ Hx.
    """
    field = flow_field(m, g, eta=eta, alpha=alpha, raised=raised, lagged=lagged)
    turn = curvature(field.w)
    ahead = (-1 if scheme.old_momentum else 1) * field.m / 2 + beyond.weight * m
    return Field(
        -eta * raised(ahead) + eta * lagged(turn) / 2,
        beyond.gain * g - beyond.share * m + alpha * field.m / 2 - turn / 2,
    )


def modified_field(
    objective: WithHessianProduct, rule: ConstantRule, scheme: str, *, h: float
) -> Callable[[Array, Array], Field]:
    """The field (w, m) ↦ X₀ + hX₁ that a scheme with step size h follows up to O(h²).

    Args:
        objective: f.
        rule: η, α, A and B.
        scheme: A key of :data:`discretizations.schemes.ONE_GRADIENT_SCHEMES`; optimizers use ``semi-implicit-euler``.
        h: Step size; 1 for an optimizer.

    Raises:
        ValueError: for an unknown scheme or h ≤ 0.
    """
    require_choice("scheme", scheme, sorted(ONE_GRADIENT_SCHEMES))
    require_positive("h", h)
    eta, alpha = (np.asarray(x)[..., None] for x in (rule.eta, rule.alpha))
    beyond = Kick(*(term(alpha) for term in kick_expansion(scheme)))
    product = {"raised": partial(matvec, rule.inverse_metric), "lagged": partial(matvec, rule.lagged)}

    def field(w: Array, m: Array) -> Field:
        g = objective.gradient(w)
        first = flow_field(m, g, eta=eta, alpha=alpha, **product)
        second = leading_term(
            ONE_GRADIENT_SCHEMES[scheme],
            beyond,
            m,
            g,
            eta=eta,
            alpha=alpha,
            curvature=partial(objective.hvp, w),
            **product,
        )
        return Field(first.w + h * second.w, first.m + h * second.m)

    return field


@dataclass(frozen=True)
class PenalisedObjective:
    r"""The objective that the update rule minimises instead of f, up to O(h²) (claim C22b).

    .. math:: \tilde f = f + \frac{h\eta}{4}\,g^\top ABg, \qquad \nabla\tilde f = g + \frac{h\eta}{2}\,H\,ABg

    Args:
        objective: f.
        rule: η, A and B.
        h: Step size; 1 for an optimizer.
    """

    objective: Any
    rule: ConstantRule
    h: float = 1.0

    def value(self, w: Array) -> Array:
        """f̃(w)."""
        g = self.objective.gradient(w)
        return self.objective.value(w) + 0.25 * self.h * self.rule.eta * inner(g, matvec(self.rule.lagged, g))

    def gradient(self, w: Array) -> Array:
        """∇f̃(w)."""
        g = self.objective.gradient(w)
        eta = np.asarray(self.rule.eta)[..., None]
        return g + 0.5 * self.h * eta * self.objective.hvp(w, matvec(self.rule.lagged, g))
