"""Explicit Runge–Kutta schemes of fixed step: coefficients in, scheme out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from riemannian_ode.dynamics import RISHD
from riemannian_ode.integrators.base import OneStepIntegrator, PhaseState


@dataclass(frozen=True)
class ButcherTableau:
    r"""Coefficients of an explicit Runge–Kutta scheme, :math:`k_i = f(t + c_ih, y + h\sum_{j<i}a_{ij}k_j)`.

    Args:
        stages: Rows a_i1 … a_i,i−1, the first one empty.
        weights: b_i; y' = y + h Σ b_i k_i.
        nodes: c_i; the row sums of ``stages`` by default.

    Raises:
        ValueError: if the rows do not form a strictly lower triangle, or Σ b_i ≠ 1 (no consistency).
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    nodes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if [len(row) for row in self.stages] != list(range(len(self.weights))):
            raise ValueError(
                f"stages has rows of {[len(row) for row in self.stages]} coefficients for {len(self.weights)} weights; "
                "an explicit scheme's rows have 0, 1, 2, … coefficients."
            )
        if abs(sum(self.weights) - 1.0) > 1e-12:
            raise ValueError(f"weights sum to {sum(self.weights):.6g}; a consistent scheme's sum to 1.")
        if not self.nodes:
            object.__setattr__(self, "nodes", tuple(float(sum(row)) for row in self.stages))

    def order_conditions(self) -> dict[int, float]:
        """Largest violation of the order conditions of each order 1 … 4; a scheme has order q if all up to q vanish.

        Source: Hairer, Nørsett, Wanner, *Solving ODEs I*, table II.2.2.
        """
        s = len(self.weights)
        a = np.zeros((s, s))
        for i, row in enumerate(self.stages):
            a[i, :i] = row
        b, c = np.array(self.weights), np.array(self.nodes)
        conditions = {
            1: [b.sum() - 1],
            2: [b @ c - 1 / 2],
            3: [b @ c**2 - 1 / 3, b @ a @ c - 1 / 6],
            4: [b @ c**3 - 1 / 4, (b * c) @ a @ c - 1 / 8, b @ a @ c**2 - 1 / 12, b @ a @ a @ c - 1 / 24],
        }
        return {order: float(np.abs(violations).max()) for order, violations in conditions.items()}


class ExplicitRungeKutta(OneStepIntegrator):
    """Any explicit scheme: subclass it with a name, an order and a :class:`ButcherTableau`."""

    tableau: ClassVar[ButcherTableau]

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        slopes: list[PhaseState] = []
        for row, node in zip(self.tableau.stages, self.tableau.nodes, strict=True):
            slopes.append(PhaseState(*system.rates(t + node * h, *_advance(state, slopes, row, h))))
        return _advance(state, slopes, self.tableau.weights, h)


def _advance(state: PhaseState, slopes: list[PhaseState], coefficients: tuple[float, ...], h: float) -> PhaseState:
    w, m = state
    for coefficient, (w_dot, m_dot) in zip(coefficients, slopes, strict=True):
        if coefficient:
            w, m = w + (h * coefficient) * w_dot, m + (h * coefficient) * m_dot
    return PhaseState(w, m)


class Heun(ExplicitRungeKutta):
    """Heun's scheme of order 2, two gradients a step (Hairer, Nørsett, Wanner, *Solving ODEs I*, table II.1.1)."""

    name = "heun"
    order = 2
    tableau = ButcherTableau(((), (1.0,)), (0.5, 0.5))


class RungeKutta4(ExplicitRungeKutta):
    """The classical scheme of order 4, four gradients a step (Kutta 1901; *Solving ODEs I*, table II.1.2)."""

    name = "rk4"
    order = 4
    tableau = ButcherTableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
