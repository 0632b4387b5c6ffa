"""The update rule with a constant metric and a constant split, the subject of claims C21 and C22."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from discretizations.update_rule import UpdateState
from riemannian_ode.arrays import matvec
from riemannian_ode.checks import shown
from riemannian_ode.flow import Array, momentum_step, position_step

_SYMMETRY = 1e-9  # relative size of an antisymmetric part or a commutator that counts as rounding


@dataclass(frozen=True)
class ConstantRule:
    r"""The update rule :math:`m_k = (1-\alpha)m_{k-1} + g_k`, :math:`w_{k+1} = w_k - \eta A(m_k + Bg_k)`.

    LITE with a constant metric F and a projector P that commutes with F has :math:`A = F^{-1}(P + \chi Q)` and
    :math:`B = \beta_1P + \beta_2Q`.

    Args:
        eta: Learning rate η > 0, a number or shape ``(n,)``.
        alpha: α in (0, 2), a number or shape ``(n,)``.
        inverse_metric: A, symmetric positive definite, shape ``(p, p)`` or ``(n, p, p)``.
        damping: B, symmetric, commuting with A, shape of A; in the theory's units.

    Raises:
        ValueError: for η or α outside their ranges, an A that is not symmetric positive definite, or a B that is not
            symmetric or does not commute with A.
    """

    eta: Array
    alpha: Array
    inverse_metric: np.ndarray
    damping: np.ndarray

    def __post_init__(self) -> None:
        if not (np.isrealobj(self.eta) and np.all(np.isfinite(self.eta) & (np.asarray(self.eta) > 0))):
            raise ValueError(f"eta = {self.eta!r} must be positive and finite.")
        if not (np.isrealobj(self.alpha) and np.all((np.asarray(self.alpha) > 0) & (np.asarray(self.alpha) < 2))):
            raise ValueError(f"alpha = {self.alpha!r} must lie in (0, 2): it is 1 − momentum.")
        a, b = (np.asarray(matrix) for matrix in (self.inverse_metric, self.damping))
        if a.shape != b.shape or a.ndim < 2 or a.shape[-1] != a.shape[-2]:
            raise ValueError(
                f"inverse_metric has shape {a.shape} and damping {b.shape}; give square matrices of one shape, such as "
                "np.eye(p) and beta * np.eye(p)."
            )
        for name, matrix in (("inverse_metric", self.inverse_metric), ("damping", self.damping)):
            if not (isinstance(matrix, np.ndarray) and matrix.dtype.kind == "f" and np.isfinite(matrix).all()):
                raise ValueError(f"{name} = {shown(matrix)} must be a numpy array of finite floats.")
        for name, value in (("eta", self.eta), ("alpha", self.alpha)):
            if np.ndim(value) > 1 or (a.ndim > 2 and np.shape(value) not in ((), a.shape[:-2])):
                raise ValueError(
                    f"{name} has shape {np.shape(value)} and inverse_metric {a.shape}; give a number, or one for each."
                )
        for name, matrix in (("inverse_metric", a), ("damping", b)):
            if not _vanishes(matrix - np.swapaxes(matrix, -1, -2), matrix):
                raise ValueError(f"{name} must be symmetric; symmetrise it, or give the matrix of another form.")
        if np.linalg.eigvalsh(a).min() <= 0:
            raise ValueError(
                f"inverse_metric has the eigenvalue {np.linalg.eigvalsh(a).min():g}; it must be positive definite."
            )
        if not _vanishes(a @ b - b @ a, a @ b):
            raise ValueError("damping must commute with inverse_metric; take F and P with a common eigenbasis.")

    @property
    def lagged(self) -> np.ndarray:
        """The matrix AB, which acts on the gradient."""
        return np.asarray(self.inverse_metric @ self.damping)

    @property
    def clock(self) -> np.ndarray:
        """The matrix C = A(B + 1/α) that drives the shadow position of claim C7."""
        return np.asarray(self.lagged + self.inverse_metric / _column(self.alpha))

    @property
    def edge_metric(self) -> np.ndarray:
        """The matrix D = A(B + 1/(2 − α)); a mode of period 2 has ηD∇²f = 2 (claim C21)."""
        return np.asarray(self.lagged + self.inverse_metric / (2.0 - _column(self.alpha)))

    def step(self, w: Array, m: Array, g: Array) -> UpdateState:
        """One step of the update rule.

        Args:
            w: Parameters, shape ``(p,)`` or ``(n, p)``.
            m: Momentum, the same shape.
            g: Gradient at ``w``, the same shape.
        """
        new_m = momentum_step(m, g, alpha=_row(self.alpha))
        u = matvec(self.inverse_metric, new_m) + matvec(self.lagged, g)
        return UpdateState(position_step(w, u, eta=_row(self.eta)), new_m)


def split_rule(
    *, eta: Array, alpha: Array, sharp: np.ndarray, chi: Array = 1.0, beta_sharp: Array = 0.0, beta_flat: Array = 0.0
) -> ConstantRule:
    """LITE's rule with the Euclidean metric and a constant sharp subspace.

    Args:
        eta: η.
        alpha: α.
        sharp: Orthonormal basis of the sharp subspace, shape ``(p, d_s)``; d_s = 0 makes all directions flat.
        chi: χ.
        beta_sharp: β₁ in the theory's units.
        beta_flat: β₂ in the theory's units.

    Raises:
        ValueError: for columns that are not orthonormal, and as in :class:`ConstantRule`.
    """
    if np.ndim(sharp) != 2 or not np.allclose(sharp.T @ sharp, np.eye(sharp.shape[1]), rtol=0.0, atol=_SYMMETRY):
        raise ValueError(
            f"sharp has shape {np.shape(sharp)}; its columns must be orthonormal, shape (p, d_s): take numpy.linalg.qr."
        )
    project = sharp @ sharp.T
    flat = np.eye(len(sharp)) - project
    return ConstantRule(eta, alpha, project + chi * flat, beta_sharp * project + beta_flat * flat)


def _vanishes(difference: np.ndarray, scale: np.ndarray) -> bool:
    return bool(np.abs(difference).max(initial=0.0) <= _SYMMETRY * max(np.abs(scale).max(initial=0.0), 1e-300))


def _row(coefficient: Array) -> Array:
    """A coefficient that broadcasts against vectors."""
    return coefficient if np.ndim(coefficient) == 0 else np.asarray(coefficient)[:, None]


def _column(coefficient: Array) -> Array:
    """A coefficient that broadcasts against matrices."""
    return coefficient if np.ndim(coefficient) == 0 else np.asarray(coefficient)[:, None, None]
