"""The second moment in the eigenbasis of Kronecker factors: SOAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from discretizations.matrices.eigenbases import (
    factor_step_,
    first_eigenbases,
    from_eigenbasis,
    refreshed_eigenbasis,
    to_eigenbasis,
)
from discretizations.matrices.products import product
from discretizations.preconditioners._registry import PRECONDITIONERS
from discretizations.preconditioners.masks import CoordinateProjector, wide_dtype
from discretizations.preconditioners.second_moment import CoordinateMoment, diagonal_metric
from riemannian_ode.flow import Projector
from riemannian_ode.preconditioner import Memory, spread

Divergence: TypeAlias = Literal["frobenius", "kl"]
DIVERGENCES: tuple[Divergence, ...] = ("frobenius", "kl")
Moment: TypeAlias = Literal["elementwise", "kronecker"]
_QR, _PASSES = 8.0, 2000.0  # see EigenbasisMoment.cost
_SIDES = (("left", -2), ("right", -1))
_BASES = ("left_basis", "right_basis")
_VALUES = ("left_values", "right_values")


@PRECONDITIONERS.register(place=5)
@dataclass(frozen=True, kw_only=True)
class EigenbasisMoment(CoordinateMoment):
    r"""SOAP's metric: Adam's :math:`\mathrm{diag}(\sqrt V + \epsilon)` in the eigenbasis of Shampoo's factors.

    .. math::
        X' = Q_L^\top X Q_R, \qquad \dot V = (1-\theta_2)(G'^2 - V), \qquad
        \dot L = (1-\theta_2)(GG^\top - L), \quad \dot R = (1-\theta_2)(G^\top G - R)

    Momentum is kept in the eigenbasis. Every ``frequency`` units of time one orthogonal iteration refreshes the basis:
    momentum is rotated, and V is permuted like the columns. The first gradient only sets the eigenbasis. L and R are
    stored as lower triangles; their other entries have no meaning.

    With ``divergence="kl"`` the factors fit the second moment in the Kullback–Leibler divergence: each factor takes in
    gradients whitened by the other one, and its eigenvalues λ are averages in the stored basis,

    .. math::
        \dot L = (1-\theta_2)\left(\tfrac1n G R^{-1} G^\top - L\right), \qquad
        \dot\lambda^L_i = (1-\theta_2)\left(\tfrac1n \textstyle\sum_j G'^2_{ij}/\lambda^R_j - \lambda^L_i\right)

    with :math:`R^{-1} = Q_R\,\mathrm{diag}(\lambda^R + \epsilon)^{-1}Q_R^\top`, and likewise for R. With
    ``moment="kronecker"`` they also define the metric, :math:`V_{ij} = \lambda^L_i\lambda^R_j` (KL-Shampoo). Otherwise
    V is averaged entry by entry (KL-SOAP). λ starts at the root mean square of the first gradient on both sides, so
    that the metric scales with f; the authors' code starts at 0.1.

    Args:
        beta2: θ₂ of V, L, R and λ.
        eps: ε.
        frequency: f, time between refreshes. Matrix number i of a batch is refreshed after the gradients t with (t + i)
            mod f = 0, which spreads the work evenly over steps.
        max_dim: Longest side that is rotated.
        divergence: ``"frobenius"`` for Shampoo's factors, or ``"kl"``.
        moment: ``"elementwise"`` for SOAP, or ``"kronecker"``.
        mask: Sharp coordinates in the eigenbasis; ``None`` for a base method.

    Raises:
        ValueError: for a Kronecker moment without the KL divergence, or with a side that is not rotated.

    Source: Vyas et al., arXiv:2409.11321, Algorithm 3; start, bias correction, and the order of refresh and update
    follow the authors' code. Lin et al., arXiv:2509.03378 (KL).
    """

    name = "eigenbasis-moment"
    needs_matrices = True
    has_frame = True
    differentiable = False  # bases are completed and refreshed by QR decompositions, and jump
    skips_first = True

    frequency: int = 10
    max_dim: int = 10_000
    divergence: Divergence = "frobenius"
    moment: Moment = "elementwise"

    def __post_init__(self) -> None:
        if self.moment == "kronecker" and self.divergence != "kl":
            raise ValueError("moment = 'kronecker' needs factors fitted with divergence = 'kl'; set both.")

    def initial(self, w: Tensor, *, batch: int = 0) -> Memory:
        *leading, m, n = w.shape
        wide = wide_dtype(w)
        memory: Memory = {"v_mass": self.initial_mass(w, batch=batch)}
        if self.moment == "elementwise":
            memory["v"] = torch.zeros_like(w, dtype=wide)
        for key, side in (("left", m), ("right", n)):
            if self.divergence == "kl":
                memory[f"{key}_values"] = w.new_ones(*leading, side, dtype=wide)
            if side <= self.max_dim:
                zero = w.new_zeros(*leading, side, side, dtype=wide)
                memory |= {key: zero, f"{key}_basis": zero + torch.eye(side, dtype=wide, device=w.device)}
        return memory | (self.mask.initial(w, batch=batch) if self.mask else {})

    def rates(self) -> Mapping[str, float | None]:
        return dict.fromkeys(("v", "v_mass", "left", "right", *_VALUES), 1.0 - self.beta2)

    def averaged(self, memory: Memory, g: Tensor, frame_g: Tensor) -> Memory:
        square = frame_g * frame_g
        taken = {"v_mass": torch.ones_like(memory["v_mass"])}
        if "v" in memory:
            taken["v"] = square
        if self.divergence == "kl":
            left, right = (memory[key] + self.eps for key in _VALUES)
            taken["left_values"] = (square / right[..., None, :]).mean(-1)
            taken["right_values"] = (square / left[..., :, None]).mean(-2)
        halves = {key: self._half(memory, g, key) for key, _ in _SIDES if key in memory}
        return taken | {key: x @ x.mT for key, x in halves.items()}

    def _half(self, memory: Memory, g: Tensor, side: str) -> Tensor:
        """The matrix X whose XXᵀ a side's factor takes in: G or Gᵀ, with KL divergence whitened by the other factor."""
        x, other = (g, "right") if side == "left" else (g.mT, "left")
        if self.divergence == "frobenius":
            return x
        scale = ((memory[f"{other}_values"] + self.eps) * x.size(-1)).rsqrt()
        basis = memory.get(f"{other}_basis")
        whitened: Tensor = (x if basis is None else product(x, basis)) * scale[..., None, :]
        return whitened

    def observe(self, memory: Memory, g: Tensor, frame_g: Tensor, *, h: Any = 1.0) -> Memory:
        # V and the mass are averaged as usual; L and R compute only half of the symmetric product.
        factors = ("left", "right")
        moments = {key: value for key, value in memory.items() if key not in factors}
        return memory | super().observe(moments, g, frame_g, h=h) | self.observed_factors(memory, g, h=h)

    def observed_factors(
        self, memory: Memory, g: Tensor, *, h: Any = 1.0, usable: Tensor | None = None, in_place: bool = False
    ) -> Memory:
        """L and R after taking in a gradient.

        Args:
            memory: Memory before the gradient.
            g: Gradient, not in the frame.
            h: Step size, in units of time.
            usable: 0-dimensional, in the factors' dtype: 1 if they may change, else 0; ``None`` is 1.
            in_place: Whether to change the tensors of ``memory``, which are the largest that a step changes.
        """
        rate = (1.0 - self.beta2) * h
        weight = rate if usable is None else rate * usable
        factors: Memory = {}
        for key, _ in _SIDES:
            if key in memory:
                factors[key] = memory[key] if in_place else memory[key].clone()
                factor_step_(factors[key], self._half(memory, g, key).contiguous(), weight=weight)
        return factors

    def first(self, memory: Memory, g: Tensor) -> Memory:
        """Memory after the first gradient, which sets the eigenbasis and makes no step."""
        if self.divergence == "kl":
            size = g.to(memory["left_values"].dtype).square().mean((-2, -1), keepdim=True).sqrt()[..., 0]
            memory = memory | {key: size.expand_as(memory[key]).clone() for key in _VALUES}
        memory = memory | self.observed_factors(memory, g)
        return memory | self.first_bases(memory, g)

    def first_bases(self, memory: Memory, g: Tensor) -> Memory:
        """Eigenbases of the factors after the first gradient."""
        count = sum(key in memory for key in _BASES)
        if not count:
            return {}
        bases = first_eigenbases(g, both=count == 2)  # the shorter side is always within the limit
        # In row order, as they are stored: the last bits of products depend on strides.
        return {key: basis.contiguous() for key, basis in zip(_BASES, bases, strict=True) if basis is not None}

    def raise_index(self, memory: Memory, covector: Tensor) -> Tensor:
        raised: Tensor
        if self.moment == "kronecker":
            raised = covector / (self.second_moment(memory).sqrt() + self.eps)
        else:
            raised = covector / diagonal_metric(memory, eps=self.eps, eps_first=True)
        return raised

    def second_moment(self, memory: Memory) -> Tensor:
        if self.moment == "kronecker":
            left, right = (memory[key].clamp(min=0.0) for key in _VALUES)
            product_of_sides: Tensor = left[..., :, None] * right[..., None, :]
            return product_of_sides
        return super().second_moment(memory)

    def to_frame(self, memory: Memory, x: Tensor) -> Tensor:
        return to_eigenbasis(x, memory.get("left_basis"), memory.get("right_basis"))

    def from_frame(self, memory: Memory, x: Tensor) -> Tensor:
        return from_eigenbasis(x, memory.get("left_basis"), memory.get("right_basis"))

    def with_flat_decay(
        self, u: Tensor, flat: Projector, memory: Memory, shrinkage: Tensor, *, due: Sequence[int] | None
    ) -> Tensor:
        """In an optimizer, the extra decay of flat directions acts only at refreshes, ``frequency`` times as strongly.

        Transforming W to the frame is costly. With a fixed mask, the weights shrink over a period by the same factor as
        with decay at every step, up to (fηλ(χ−1))²: 10⁻⁵ at f = 10, ηλ = 3·10⁻⁴ and χ = 2.
        """
        if due is None or not isinstance(flat, CoordinateProjector):
            decayed: Tensor = super().with_flat_decay(u, flat, memory, shrinkage, due=due)
            return decayed
        for i in due:
            bases: Memory = {key: single(memory[key], i) for key in _BASES if key in memory}
            part = single(flat.flatness, i) * self.to_frame(bases, single(shrinkage, i))
            single(u, i).add_(self.frequency * part)
        return u

    def due(self, step: int, numbers: Sequence[int] = (0,)) -> list[int]:
        return [place for place, i in enumerate(numbers) if step and (step + i) % self.frequency == 0]

    def phase(self, step: int) -> int:
        return step and (step - 1) % self.frequency + 1

    def jump(
        self, memory: Memory, m: Tensor, step: int, *, due: Sequence[int] = (0,), is_phase: bool = False
    ) -> tuple[Memory, Tensor]:
        """Memory and momentum after a refresh of the eigenbases; the moments are changed in place.

        A factor of t + 1 gradients m×n has rank at most (t + 1)·min(m, n). While that is less than its side, rounding
        would determine the rest of the new basis, so such matrices keep the first basis until their next turn.

        Args:
            memory: Memory after a step.
            m: Momentum after the step.
            step: t, gradients after the first one.
            due: Batch indices.
            is_phase: Whether ``step`` is the :meth:`phase` instead of the step, as in compiled steps.
        """
        shorter, longer = sorted(m.shape[-2:])
        needed = -(-longer // max(1, shorter))
        is_regular = step + 1 >= needed  # for a phase, the true count is larger
        if not due or not (is_regular or is_phase):
            return memory, m
        if is_regular:
            new, turned = self._refreshed(memory, m, due)
            return memory | new, turned
        kept = {key: memory[key].clone() for key in ("v", *_VALUES) if key in memory}
        new, turned = self._refreshed(memory | kept, m.clone(), due)
        # The count follows from the mass of the average, 1 − θ₂ᵗ.
        regular = memory["v_mass"] >= 1.0 - self.beta2 ** (needed - 1.5)
        chosen = {key: torch.where(spread(regular, new[key]), new[key], memory[key]) for key in new}
        return memory | chosen, torch.where(spread(regular, m), turned, m)

    def _refreshed(self, memory: Memory, m: Tensor, due: Sequence[int]) -> tuple[Memory, Tensor]:
        """Moments, changed in place, and new bases after one orthogonal iteration for the batch indices ``due``."""
        bases = {key: memory[key].clone() for key in _BASES if key in memory}
        moments = {key: memory[key] for key in ("v", *_VALUES) if key in memory}
        for i in due:
            one_m = single(m, i)
            old: Memory = {key: single(basis, i) for key, basis in bases.items()}
            new: Memory = {}
            for side, axis in _SIDES:
                if side in memory:
                    basis = old[f"{side}_basis"]
                    new[f"{side}_basis"], order = refreshed_eigenbasis(single(memory[side], i), basis)
                    if "v" in moments:
                        one_v = single(moments["v"], i, m)
                        one_v.copy_(one_v.index_select(axis, order))
                    if f"{side}_values" in moments:
                        values = single(moments[f"{side}_values"], i, m)
                        values.copy_(values.index_select(-1, order))
            one_m.copy_(self.to_frame(new, self.from_frame(old, one_m)))
            for key, basis in new.items():
                old[key].copy_(basis)
        changed: Memory = {**moments, **bases}
        return changed, m

    def cost(self, rows: int, columns: int) -> float:
        r"""Operations per step for a matrix, with the cost of a refresh spread over its period.

        A rotated side s with other side o needs half of the factor's product, :math:`s^2o`; the rotations of G and U,
        :math:`4s^2o`; and at every f-th step :math:`LQ`, its QR and the rotation of M', :math:`2s^3 + 8s^3 + 4s^2o`.
        QR's operations count threefold, and the passes over m, v and G count as 2000 operations per number. These
        weights reflect measured times relative to products (float32, one CPU thread, sides of 512 and 1024).
        """
        total = _PASSES * rows * columns
        for side, other in ((rows, columns), (columns, rows)):
            if side <= self.max_dim:
                refresh = (2.0 + _QR) * side**3 + 4.0 * side * side * other
                total += 5.0 * side * side * other + refresh / self.frequency
        return total


def single(x: Tensor, place: int, matrix: Tensor | None = None) -> Tensor:
    """View of one batch entry of ``x``; ``matrix`` (by default ``x``) shows whether there is a batch."""
    return x if (x if matrix is None else matrix).ndim == 2 else x[place]
