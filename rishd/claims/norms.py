"""Norms and other potentials whose gradients are optimizers, and matrix objectives for testing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discretizations.matrices.polar import exact_polar
from discretizations.preconditioners.identity import Identity
from discretizations.preconditioners.masks import ExactSubspace
from discretizations.preconditioners.polar_factor import PolarFactor
from discretizations.preconditioners.sign import Sign
from riemannian_ode import RISHD, Preconditioner
from riemannian_ode.arrays import like, namespace
from riemannian_ode.flow import Array
from riemannian_ode.preconditioner import Memory

SHARP_FRACTION = 0.3


@dataclass(frozen=True)
class MatrixRipples:
    r"""Nonconvex objectives of matrices with minimum f(0) = 0, one per member.

    .. math:: f(W) = \tfrac12\mathrm{tr}(W^\top AWB) + \sum c\,(1 - \cos W)

    Args:
        left: A, positive semidefinite, shape ``(n, rows, rows)``.
        right: B, positive semidefinite, shape ``(n, columns, columns)``.
        ripple: c ≥ 0, shape ``(n, rows, columns)``.
    """

    left: np.ndarray
    right: np.ndarray
    ripple: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, n: int, shape: tuple[int, int]) -> MatrixRipples:
        """Objectives with factors AᵀA and entries c in [0, 1.5]."""
        factors = [rng.normal(size=(n, side, side)) / side**0.5 for side in shape]
        left, right = (np.swapaxes(x, -1, -2) @ x for x in factors)
        return cls(left, right, rng.uniform(0.0, 1.5, (n, *shape)))

    @property
    def smoothness(self) -> np.ndarray:
        """L with ‖∇f(w) − ∇f(w')‖ ≤ L‖w − w'‖, shape ``(n,)``."""
        largest = [np.linalg.eigvalsh(x)[:, -1] for x in (self.left, self.right)]
        return np.asarray(largest[0] * largest[1] + self.ripple.max((-1, -2)))

    def _matrix(self, w: Array) -> Array:
        return w.reshape(self.ripple.shape)

    def value(self, w: Array) -> Array:
        """f, shape ``(n,)``."""
        x = self._matrix(w)
        quadratic = 0.5 * x * (like(self.left, w) @ x @ like(self.right, w))
        return (quadratic + like(self.ripple, w) * (1.0 - namespace(w).cos(x))).sum((-1, -2))

    def gradient(self, w: Array) -> Array:
        """∇f, shape of ``w``."""
        x = self._matrix(w)
        g = like(self.left, w) @ x @ like(self.right, w) + like(self.ripple, w) * namespace(w).sin(x)
        return g.reshape(w.shape)


@dataclass(frozen=True)
class LinearObjective:
    """The linear objective f(w) = ⟨g, w⟩ of each member, which has any given gradient.

    Args:
        g: Shape ``(n, p)``.
    """

    g: np.ndarray

    def value(self, w: Array) -> Array:
        """f, shape ``(n,)``."""
        return (like(self.g, w) * w).sum(-1)

    def gradient(self, w: Array) -> Array:
        """g."""
        return like(self.g, w)


@dataclass(frozen=True)
class SpectralDual(Preconditioner):
    """Steepest descent in the spectral norm with the dual norm as step size: ∇φ = ‖M‖_* msign(M) for φ = ½‖M‖_*².

    Source: Bernstein and Newhouse, *Old Optimizer, New Norm*, arXiv:2409.20325.
    """

    name = "spectral-dual"
    needs_matrices = True
    is_linear = False

    @property
    def degree(self) -> float:
        """2."""
        return 2.0

    def raise_index(self, memory: Memory, covector: Tensor) -> Tensor:
        polar = exact_polar(covector)
        norm: Tensor = (covector * polar).sum((-2, -1), keepdim=True)
        return norm * polar


@dataclass(frozen=True)
class Norm:
    """An optimizer whose direction is the gradient of a potential.

    Args:
        preconditioner: The optimizer's map.
        potential: (momenta ``(n, rows, columns)``, χ ``(n,)``) ↦ φ, written without the map.
        degree: Degree of homogeneity.
        has_mask: Whether flat directions are weighted by χ.
        is_elementwise: Whether its kinks are vanishing entries, as opposed to singular values.
    """

    preconditioner: Preconditioner
    potential: Callable[[Tensor, Tensor], Tensor]
    degree: int
    has_mask: bool = False
    is_elementwise: bool = False

    def flow(self, objective: MatrixRipples, *, chi: np.ndarray, beta_flat: np.ndarray, **settings: Any) -> RISHD:
        """The optimizer's flow; χ and β₂ act if it has a mask."""
        shape = objective.ripple.shape[1:]
        split: dict[str, Any] = {"chi": chi, "beta_flat": beta_flat} if self.has_mask else {}
        return RISHD.from_optimizer(objective, self.preconditioner, shape=shape, **split, **settings)


def sharp_rank(shape: tuple[int, ...]) -> int:
    """k of the mask."""
    return round(SHARP_FRACTION * min(shape[-2:]))


def ky_fan_norms(m: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Σ_{i≤k} σ_i and Σ_{i>k} σ_i."""
    values = torch.linalg.svdvals(m)
    return values[..., :rank].sum(-1), values[..., rank:].sum(-1)


def ky_fan(m: Tensor, chi: Tensor) -> Tensor:
    """Σ_{i≤k} σ_i + χ Σ_{i>k} σ_i."""
    sharp, flat = ky_fan_norms(m, sharp_rank(m.shape))
    return sharp + chi * flat


def _nuclear(m: Tensor, chi: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.svdvals(m).sum(-1)
    return norm


_EXACT = PolarFactor(iteration="svd")
NORMS: Mapping[str, Norm] = {
    "ℓ₁": Norm(Sign(), lambda m, chi: m.abs().sum((-1, -2)), 1, is_elementwise=True),
    "nuclear": Norm(_EXACT, _nuclear, 1),
    "Ky Fan": Norm(
        PolarFactor(iteration="svd", mask=ExactSubspace(sharp_fraction=SHARP_FRACTION)), ky_fan, 1, has_mask=True
    ),
    "½‖·‖²_*": Norm(SpectralDual(), lambda m, chi: 0.5 * _nuclear(m, chi) ** 2, 2),
    "½‖·‖²": Norm(Identity(), lambda m, chi: 0.5 * (m**2).sum((-1, -2)), 2),
}
