"""Random constant metrics with LITE's split, and update rules and flows on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from discretizations.update_rule import lite_step
from riemannian_ode import RISHD, ConstantMetric, ConstantSplit, Objective
from riemannian_ode.arrays import matvec
from riemannian_ode.split import complement
from rishd.claims.instances import from_spectrum, rotations
from rishd.claims.trial import Box, Parameters, Range


class Step(NamedTuple):
    """One step of an update rule: w_k, m_{k−1} and g_k before, w_{k+1} and m_k after it, each of shape ``(n, p)``."""

    w: np.ndarray
    m: np.ndarray
    g: np.ndarray
    new_w: np.ndarray
    new_m: np.ndarray


@dataclass(frozen=True)
class SplitGeometry:
    r"""A constant metric and a split with a common eigenbasis, one per member.

    .. math:: A = F^{-1}(P + \chi Q), \qquad B = \beta_1P + \beta_2Q

    Args:
        basis: Orthogonal U whose first ``sharp_rank`` columns are sharp, shape ``(n, p, p)``.
        metric_eigenvalues: Eigenvalues of F along U's columns, shape ``(n, p)``.
        sharp_rank: d_s.
        chi: χ, shape ``(n,)``.
        beta_sharp: β₁ in the theory's units, shape ``(n,)``.
        beta_flat: β₂, shape ``(n,)``.
    """

    basis: np.ndarray
    metric_eigenvalues: np.ndarray
    sharp_rank: int
    chi: np.ndarray
    beta_sharp: np.ndarray
    beta_flat: np.ndarray

    @property
    def is_sharp(self) -> np.ndarray:
        """Which columns of the basis are sharp, shape ``(p,)``."""
        return np.arange(self.basis.shape[-1]) < self.sharp_rank

    @property
    def sharp(self) -> np.ndarray:
        """Basis of the sharp subspace, shape ``(n, p, d_s)``."""
        return self.basis[..., : self.sharp_rank]

    @property
    def a(self) -> np.ndarray:
        """Eigenvalues of A, shape ``(n, p)``."""
        return np.asarray(np.where(self.is_sharp, 1.0, self.chi[:, None]) / self.metric_eigenvalues)

    @property
    def b(self) -> np.ndarray:
        """Eigenvalues of B, shape ``(n, p)``."""
        return np.where(self.is_sharp, self.beta_sharp[:, None], self.beta_flat[:, None])

    @property
    def largest_a(self) -> np.ndarray:
        """λ_max(A) in the sharp and in the flat block, shape ``(n, 2)``."""
        return np.stack([self.a[:, self.is_sharp].max(-1), self.a[:, ~self.is_sharp].max(-1)], axis=-1)

    @property
    def damping(self) -> np.ndarray:
        """β₁ and β₂, shape ``(n, 2)``."""
        return np.stack([self.beta_sharp, self.beta_flat], axis=-1)

    def spread(self, blocks: np.ndarray) -> np.ndarray:
        """Expand one value per block, shape ``(n, 2)``, to one per column of the basis, shape ``(n, p)``."""
        return np.where(self.is_sharp, blocks[:, :1], blocks[:, 1:])

    @property
    def metric(self) -> ConstantMetric:
        """F."""
        return ConstantMetric(from_spectrum(self.basis, self.metric_eigenvalues))

    def matrix(self, eigenvalues: np.ndarray) -> np.ndarray:
        """The matrix with these eigenvalues in the common basis, shape ``(n, p, p)``."""
        return from_spectrum(self.basis, eigenvalues)

    def form(self, x: np.ndarray, eigenvalues: np.ndarray) -> np.ndarray:
        """xᵀMx for such a matrix, shape ``(…, n)``."""
        return np.asarray((eigenvalues * matvec(np.swapaxes(self.basis, -1, -2), x) ** 2).sum(-1))

    def flow(self, objective: Objective, *, alpha: np.ndarray, eta: np.ndarray) -> RISHD:
        """LITE's flow on an objective."""
        return RISHD.from_optimizer(
            objective,
            self.metric,
            alpha=alpha,
            eta=eta,
            beta=self.beta_sharp,
            beta_flat=self.beta_flat,
            chi=self.chi,
            flat=ConstantSplit(self.sharp),
        )

    def step(
        self, w: np.ndarray, m: np.ndarray, g: np.ndarray, *, alpha: np.ndarray, eta: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One step of LITE's update rule: w_{k+1} and m_k from w_k, m_{k−1} and g_k."""
        inverse = self.matrix(1.0 / self.metric_eigenvalues)
        flat = complement(self.sharp)
        return lite_step(
            w,
            m,
            g,
            eta=eta[:, None],
            alpha=alpha[:, None],
            precondition=lambda x: matvec(inverse, x),
            split=lambda *_: flat,
            chi=self.chi[:, None],
            beta_sharp=self.beta_sharp[:, None],
            beta_flat=self.beta_flat[:, None],
        )

    def run(
        self,
        objective: Objective,
        w: np.ndarray,
        m: np.ndarray | None = None,
        *,
        alpha: np.ndarray,
        eta: np.ndarray,
        steps: int,
    ) -> Iterator[Step]:
        """Run the update rule on an objective, from rest by default."""
        m = np.zeros_like(w) if m is None else m
        for _ in range(steps):
            g = objective.gradient(w)
            new_w, new_m = self.step(w, m, g, alpha=alpha, eta=eta)
            yield Step(w, m, g, new_w, new_m)
            w, m = new_w, new_m


def geometry_box(
    p: int, *, beta_sharp: tuple[float, float] = (0.0, 2.0), beta_gap: tuple[float, float] = (0.0, 3.0)
) -> Box:
    """Parameter ranges for :func:`split_geometry`: rotations, metrics with condition numbers up to 4, χ up to 6.

    Args:
        p: Dimension.
        beta_sharp: Range of β₁.
        beta_gap: Range of β₂ − β₁.
    """
    return {
        "rotation": Range(-2.0, 2.0, p * (p - 1) // 2),
        "metric": Range(0.5, 2.0, p, log=True),
        "chi": Range(1.0, 6.0, log=True),
        "beta_sharp": Range(*beta_sharp),
        "beta_gap": Range(*beta_gap),
    }


def split_geometry(parameters: Parameters, *, sharp_rank: int = 1) -> SplitGeometry:
    """Geometries from parameters of :func:`geometry_box`."""
    p = parameters["metric"].shape[-1]
    rotation = parameters["rotation"].reshape(len(parameters["metric"]), -1)
    return SplitGeometry(
        rotations(rotation, p),
        parameters["metric"],
        sharp_rank,
        parameters["chi"],
        parameters["beta_sharp"],
        parameters["beta_sharp"] + parameters["beta_gap"],
    )
