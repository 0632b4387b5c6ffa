"""The polar factor with rows normalised by their second moment: NorMuon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discretizations.preconditioners._registry import PRECONDITIONERS
from discretizations.preconditioners.masks import ThresholdMask, wide_dtype
from discretizations.preconditioners.polar_factor import PolarFactor
from riemannian_ode.flow import average_step
from riemannian_ode.preconditioner import Memory


@PRECONDITIONERS.register(place=7)
@dataclass(frozen=True, kw_only=True)
class NormalizedPolarFactor(PolarFactor):
    r"""NorMuon's metric: the polar factor, with each row divided by the root of its second moment.

    .. math::
        O = \mathrm{msign}(\tilde M), \qquad \dot v_i = (1-\theta_2)(\tfrac1n\|O_{i\cdot}\|^2 - v_i), \qquad
        F^{-1}X = \rho\,\mathrm{diag}(\sqrt v + \epsilon)^{-1}\,\mathrm{msign}(X)

    v takes in the O of the same step before it is used. ρ rescales :math:`F^{-1}\tilde M` to the Frobenius norm of O.
    Row scaling acts from the left and the mask from the right, so the two commute.

    Args:
        beta2: θ₂ in [0, 1).
        eps: ε.

    Raises:
        ValueError: for the published soft mask, which needs singular values of O near 1.

    Source: Li et al., *NorMuon*, arXiv:2510.05491, Algorithm 1; ρ as in microsoft/dion's implementation, which with the
    scale 0.2√max(m, n) is the paper's 0.2√(mn) over the norm of the update.
    """

    name = "normalized-polar-factor"

    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if isinstance(self.mask, ThresholdMask):
            raise ValueError(
                "the published soft mask needs a polar factor, which normalised rows are not; take "
                "TrackedSubspace or ExactSubspace."
            )

    @property
    def degree(self) -> None:
        """None, because the rows' scales depend on the momentum, so the direction is not a gradient."""

    @property
    def exact(self) -> NormalizedPolarFactor:
        return self

    def initial(self, w: Tensor, *, batch: int = 0) -> Memory:
        return super().initial(w, batch=batch) | {"rows": torch.zeros_like(w[..., 0], dtype=wide_dtype(w))}

    def raise_index(self, memory: Memory, covector: Tensor) -> Tensor:
        polar = self.polar(covector)
        return polar * self._weights(memory["rows"], polar)

    def raise_two(self, memory: Memory, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(x * self._weights(memory["rows"], x) for x in super().raise_two(memory, first, second))  # type: ignore[return-value]

    def raise_step(
        self, memory: Memory, covector: Tensor, g: Tensor | None, *, h: Any = 1.0
    ) -> tuple[Tensor, Tensor | None, Memory]:
        a, d = (self.polar(covector), None) if g is None else super().raise_two(memory, covector, g)
        squares = a.to(memory["rows"].dtype).square().mean(-1)
        memory = memory | {"rows": average_step(memory["rows"], squares, rate=1.0 - self.beta2, h=h)}
        weights = self._weights(memory["rows"], a)  # the same metric for both
        return a * weights, d if d is None else d * weights, memory

    def _weights(self, rows: Tensor, polar: Tensor) -> Tensor:
        """Factor for each row of a polar factor, shape ``(*batch, m, 1)``."""
        squares = polar.to(rows.dtype).square().sum(-1)
        # Before the first step v is 0; the flow's limit is the v of its first covector.
        rows = torch.where(rows.amax(-1, keepdim=True) > 0.0, rows, squares / polar.size(-1))
        weights = (rows.sqrt() + self.eps).reciprocal()
        after = (squares * weights.square()).sum(-1, keepdim=True)
        norm = (squares.sum(-1, keepdim=True) / after.clamp(min=torch.finfo(rows.dtype).tiny)).sqrt()
        return (norm * weights)[..., None].to(polar.dtype)
