"""Symbolic proofs of the modified equation (claim C22). Residuals vanish if the statement is true.

Two dimensions, an undetermined function f(w), symmetric A, and B = b₀I + b₁A, the general form of a B that commutes
with a generic A. Derivatives are taken from their definitions; the schemes' own steps run on symbols.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sympy as sp

from discretizations.modified_equation import flow_field, kick_expansion, leading_term
from discretizations.schemes import ONE_GRADIENT_SCHEMES, Kick

Expr = Any  # SymPy has no usable static types

_ALPHA, _ETA, _H = sp.symbols("alpha eta h", positive=True)


class _Point(NamedTuple):
    """A point of phase space and the derivatives of f at this point."""

    w: Any
    m: Any
    g: Any
    hessian: Any
    raised: Any
    lagged: Any

    @property
    def state(self) -> Expr:
        return sp.Matrix([*self.w, *self.m])

    @property
    def field(self) -> Expr:
        """X₀ from the library's formula."""
        return sp.Matrix([*flow_field(self.m, self.g, eta=_ETA, alpha=_ALPHA, raised=self.up, lagged=self.ahead)])

    def up(self, x: Expr) -> Expr:
        return self.raised * x

    def ahead(self, x: Expr) -> Expr:
        return self.lagged * x

    def leading(self, scheme: str) -> Expr:
        """X₁ from the library's formula."""
        beyond = Kick(*(_symbolic(term) for term in kick_expansion(scheme)))
        return sp.Matrix(
            [
                *leading_term(
                    ONE_GRADIENT_SCHEMES[scheme],
                    beyond,
                    self.m,
                    self.g,
                    eta=_ETA,
                    alpha=_ALPHA,
                    raised=self.up,
                    lagged=self.ahead,
                    curvature=lambda x: self.hessian * x,
                )
            ]
        )


def leading_term_residuals(scheme: str) -> list[Expr]:
    """Terms of order 0, 1 and 2 in h of a step, minus those of the flow of X₀ + hX₁ over the time h.

    Args:
        scheme: A key of :data:`discretizations.schemes.ONE_GRADIENT_SCHEMES`.
    """
    point = _point()
    found = ONE_GRADIENT_SCHEMES[scheme]
    kick = found.kick(_ALPHA, _H, expm1=lambda x: sp.exp(x) - 1)
    damping = sp.Matrix(point.raised.inv() * point.lagged).applyfunc(sp.simplify)
    step = found.advance(
        point.w, point.m, point.g, kick, eta=_H * _ETA, beta=damping, precondition=lambda x: point.raised * x
    )
    made = sp.Matrix([*step.w, *step.m])
    second = point.leading(scheme) + _along(point, point.field, point.field) / 2
    flow = point.state + _H * point.field + _H**2 * second
    residuals = []
    for n in range(3):
        residuals += [_simplified(sp.diff(made - flow, _H, n).subs(_H, 0)[i]) for i in range(4)]
    return residuals


def penalised_flow() -> list[Expr]:
    r"""The update rule is, in shifted coordinates and up to O(h²), RISHD on a penalised objective (claim C22b).

    At :math:`\tilde w = w + \frac{h\eta}{2}Am` the field X₀ + hX₁ of semi-implicit Euler becomes that of the flow with
    α and gain times :math:`1 + \frac{h\alpha}{2}` on :math:`f + \frac{h\eta}{4}g^\top ABg`: a change of variables
    :math:`y + hK(y)` adds :math:`K'X_0 - X_0'K` to X₁.

    Returns:
        Residuals of the terms of order h.
    """
    point = _point()
    shift = sp.Matrix([*(_ETA * point.up(point.m) / 2), 0, 0])
    moved = point.leading("semi-implicit-euler") + _along(point, shift, point.field) - _along(point, point.field, shift)
    # The penalty's gradient from its definition.
    penalty = _ETA * (point.g.T * point.ahead(point.g))[0] / 4
    slope = sp.Matrix([sp.diff(penalty, x) for x in point.w])
    gain = _ALPHA / 2
    effective = sp.Matrix([*(-_ETA * point.ahead(slope)), *(-(_ALPHA**2) / 2 * point.m + gain * point.g + slope)])
    return [_simplified(x) for x in moved - effective]


def mode_coefficients() -> list[Expr]:
    r"""Trace and determinant of a mode's modified field, i.e. the damping and stiffness that h adds.

    To first order in h, :math:`s^2 + [\alpha + \beta\kappa + \frac h2(\alpha^2 + \beta^2\kappa^2)]s
    + (1 + \alpha\beta)\kappa[1 + \frac h2(\alpha + \beta\kappa)] = 0`.

    Returns:
        Residuals of both coefficients.
    """
    beta, kappa = sp.symbols("beta kappa", real=True)
    w, mu = sp.symbols("w mu")
    units: dict[str, Any] = {
        "eta": 1,
        "alpha": _ALPHA,
        "raised": lambda x: x,
        "lagged": lambda x: beta * x,
    }
    beyond = Kick(*(_symbolic(term) for term in kick_expansion("semi-implicit-euler")))
    first = flow_field(mu, kappa * w, **units)
    second = leading_term(
        ONE_GRADIENT_SCHEMES["semi-implicit-euler"], beyond, mu, kappa * w, curvature=lambda x: kappa * x, **units
    )
    matrix = sp.Matrix([[sp.diff(a + _H * b, x) for x in (w, mu)] for a, b in zip(first, second, strict=True)])
    damping = _ALPHA + beta * kappa + _H * (_ALPHA**2 + beta**2 * kappa**2) / 2
    stiffness = (1 + _ALPHA * beta) * kappa * (1 + _H * (_ALPHA + beta * kappa) / 2)
    determinant = sp.expand(matrix.det())
    return [
        sp.expand(matrix.trace() + damping),
        sp.expand(determinant.coeff(_H, 0) + _H * determinant.coeff(_H, 1) - stiffness),
    ]


def _point() -> _Point:
    w = sp.Matrix(sp.symbols("w0:2"))
    f = sp.Function("f")(*w)
    a, b, c, b0, b1 = sp.symbols("a b c b0 b1")
    raised = sp.Matrix([[a, b], [b, c]])
    lagged = (raised * (b0 * sp.eye(2) + b1 * raised)).applyfunc(sp.expand)
    g = sp.Matrix([sp.diff(f, x) for x in w])
    return _Point(w, sp.Matrix(sp.symbols("m0:2")), g, sp.hessian(f, list(w)), raised, lagged)


def _along(point: _Point, field: Expr, direction: Expr) -> Expr:
    """Derivative of a field in a direction."""
    return field.jacobian(point.state) * direction


def _symbolic(term: Any) -> Expr:
    return sp.nsimplify(term(_ALPHA))


def _simplified(expression: Expr) -> Expr:
    return sp.simplify(sp.expand(sp.nsimplify(expression)))
