r"""Symbolic proofs about stationary noise; each function returns residuals that vanish if the closed forms are right.

Source: the derivations of docs/theory, claims C10 and C20.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

Expr = Any  # SymPy has no usable static types


def stationary_noise() -> list[Expr]:
    """Closed forms of the stationary covariance, the loss floor and its limits (claim C10).

    Returns:
        Entries of S − MSMᵀ − bbᵀ; the floor at κ → 0 minus (1/α + β)/4; LITE's ratio of floors minus its speed-up (C5).
    """
    alpha, beta, beta2, chi, kappa = sp.symbols("alpha beta beta2 chi kappa", positive=True)
    step = sp.Matrix([[1 - (1 + beta) * kappa, -(1 - alpha)], [kappa, 1 - alpha]])
    entry = sp.Matrix([-(1 + beta), 1])
    gamma = 1 + (2 - alpha) * beta
    scale = (alpha + (1 - alpha) * beta * kappa) * (2 * (2 - alpha) - gamma * kappa)
    numerator = (2 - alpha) * (1 + alpha * beta) + (1 - alpha) * beta * kappa * gamma
    covariance = sp.Matrix([[numerator / kappa, -gamma], [-gamma, 2]]) / scale
    balance = covariance - step * covariance * step.T - entry * entry.T
    floor = (numerator / (2 * scale)).subs(kappa, 0)
    ratio = chi * floor.subs(beta, beta2) / floor
    return [
        *(sp.simplify(balance[i, j]) for i, j in ((0, 0), (0, 1), (1, 1))),
        sp.simplify(floor - (1 / alpha + beta) / 4),
        sp.simplify(ratio - chi * (1 + alpha * beta2) / (1 + alpha * beta)),
    ]


def flow_noise() -> list[Expr]:
    """Stationary covariance of the flow, and the update rule's floor relative to the flow's (claim C20).

    Returns:
        Entries of JS + SJᵀ + bbᵀ; the floor; (1 − κ/κ*) rule/flow − 1 minus a fraction that is nonnegative for β ≥ 0;
            the upper bound minus that fraction, minus a square.
    """
    alpha, beta, kappa = sp.symbols("alpha beta kappa", positive=True)
    drift = sp.Matrix([[-beta * kappa, -1], [kappa, -alpha]])
    entry = sp.Matrix([-beta, 1])
    damping, loss = alpha + beta * kappa, 1 + alpha * beta + beta**2 * kappa
    covariance = sp.Matrix([[loss / kappa, -beta], [-beta, 1]]) / (2 * damping)
    balance = drift * covariance + covariance * drift.T + entry * entry.T
    gamma = 1 + (2 - alpha) * beta
    first, second = alpha + (1 - alpha) * beta * kappa, 2 * (2 - alpha) - gamma * kappa
    rule = ((2 - alpha) * (1 + alpha * beta) + (1 - alpha) * beta * kappa * gamma) / (2 * first * second)
    limit = 2 * (2 - alpha) / gamma
    more = rule / (loss / (4 * damping)) * (1 - kappa / limit) - 1
    fraction = beta * kappa * (alpha * (3 - 2 * alpha) + (1 - alpha) * beta * kappa) / ((2 - alpha) * loss * first)
    upper = (3 - 2 * alpha) / (2 - alpha) * beta * kappa / loss
    return [
        *(sp.simplify(balance[i, j]) for i, j in ((0, 0), (0, 1), (1, 1))),
        sp.simplify(kappa * covariance[0, 0] / 2 - loss / (4 * damping)),
        sp.simplify(more - fraction),
        sp.simplify(upper - fraction - 2 * (1 - alpha) ** 2 * (beta * kappa) ** 2 / ((2 - alpha) * loss * first)),
    ]
