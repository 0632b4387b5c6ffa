"""An exponential integrator: exact wherever the flow is linear."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

from riemannian_ode.arrays import like, to_numpy
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.integrators.base import OneStepIntegrator, PhaseState
from riemannian_ode.split import ConstantSplit


class ExponentialEuler(OneStepIntegrator):
    r"""Exponential Rosenbrock–Euler, :math:`y' = y + h\,\varphi_1(hJ)f(y)`, :math:`\varphi_1(z) = (e^z - 1)/z`.

    J is the Jacobian of the right-hand side at y, from the objective's Hessian; order 2, and exact for quadratics with
    a constant metric, at any step. Coefficients are taken at t + h/2. The derivatives of a split that is no
    :class:`ConstantSplit` are central differences (about 10 digits).

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
        shape = tuple(state.w.shape)
        p, members = shape[-1], int(np.prod(shape[:-1]))
        middle = t + h / 2
        h_matrix = np.broadcast_to(to_numpy(hessian(state.w)), (*shape, p)).reshape(members, p, p)

        g = system.objective.gradient(state.w)
        by_w, by_m, by_g = (
            x.reshape(members, p, p) for x in _direction_derivatives(system, middle, state.w, state.m, g)
        )
        eta, gain, alpha = (self._column(system.at(name, middle), members) for name in ("eta", "gain", "alpha"))
        jacobian = np.zeros((members, 2 * p, 2 * p))
        jacobian[:, :p, :p] = -eta * (by_w + by_g @ h_matrix)
        jacobian[:, :p, p:] = -eta * by_m
        jacobian[:, p:, :p] = gain * h_matrix
        jacobian[:, p:, p:] = -alpha * np.eye(p)
        rate = np.concatenate([to_numpy(x).reshape(members, p) for x in system.rates(middle, *state)], axis=1)
        # exp of [[hJ, h f], [0, 0]] has φ₁(hJ)·h f in its last column: no division by a singular J.
        augmented = np.zeros((members, 2 * p + 1, 2 * p + 1))
        augmented[:, :-1, :-1] = h * jacobian
        augmented[:, :-1, -1] = h * rate
        increment = scipy.linalg.expm(augmented)[:, :-1, -1]
        return PhaseState(
            state.w + like(increment[:, :p].reshape(shape), state.w),
            state.m + like(increment[:, p:].reshape(shape), state.m),
        )

    @staticmethod
    def _column(value: Any, members: int) -> np.ndarray:
        """A coefficient as shape ``(members, 1, 1)``."""
        array = to_numpy(value)
        return np.broadcast_to(array.reshape(-1) if array.ndim else array, (members,))[:, None, None]


def _direction_derivatives(system: RISHD, t: float, w: Array, m: Array, g: Array) -> list[np.ndarray]:
    """∂u/∂w at fixed m and g, ∂u/∂m and ∂u/∂g, each of shape ``(*ensemble, p, p)``."""
    arguments, p = (w, m, g), w.shape[-1]
    is_linear = system.flat is None or isinstance(system.flat, ConstantSplit)
    derivatives = []
    for place, x in enumerate(arguments):
        if is_linear and place == 0:  # in m and g, whatever w is
            derivatives.append(np.zeros((*w.shape, p)))
            continue
        columns = []
        for j in range(p):
            unit = 0.0 * x + like(np.eye(p)[j], x)
            if is_linear:
                covectors = [unit if place == k else 0.0 * x for k in (1, 2)]
                column = to_numpy(system.direction(t, w, *covectors))
            else:
                step = np.cbrt(np.finfo(to_numpy(x).dtype).eps) * (1.0 + np.abs(to_numpy(x)).max())
                ahead, behind = (
                    system.direction(t, *(y + s * unit if k == place else y for k, y in enumerate(arguments)))
                    for s in (step, -step)
                )
                column = to_numpy(ahead - behind) / (2.0 * step)
            columns.append(column)
        derivatives.append(np.stack(columns, axis=-1))
    return derivatives
