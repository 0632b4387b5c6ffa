"""Roots of Kronecker factors: Shampoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discretizations.matrices.roots import inverse_root
from discretizations.matrices.sharp_masks import SubspaceComplement
from discretizations.preconditioners._registry import PRECONDITIONERS
from discretizations.preconditioners.masks import wide_dtype
from riemannian_ode.errors import require_positive
from riemannian_ode.flow import Projector
from riemannian_ode.preconditioner import Memory, Preconditioner, spread


@PRECONDITIONERS.register(place=4)
@dataclass(frozen=True, kw_only=True)
class KroneckerRoot(Preconditioner):
    r"""Shampoo's metric :math:`F = L^{1/4} \otimes R^{1/4}`: :math:`F^{-1}X = L^{-1/4} X R^{-1/4}`.

    L and R are sums, or bias-corrected averages, of :math:`GG^\top` and :math:`G^\top G`, plus εI. Sharp are the top
    eigenvectors of R.

    Args:
        beta2: θ₂ of the averages; ``None`` sums, as published first.
        eps: ε > 0, added to the eigenvalues of both factors.
        sharp_fraction: r in [0, 1]; k = round(rn) columns are sharp.

    Raises:
        ValueError: for an ε that is not positive.

    Source: Gupta, Koren and Singer, arXiv:1802.09568, Algorithm 1 (sums); Shi et al., arXiv:2309.06497 (averages).
    """

    name = "kronecker-root"
    needs_matrices = True
    masses = ("mass",)

    beta2: float | None
    eps: float
    sharp_fraction: float = 0.0

    def __post_init__(self) -> None:
        require_positive("eps", self.eps, "it keeps the roots of singular factors finite")

    def initial(self, w: Tensor, *, batch: int = 0) -> Memory:
        *leading, m, n = w.shape
        sides = {"left": m, "right": n}
        memory = {key: w.new_zeros(*leading, side, side, dtype=wide_dtype(w)) for key, side in sides.items()}
        return memory if self.beta2 is None else memory | {"mass": self.initial_mass(w, batch=batch)}

    def rates(self) -> Mapping[str, float | None]:
        return dict.fromkeys(("left", "right", "mass"), None if self.beta2 is None else 1.0 - self.beta2)

    def averaged(self, memory: Memory, g: Tensor, frame_g: Tensor) -> Memory:
        g = g.to(memory["left"].dtype)
        taken = {"left": g @ g.mT, "right": g.mT @ g}
        return taken | ({"mass": torch.ones_like(memory["mass"])} if "mass" in memory else {})

    def raise_index(self, memory: Memory, covector: Tensor) -> Tensor:
        left, right = (inverse_root(self._factor(memory, key), 4, eps=self.eps) for key in ("left", "right"))
        return left @ covector @ right

    def flat(
        self, memory: Memory, covector: Tensor, raised: Tensor | None, *, h: Any = 1.0
    ) -> tuple[Projector, Memory]:
        vectors = torch.linalg.eigh(memory["right"]).eigenvectors
        rank = round(self.sharp_fraction * vectors.size(-1))
        return SubspaceComplement(vectors[..., vectors.size(-1) - rank :]), memory

    def cost(self, rows: int, columns: int) -> float:
        return float(rows + columns) * rows * columns + 25.0 * (rows**3 + columns**3)  # eigendecompositions: 25n³

    def _factor(self, memory: Memory, key: str) -> Tensor:
        factor: Tensor = memory[key]
        return factor / spread(memory["mass"], factor) if "mass" in memory else factor
