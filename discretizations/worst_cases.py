r"""Exact worst cases of the update rule on convex objectives, by semidefinite programming (needs the ``pep`` extra).

With constant, commuting A, B and P the rule on objectives with :math:`\nabla^2 f \preceq L_sP + L_fQ` becomes, in the
variables :math:`(L_sP + L_fQ)^{1/2}w`, a rule on convex 1-smooth objectives: block i has the step
:math:`\kappa_i = \eta a_iL_i` and the damping :math:`\beta_i`. PEPit turns the largest loss after N steps into a
semidefinite program, whose optimum some objective attains.

Source: Taylor, Hendrickx and Glineur, arXiv:1502.05666; Goujaud et al., arXiv:2201.04040 (PEPit). See docs/theory,
claim C23.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from discretizations.certificate import convex_offset, lookahead_certificate
from discretizations.stability import check_damping
from riemannian_ode.checks import is_number, require_choice, require_count, require_extra, require_positive, shown

Smoothness: TypeAlias = Literal["joint", "blockwise"]

LIBRARIES = ("PEPit", "cvxpy", "clarabel")  # part of the pep extra

_SOLVER = "CLARABEL"  # interior point; SCS, a first-order method, is accurate to 1e−4 here
_TOLERANCES = {"tol_gap_abs": 1e-7, "tol_gap_rel": 1e-7, "tol_feas": 1e-7}  # its default of 1e−8 is often out of reach
_GAP = 1e-5  # largest relative difference between the primal and the dual value


@dataclass(frozen=True, kw_only=True)
class RuleBlock:
    r"""A block of the update rule, in units in which its curvature is at most 1.

    Args:
        kappa: κ = ηaL > 0.
        beta: β > −1/(2 − α) in the theory's units.
        lookahead: c of the point :math:`w_N + c\,\eta Am_{N-1}` at which the loss is evaluated.
        weight: ω > 0, weight of the block's squared distance in the size of the start.

    Raises:
        ValueError: for a κ or ω that is not positive and finite, or a c that is not a number.
    """

    kappa: float
    beta: float = 0.0
    lookahead: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("kappa", "weight"):
            require_positive(name, getattr(self, name))
        if not is_number(self.lookahead) or not np.isfinite(self.lookahead):
            raise ValueError(f"lookahead = {self.lookahead!r} must be a finite number.")


def worst_case(
    blocks: Sequence[RuleBlock],
    *,
    alpha: float,
    steps: int,
    loss_weight: float = 0.0,
    smoothness: Smoothness = "joint",
) -> float:
    r"""The largest loss after N steps from rest, over all convex objectives and all starts of size at most 1.

    .. math::
        \max\; f(w_N + c\,\eta Am_{N-1}) - f_* \quad\text{with}\quad
        \sum_i\omega_i\lVert w_0 - w_*\rVert_i^2 + n\,(f(w_0) - f_*) \le 1

    The maximum is over all dimensions; N + 2 per block suffice.

    Args:
        blocks: The blocks: one for the rule without a split, two for LITE.
        alpha: α in (0, 1]; 1 is gradient descent with the step κ(1 + β).
        steps: N ≥ 1. Time grows like N³ to N⁴: about a second at N = 10.
        loss_weight: n ≥ 0, the weight of the first loss in the size of the start.
        smoothness: ``"joint"`` for ∇²f ≼ 1, which is exact; ``"blockwise"`` bounds each block's own curvature only and
            gives an upper bound, because no exact conditions are known for this class.

    Raises:
        MissingExtraError: without the ``pep`` extra.
        ValueError: for arguments out of range.
        ArithmeticError: if the solver finds no optimum.

    Source: docs/theory, claim C23.
    """
    require_extra("pep", "a worst case", LIBRARIES)
    require_choice("smoothness", smoothness, ("joint", "blockwise"))
    if not isinstance(blocks, Sequence) or not all(isinstance(block, RuleBlock) for block in blocks):
        raise ValueError(f"blocks = {shown(blocks)} must be a list of RuleBlock.")
    if not blocks:
        raise ValueError("blocks is empty; give at least one RuleBlock.")
    require_count("steps", steps)
    require_positive("loss_weight", loss_weight, allow_zero=True)
    check_damping(alpha, np.array([block.beta for block in blocks]))
    from PEPit import PEP, null_expression, null_point
    from PEPit.functions import BlockSmoothConvexFunctionCheap, SmoothConvexFunction

    problem = PEP()
    partition = problem.declare_block_partition(d=len(blocks))
    if smoothness == "joint":
        f = problem.declare_function(SmoothConvexFunction, L=1.0)
    else:
        ones = [1.0] * len(blocks)
        f = problem.declare_function(BlockSmoothConvexFunctionCheap, partition=partition, L=ones)
    # w_* = 0 and f_* = 0: with a free minimiser the Gram matrix would be unbounded, and the problem without interior.
    f.add_point((null_point, null_point, null_expression))
    start = problem.set_initial_point()

    def parts(point: Any) -> list[Any]:
        return [partition.get_block(point, i) for i in range(len(blocks))]

    size = loss_weight * f(start)
    for block, offset in zip(blocks, parts(start), strict=True):
        size = size + block.weight * offset**2
    problem.set_initial_condition(size <= 1.0)
    w, m = start, [0.0 * start for _ in blocks]
    for _ in range(steps):
        g = parts(f.gradient(w))
        m = [(1.0 - alpha) * momentum + gradient for momentum, gradient in zip(m, g, strict=True)]
        for block, momentum, gradient in zip(blocks, m, g, strict=True):
            w = w - block.kappa * (momentum + block.beta * gradient)
    for block, momentum in zip(blocks, m, strict=True):
        w = w + block.lookahead * block.kappa * momentum
    problem.set_performance_metric(f(w))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # cvxpy warns about accuracy; here the duality gap decides
        value = problem.solve(verbose=0, wrapper="cvxpy", solver=_SOLVER, **_TOLERANCES)
    attained = problem.wrapper.objective.value
    if value is None or not abs(value - attained) <= _GAP * abs(value):
        status = problem.wrapper.prob.status
        raise ArithmeticError(
            f"the solver {_SOLVER} ended with {status!r} for {list(blocks)!r}, alpha = {alpha!r}, steps = {steps}: the "
            "worst case is unknown. Take fewer steps, or κ and weights that differ less."
        )
    return float(value)


def convex_rate_tightness(kappa: Sequence[float], beta: Sequence[float], *, alpha: float, steps: int) -> float:
    """Ratio of the exact worst case of f(w_K + cηAm_{K−1}) − f_* to claim C8's bound; at most 1.

    Args:
        kappa: κ of each block, below its limit for ω = 0, see :func:`discretizations.lookahead_certificate`.
        beta: β of each block.
        alpha: α in (0, 1).
        steps: K.

    Raises:
        MissingExtraError: without the ``pep`` extra.
        ValueError: for κ outside its range, or different numbers of blocks.

    Source: docs/theory, claim C23.
    """
    if len(kappa) != len(beta):
        raise ValueError(f"kappa has {len(kappa)} blocks and beta {len(beta)}; give one of each for every block.")
    certificate = lookahead_certificate(alpha, np.asarray(beta))
    offset = float(convex_offset(np.asarray(kappa), alpha, np.asarray(beta), certificate).max())
    blocks = [
        RuleBlock(kappa=float(k), beta=float(b), lookahead=float(c), weight=0.5 / (k * (b + 1.0 / alpha)))
        for k, b, c in zip(kappa, beta, certificate.lookahead, strict=True)
    ]
    return worst_case(blocks, alpha=alpha, steps=steps, loss_weight=offset) * (steps + offset)


def minimax_loss(steps: int) -> np.ndarray:
    r"""Smallest worst case of any method with N gradients at L‖w₀ − w_*‖² = 1, :math:`1/(2\theta_N^2)` from N = 1 on.

    With :math:`\theta_0 = 1`, :math:`\theta_{k+1} = \frac12(1 + \sqrt{1 + 4\theta_k^2})`, and 8 instead of 4 in the
    last step.

    Args:
        steps: Largest N.

    Returns:
        Shape ``(steps,)``.

    Source: Kim and Fessler, arXiv:1406.5468 (the optimized gradient method); Drori, arXiv:1606.01424 (no method is
    better).
    """
    require_count("steps", steps)
    theta, losses = 1.0, []
    for _ in range(steps):
        losses.append(2.0 / (1.0 + np.sqrt(1.0 + 8.0 * theta**2)) ** 2)
        theta = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * theta**2))
    return np.array(losses)
