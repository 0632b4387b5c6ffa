r"""A discrete-gradient scheme: the energy identity holds for every step, whatever its size.

With :math:`E = cf + \tfrac\eta2 m^\top F^{-1}m` the flow is :math:`\dot y = (J - S)\nabla E`, S positive semidefinite.
A discrete gradient :math:`\bar\nabla E(y, y')` in its place, with :math:`\bar\nabla E\cdot(y'-y) = E(y') - E(y)`, gives

.. math:: E(y') - E(y) = -h\,\bar\nabla E^\top S\,\bar\nabla E \le 0.

Source: Gonzalez, *Time integration and discrete Hamiltonian systems*, J. Nonlinear Sci. 6 (1996); McLachlan, Quispel,
Robidoux (1999); the form for RISHD is derived in docs/theory, claim C12.
"""

from __future__ import annotations

from riemannian_ode.arrays import inner, namespace, to_numpy
from riemannian_ode.coefficients import TimeDependent
from riemannian_ode.dynamics import RISHD
from riemannian_ode.energy import total_energy
from riemannian_ode.flow import Array, momentum_rate
from riemannian_ode.integrators.base import PhaseState
from riemannian_ode.integrators.implicit import ImplicitScheme


class DiscreteGradient(ImplicitScheme):
    r"""Gonzalez' midpoint discrete gradient; order 2, energy never increases.

    .. math::
        w' = w - h(\bar\nabla_m E + \tfrac{\eta\beta}{c} F^{-1}\,\bar\nabla_w E), \qquad
        m' = m + h(\bar\nabla_w E - \tfrac{\alpha}{\eta}\bar F\,\bar\nabla_m E), \qquad \bar F = F((w+w')/2)

    For a constant metric with any β ≥ 0, or a state-dependent one with β = 0; constant coefficients with c, η > 0, of
    which α alone may vary in time, and no split.

    Raises (in ``step``):
        ValueError: where the identity has no discrete form here: β ≠ 0 with F(w), a split, η(t), c = 0, η = 0, or a
            history metric.
    """

    name = "discrete-gradient"
    order = 2
    structure = frozenset({"energy-identity"})

    def __init__(self, *, tolerance: float = 1e-12) -> None:
        # The residual holds a difference of energies over the step's length: its last digits are rounding.
        super().__init__(tolerance=tolerance)

    def step(self, system: RISHD, t: float, state: PhaseState, h: float) -> PhaseState:
        self._check(system)
        eta, gain, beta = (system.at(name, t) for name in ("eta", "gain", "nesterov"))
        alpha = system.at("alpha", t + h / 2)  # the identity holds for any α; order 2 needs the middle's
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

        # At a step of no length the quotient in ∇̄E is 0/0 and its differences are noise: start a little ahead.
        guess = PhaseState(*(x + 0.1 * h * rate for x, rate in zip(state, system.rates(t, *state), strict=True)))
        return self.solved(residual, guess, t)

    @staticmethod
    def _discrete_gradient(
        system: RISHD, t: float, state: PhaseState, new: PhaseState, before: Array
    ) -> tuple[Array, Array]:
        """∇E at the middle, corrected along the step so that its product with the step is E(y') − E(y)."""
        w, m = 0.5 * (state.w + new.w), 0.5 * (state.m + new.m)
        eta, gain = system.at("eta", t), system.at("gain", t)
        along_m = eta * system.metric.raise_index(w, m)
        along_w = gain * system.objective.gradient(w)
        correction = system.riemannian_correction(w, -along_m, m)  # at β = 0 it is ∂_w of (η/2)mᵀF⁻¹m
        if correction is not None:
            along_w = along_w + correction
        step_w, step_m = new.w - state.w, new.m - state.m
        missing = total_energy(system, t, *new) - before - inner(along_w, step_w) - inner(along_m, step_m)
        # With F constant the middle is exact in m (the energy is quadratic there): only w is corrected.
        length = inner(step_w, step_w)
        if correction is not None:
            length = length + inner(step_m, step_m)
        # For a step of no length the middle's gradient is the discrete gradient.
        moved, xp = length > 0, namespace(w)
        share = xp.where(moved, missing / xp.where(moved, length, 1.0), 0.0)[..., None]
        return along_w + share * step_w, along_m if correction is None else along_m + share * step_m

    def _check(self, system: RISHD) -> None:
        varying = [name for name in ("eta", "gain", "nesterov") if isinstance(getattr(system, name), TimeDependent)]
        has_damping = not (isinstance(system.nesterov, float) and system.nesterov == 0.0)
        if system.metric.variation == "history" or system.is_split or varying:
            raise ValueError(
                f"{self.name} keeps the energy identity of a metric F(w) with constant coefficients and no split; take "
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
