r"""RISHD as a first-order system in phase space.

.. math::
    \dot w = -\eta_t\left[P F^{-1}(m + \beta_1 g) + \chi Q F^{-1}(m + \beta_2 g)\right], \qquad
    \dot m = -\alpha m + c\, g + R, \qquad R_i = \Gamma^k_{ij}\dot w^j m_k

Source: arXiv:2602.22681, eqs. (tangent) and (cotangent); equivalence with the second-order form: docs/theory, claim C1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from riemannian_ode.arrays import to_numpy
from riemannian_ode.coefficients import (
    COEFFICIENTS,
    Coefficient,
    TimeDependent,
    add,
    as_coefficient,
    check_finite,
    check_range,
    expand,
    fitted,
)
from riemannian_ode.coefficients import at as coefficient_at
from riemannian_ode.coefficients import rate as coefficient_rate
from riemannian_ode.flow import Array, lite_direction, momentum_rate
from riemannian_ode.memory import RememberedMetric
from riemannian_ode.metric import Euclidean, Metric
from riemannian_ode.objective import Objective, check_parts
from riemannian_ode.optimizer_form import check_optimizer, gain_of
from riemannian_ode.preconditioner import Preconditioner
from riemannian_ode.split import FlatSplit, PhasePoint


class SecondOrderCoefficients(NamedTuple):
    """α_t, β_t, γ_t of ∇_ẇẇ + α_t ẇ + β_t Hess f[ẇ] + γ_t grad f = 0 at one time."""

    alpha: Any
    beta: Any
    gamma: Any


@dataclass(frozen=True, kw_only=True)
class RISHD:
    r"""Riemannian inertial system with Hessian damping, with LITE's sharp/flat split.

    Build it with :meth:`from_optimizer` or :meth:`from_coefficients`, which check their arguments. Coefficients are
    floats, arrays over the ensemble (one value per member), :class:`TimeDependent`, or plain functions of time, which
    become :class:`TimeDependent` without a derivative.

    Args:
        objective: Landscape f.
        metric: Metric F.
        alpha: α, damping of the momentum, per unit time.
        eta: η, learning rate.
        nesterov: ν, gradient added to the momentum before the metric acts; the whole of β for a linear metric without
            split.
        beta_sharp: β₁ in sharp directions, in the units of m.
        beta_flat: β₂ in flat directions.
        chi: χ, learning-rate ratio of flat directions.
        flat: Point of phase space ↦ (x ↦ Qx), the projector on flat directions; ``None`` is the base method.
        gain: c, 1 for a summed momentum.
        correction: Whether R is kept; the optimizers of the paper drop it.
        decay: λ, decoupled weight decay: −ηλ(P + χQ)w is added to ẇ. Only with a preconditioner.
        downhill: Whether ``simulate`` checks γ > 0 at every step if it varies in time, as :meth:`from_optimizer` does
            for constants.
        check_split: Whether ``simulate`` refuses a split that does not commute with F or is not a projector.
    """

    objective: Objective
    metric: Metric = field(default_factory=Euclidean)
    alpha: Coefficient
    eta: Coefficient
    nesterov: Coefficient = 0.0
    beta_sharp: Coefficient = 0.0
    beta_flat: Coefficient = 0.0
    chi: Coefficient = 1.0
    flat: FlatSplit | None = None
    gain: Coefficient = 1.0
    correction: bool = True
    decay: Coefficient = 0.0
    downhill: bool = False
    check_split: bool = True

    @classmethod
    def from_optimizer(
        cls,
        objective: Objective,
        metric: Metric | Preconditioner | None = None,
        *,
        alpha: Coefficient,
        eta: Coefficient,
        beta: Coefficient = 0.0,
        beta_flat: Coefficient | None = None,
        chi: Coefficient = 1.0,
        flat: FlatSplit | None = None,
        nesterov: Coefficient = 0.0,
        gain: Coefficient = 1.0,
        correction: bool = True,
        check_split: bool = True,
        decay: Coefficient = 0.0,
        corrects_momentum: bool = False,
        shape: tuple[int, ...] | None = None,
    ) -> RISHD:
        r"""System in an optimizer's parameters: state (w, m), and the memory of a preconditioner.

        It is RISHD with :math:`\alpha_t = \alpha - \dot\eta_t/\eta_t`, :math:`\beta_t = \eta_t\beta`,
        :math:`\gamma_t = \eta_t(c + \alpha\beta + \dot\beta)`.

        Args:
            objective: Landscape f.
            metric: Metric F, Euclidean by default, or a preconditioner with memory. A preconditioner has R = 0, and its
                own mask chooses the sharp directions if χ or β_flat is given.
            alpha: α > 0, i.e. 1 − μ for momentum coefficient μ.
            eta: Learning rate η ≥ 0.
            beta: β (β₁ with a split), in the theory's units, i.e. relative to a summed momentum.
            beta_flat: β₂ ≥ β₁ of flat directions; ``beta`` by default. Needs ``flat``.
            chi: χ ≥ 0 of flat directions; LITE has χ > 1. Needs ``flat``.
            flat: Projector on flat directions at a :class:`PhasePoint`, commuting with F: a landscape's ``flat_split``
                or :class:`ConstantSplit` with F = I or an F of the same axes, else :class:`MetricSplit` or
                ``ConstantSplit(basis, metric=F)``.
            nesterov: ν, see :func:`riemannian_ode.flow.lookahead`.
            gain: c, see :func:`riemannian_ode.flow.momentum_rate`.
            correction: Whether the Riemannian correction R is kept.
            check_split: Whether ``simulate`` refuses a split that does not commute with F or is not a projector. It
                checks at the start, and at saves if split or metric may move. A metric that depends on history has no
                F(w) to check. If ``False``, such a split runs, and claims C4, C8 and C9 do not hold.
            decay: λ ≥ 0, decoupled weight decay; needs a preconditioner.
            corrects_momentum: Whether momentum is divided by its mass, as Adam's is; needs a preconditioner.
            shape: Shape of the parameter that w holds in row order, for a preconditioner of matrices.

        Raises:
            ValueError: for an objective, a metric or a split of the wrong kind, non-finite or negative α or η, χ < 0,
                β₂ < β₁, c + αβ ≤ 0, or χ and β₂ without a split. If coefficients vary in time, ``simulate`` checks the
                same at every step.

        Source: arXiv:2602.22681, eqs. (tangent), (cotangent) and Algorithm 1.
        """
        check_parts(objective, metric, flat)
        alpha, eta, beta = as_coefficient("alpha", alpha), as_coefficient("eta", eta), as_coefficient("beta", beta)
        beta_flat = None if beta_flat is None else as_coefficient("beta_flat", beta_flat)
        chi, nesterov, gain = (
            as_coefficient(k, v) for k, v in {"chi": chi, "nesterov": nesterov, "gain": gain}.items()
        )
        if isinstance(metric, Preconditioner):
            is_split = beta_flat is not None or not (isinstance(chi, float) and chi == 1.0)
            metric = RememberedMetric(metric, shape=shape, corrects_momentum=corrects_momentum, is_split=is_split)
            has_split = is_split
        else:
            has_split = flat is not None
            if shape is not None or corrects_momentum or not (isinstance(decay, (int, float)) and decay == 0):
                raise ValueError(
                    "decay, corrects_momentum and shape belong to a preconditioner; give one as metric, e.g. "
                    "discretizations.preconditioners.Identity()."
                )
        check_optimizer(alpha, eta, beta, beta_flat, chi, nesterov, gain, has_split=has_split)
        check_range("decay", decay, 0.0, "it shrinks the weights", strict=False)
        damping: dict[str, Any] = {"nesterov": expand(nesterov), "beta_sharp": expand(beta)}
        damping["beta_flat"] = damping["beta_sharp"] if beta_flat is None else expand(beta_flat)
        if flat is None and (metric is None or metric.variation != "history"):
            damping = {"nesterov": add(damping["nesterov"], damping["beta_sharp"])}  # F⁻¹ is linear: one solve per step
        return cls(
            objective=objective,
            metric=metric or Euclidean(),
            alpha=expand(alpha, lower=0.0),
            eta=expand(eta, lower=0.0),
            **damping,
            chi=expand(chi, lower=0.0),
            flat=flat,
            gain=expand(gain),
            correction=correction,
            decay=expand(decay, lower=0.0),
            downhill=True,
            check_split=check_split,
        )

    @classmethod
    def from_coefficients(
        cls,
        objective: Objective,
        metric: Metric | None = None,
        *,
        alpha: Coefficient,
        beta: Coefficient,
        gamma: Coefficient,
        correction: bool = True,
    ) -> RISHD:
        r"""System in second-order coefficients.

        .. math:: \nabla_{\dot w}\dot w+\alpha_t\dot w+\beta_t\,\mathrm{Hess}f[\dot w]+\gamma_t\,\mathrm{grad}f=0

        With :math:`v = \dot w + \beta_t\,\mathrm{grad} f` no Hessian is needed:
        :math:`\nabla_{\dot w} v = -\alpha_t v - (\gamma_t - \alpha_t\beta_t - \dot\beta_t)\,\mathrm{grad} f`.
        The state is (w, m) with :math:`m = -Fv`: start with :meth:`momentum_of` and read v with :meth:`velocity_of`.

        Args:
            objective: Landscape f.
            metric: Metric F, Euclidean by default.
            alpha: α_t, per unit time.
            beta: β_t ≥ 0; a :class:`TimeDependent` needs its derivative.
            gamma: γ_t.
            correction: Whether the Riemannian correction R is kept.

        Raises:
            ValueError: for an objective or a metric of the wrong kind, non-finite coefficients, β < 0, or a
                time-dependent β without derivative.

        Source: arXiv:2602.22681, eq. (RISHD); the form in v is derived in docs/theory, claim C15.
        """
        check_parts(objective, metric, None)
        alpha, beta, gamma = (as_coefficient(k, v) for k, v in {"alpha": alpha, "beta": beta, "gamma": gamma}.items())
        check_finite("alpha", alpha)
        check_range("beta", beta, 0.0, "the form in v is dissipative for β ≥ 0", strict=False)
        check_finite("gamma", gamma)
        alpha, beta, gamma = expand(alpha), expand(beta, lower=0.0), expand(gamma)
        return cls(
            objective=objective,
            metric=metric or Euclidean(),
            alpha=alpha,
            eta=1.0,
            nesterov=beta,
            gain=gain_of(alpha, beta, gamma),
            correction=correction,
        )

    @property
    def is_split(self) -> bool:
        """Whether flat and sharp directions are treated differently."""
        return self.flat is not None or (self.memory is not None and self.memory.is_split)

    @property
    def is_damped(self) -> bool:
        """Whether the gradient enters the velocity, i.e. ν, β₁ or β₂ is not the number 0."""
        return any(
            not isinstance(beta, float) or beta != 0.0 for beta in (self.nesterov, self.beta_sharp, self.beta_flat)
        )

    @property
    def memory(self) -> RememberedMetric | None:
        """The metric if it has memory, else ``None``; with memory, ``m`` of a state holds momentum and memory."""
        return self.metric if isinstance(self.metric, RememberedMetric) else None

    @property
    def has_energy(self) -> bool:
        """Whether F(w) exists, so that the energy identities are defined."""
        return self.metric.variation != "history"

    def at(self, name: str, t: float) -> Any:
        """Coefficient ``name`` at time t: a float, or an array that broadcasts against ``(*ensemble, p)``."""
        return coefficient_at(getattr(self, name), t)

    def rate(self, name: str, t: float) -> Any:
        """Time derivative of coefficient ``name`` at time t.

        Raises:
            ValueError: if it varies in time and no derivative was given.
        """
        return coefficient_rate(getattr(self, name), t, name=name)

    def second_order_coefficients(self, t: float) -> SecondOrderCoefficients:
        r"""α_t, β_t, γ_t of the second-order form at time t (one block: no split).

        Source: docs/theory, claim C1: α_t = α − η̇/η, β_t = ηβ, γ_t = η(c + αβ + β̇).

        Raises:
            ValueError: for a system with a split, whose coefficients are operators, for a metric that depends on
                history (the form needs F(w)), or where η(t) = 0.
        """
        if self.is_split:
            raise ValueError("With a sharp/flat split the second-order coefficients are operators, not numbers.")
        if self.metric.variation == "history":
            raise ValueError("The metric depends on history: without F(w) there is no second-order form (claim C1).")
        damping = add(self.nesterov, self.beta_sharp)
        alpha, eta, gain = (self.at(name, t) for name in ("alpha", "eta", "gain"))
        beta = coefficient_at(damping, t)
        if (to_numpy(eta) == 0).any():
            raise ValueError(
                f"eta({t:g}) = 0: the position rests there and α_t = α − η̇/η does not exist; ask at a time with η > 0."
            )
        return SecondOrderCoefficients(
            alpha=alpha - self.rate("eta", t) / eta,
            beta=eta * beta,
            gamma=eta * (gain + alpha * beta + coefficient_rate(damping, t, name="beta")),
        )

    def gamma_over_eta(self, t: float) -> dict[str, Any]:
        r""":math:`\gamma_t/\eta_t = c + \alpha\beta + \dot\beta` at time t, by name of β: one entry, two with a split.

        A β without a derivative is treated as slow (β̇ = 0).

        Source: docs/theory, claim C1.
        """
        alpha, gain = self.at("alpha", t), self.at("gain", t)
        names = {"beta": "beta_sharp", "beta_flat": "beta_flat"} if self.is_split else {"beta": "beta_sharp"}
        betas = {name: add(self.nesterov, getattr(self, attribute)) for name, attribute in names.items()}
        return {
            name: gain + alpha * coefficient_at(beta, t) + coefficient_rate(beta, t, missing=0.0)
            for name, beta in betas.items()
        }

    def direction(self, t: float, w: Array, m: Array, g: Array) -> Array:
        """LITE's direction u, with ẇ = −ηu, shape of ``w``."""
        flat = self.flat
        return lite_direction(
            m,
            g,
            raise_index=lambda x: self.metric.raise_index(w, x),
            split=None if flat is None else lambda covector, a: flat(PhasePoint(w, covector, a)),
            chi=self.at("chi", t),
            beta_sharp=self.at("beta_sharp", t),
            beta_flat=self.at("beta_flat", t),
            nesterov=self.at("nesterov", t),
        )

    def coefficients(self, t: float) -> dict[str, Any]:
        """All coefficients at time t, by name."""
        return {name: self.at(name, t) for name in (*COEFFICIENTS, "decay")}

    def riemannian_correction(self, w: Array, velocity: Array, m: Array) -> Array | None:
        """R, or ``None`` where it is zero or switched off."""
        return self.metric.correction(w, velocity, m) if self.correction else None

    def rates(self, t: float, w: Array, m: Array) -> tuple[Array, Array]:
        """Right-hand side (ẇ, ṁ), each of shape ``(*ensemble, p)``."""
        return self.rates_with(t, w, m, self.objective.gradient(w))

    def rates_with(self, t: float, w: Array, m: Array, g: Array) -> tuple[Array, Array]:
        """The right-hand side with g instead of ∇f(w); linear in (m, g) if F is constant and no split moves."""
        if self.memory is not None:
            return self.memory.rates(self.coefficients(t), w, m, g)
        velocity = -self.at("eta", t) * self.direction(t, w, m, g)
        return velocity, momentum_rate(
            m,
            g,
            alpha=self.at("alpha", t),
            gain=self.at("gain", t),
            correction=self.riemannian_correction(w, velocity, m),
        )

    def momentum_of(self, w: Array, v: Array) -> Array:
        """m = −Fv of :meth:`from_coefficients`, where v = ẇ + β grad f; shapes ``(*ensemble, p)``."""
        return -self.metric.lower_index(w, v)

    def velocity_of(self, w: Array, m: Array) -> Array:
        """v = −F⁻¹m of :meth:`from_coefficients`; shapes ``(*ensemble, p)``."""
        return -self.metric.raise_index(w, m)

    def for_arrays(self, reference: Array) -> RISHD:
        """The same system with array coefficients of the kind, dtype and device of ``reference``.

        Raises:
            ValueError: if a coefficient's ensemble axes do not fit those of ``reference``.
        """
        converted: dict[str, Any] = {}
        for name in (*COEFFICIENTS, "decay"):
            convert, coefficient = partial(fitted, name, reference=reference), as_coefficient(name, getattr(self, name))
            is_function = isinstance(coefficient, TimeDependent)
            converted[name] = coefficient.map(convert) if is_function else convert(coefficient)
        return replace(self, **converted)
