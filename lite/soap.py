r"""The SOAP-LITE rule for a batch of equal-shape matrices: Adam in the eigenbasis of Shampoo's factors, split by LITE.

.. math::
    G' = Q_L^\top G Q_R, \quad M' \leftarrow \theta M' + (1-\theta)G', \quad V \leftarrow b_2V + (1-b_2)G'^2, \quad
    U' = \frac{p\odot(M' + (1-\theta)\beta_1G') + \chi(1-p)\odot(M' + (1-\theta)\beta_2G')}{\sqrt V},
    \quad W \leftarrow W - \eta\,Q_LU'Q_R^\top - \eta\lambda(P + \chi Q)W

with Adam's bias correction and ε. There the metric is diagonal, so that sharp are the coordinates of large V: p is the
soft mask of :func:`discretizations.matrices.sharp_masks.coordinate_mask`. Q_L and Q_R are eigenbases of L = EMA of GGᵀ
and R = EMA of GᵀG, refreshed every ``precondition_frequency`` steps by one orthogonal iteration. M' is kept in the
eigenbasis and rotated only when the basis changes.

The decay of flat directions beyond λ needs Q_LᵀWQ_R, half as much again as the rotations of G and U. It is therefore
applied when a matrix refreshes its basis, with the mask of that step and ``precondition_frequency`` times as strong.
Where the mask stands still, the weights shrink over a period by the same factor as with decay at every step but for
(fηλ(χ−1))², f the frequency: 10⁻⁵ at f = 10, ηλ = 3·10⁻⁴ and χ = 2.

Source: arXiv:2602.22681, Algorithm 1, with the metric of SOAP (Vyas et al., arXiv:2409.11321). Betas, ε, the first
step, which only sets the basis, bias correction and the order of refresh and update are those of SOAP's authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul

import torch
from torch import Tensor

from discretizations.matrices.eigenbases import (
    adam_direction,
    factor_step_,
    from_eigenbasis,
    second_moment_step,
    to_eigenbasis,
)
from discretizations.matrices.sharp_masks import (
    CoordinateThresholds,
    adapt_coordinate_thresholds,
    coordinate_mask,
    passing_fractions,
)
from lite.muon import PLAIN_FRACTION
from lite.soap_basis import SOAPState, refreshed_where_regular, single, with_first_bases
from lite.tensor_settings import acts
from riemannian_ode.flow import lite_velocity, momentum_step, position_step

_INITIAL_HI, _INITIAL_LO = 1.0, 0.5  # thresholds before the first step, as AdamW-LITE's published ones
_MATRIX = (-2, -1)
_QR, _PASSES = 8.0, 2000.0  # see SOAPRule.cost


@dataclass(frozen=True, kw_only=True)
class SOAPRule:
    """Hyperparameters of one group at one step, in theory's units of β (1/θ would be Nesterov).

    Args:
        lr: η.
        betas: θ and b₂; b₂ is also the coefficient of L and R, as published.
        eps: ε, added before bias correction as published.
        weight_decay: λ, decoupled.
        chi: χ ≥ 1.
        beta_sharp: β₁, beside a summed momentum.
        beta_flat: β₂.
        sharp_fraction: r in [0, 1]; 1 has no flat part, at most 10⁻⁶ is plain SOAP as it is plain Muon.
        precondition_frequency: Steps f between refreshes of a matrix's eigenbasis.
        max_precondition_dim: A longer side is not rotated.
    """

    lr: float
    betas: tuple[float, float] = (0.95, 0.95)
    eps: float = 1e-8
    weight_decay: float
    chi: float
    beta_sharp: float
    beta_flat: float
    sharp_fraction: float
    precondition_frequency: int = 10
    max_precondition_dim: int = 10_000

    @property
    def is_plain(self) -> bool:
        """Whether neither β nor χ acts."""
        return self.sharp_fraction <= PLAIN_FRACTION

    @property
    def is_damped(self) -> bool:
        """Whether G' is needed beside M'."""
        return not self.is_plain and (acts(self.beta_sharp, 0.0) or acts(self.beta_flat, 0.0))

    @property
    def is_split(self) -> bool:
        """Whether sharp and flat coordinates are treated differently."""
        differs = acts(self.chi, 1.0) or acts(self.beta_flat, self.beta_sharp)
        return differs and not self.is_plain and self.sharp_fraction < 1.0

    def due(self, step: int, numbers: Sequence[int]) -> list[int]:
        """Places in a batch of the matrices that refresh their basis at a step.

        Number i does at the steps t > 0 with (t + i) mod f = 0, so that each step has its share of the work.
        """
        if step == 0:
            return []
        return [place for place, i in enumerate(numbers) if (step + i) % self.precondition_frequency == 0]

    def phase(self, step: int) -> int:
        """Smallest number of steps after which the same matrices are due, 0 at the first gradient only."""
        return step and (step - 1) % self.precondition_frequency + 1

    def cost(self, rows: int, columns: int) -> float:
        r"""Operations of a step for a matrix, a refresh counted by its share.

        A rotated side s beside o: half of the factor's product, :math:`s^2o`, G there and U back, :math:`4s^2o`, and at
        every f-th step :math:`LQ`, its QR and the rotation of M', :math:`2s^3 + 8s^3 + 4s^2o`. QR's operations count
        threefold and the passes over m, v and G as 2000 a number: so long they took beside products (float32, one CPU
        thread, sides of 512 and 1024).

        Args:
            rows: m.
            columns: n.
        """
        total = _PASSES * rows * columns
        for side, other in ((rows, columns), (columns, rows)):
            if side <= self.max_precondition_dim:
                refresh = (2.0 + _QR) * side**3 + 4.0 * side * side * other
                total += 5.0 * side * side * other + refresh / self.precondition_frequency
        return total


def initial_soap_state(rule: SOAPRule, w: Tensor) -> SOAPState:
    """State before the first gradient.

    Args:
        rule: Hyperparameters; only ``max_precondition_dim`` counts.
        w: Parameters, shape ``(m, n)`` or ``(batch, m, n)``.
    """
    wide, (*batch, rows, columns) = torch.promote_types(w.dtype, torch.float32), w.shape

    def square(side: int) -> Tensor | None:
        return w.new_zeros(*batch, side, side, dtype=wide) if side <= rule.max_precondition_dim else None

    def basis(side: int) -> Tensor | None:
        one = square(side)
        return None if one is None else one.add_(torch.eye(side, dtype=wide, device=w.device))

    return SOAPState(
        m=torch.zeros_like(w, dtype=wide),
        v=torch.zeros_like(w, dtype=wide),
        left=square(rows),
        right=square(columns),
        left_basis=basis(rows),
        right_basis=basis(columns),
        hi=w.new_full(batch, _INITIAL_HI, dtype=wide),
        lo=w.new_full(batch, _INITIAL_LO, dtype=wide),
    )


def soap_update(
    rule: SOAPRule, w: Tensor, g: Tensor, state: SOAPState, *, step: int, numbers: Sequence[int] | None = None
) -> tuple[Tensor, SOAPState]:
    """One step for matrices of equal shape; the arguments are not changed in place.

    Args:
        rule: Hyperparameters.
        w: Parameters, shape ``(m, n)`` or ``(batch, m, n)``.
        g: Gradients, shape of ``w``.
        state: State before the step.
        step: How many gradients these matrices have seen before; the first one sets the basis and moves nothing.
        numbers: Running number of each matrix of the batch, by default its place; they stagger the refreshes.

    Returns:
        New parameters, at least float32, and new state; bases that are not refreshed are those of the old state.

    Source: arXiv:2602.22681, Algorithm 1; Vyas et al., arXiv:2409.11321, Algorithm 3.
    """
    left, right = (None if factor is None else factor.clone() for factor in (state.left, state.right))
    return soap_update_(rule, w, g, state._replace(left=left, right=right), step=step, numbers=numbers)


def soap_update_(
    rule: SOAPRule,
    w: Tensor,
    g: Tensor,
    state: SOAPState,
    *,
    step: int,
    numbers: Sequence[int] | None = None,
    usable: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, SOAPState]:
    """:func:`soap_update` with the factors, the largest part of the state that every step changes, changed in place.

    Args:
        rule: Hyperparameters.
        w: Parameters.
        g: Gradients, zero where they are not usable.
        state: State before the step; ``left`` and ``right`` are those of the state returned.
        step: See :func:`soap_update`.
        numbers: See :func:`soap_update`.
        usable: Whether the factors may change, 0-dimensional; ``None`` is yes.
        count: The gradients seen before, where ``step`` is only their phase.
    """
    w, g = w.to(state.v.dtype), g.to(state.v.dtype)
    share = 1.0 - rule.betas[1]
    weight = share if usable is None else torch.where(usable, g.new_full((), share), 0.0)
    transposed = g.mT.contiguous()
    if state.left is not None:
        factor_step_(state.left, g.contiguous(), weight=weight)
    if state.right is not None:
        factor_step_(state.right, transposed, weight=weight)
    if step == 0:
        return w, with_first_bases(state, g)

    due = rule.due(step, range(w.size(0) if w.ndim == 3 else 1) if numbers is None else numbers)
    u, state = _direction(rule, w, transposed.mT, state, count=step if count is None else count, due=due)
    decay = rule.weight_decay * w if acts(rule.weight_decay, 0.0) else None
    w = position_step(w, lite_velocity(u, decay=decay), eta=rule.lr)
    # Only now, so that no gradient helps to choose the basis that it is seen in.
    return w, refreshed_where_regular(state, due, step=step, count=count) if due else state


def _direction(
    rule: SOAPRule, w: Tensor, g: Tensor, state: SOAPState, *, count: int | Tensor, due: list[int]
) -> tuple[Tensor, SOAPState]:
    """LITE's direction without λW, and the state with new moments and thresholds."""
    theta, b2 = rule.betas
    bases = state.left_basis, state.right_basis
    g = to_eigenbasis(g, *bases)
    m = momentum_step(state.m, g, alpha=1.0 - theta, gain=1.0 - theta)
    v = second_moment_step(state.v, g, beta2=b2)
    thresholds = CoordinateThresholds(state.hi, state.lo)
    flatness: Tensor | None = None
    if rule.is_split:
        flatness = 1.0 - coordinate_mask(v, thresholds, dim=_MATRIX)
        passing = passing_fractions(v, thresholds, dim=_MATRIX)
        thresholds = adapt_coordinate_thresholds(thresholds, passing, sharp_fraction=rule.sharp_fraction)
    # Mask and metric are both diagonal here, so the mask may act first, and there is one division.
    covector = lite_velocity(
        m,
        g if rule.is_damped else None,
        flat=None if flatness is None else partial(mul, flatness),
        chi=rule.chi,
        beta_sharp=(1.0 - theta) * rule.beta_sharp,
        beta_flat=(1.0 - theta) * rule.beta_flat,
    )
    u = adam_direction(covector, v, beta1=theta, beta2=b2, step=count, eps=rule.eps)
    if flatness is not None and acts(rule.weight_decay, 0.0) and acts(rule.chi, 1.0):
        strength = rule.precondition_frequency * rule.weight_decay * (rule.chi - 1.0)
        for i in due:
            left, right = (single(basis, i) for basis in bases)
            single(u, i).add_(strength * single(flatness, i) * to_eigenbasis(single(w, i), left, right))
    return from_eigenbasis(u, *bases), state._replace(m=m, v=v, hi=thresholds.hi, lo=thresholds.lo)
