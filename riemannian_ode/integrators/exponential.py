"""An exponential integrator, exact for linear flows."""

from __future__ import annotations

import scipy.linalg

from riemannian_ode.arrays import like, matvec, namespace, to_numpy, tracks
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.integrators.base import INTEGRATORS, OneStepIntegrator, PhaseState
from riemannian_ode.integrators.linearisation import rates_jacobian


@INTEGRATORS.register(place=100)
class ExponentialEuler(OneStepIntegrator):
    r"""Exponential Rosenbrock–Euler, :math:`y' = y + h\,\varphi_1(hJ)f(y)`, :math:`\varphi_1(z) = (e^z - 1)/z`.

    J is the Jacobian of the right-hand side at y, from the objective's Hessian; order 2, and exact for quadratics with
    a constant metric, at any step. Coefficients are evaluated at t + h/2. If the split is not a :class:`ConstantSplit`,
    its derivatives are central differences (about 10 digits).

    Raises (in ``step``):
        ValueError: for an objective without Hessian, or a metric that varies.

    Source: Hochbruck and Ostermann, *Exponential integrators*, Acta Numerica 19 (2010), section 2.4.
    """

    name = "exponential-euler"
    order = 2
    structure = frozenset({"exact-linear"})

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        hessian = getattr(system.objective, "hessian", None)
        if hessian is None or system.metric.variation != "constant":
            raise ValueError(
                f"{self.name} needs an objective with a hessian and a constant metric; this one has "
                f"{type(system.objective).__name__} and {type(system.metric).__name__}: take 'implicit-midpoint' or "
                "'radau' instead."
            )
        middle, matrix = t + h / 2, hessian(state.w)
        jacobian = rates_jacobian(system, middle, *state, hessian=lambda v: matvec(matrix, v), central=True)
        rate = namespace(state.w).concat(system.rates(middle, *state), axis=-1)
        # exp of [[hJ, h f], [0, 0]] has φ₁(hJ)·h f in its last column, which avoids dividing by a singular J.
        xp = namespace(rate)
        upper = h * xp.concat([jacobian, rate[..., None]], axis=-1)
        increment = _exponential(xp.concat([upper, xp.zeros_like(upper[..., :1, :])], axis=-2))[..., :-1, -1]
        p = state.w.shape[-1]
        return PhaseState(state.w + increment[..., :p], state.m + increment[..., p:])


def _exponential(matrices: Array) -> Array:
    """Matrix exponentials, by SciPy, or by torch if derivatives are needed."""
    if tracks(matrices):
        return namespace(matrices).linalg.matrix_exp(matrices)
    return like(scipy.linalg.expm(to_numpy(matrices)), matrices)
