r"""Metrics that remember gradients: the preconditioners of Adam, Muon, Shampoo and SOAP, as pure functions.

Each is :math:`F_k^{-1}` with :math:`F_k` a function of the gradients :math:`g_1 … g_k`. A memory is never changed in
place: :meth:`AdaptiveMetric.observe` returns a new one. Since F is no function of w, the Riemannian correction R is not
defined for them; the optimizers run with R = 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from discretizations.matrices.eigenbases import adam_direction, second_moment_step
from discretizations.matrices.newton_schulz import newton_schulz
from riemannian_ode.errors import require_positive

Memory = TypeVar("Memory")


class AdaptiveMetric(ABC, Generic[Memory]):
    """A metric that depends on the gradients seen so far.

    Attributes:
        skips_first: Whether the first gradient only builds the memory, without a step.
    """

    skips_first: ClassVar[bool] = False

    @abstractmethod
    def initial(self, g: Tensor) -> Memory:
        """Memory before the first step.

        Args:
            g: First gradient; only its shape is used unless ``skips_first``.
        """

    @abstractmethod
    def observe(self, memory: Memory, g: Tensor) -> Memory:
        """Memory with gradient g_k taken in, shape of the parameter."""

    @abstractmethod
    def raise_index(self, memory: Memory, covector: Tensor) -> Tensor:
        """F_k⁻¹ applied to a covector, shape of the parameter."""


class Identity(AdaptiveMetric[None]):
    """F = I: gradient descent and its momentum forms."""

    def initial(self, g: Tensor) -> None:
        return None

    def observe(self, memory: None, g: Tensor) -> None:
        return None

    def raise_index(self, memory: None, covector: Tensor) -> Tensor:
        return covector


class SecondMomentMemory(NamedTuple):
    """v (shape of the parameter) and the number of gradients seen."""

    v: Tensor
    step: int


@dataclass(frozen=True)
class SecondMoment(AdaptiveMetric[SecondMomentMemory]):
    r"""Adam's metric :math:`F = \mathrm{diag}(\sqrt{\hat v} + \epsilon)`, :math:`\hat v = v/(1 - \theta_2^t)`.

    Args:
        beta2: θ₂, EMA coefficient of g² in [0, 1).
        eps: ε.
        correct_bias: Whether v is divided by 1 − θ₂ᵗ: yes for Adam, no for RMSprop.

    Source: Kingma and Ba, arXiv:1412.6980, Algorithm 1; Tieleman and Hinton, *Lecture 6.5 — RMSprop* (2012).
    """

    beta2: float
    eps: float
    correct_bias: bool = True

    def initial(self, g: Tensor) -> SecondMomentMemory:
        return SecondMomentMemory(torch.zeros_like(g), 0)

    def observe(self, memory: SecondMomentMemory, g: Tensor) -> SecondMomentMemory:
        return SecondMomentMemory(second_moment_step(memory.v, g, beta2=self.beta2), memory.step + 1)

    def raise_index(self, memory: SecondMomentMemory, covector: Tensor) -> Tensor:
        bias = 1.0 - self.beta2**memory.step if self.correct_bias else 1.0
        scale: Tensor = memory.v.sqrt() / bias**0.5 + self.eps
        return covector / scale


@dataclass(frozen=True)
class PolarFactor(AdaptiveMetric[None]):
    r"""Muon's metric :math:`F = (X^\top X)^{1/2}` at the covector X it raises: :math:`F^{-1}X = \mathrm{msign}(X)`.

    Args:
        coefficients: (a, b, c) of every Newton–Schulz step.
        steps: Number of steps.
        eps: Smallest norm to divide by.
        dtype: Floating type of the iteration.

    Source: Jordan et al., *Muon* (2024), as in torch.optim.Muon.
    """

    coefficients: tuple[float, float, float]
    steps: int
    eps: float
    dtype: torch.dtype

    def initial(self, g: Tensor) -> None:
        return None

    def observe(self, memory: None, g: Tensor) -> None:
        return None

    def raise_index(self, memory: None, covector: Tensor) -> Tensor:
        x = covector.to(self.dtype)
        x = x / x.norm().clamp(min=self.eps)
        return newton_schulz(x, [self.coefficients] * self.steps, gram=False).to(covector.dtype)


class KroneckerMemory(NamedTuple):
    """L (m×m), R (n×n), sums or averages of GGᵀ and GᵀG, and the number of gradients seen."""

    left: Tensor
    right: Tensor
    step: int


@dataclass(frozen=True)
class KroneckerRoot(AdaptiveMetric[KroneckerMemory]):
    r"""Shampoo's metric :math:`F = L^{1/4} \otimes R^{1/4}`: :math:`F^{-1}X = L^{-1/4} X R^{-1/4}`.

    Args:
        beta2: θ₂, EMA coefficient of the factors, whose bias is corrected; ``None`` sums them, as published first.
        eps: ε > 0, added to the eigenvalues of both factors.

    Raises:
        ValueError: for an ε that is not positive.

    Source: Gupta, Koren and Singer, arXiv:1802.09568, Algorithm 1 (sums); Shi et al., arXiv:2309.06497 (EMA).
    """

    beta2: float | None
    eps: float

    def __post_init__(self) -> None:
        require_positive("eps", self.eps, "it keeps the roots of singular factors finite")

    def initial(self, g: Tensor) -> KroneckerMemory:
        return KroneckerMemory(g.new_zeros(g.shape[0], g.shape[0]), g.new_zeros(g.shape[1], g.shape[1]), 0)

    def observe(self, memory: KroneckerMemory, g: Tensor) -> KroneckerMemory:
        left, right = _accumulate((memory.left, memory.right), g, self.beta2)
        return KroneckerMemory(left, right, memory.step + 1)

    def raise_index(self, memory: KroneckerMemory, covector: Tensor) -> Tensor:
        bias = 1.0 if self.beta2 is None else 1.0 - self.beta2**memory.step
        left, right = (inverse_root(factor / bias, 4, eps=self.eps) for factor in (memory.left, memory.right))
        return left @ covector @ right


class EigenbasisMemory(NamedTuple):
    """L, R and their approximate eigenvectors by descending eigenvalue; V in that basis; number of steps."""

    left: Tensor
    right: Tensor
    left_basis: Tensor
    right_basis: Tensor
    v: Tensor
    step: int


@dataclass(frozen=True)
class EigenbasisMoment(AdaptiveMetric[EigenbasisMemory]):
    r"""SOAP's metric: Adam's :math:`\mathrm{diag}(\sqrt V)` in the eigenbasis :math:`(Q_L, Q_R)` of Shampoo's factors.

    .. math::
        F^{-1}X = Q_L\left[\frac{\sqrt{1-\theta_2^t}\; Q_L^\top X Q_R}{\sqrt V + \epsilon}\right] Q_R^\top, \qquad
        V \leftarrow \theta_2 V + (1-\theta_2)(Q_L^\top G Q_R)^2

    After every ``frequency`` steps one power iteration and a QR factorisation refresh the bases.

    Args:
        beta2: θ₂, EMA coefficient of V, L and R.
        eps: ε.
        frequency: Steps between refreshes.

    Source: Vyas et al., arXiv:2409.11321, Algorithm 3; start, bias correction and the order of columns as in
        the authors' code (the first gradient gives the first eigenbasis and no step).
    """

    beta2: float
    eps: float
    frequency: int

    skips_first: ClassVar[bool] = True

    def initial(self, g: Tensor) -> EigenbasisMemory:
        left, right = _accumulate(
            (g.new_zeros(g.shape[0], g.shape[0]), g.new_zeros(g.shape[1], g.shape[1])), g, self.beta2
        )
        bases = [torch.linalg.eigh(factor)[1].flip(-1) for factor in (left, right)]
        return EigenbasisMemory(left, right, bases[0], bases[1], torch.zeros_like(g), 0)

    def observe(self, memory: EigenbasisMemory, g: Tensor) -> EigenbasisMemory:
        if memory.step > 0 and memory.step % self.frequency == 0:
            memory = _refreshed(memory)
        rotated = memory.left_basis.mT @ g @ memory.right_basis
        left, right = _accumulate((memory.left, memory.right), g, self.beta2)
        v = second_moment_step(memory.v, rotated, beta2=self.beta2)
        return memory._replace(left=left, right=right, v=v, step=memory.step + 1)

    def raise_index(self, memory: EigenbasisMemory, covector: Tensor) -> Tensor:
        rotated = memory.left_basis.mT @ covector @ memory.right_basis
        # The momentum's bias belongs to the learning rate: θ₁ = 0 leaves it out here.
        direction = adam_direction(rotated, memory.v, beta1=0.0, beta2=self.beta2, step=memory.step, eps=self.eps)
        return memory.left_basis @ direction @ memory.right_basis.mT


def inverse_root(matrix: Tensor, order: int, *, eps: float) -> Tensor:
    """(A + εI)^{−1/order} of a symmetric positive-semidefinite matrix, by its eigenvectors.

    Args:
        matrix: A, shape ``(*batch, n, n)``.
        order: 1, 2, 4, …
        eps: ε > 0; rounding may leave eigenvalues slightly below zero, which count as zero.

    Source: Higham, *Functions of Matrices*, chapter 7.
    """
    values, vectors = torch.linalg.eigh(matrix)
    powers = (values.clamp(min=0.0) + eps) ** (-1.0 / order)
    root: Tensor = (vectors * powers[..., None, :]) @ vectors.mT
    return root


def _accumulate(factors: Sequence[Tensor], g: Tensor, beta2: float | None) -> tuple[Tensor, Tensor]:
    """L and R with GGᵀ and GᵀG added, or averaged in."""
    left, right = factors
    if beta2 is None:
        return left + g @ g.mT, right + g.mT @ g
    return beta2 * left + (1.0 - beta2) * (g @ g.mT), beta2 * right + (1.0 - beta2) * (g.mT @ g)


def _refreshed(memory: EigenbasisMemory) -> EigenbasisMemory:
    """One power iteration, columns sorted by their Rayleigh quotients, and QR; V follows the order of the columns."""
    bases: list[Any] = []
    orders = []
    for factor, basis in ((memory.left, memory.left_basis), (memory.right, memory.right_basis)):
        image = factor @ basis
        order = torch.argsort((basis * image).sum(0), descending=True)
        bases.append(torch.linalg.qr(image[:, order])[0])
        orders.append(order)
    return memory._replace(left_basis=bases[0], right_basis=bases[1], v=memory.v[orders[0]][:, orders[1]])
