"""The sign of a covector: Lion and signSGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from discretizations.preconditioners._registry import PRECONDITIONERS
from discretizations.preconditioners.masks import CoordinateProjector
from riemannian_ode.flow import Projector
from riemannian_ode.preconditioner import Memory, Preconditioner, spread


@PRECONDITIONERS.register(place=6)
@dataclass(frozen=True, kw_only=True)
class Sign(Preconditioner):
    r"""The metric :math:`F = \mathrm{diag}(|x|)` at the covector x it raises: :math:`F^{-1}x = \mathrm{sign}(x)`.

    It has no natural eigenbasis. The sharp coordinates are those with the largest :math:`|x|`.

    Args:
        sharp_fraction: r in [0, 1]; k = round(rp) of the p coordinates are sharp, at least one if r > 0.

    Source: Bernstein et al., *signSGD*, arXiv:1802.04434; Chen et al., *Lion*, arXiv:2302.06675.
    """

    name = "sign"
    is_linear = False

    sharp_fraction: float = 0.0

    @property
    def degree(self) -> float:
        """1, because the potential is ‖m‖₁ with flat coordinates weighted by χ."""
        return 1.0

    def initial(self, w: Tensor, *, batch: int = 0) -> Memory:
        return {"threshold": w.new_zeros(w.shape[:batch])} if self.sharp_fraction else {}

    def raise_index(self, memory: Memory, covector: Tensor) -> Tensor:
        return covector.sign()

    def flat(
        self, memory: Memory, covector: Tensor, raised: Tensor | None, *, h: Any = 1.0
    ) -> tuple[Projector, Memory]:
        if "threshold" not in memory:
            return lambda x: x, memory
        sizes = covector.abs().flatten(memory["threshold"].ndim)
        rank = max(1, round(self.sharp_fraction * sizes.size(-1)))
        smallest = sizes.topk(rank).values[..., -1]  # smallest magnitude of the sharp ones
        flatness = (covector.abs() < spread(smallest, covector)).to(covector.dtype)
        return CoordinateProjector(flatness), memory | {"threshold": smallest}
