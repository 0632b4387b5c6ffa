"""Roots of Kronecker factors: Shampoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from discretizations.matrices.roots import inverse_root, newton_inverse_root
from discretizations.matrices.sharp_masks import SubspaceComplement
from discretizations.preconditioners._registry import PRECONDITIONERS
from discretizations.preconditioners.masks import wide_dtype
from discretizations.preconditioners.second_moment import diagonal_metric
from riemannian_ode.checks import require_positive
from riemannian_ode.flow import Projector
from riemannian_ode.preconditioner import Memory, Preconditioner, spread

RootMethod: TypeAlias = Literal["eigh", "newton"]
_ROOTS = {"eigh": inverse_root, "newton": newton_inverse_root}
_SIDES = ("left", "right")
_KEPT = ("left_root", "right_root")
_GRAFT_EPS = 1e-8  # ε of the grafted Adam step, as in torch


@PRECONDITIONERS.register(place=4)
@dataclass(frozen=True, kw_only=True)
class KroneckerRoot(Preconditioner):
    r"""Shampoo's metric :math:`F = L^{1/4} \otimes R^{1/4}`: :math:`F^{-1}X = L^{-1/4} X R^{-1/4}`.

    L and R are sums, or bias-corrected averages, of :math:`GG^\top` and :math:`G^\top G`, plus εI. The sharp directions
    are the top eigenvectors of R.

    With ``frequency`` f > 1 roots and sharp directions are stored in the memory and recomputed every f units of time,
    after the step; the first gradient only sets them. Grafting rescales the direction, matrix by matrix, to the
    Frobenius norm of Adam's, :math:`\|X/(\sqrt{v/c} + 10^{-8})\|_F`.

    Args:
        beta2: θ₂ of the averages; ``None`` uses sums, as first published.
        eps: ε > 0, added to the eigenvalues of both factors.
        sharp_fraction: r in [0, 1]; k = round(rn) columns are sharp.
        frequency: f; matrix number i of a batch is refreshed after the gradients t with (t + i) mod f = 0.
        root: ``"eigh"``, or ``"newton"``, which uses products only
            (:func:`discretizations.matrices.roots.newton_inverse_root`).
        grafts: Whether the direction is rescaled to the norm of Adam's; needs averages.

    Raises:
        ValueError: for an ε that is not positive, or grafting with sums.

    Source: Gupta, Koren and Singer, arXiv:1802.09568, Algorithm 1 (sums); Shi et al., arXiv:2309.06497 (averages,
    frequency, grafting); Anil et al., arXiv:2002.09018 (Newton).
    """

    name = "kronecker-root"
    needs_matrices = True
    elementwise = ("v",)
    masses = ("mass",)

    beta2: float | None
    eps: float
    sharp_fraction: float = 0.0
    frequency: int = 1
    root: RootMethod = "eigh"
    grafts: bool = False

    def __post_init__(self) -> None:
        require_positive("eps", self.eps, "it keeps the roots of singular factors finite")
        if self.grafts and self.beta2 is None:
            raise ValueError("grafts = True needs averages, such as Adam's second moment; give beta2, e.g. 0.99.")

    @property
    def is_linear(self) -> bool:
        return not self.grafts

    @property
    def skips_first(self) -> bool:
        return self.frequency > 1

    def initial(self, w: Tensor, *, batch: int = 0) -> Memory:
        *leading, m, n = w.shape
        sides = {"left": m, "right": n}
        memory = {key: w.new_zeros(*leading, side, side, dtype=wide_dtype(w)) for key, side in sides.items()}
        if self.frequency > 1:
            memory |= {f"{key}_root": torch.zeros_like(memory[key]) for key in _SIDES}
            if self.sharp_fraction:
                memory["sharp"] = torch.zeros_like(memory["right"][..., : self._sharp_rank(n)])
        if self.grafts:
            memory["v"] = torch.zeros_like(w, dtype=wide_dtype(w))
        return memory if self.beta2 is None else memory | {"mass": self.initial_mass(w, batch=batch)}

    def rates(self) -> Mapping[str, float | None]:
        return dict.fromkeys(("left", "right", "v", "mass"), None if self.beta2 is None else 1.0 - self.beta2)

    def averaged(self, memory: Memory, g: Tensor, frame_g: Tensor) -> Memory:
        g = g.to(memory["left"].dtype)
        taken = {"left": g @ g.mT, "right": g.mT @ g}
        if self.grafts:
            taken["v"] = g * g
        return taken | ({"mass": torch.ones_like(memory["mass"])} if "mass" in memory else {})

    def admissible(self, memory: Memory) -> Memory:
        return memory | {"v": memory["v"].clamp(min=0.0)} if self.grafts else memory

    def first(self, memory: Memory, g: Tensor) -> Memory:
        """Memory after the first gradient, which sets the roots and makes no step."""
        memory = self.observe(memory, g, g)
        return memory | self._kept(memory)

    def raise_index(self, memory: Memory, covector: Tensor) -> Tensor:
        left, right = self.roots(memory)
        raised: Tensor = left @ covector.to(left.dtype) @ right
        if self.grafts:
            moment = {"v": memory["v"], "v_mass": memory["mass"]}
            adam = covector / diagonal_metric(moment, eps=_GRAFT_EPS, eps_first=False)
            tiny = torch.finfo(raised.dtype).tiny
            raised = raised * (_norm(adam) / _norm(raised).clamp(min=tiny))
        return raised

    def roots(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """L^{-1/4} and R^{-1/4}, from the memory or computed from its factors."""
        if self.frequency > 1:
            return memory["left_root"], memory["right_root"]
        return self._root(self._factor(memory, "left")), self._root(self._factor(memory, "right"))

    def due(self, step: int, numbers: Sequence[int] = (0,)) -> list[int]:
        if self.frequency == 1:
            return []
        return [place for place, i in enumerate(numbers) if step and (step + i) % self.frequency == 0]

    def phase(self, step: int) -> int:
        return step and (step - 1) % self.frequency + 1 if self.frequency > 1 else 0

    def jump(
        self, memory: Memory, m: Tensor, step: int, *, due: Sequence[int] = (0,), is_phase: bool = False
    ) -> tuple[Memory, Tensor]:
        """Memory with new roots for the matrices ``due``."""
        kept = {key: memory[key].clone() for key in (*_KEPT, "sharp") if key in memory}
        for i in due:
            one = {key: x if m.ndim == 2 else x[i] for key, x in memory.items()}
            for key, value in self._kept(one).items():
                (kept[key] if m.ndim == 2 else kept[key][i]).copy_(value)
        return memory | kept, m

    def flat(
        self, memory: Memory, covector: Tensor, raised: Tensor | None, *, h: Any = 1.0
    ) -> tuple[Projector, Memory]:
        sharp = memory["sharp"] if "sharp" in memory else self._sharp(memory)
        return SubspaceComplement(sharp), memory

    def cost(self, rows: int, columns: int) -> float:
        roots = 25.0 * (rows**3 + columns**3)  # eigendecompositions: 25n³
        return float(rows + columns) * rows * columns + roots / self.frequency

    def _kept(self, memory: Memory) -> Memory:
        """Roots, and sharp directions if any, to use until the next refresh."""
        roots: Memory = {f"{key}_root": self._root(self._factor(memory, key)) for key in _SIDES}
        return roots | {"sharp": self._sharp(memory)} if self.sharp_fraction else roots

    def _sharp(self, memory: Memory) -> Tensor:
        """Top eigenvectors of R, shape ``(*batch, n, k)``."""
        vectors: Tensor = torch.linalg.eigh(memory["right"]).eigenvectors
        n = vectors.size(-1)
        return vectors[..., n - self._sharp_rank(n) :]

    def _sharp_rank(self, columns: int) -> int:
        return round(self.sharp_fraction * columns)

    def _root(self, factor: Tensor) -> Tensor:
        return _ROOTS[self.root](factor, 4, eps=self.eps)

    def _factor(self, memory: Memory, key: str) -> Tensor:
        factor: Tensor = memory[key]
        return factor / spread(memory["mass"], factor) if "mass" in memory else factor


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(x, keepdim=True)
    return norm
