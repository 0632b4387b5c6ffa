"""The polar factor of a covector: Muon."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from discretizations.matrices.newton_schulz import newton_schulz
from discretizations.matrices.polar import before_normalisation, exact_polar, fast_dtype, polar_express
from discretizations.matrices.symmetric_newton_schulz import is_supported
from discretizations.preconditioners._registry import PRECONDITIONERS
from discretizations.preconditioners.masks import SingularMask
from riemannian_ode.flow import Projector
from riemannian_ode.preconditioner import Memory, Preconditioner

Coefficients: TypeAlias = tuple[float, float, float]
# torch.optim.Muon's polynomial, from Jordan et al., Muon (2024).
TORCH_COEFFICIENTS: Coefficients = (3.4445, -4.7750, 2.0315)
TORCH_FLOOR = 1e-7  # smallest norm that torch.optim.Muon divides by


@PRECONDITIONERS.register(place=3)
@dataclass(frozen=True, kw_only=True)
class PolarFactor(Preconditioner):
    r"""Muon's metric :math:`F = (X^\top X)^{1/2}` at the covector X it raises: :math:`F^{-1}X = \mathrm{msign}(X)`.

    Args:
        iteration: ``"polar-express"``, ``"svd"``, coefficients (a, b, c) of every Newton–Schulz step, as in
            torch.optim.Muon, or a tuple of them, one per step, where the last one serves all further steps.
        steps: Number of steps.
        dtype: Dtype of the iteration: ``"fastest"`` on the covector's device
            (:func:`discretizations.matrices.polar.fast_dtype`), or a name; by default that of the covector.
        narrows: Whether covectors are rounded to that dtype before anything else, masks included. If not, and for
            float16, whose range they may exceed, they keep their dtype unless it is narrower.
        floor: ε that Polar Express adds to the norm, or the smallest norm that other coefficients divide by.
        mask: Sharp singular directions; ``None`` for a base method.

    Source: Jordan et al., *Muon* (2024); Amsel et al., arXiv:2505.16932; arXiv:2602.22681, Muon-LITE.
    """

    name = "polar-factor"
    needs_matrices = True
    is_linear = False

    iteration: Literal["polar-express", "svd"] | Coefficients | tuple[Coefficients, ...] = "polar-express"
    steps: int = 6
    dtype: torch.dtype | Literal["fastest"] | None = None
    narrows: bool = False
    floor: float = 0.0
    mask: SingularMask | None = None

    @property
    def masks_decay(self) -> bool:
        return self.mask is None or self.mask.masks_decay

    @property
    def degree(self) -> float | None:
        """1 if polar factors are exact and the mask keeps the direction a gradient, e.g. of the nuclear norm."""
        is_gradient = self.mask is None or self.mask.is_gradient
        return 1.0 if self.iteration == "svd" and is_gradient else None

    @property
    def exact(self) -> PolarFactor:
        """The same preconditioner with polar factors by SVD and an exact mask, since polynomials are not gradients."""
        return replace(self, iteration="svd", mask=self.mask and self.mask.exact)

    @property
    def has_split(self) -> bool:
        return self.mask is not None

    @property
    def applies_twice(self) -> bool:
        return self.mask is not None and self.mask.applies_twice

    def initial(self, w: Tensor, *, batch: int = 0) -> Memory:
        return self.mask.initial(w) if self.mask else {}

    def raise_index(self, memory: Memory, covector: Tensor) -> Tensor:
        return self.polar(covector)

    def raise_two(self, memory: Memory, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        # One batch keeps the matrix units busier than two; our own program needs no batch and avoids the copies.
        if first.ndim < 3 or self.iteration == "svd" or is_supported(first):
            return self.polar(first), self.polar(second)
        a, d = self.polar(torch.cat([first, second])).tensor_split(2)
        return a, d

    def at_work(self, x: Tensor) -> Tensor:
        iteration = self.iteration_dtype(x)
        narrows = self.narrows and iteration != torch.float16
        return x.to(iteration if narrows else torch.promote_types(x.dtype, iteration))

    def iteration_dtype(self, x: Tensor) -> torch.dtype:
        """Dtype of the iteration on ``x``."""
        if self.iteration == "svd" or self.dtype is None:
            return x.dtype
        return fast_dtype(x) if self.dtype == "fastest" else self.dtype

    def polar(self, x: Tensor) -> Tensor:
        """msign(x), dtype of ``x``."""
        if self.iteration == "svd":
            return exact_polar(x)
        if self.iteration == "polar-express":
            return polar_express(x, steps=self.steps, dtype=self.iteration_dtype(x), floor=self.floor)
        dtype = self.iteration_dtype(x)
        y = before_normalisation(x, dtype)
        y = (y / torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True).clamp(min=self.floor)).to(dtype)
        return newton_schulz(y, self._coefficients(self.iteration), gram=False).to(x.dtype)

    def _coefficients(self, iteration: Coefficients | tuple[Coefficients, ...]) -> list[Coefficients]:
        """Coefficients of every step."""
        listed: Any = iteration if isinstance(iteration[0], tuple) else (iteration,)
        return [listed[min(k, len(listed) - 1)] for k in range(self.steps)]

    def flat(
        self, memory: Memory, covector: Tensor, raised: Tensor | None, *, h: Any = 1.0
    ) -> tuple[Projector, Memory]:
        if self.mask is None or raised is None:
            raise self.no_split()
        return self.mask.flat(memory, covector, raised, orthogonalize=self.polar, h=h)

    def watch(self, memory: Memory, covector: Tensor) -> Memory:
        return self.mask.observed(memory, covector) if self.mask else memory

    def cost(self, rows: int, columns: int) -> float:
        return float(rows * columns * min(rows, columns))
