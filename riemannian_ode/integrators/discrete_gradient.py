r"""A discrete-gradient scheme, which satisfies the energy identity at every step size.

With :math:`E = cf + \tfrac\eta2 m^\top F^{-1}m` the flow is :math:`\dot y = (J - S)\nabla E`, S positive semidefinite.
Replacing ∇E with a discrete gradient :math:`\bar\nabla E(y, y')` that satisfies
:math:`\bar\nabla E\cdot(y'-y) = E(y') - E(y)` gives

.. math:: E(y') - E(y) = -h\,\bar\nabla E^\top S\,\bar\nabla E \le 0.

Source: Gonzalez, *Time integration and discrete Hamiltonian systems*, J. Nonlinear Sci. 6 (1996); McLachlan, Quispel,
Robidoux (1999); the form for RISHD is derived in docs/theory, claim C12.
"""

from __future__ import annotations

from functools import partial

from riemannian_ode.arrays import inner, namespace, to_numpy
from riemannian_ode.coefficients import TimeDependent
from riemannian_ode.dynamics import RISHD
from riemannian_ode.energy import total_energy
from riemannian_ode.flow import Array, momentum_rate
from riemannian_ode.integrators.base import INTEGRATORS, PhaseState
from riemannian_ode.integrators.implicit import ImplicitScheme
from riemannian_ode.integrators.linearisation import hessian_product
from riemannian_ode.integrators.newton import Equations
from riemannian_ode.integrators.runge_kutta import advance


@INTEGRATORS.register(place=110)
class DiscreteGradient(ImplicitScheme):
    r"""Gonzalez' midpoint discrete gradient; order 2, energy never increases.

    .. math::
        w' = w - h(\bar\nabla_m E + \tfrac{\eta\beta}{c} F^{-1}\,\bar\nabla_w E), \qquad
        m' = m + h(\bar\nabla_w E - \tfrac{\alpha}{\eta}\bar F\,\bar\nabla_m E), \qquad \bar F = F((w+w')/2)

    It accepts a constant metric with any β ≥ 0, or a state-dependent one with β = 0. Coefficients must be constant with
    c, η > 0; only α may vary in time. There must be no split.

    Raises (in ``step``):
        ValueError: if the identity has no discrete form here: β ≠ 0 with F(w), a split, η(t), c = 0, η = 0, or a
            history metric.
    """

    name = "discrete-gradient"
    order = 2
    structure = frozenset({"energy-identity"})

    def __init__(self, *, tolerance: float = 1e-12) -> None:
        # The residual contains a difference of energies over the step's length; its last digits are rounding.
        super().__init__(tolerance=tolerance)

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        self._check(system)
        eta, gain, beta = (system.at(name, t) for name in ("eta", "gain", "nesterov"))
        alpha = system.at("alpha", t + h / 2)  # the identity holds for any α; order 2 needs α at the midpoint
        before = total_energy(system, t, *state)

        def residual(new: PhaseState) -> PhaseState:
            along_w, along_m = self._discrete_gradient(system, t, state, new, before)
            middle = 0.5 * (state.w + new.w)
            # ∇̄_mE/η is the covector-raised momentum; with F constant it is F⁻¹(m + m')/2.
            force = momentum_rate(
                system.metric.lower_index(middle, along_m / eta), along_w / gain, alpha=alpha, gain=gain
            )
            velocity = -along_m
            if system.metric.variation == "constant":
                velocity = velocity - (eta * beta / gain) * system.metric.raise_index(middle, along_w)
            return PhaseState(new.w - state.w - h * velocity, new.m - state.m - h * force)

        # At a step of length zero the quotient in ∇̄E is 0/0 and its differences are noise: start a little ahead.
        guess = advance(state, [PhaseState(*system.rates(t, *state))], (0.1,), h)
        if system.metric.variation != "constant":
            return self.solved(Equations(residual), guess, t)
        bound = partial(_ConstantMetricStep, system, t, state, before, h)
        return self.solved(
            Equations(residual, lambda new: bound(new).derivative, lambda new: bound(new).terms()), guess, t
        )

    @staticmethod
    def _discrete_gradient(
        system: RISHD, t: float, state: PhaseState, new: PhaseState, before: Array
    ) -> tuple[Array, Array]:
        """∇E at the midpoint, corrected along the step so that its product with the step is E(y') − E(y)."""
        along_w, along_m, correction = _middle_gradient(system, t, state, new)
        step_w, step_m = new.w - state.w, new.m - state.m
        missing = total_energy(system, t, *new) - before - inner(along_w, step_w) - inner(along_m, step_m)
        # With F constant the midpoint is exact in m (the energy is quadratic there): only w is corrected.
        length = inner(step_w, step_w)
        if correction is not None:
            length = length + inner(step_m, step_m)
        share = _over_length(missing, length)
        return along_w + share * step_w, along_m if correction is None else along_m + share * step_m

    def _check(self, system: RISHD) -> None:
        varying = [name for name in ("eta", "gain", "nesterov") if isinstance(getattr(system, name), TimeDependent)]
        has_damping = not (isinstance(system.nesterov, float) and system.nesterov == 0.0)
        if system.metric.variation == "history" or system.is_split or varying:
            raise ValueError(
                f"{self.name} preserves the energy identity for a metric F(w), constant "
                "coefficients and no split; take "
                "'implicit-midpoint' or 'strang' instead."
            )
        zero = [name for name in ("eta", "gain") if (to_numpy(getattr(system, name)) == 0).any()]
        if zero:
            raise ValueError(
                f"{self.name} divides by {' and '.join(zero)}, which is 0 here, so that E has no part to keep; take "
                "'implicit-midpoint' instead."
            )
        if system.metric.variation == "state" and (has_damping or not system.correction):
            raise ValueError(
                f"{self.name} keeps the identity of a state-dependent metric only at β = 0 with the correction R kept; "
                "take 'implicit-midpoint' instead."
            )


class _ConstantMetricStep:
    """Equations of a step with F constant: those of the midpoint rule, plus the correction along the step.

    Args:
        system: The dynamics.
        t: Time.
        state: State at t.
        before: Its energy.
        h: Step size.
        new: New state.
    """

    def __init__(self, system: RISHD, t: float, state: PhaseState, before: Array, h: float, new: PhaseState) -> None:
        self.system, self.t, self.h = system, t, h
        self.gain, self.energies = system.at("gain", t), (before, total_energy(system, t, *new))
        self.middle = 0.5 * (state.w + new.w)
        self.step = PhaseState(new.w - state.w, new.m - state.m)
        self.length = inner(self.step.w, self.step.w)
        self.along = _middle_gradient(system, t, state, new)[:2]
        self.works = [inner(x, y) for x, y in zip(self.along, self.step, strict=True)]
        self.share = _over_length(self.energies[1] - before - sum(self.works), self.length)
        self.bend = hessian_product(system.objective, self.middle)
        # ∂/∂w' of what the midpoint's gradient misses; it vanishes for a quadratic.
        self.slope = self.gain * (system.objective.gradient(new.w) - 0.5 * self.bend(self.step.w)) - self.along[0]

    def derivative(self, change: PhaseState) -> PhaseState:
        """Derivative of the residual along a change of the new state."""
        of_missing = inner(self.slope, change.w) - 2.0 * self.share[..., 0] * inner(self.step.w, change.w)
        of_share = _over_length(of_missing, self.length)
        along_w = 0.5 * self.gain * self.bend(change.w) + self.share * change.w + of_share * self.step.w
        return self._less_rates(change, 0.5 * change.m, along_w)

    def terms(self) -> PhaseState:
        """Rounding error of a difference of energies over the step's length, in units of rounding."""
        size = sum(abs(x) for x in (*self.energies, *self.works))
        noise = self._less_rates(PhaseState(0.0, 0.0), 0.0 * self.step.m, _over_length(size, self.length) * self.step.w)
        return PhaseState(abs(noise.w), abs(noise.m))

    def _less_rates(self, change: PhaseState, m: Array, along_w: Array) -> PhaseState:
        w_dot, m_dot = self.system.rates_with(self.t + self.h / 2, self.middle, m, along_w / self.gain)
        return PhaseState(change.w - self.h * w_dot, change.m - self.h * m_dot)


def _middle_gradient(system: RISHD, t: float, state: PhaseState, new: PhaseState) -> tuple[Array, Array, Array | None]:
    """∇E at the midpoint of a step in w and in m, and the part that F(w) adds in w (``None`` for a constant metric)."""
    w, m = 0.5 * (state.w + new.w), 0.5 * (state.m + new.m)
    along_m = system.at("eta", t) * system.metric.raise_index(w, m)
    along_w = system.at("gain", t) * system.objective.gradient(w)
    correction = system.riemannian_correction(w, -along_m, m)  # at β = 0 it is ∂_w of (η/2)mᵀF⁻¹m
    return (along_w if correction is None else along_w + correction), along_m, correction


def _over_length(x: Array, length: Array) -> Array:
    """x over the squared length of the step, shape ``(*ensemble, 1)``; 0 for a step of length zero.

    For a step of length zero the midpoint's gradient is the discrete gradient.
    """
    moved, xp = length > 0, namespace(length)
    return xp.where(moved, x / xp.where(moved, length, 1.0), 0.0)[..., None]
