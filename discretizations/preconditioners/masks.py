"""Sharp masks: which directions count as sharp, by a preconditioner's own geometry, and how a mask adapts.

A mask is given what ranks the directions: the second moment for coordinates, the covector for singular directions. It
answers with the flat projector x ↦ Qx and the memory it needs for the next step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from discretizations.matrices.random_subspace import random_subspace
from discretizations.matrices.sharp_masks import (
    CoordinateThresholds,
    GradedComplement,
    SubspaceComplement,
    adapt_coordinate_thresholds,
    adapt_threshold,
    coordinate_mask,
    initial_threshold,
    leading_direction,
    mask_complement,
    passing_fractions,
    published_rank,
    threshold_mask,
    top_right_subspace,
)
from discretizations.matrices.tracked_subspace import initial_subspace, track_subspace, tracked_rank
from riemannian_ode.flow import Projector
from riemannian_ode.preconditioner import Memory

INITIAL_HI, INITIAL_LO = 1.0, 0.5  # thresholds of coordinates before the first step, as published


def wide_dtype(w: Tensor) -> torch.dtype:
    """The floating type of sums and thresholds: that of ``w``, at least float32."""
    return torch.promote_types(w.dtype, torch.float32)


@dataclass(frozen=True)
class CoordinateProjector:
    """x ↦ q∘x: the flat part of every coordinate.

    Args:
        flatness: q in [0, 1], shape ``(*batch, *shape)``.
    """

    flatness: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.flatness * x


@dataclass(frozen=True, kw_only=True)
class CoordinateMask:
    """LITE's soft mask of coordinates by second moment, with two thresholds that adapt to the wanted fraction.

    Args:
        sharp_fraction: r in [0, 1], fraction of coordinates that count as sharp.
        floor: See :func:`discretizations.matrices.sharp_masks.coordinate_mask`.
        all_flat_below: Sharp fraction below which every coordinate is flat and thresholds rest.

    Source: arXiv:2602.22681, AdamW-LITE.
    """

    sharp_fraction: float
    floor: float = 0.0
    all_flat_below: float = 0.0

    @property
    def is_all_flat(self) -> bool:
        """Whether every coordinate is flat."""
        return self.sharp_fraction < self.all_flat_below

    def initial(self, w: Tensor, *, batch: int) -> Memory:
        """Thresholds hi and lo, shape ``(*batch,)``."""
        shape, dtype = w.shape[:batch], wide_dtype(w)
        return {"hi": w.new_full(shape, INITIAL_HI, dtype=dtype), "lo": w.new_full(shape, INITIAL_LO, dtype=dtype)}

    def flat(self, memory: Memory, v: Tensor, *, h: float = 1.0) -> tuple[Projector, Memory]:
        """The flat projector for second moments v, and the memory after the step."""
        if self.is_all_flat:
            return (lambda x: x), memory
        thresholds = CoordinateThresholds(memory["hi"], memory["lo"])
        # All axes but the batch's; None for all of them, in which case reductions are faster.
        dim = tuple(range(thresholds.hi.ndim - v.ndim, 0)) if thresholds.hi.ndim else None
        flatness = 1.0 - coordinate_mask(v, thresholds, dim=dim, floor=self.floor)
        passing = passing_fractions(v, thresholds, dim=dim)
        after = adapt_coordinate_thresholds(thresholds, passing, sharp_fraction=self.sharp_fraction, h=h)
        return CoordinateProjector(flatness), memory | {"hi": after.hi, "lo": after.lo}


class SingularMask(ABC):
    """A mask by singular directions of the covector.

    Args:
        sharp_fraction: r in [0, 1].
    """

    sharp_fraction: float
    applies_twice = False
    masks_decay = True  # whether weight decay of flat directions is χ times that of sharp ones
    needs_polar = False  # whether the projector depends on the polar factor
    is_gradient = False  # whether msign(M̃)(P + χQ) is the gradient of a potential

    @property
    def exact(self) -> SingularMask:
        """The mask that this one approximates; else itself."""
        return self

    def initial(self, w: Tensor) -> Memory:
        """Memory before the first step."""
        return {}

    def observed(self, memory: Memory, covector: Tensor) -> Memory:
        """Memory that has seen a step's covector, also of a step in which no direction counts as flat."""
        return memory

    @abstractmethod
    def flat(
        self, memory: Memory, covector: Tensor, polar: Tensor, *, orthogonalize: Callable[[Tensor], Tensor], h: float
    ) -> tuple[Projector, Memory]:
        """The flat projector X ↦ XQ, and the memory after the step.

        Args:
            memory: Before the step.
            covector: M̃, shape ``(*batch, m, n)``.
            polar: msign(M̃).
            orthogonalize: X ↦ msign(X).
            h: Step size, in units of time.
        """


@dataclass(frozen=True, kw_only=True)
class ExactSubspace(SingularMask):
    """Sharp is the top-k right singular space of M̃, k = round(r·min(m, n)), by SVD.

    Args:
        sharp_fraction: r in [0, 1].
    """

    sharp_fraction: float

    is_gradient = True

    def flat(self, memory: Memory, covector: Tensor, polar: Tensor, **_: Any) -> tuple[Projector, Memory]:
        rank = round(self.sharp_fraction * min(covector.shape[-2:]))
        return SubspaceComplement(top_right_subspace(covector, rank)), memory


@dataclass(frozen=True, kw_only=True)
class TrackedSubspace(SingularMask):
    """Sharp is the same space, followed by one warm-started block iteration a step.

    Args:
        sharp_fraction: r in [0, 1].
    """

    sharp_fraction: float

    @property
    def exact(self) -> ExactSubspace:
        return ExactSubspace(sharp_fraction=self.sharp_fraction)

    def initial(self, w: Tensor) -> Memory:
        shorter = min(w.shape[-2:])
        rank = round(self.sharp_fraction * shorter)
        return {"subspace": initial_subspace(w, tracked_rank(rank, shorter))}

    def observed(self, memory: Memory, covector: Tensor) -> Memory:
        return memory | {"subspace": track_subspace(covector, memory["subspace"])}

    def flat(self, memory: Memory, covector: Tensor, polar: Tensor, **_: Any) -> tuple[Projector, Memory]:
        memory = self.observed(memory, covector)
        rank = round(self.sharp_fraction * min(covector.shape[-2:]))
        return SubspaceComplement(memory["subspace"][..., :rank].to(covector.dtype)), memory


@dataclass(frozen=True, kw_only=True)
class ThresholdMask(SingularMask):
    """The published soft mask: singular values above ρ‖M̃‖, by a second Newton–Schulz; ρ adapts by 5% a step.

    Args:
        sharp_fraction: r in [0, 1].

    Source: arXiv:2602.22681, published code.
    """

    sharp_fraction: float

    applies_twice = True
    needs_polar = True

    @property
    def exact(self) -> ExactSubspace:
        return ExactSubspace(sharp_fraction=self.sharp_fraction)

    def initial(self, w: Tensor) -> Memory:
        level = initial_threshold(max(1, min(w.shape[-2:])))
        return {"rho": torch.full(w.shape[:-2], level, dtype=wide_dtype(w), device=w.device)}

    def flat(
        self, memory: Memory, covector: Tensor, polar: Tensor, *, orthogonalize: Callable[[Tensor], Tensor], h: float
    ) -> tuple[Projector, Memory]:
        mask = threshold_mask(covector, polar, memory["rho"], orthogonalize=orthogonalize)
        rank = published_rank(self.sharp_fraction, min(covector.shape[-2:]))
        return mask_complement(mask), memory | {"rho": adapt_threshold(memory["rho"], mask, rank=rank, h=h)}


@dataclass(frozen=True, kw_only=True)
class RandomSubspace(SingularMask):
    """Sharp is a random subspace of the same rank: the control for the choice of a subspace.

    Args:
        sharp_fraction: r in [0, 1].
        is_redrawn: Whether every step draws another one, else it is fixed.
    """

    sharp_fraction: float
    is_redrawn: bool = False

    def initial(self, w: Tensor) -> Memory:
        if self.is_redrawn:
            return {"draws": torch.zeros(w.shape[:-2], dtype=wide_dtype(w), device=w.device)}
        return {"subspace": initial_subspace(w, self._rank(w))}

    def flat(self, memory: Memory, covector: Tensor, polar: Tensor, **_: Any) -> tuple[Projector, Memory]:
        if self.is_redrawn:
            basis = random_subspace(covector, self._rank(covector), memory["draws"])
            return SubspaceComplement(basis), memory | {"draws": memory["draws"] + 1.0}
        return SubspaceComplement(memory["subspace"][..., : self._rank(covector)].to(covector.dtype)), memory

    def _rank(self, w: Tensor) -> int:
        return round(self.sharp_fraction * min(w.shape[-2:]))


@dataclass(frozen=True, kw_only=True)
class GradedMask(SingularMask):
    r"""No threshold: along a singular direction the flat part is :math:`1 - \sigma_i/\sigma`.

    The direction is :math:`\chi\,\mathrm{msign}(\tilde M) - (\chi-1)\tilde M/\sigma`, without a subspace or a second
    Newton–Schulz. With :math:`\sigma = \|\tilde M\|_F` it is the gradient of
    :math:`\chi\|\tilde M\|_* - (\chi-1)\|\tilde M\|_F`; with :math:`\sigma = \sigma_1`, from a warm-started power
    iteration, it is no gradient. Weight decay meets no mask.

    Args:
        by: ``"spectral"`` for σ₁, or ``"frobenius"``.

    Source: Contra-Muon of the public NanoGPT optimization records, msign minus a multiple of the momentum over its
    operator norm; as a mask of LITE it is ours.
    """

    by: Literal["spectral", "frobenius"] = "spectral"

    masks_decay = False
    needs_polar = True

    @property
    def is_gradient(self) -> bool:  # type: ignore[override]
        return self.by == "frobenius"

    def initial(self, w: Tensor) -> Memory:
        if self.by == "frobenius":
            return {}
        return {"leading": initial_subspace(w.to(wide_dtype(w)), 1)[..., 0]}

    def observed(self, memory: Memory, covector: Tensor) -> Memory:
        if self.by == "frobenius":
            return memory
        return memory | {"leading": leading_direction(covector, memory["leading"])}

    def flat(self, memory: Memory, covector: Tensor, polar: Tensor, **_: Any) -> tuple[Projector, Memory]:
        memory = self.observed(memory, covector)
        tiny = torch.finfo(covector.dtype).tiny
        largest = covector.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=tiny)
        x = covector / largest  # so that squares neither over- nor underflow
        if self.by == "spectral":
            x = x @ memory["leading"].to(x.dtype)[..., None]
        return GradedComplement(
            covector / largest, polar, torch.linalg.matrix_norm(x, keepdim=True).clamp(min=tiny)
        ), memory
