"""Explicit Runge–Kutta schemes with fixed steps, defined by their coefficients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from riemannian_ode.dynamics import RISHD
from riemannian_ode.integrators.base import INTEGRATORS, OneStepIntegrator, PhaseState

Tree: TypeAlias = tuple["Tree", ...]  # a rooted tree by its branches; a vertex alone is ()


@dataclass(frozen=True)
class ButcherTableau:
    r"""Coefficients of an explicit Runge–Kutta scheme, :math:`k_i = f(t + c_ih, y + h\sum_{j<i}a_{ij}k_j)`.

    Args:
        stages: Rows a_i1 … a_i,i−1; the first row is empty.
        weights: b_i; y' = y + h Σ b_i k_i. The nodes c_i are the row sums of ``stages``.

    Raises:
        ValueError: if the rows do not form a strictly lower triangle, or Σ b_i ≠ 1 (no consistency).
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    nodes: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        if [len(row) for row in self.stages] != list(range(len(self.weights))):
            raise ValueError(
                f"stages has rows of {[len(row) for row in self.stages]} coefficients for {len(self.weights)} weights; "
                "an explicit scheme's rows have 0, 1, 2, … coefficients."
            )
        if abs(sum(self.weights) - 1.0) > 1e-12:
            raise ValueError(f"weights sum to {sum(self.weights):.6g}; a consistent scheme's sum to 1.")
        object.__setattr__(self, "nodes", tuple(math.fsum(row) for row in self.stages))

    def order_conditions(self, highest: int = 5, weights: tuple[float, ...] | None = None) -> dict[int, float]:
        r"""Largest violation of the order conditions of each order; a scheme has order q if all up to q vanish.

        A rooted tree τ with branches τ₁ … τ_k gives the condition :math:`\sum_i b_i\Phi_i(\tau) = 1/\gamma(\tau)` with
        :math:`\Phi_i(\tau) = \prod_j\sum_l a_{il}\Phi_l(\tau_j)` and
        :math:`\gamma(\tau) = |\tau|\prod_j\gamma(\tau_j)`.

        Args:
            highest: Order of the last conditions.
            weights: Other weights for the same stages (those of an embedded scheme).

        Source: Hairer, Nørsett, Wanner, *Solving ODEs I*, II.2, theorem 2.13.
        """
        b = np.array(self.weights if weights is None else weights)
        a = np.zeros((len(b), len(b)))
        for i, row in enumerate(self.stages):
            a[i, :i] = row

        def elementary(tree: Tree) -> tuple[np.ndarray, int, int]:
            """Φ of every stage, |τ| and γ."""
            phi, size, density = np.ones(len(b)), 1, 1
            for branch in tree:
                branch_phi, branch_size, branch_density = elementary(branch)
                phi, size, density = phi * (a @ branch_phi), size + branch_size, density * branch_density
            return phi, size, size * density

        def violation(tree: Tree) -> float:
            phi, _, density = elementary(tree)
            return abs(float(b @ phi) - 1 / density)

        return {order: max(map(violation, rooted_trees(order))) for order in range(1, highest + 1)}


def rooted_trees(order: int) -> list[Tree]:
    """All rooted trees with ``order`` vertices (1, 1, 2, 4, 9, 20, …), each the sorted tuple of its branches.

    Source: definition; Hairer, Nørsett, Wanner, *Solving ODEs I*, II.2, table 2.1.
    """
    if order == 1:
        return [()]
    # Every tree is a tree with one vertex fewer plus a leaf.
    return sorted({grown for tree in rooted_trees(order - 1) for grown in _with_a_leaf_more(tree)})


def _with_a_leaf_more(tree: Tree) -> Iterator[Tree]:
    yield tuple(sorted((*tree, ())))
    for i, branch in enumerate(tree):
        for grown in _with_a_leaf_more(branch):
            yield tuple(sorted((*tree[:i], grown, *tree[i + 1 :])))


class ExplicitRungeKutta(OneStepIntegrator):
    """Any explicit scheme: subclass it with a name, an order and a :class:`ButcherTableau`."""

    handles_memory = True
    tableau: ClassVar[ButcherTableau]

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        slopes: list[PhaseState] = []
        for row, node in zip(self.tableau.stages, self.tableau.nodes, strict=True):
            slopes.append(PhaseState(*system.rates(t + node * h, *advance(state, slopes, row, h))))
        return advance(state, slopes, self.tableau.weights, h)


def advance(state: PhaseState, slopes: Sequence[PhaseState], coefficients: tuple[float, ...], h: Any) -> PhaseState:
    """y + h Σ c_i k_i.

    Args:
        state: y.
        slopes: k_i.
        coefficients: c_i.
        h: Step; a number, or one per member.
    """
    w, m = state
    for coefficient, (w_dot, m_dot) in zip(coefficients, slopes, strict=True):
        if coefficient:
            w, m = w + (h * coefficient) * w_dot, m + (h * coefficient) * m_dot
    return PhaseState(w, m)


@INTEGRATORS.register(place=40)
class Heun(ExplicitRungeKutta):
    """Heun's scheme of order 2, two gradients per step (Hairer, Nørsett, Wanner, *Solving ODEs I*, table II.1.1).

    With noise it is the stochastic Heun scheme. Both stages use the same ΔB, so it converges to the Stratonovich
    solution. Its weak order is 2 under additive noise because Σb_i c_i² = 1/2, which no scheme of order 3 or more has.

    Source (noise): Rümelin, SIAM J. Numer. Anal. 19 (1982); Kloeden and Platen, *Numerical Solution of Stochastic
    Differential Equations*, section 15.1.
    """

    name = "heun"
    order = 2
    stochastic, strong_order, weak_order = "stratonovich", 1.0, 2.0
    noise_place = 0.5
    tableau = ButcherTableau(((), (1.0,)), (0.5, 0.5))


@INTEGRATORS.register(place=50)
class RungeKutta4(ExplicitRungeKutta):
    """The classical scheme of order 4, four gradients per step (Kutta 1901; *Solving ODEs I*, table II.1.2)."""

    name = "rk4"
    order = 4
    tableau = ButcherTableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
