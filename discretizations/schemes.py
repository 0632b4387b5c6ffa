r"""Other discretisations of the flow as optimizers: update rules at h = 1 with one gradient per step.

The flow is :math:`\dot w = -\eta F^{-1}(m + \beta g)`, :math:`\dot m = -\alpha m + g`. A scheme here is

.. math::
    m_k = (1 - \alpha')\, m_{k-1} + c\, g_k, \qquad w_{k+1} = w_k - h\eta F^{-1}(r\, m + \beta g_k)

where m is the new momentum (the old one for explicit Euler) and α', c, r are functions of α and h. Each scheme is the
optimizers' own rule with other coefficients (:func:`equivalent_rule`), so a scheme only changes the meaning of α, β and
η. Schemes that also need the curvature are in :mod:`discretizations.curvature_schemes`.

Source: derived in docs/guides/schemes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from discretizations.update_rule import UpdateState, lite_step
from riemannian_ode.checks import require_positive
from riemannian_ode.flow import Array, Projector, lite_direction, momentum_step, position_step
from riemannian_ode.registry import Registry

Precondition = Callable[[Array], Array]


class Kick(NamedTuple):
    """Coefficients of one step: α' (share of the momentum lost), c (gain of the gradient), r (weight of the drift)."""

    share: Any
    gain: Any
    weight: Any


class EquivalentRule(NamedTuple):
    """The optimizers' rule equivalent to a scheme: α, β in the theory's units, and its η over the scheme's."""

    alpha: Any
    beta: Any
    eta_ratio: Any


class OneGradientScheme(ABC):
    """A discretisation that evaluates one gradient per step, at the parameters it stores.

    Attributes:
        name: Its key in :data:`ONE_GRADIENT_SCHEMES`.
        order: Order of convergence to the flow at β = 0; with β ≠ 0 all schemes have order 1.
        integrator: Equivalent scheme in :data:`riemannian_ode.INTEGRATORS`, or ``None``.
        old_momentum: Whether the position moves with the momentum of the previous step.
        splits_damping: Whether damping is a separate substep.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 1
    integrator: ClassVar[str | None] = None
    old_momentum: ClassVar[bool] = False
    splits_damping: ClassVar[bool] = False

    @abstractmethod
    def kick(self, alpha: Any, h: Any = 1.0, *, expm1: Callable[[Any], Any] = math.expm1) -> Kick:
        """Coefficients of a step.

        Args:
            alpha: α > 0, per unit time.
            h: Step, in units of time.
            expm1: x ↦ eˣ − 1 for the type of ``alpha``: ``numpy.expm1`` for arrays.
        """

    def step(
        self,
        w: Array,
        m: Array,
        g: Array,
        *,
        eta: Any,
        alpha: Any,
        beta: Any = 0.0,
        beta_flat: Any = None,
        chi: Any = 1.0,
        split: Callable[[Array, Array], Projector] | None = None,
        precondition: Precondition = lambda x: x,
        h: float = 1.0,
    ) -> UpdateState:
        """One step.

        Args:
            w: Stored parameters, any shape.
            m: Momentum, shape of ``w``.
            g: Gradient at ``w``, shape of ``w``.
            eta: Learning rate η.
            alpha: α > 0, per unit time.
            beta: β (β₁ with a split) in the theory's units.
            beta_flat: β₂; ``beta`` by default. Needs a split.
            chi: χ. Needs a split.
            split: (m̃, a) ↦ (x ↦ Qx); ``None`` is the base method. With a split F⁻¹ must be linear.
            precondition: x ↦ F⁻¹x.
            h: Step size; 1 for an optimizer.

        Raises:
            ValueError: for α ≤ 0, h ≤ 0, or χ and β₂ without a split.
        """
        require_positive("alpha", alpha, "it is 1 − momentum")
        require_positive("h", h)
        if split is None and (beta_flat is not None or not (isinstance(chi, (int, float)) and chi == 1)):
            raise ValueError(
                "chi and beta_flat act on flat directions, but none are named; pass split=, or leave both out."
            )
        return self.advance(
            w,
            m,
            g,
            self.kick(alpha, h),
            eta=h * eta,
            beta=beta,
            beta_flat=beta if beta_flat is None else beta_flat,
            chi=chi,
            split=split,
            precondition=precondition,
        )

    def advance(
        self,
        w: Array,
        m: Array,
        g: Array,
        kick: Kick,
        *,
        eta: Any,
        beta: Any,
        beta_flat: Any = 0.0,
        chi: Any = 1.0,
        split: Callable[[Array, Array], Projector] | None = None,
        precondition: Precondition = lambda x: x,
    ) -> UpdateState:
        """The step with known coefficients, for any scalars (numbers, arrays, symbols); arguments are not checked.

        Args:
            w: See :meth:`step`.
            m: See :meth:`step`.
            g: See :meth:`step`.
            kick: Result of :meth:`kick`.
            eta: hη.
            beta: β₁.
            beta_flat: β₂, unused without a split.
            chi: χ.
            split: See :meth:`step`.
            precondition: x ↦ F⁻¹x.
        """
        share, gain, weight = kick
        damping: dict[str, Any] = (
            {"nesterov": beta / weight}
            if split is None
            else {"beta_sharp": beta / weight, "beta_flat": beta_flat / weight, "chi": chi, "split": split}
        )
        raise_index = (
            precondition if isinstance(weight, float) and weight == 1.0 else lambda x: precondition(weight * x)
        )
        if not self.old_momentum:
            return lite_step(w, m, g, eta=eta, alpha=share, gain=gain, precondition=raise_index, **damping)
        u = lite_direction(m, g, raise_index=raise_index, **damping)
        return UpdateState(position_step(w, u, eta=eta), momentum_step(m, g, alpha=share, gain=gain))

    def equivalent_rule(self, alpha: Any, beta: Any, h: Any = 1.0, **functions: Any) -> EquivalentRule:
        r"""The rule :math:`m = (1-\alpha')m + g`, :math:`w - \eta' F^{-1}(m + \beta' g)` with the same positions w.

        For a linear F⁻¹: with c absorbed into the momentum, :math:`\eta' = h\eta\,rc` and :math:`\beta' = \beta/(rc)`.
        The old momentum is :math:`(m - cg)/(1 - \alpha')`, for which :math:`\eta' = h\eta\,rc/(1-\alpha')` and
        :math:`\beta' = (1-\alpha')\beta/(rc) - 1`.

        Args:
            alpha: α > 0, with hα < 1 for explicit Euler.
            beta: β in the theory's units.
            h: Step.
            functions: See :meth:`kick`.

        Source: derived in docs/guides/schemes; proved in :mod:`discretizations.proofs.schemes`.
        """
        share, gain, weight = self.kick(alpha, h, **functions)
        if not self.old_momentum:
            return EquivalentRule(share, beta / (weight * gain), h * weight * gain)
        keep = 1 - share
        return EquivalentRule(share, keep * beta / (weight * gain) - 1, h * weight * gain / keep)


ONE_GRADIENT_SCHEMES: Registry[OneGradientScheme] = Registry("scheme", entry=lambda cls: (cls.name, cls()))


@ONE_GRADIENT_SCHEMES.register(place=10)
class SemiImplicit(OneGradientScheme):
    """The optimizers' scheme: momentum first, then the position with the new momentum."""

    name = "semi-implicit-euler"
    integrator = "semi-implicit-euler"

    def kick(self, alpha: Any, h: Any = 1.0, *, expm1: Callable[[Any], Any] = math.expm1) -> Kick:
        return Kick(h * alpha, h, 1.0)


@ONE_GRADIENT_SCHEMES.register(place=20)
class PositionFirst(SemiImplicit):
    r"""Position first, with the old momentum; the following kick waits for the next gradient.

    Position and kick alternate in both schemes, so the stored state is that of :class:`SemiImplicit`, with the momentum
    read half a step earlier (:meth:`stored_momentum`). It is the same optimizer except for its first kick.
    """

    name = "position-first-euler"
    integrator = "position-first-euler"

    def stored_momentum(self, m: Array, g: Array, *, alpha: Any, h: float = 1.0) -> Array:
        """The momentum to store so that the flow's momentum is ``m`` where the gradient is ``g``; needs hα ≠ 1."""
        share, gain, _ = self.kick(alpha, h)
        return (m - gain * g) / (1 - share)


@ONE_GRADIENT_SCHEMES.register(place=30)
class Explicit(OneGradientScheme):
    """Both updates use the old state: a gradient moves the position by β at once, and by the momentum a step later."""

    name = "explicit-euler"
    integrator = "explicit-euler"
    old_momentum = True

    def kick(self, alpha: Any, h: Any = 1.0, *, expm1: Callable[[Any], Any] = math.expm1) -> Kick:
        return Kick(h * alpha, h, 1.0)


@ONE_GRADIENT_SCHEMES.register(place=40)
class ImplicitDamping(OneGradientScheme):
    r"""Damping at the new momentum, :math:`m_k = (m_{k-1} + hg_k)/(1 + h\alpha)`: with no equation to solve."""

    name = "implicit-damping"

    def kick(self, alpha: Any, h: Any = 1.0, *, expm1: Callable[[Any], Any] = math.expm1) -> Kick:
        return Kick(h * alpha / (1 + h * alpha), h / (1 + h * alpha), 1.0)


@ONE_GRADIENT_SCHEMES.register(place=50)
class ExponentialDamping(OneGradientScheme):
    r"""The momentum equation solved exactly for a constant gradient.

    .. math:: m_k = e^{-h\alpha}m_{k-1} + \frac{1 - e^{-h\alpha}}\alpha\, g_k
    """

    name = "exponential-damping"

    def kick(self, alpha: Any, h: Any = 1.0, *, expm1: Callable[[Any], Any] = math.expm1) -> Kick:
        share = -expm1(-h * alpha)
        return Kick(share, share / alpha, 1.0)


@ONE_GRADIENT_SCHEMES.register(place=60)
class Leapfrog(OneGradientScheme):
    r"""Strang splitting with exact damping, stored at the middle of the step, where the gradient is taken.

    .. math::
        m_k = e^{-h\alpha}m_{k-1} + hg_k, \qquad
        w_{k+1} = w_k - h\eta F^{-1}\left(\tfrac{1 + e^{-h\alpha}}2 m_k + \beta g_k\right)

    :meth:`enter` and :meth:`leave` convert between the flow's state and the stored one. At β = 0 and constant F it is
    the integrator ``strang``, of order 2. With β ≠ 0 the part βg has order 1, whereas that integrator solves equations.
    """

    name = "leapfrog"
    order = 2
    integrator = "strang"
    splits_damping = True

    def kick(self, alpha: Any, h: Any = 1.0, *, expm1: Callable[[Any], Any] = math.expm1) -> Kick:
        share = -expm1(-h * alpha)
        return Kick(share, h, 1 - share / 2)

    def enter(
        self, w: Array, m: Array, *, eta: Any, alpha: Any, precondition: Precondition = lambda x: x, h: float = 1.0
    ) -> UpdateState:
        """Stored state from the flow's: half a drift ahead, with the momentum before half of the damping."""
        damped = math.exp(-h * alpha / 2) * m
        return UpdateState(position_step(w, precondition(damped), eta=eta, h=h / 2), math.exp(h * alpha / 2) * m)

    def leave(
        self, w: Array, m: Array, *, eta: Any, alpha: Any, precondition: Precondition = lambda x: x, h: float = 1.0
    ) -> UpdateState:
        """The flow's state from the stored one."""
        damped = math.exp(-h * alpha) * m
        return UpdateState(position_step(w, precondition(damped), eta=eta, h=-h / 2), math.exp(-h * alpha / 2) * m)
