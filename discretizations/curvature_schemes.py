r"""Implicit and exponential discretisations, which need the curvature as well as the gradient, mode by mode.

With diagonal metric and Hessian each coordinate is a separate mode, :math:`\dot y = f(y)`, :math:`y = (w, m)`, with

.. math::
    f = \begin{pmatrix} -\eta a(m + \beta g) \\ -\alpha m + g\end{pmatrix}, \qquad
    J = \begin{pmatrix} -\eta a\beta\lambda & -\eta a \\ \lambda & -\alpha\end{pmatrix}

A step is :math:`y + \varphi(hJ)\,hf(y)`, with one gradient and one curvature λ per coordinate. λ may be any estimate (a
Hessian diagonal, a Gauss–Newton diagonal), but must not be negative, because φ can then be singular. On quadratics
these schemes equal the implicit, Strang and exponential integrators of :mod:`riemannian_ode.integrators`.

Source: Hochbruck and Ostermann, *Exponential integrators*, Acta Numerica 19 (2010); Hairer and Wanner, *Solving ODEs
II*, IV.7 (linearly implicit methods).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from discretizations.update_rule import UpdateState
from riemannian_ode.checks import require_positive
from riemannian_ode.flow import lite_direction, momentum_rate
from riemannian_ode.registry import Registry

Polynomial: TypeAlias = tuple[tuple[Any, Any], ...]  # (constant, slope in κ) of p₂, p₁, p₀


class _Modes(NamedTuple):
    """The entries of hJ, and hf, each of the shape of the parameter."""

    ww: Tensor
    wm: Tensor
    mw: Tensor
    mm: Tensor
    w_rate: Tensor
    m_rate: Tensor


class CurvatureScheme(ABC):
    """A discretisation that needs the gradient and a curvature per coordinate at w.

    Attributes:
        name: Its key in :data:`CURVATURE_SCHEMES`.
        order: Order of convergence to the flow if the Hessian is diagonal and λ is its exact diagonal.
        integrator: The integrator that it equals on quadratics (``strang`` only for β ≠ 0, since at β = 0 it is
            explicit).
        splits_damping: Whether damping is a separate substep.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    integrator: ClassVar[str]
    splits_damping: ClassVar[bool] = False

    def step(
        self,
        w: Tensor,
        m: Tensor,
        g: Tensor,
        curvature: Tensor,
        *,
        eta: Tensor | float,
        alpha: float,
        beta: float = 0.0,
        inverse_metric: Tensor | float = 1.0,
        h: float = 1.0,
    ) -> UpdateState:
        """One step of the scheme.

        Args:
            w: Parameters, any shape.
            m: Momentum, shape of ``w``.
            g: Gradient at ``w``, shape of ``w``.
            curvature: λ ≥ 0 at ``w``, shape of ``w``.
            eta: Learning rate η, a number or broadcasting against ``w``.
            alpha: α > 0, per unit time.
            beta: β ≥ 0 in the theory's units.
            inverse_metric: a, the diagonal of F⁻¹, shape of ``w`` or a number.
            h: Step size; 1 for an optimizer.

        Raises:
            ValueError: for α ≤ 0 or h ≤ 0.
        """
        require_positive("alpha", alpha, "it is 1 − momentum")
        require_positive("h", h)
        return self._advance(w, m, g, curvature, eta * inverse_metric, alpha, beta, h)

    def _advance(
        self, w: Tensor, m: Tensor, g: Tensor, curvature: Tensor, rate: Any, alpha: float, beta: float, h: float
    ) -> UpdateState:
        """A step with the learning rate ηa per coordinate."""
        u = lite_direction(m, g, raise_index=lambda x: rate * x, nesterov=beta)
        modes = _Modes(
            -h * rate * beta * curvature,
            -h * rate * torch.ones_like(w),
            h * curvature,
            torch.full_like(w, -h * alpha),
            -h * u,
            h * momentum_rate(m, g, alpha=alpha),
        )
        dw, dm = self.increment(modes)
        return UpdateState(w + dw, m + dm)

    @abstractmethod
    def increment(self, modes: _Modes) -> tuple[Tensor, Tensor]:
        """The increment φ(hJ)·hf of position and momentum."""

    @abstractmethod
    def mode_matrix(self, kappa: Any, alpha: Any, beta: Any) -> np.ndarray:
        """Step of one mode with h = 1; see :func:`discretizations.scheme_modes.step_matrix`."""

    @abstractmethod
    def mode_polynomial(self, alpha: Any, beta: Any, *, expm1: Callable[[Any], Any]) -> Polynomial | None:
        """Characteristic polynomial of that step; ``None`` if the step is the exact flow :math:`e^J`.

        See :func:`discretizations.scheme_modes.step_polynomial`.
        """


def two_by_two(top_left: Any, top_right: Any, bottom_left: Any, bottom_right: Any) -> np.ndarray:
    """Matrices from their entries, shape ``(*broadcast, 2, 2)``."""
    a, b, c, d = np.broadcast_arrays(top_left, top_right, bottom_left, bottom_right)
    matrix: np.ndarray = np.stack([np.stack([a, b], axis=-1), np.stack([c, d], axis=-1)], axis=-2)
    return matrix


CURVATURE_SCHEMES: Registry[CurvatureScheme] = Registry("scheme", entry=lambda cls: (cls.name, cls()))


class _Rational(CurvatureScheme):
    """φ(Z) = (I − ϑZ)⁻¹."""

    implicitness: ClassVar[float]

    def increment(self, modes: _Modes) -> tuple[Tensor, Tensor]:
        part = self.implicitness
        ww, wm, mw, mm = 1 - part * modes.ww, part * modes.wm, part * modes.mw, 1 - part * modes.mm
        determinant = ww * mm - wm * mw
        return (
            (mm * modes.w_rate + wm * modes.m_rate) / determinant,
            (mw * modes.w_rate + ww * modes.m_rate) / determinant,
        )

    def mode_matrix(self, kappa: Any, alpha: Any, beta: Any) -> np.ndarray:
        """(I − ϑJ)⁻¹(I + (1 − ϑ)J) with J = [[−βκ, −1], [κ, −α]]."""
        part, rest = self.implicitness, 1.0 - self.implicitness
        jacobian = two_by_two(-beta * kappa, -1.0, kappa, -alpha)
        return np.asarray(np.linalg.solve(np.eye(2) - part * jacobian, np.eye(2) + rest * jacobian))

    def mode_polynomial(self, alpha: Any, beta: Any, *, expm1: Callable[[Any], Any]) -> Polynomial:
        """(z − 1)² − (z − 1)(ϑz + 1 − ϑ)·tr J + (ϑz + 1 − ϑ)²·det J, with tr J = −α − βκ and det J = (1 + αβ)κ."""
        part, rest = self.implicitness, 1.0 - self.implicitness
        one, gamma = 1.0 + 0 * alpha * beta, 1 + alpha * beta
        return (
            (one + part * alpha, part * beta + part**2 * gamma),
            (-2 * one + (rest - part) * alpha, (rest - part) * beta + 2 * part * rest * gamma),
            (one - rest * alpha, rest**2 * gamma - rest * beta),
        )


@CURVATURE_SCHEMES.register(place=10)
class LinearlyImplicitEuler(_Rational):
    r""":math:`\varphi(Z) = (I - Z)^{-1}`: implicit Euler with one Newton step."""

    name = "implicit-euler"
    order = 1
    integrator = "implicit-euler"
    implicitness = 1.0


@CURVATURE_SCHEMES.register(place=20)
class LinearlyImplicitMidpoint(_Rational):
    r""":math:`\varphi(Z) = (I - Z/2)^{-1}`: the implicit midpoint rule with one Newton step."""

    name = "implicit-midpoint"
    order = 2
    integrator = "implicit-midpoint"
    implicitness = 0.5


@CURVATURE_SCHEMES.register(place=30)
class LinearlyImplicitStrang(LinearlyImplicitMidpoint):
    """Half the damping exactly, the undamped flow by the midpoint rule with one Newton step, half the damping."""

    name = "strang"
    integrator = "strang"
    splits_damping = True

    def _advance(
        self, w: Tensor, m: Tensor, g: Tensor, curvature: Tensor, rate: Any, alpha: float, beta: float, h: float
    ) -> UpdateState:
        half = math.exp(-h * alpha / 2)
        w, m = super()._advance(w, half * m, g, curvature, rate, 0.0, beta, h)
        return UpdateState(w, half * m)

    def mode_matrix(self, kappa: Any, alpha: Any, beta: Any) -> np.ndarray:
        half = np.exp(-0.5 * np.asarray(alpha))
        return np.asarray(super().mode_matrix(kappa, 0.0 * alpha, beta) * two_by_two(1.0, half, half, half**2))

    def mode_polynomial(self, alpha: Any, beta: Any, *, expm1: Callable[[Any], Any]) -> Polynomial:
        one, keep = 1.0 + 0 * alpha * beta, 1 + expm1(-alpha)
        return (
            (one, beta / 2 + one / 4),
            (-(1 + keep) * one, (1 - keep) * beta / 2 + (1 + keep) / 4),
            (keep * one, keep * (one / 4 - beta / 2)),
        )


@CURVATURE_SCHEMES.register(place=40)
class ExponentialPerMode(CurvatureScheme):
    r""":math:`\varphi(Z) = \varphi_1(Z) = (e^Z - 1)Z^{-1}`: exact on quadratics."""

    name = "exponential-euler"
    order = 2
    integrator = "exponential-euler"

    def increment(self, modes: _Modes) -> tuple[Tensor, Tensor]:
        # exp of [[hJ, hf], [0, 0]] has φ₁(hJ)·hf in its last column, which avoids dividing by a singular J.
        augmented = torch.zeros(*modes.ww.shape, 3, 3, dtype=modes.ww.dtype, device=modes.ww.device)
        augmented[..., 0, 0], augmented[..., 0, 1], augmented[..., 0, 2] = modes.ww, modes.wm, modes.w_rate
        augmented[..., 1, 0], augmented[..., 1, 1], augmented[..., 1, 2] = modes.mw, modes.mm, modes.m_rate
        exponential = torch.linalg.matrix_exp(augmented)
        return exponential[..., 0, 2], exponential[..., 1, 2]

    def mode_matrix(self, kappa: Any, alpha: Any, beta: Any) -> np.ndarray:
        import scipy.linalg

        return np.asarray(scipy.linalg.expm(two_by_two(-beta * kappa, -1.0, kappa, -alpha)))

    def mode_polynomial(self, alpha: Any, beta: Any, *, expm1: Callable[[Any], Any]) -> None:
        return None
