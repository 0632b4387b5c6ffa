r"""Energy of the flow, its dissipation, and how well a trajectory keeps the identity between them.

.. math::
    E = c f + \tfrac{\eta}{2} m^\top A m, \qquad
    \dot E = -\eta\alpha\, m^\top A m - c\,\eta\, g^\top A B g + \tfrac{\dot\eta}{2} m^\top A m
    + \tfrac{\eta\dot\chi}{2} m^\top F^{-1}Qm, \qquad A = F^{-1}(P + \chi Q), \quad B = \beta_1 P + \beta_2 Q

Without split it holds for any metric with R kept (claim C2); with a split for Q, F and B constant and
commuting (claim C4, and χ̇ in time as η̇ there).

Source: derived in docs/theory, claims C2 and C4 (c = 1 there).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.interpolate import make_interp_spline

from riemannian_ode.arrays import inner, to_numpy
from riemannian_ode.coefficients import TimeDependent
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.split import PhasePoint
from riemannian_ode.trajectory import Trajectory


class Dissipation(NamedTuple):
    """−Ė and its parts, each of shape ``(*ensemble,)``, energy per unit time.

    ``momentum`` is ηα mᵀAm, ``damping`` is cη gᵀABg (of which ``flat`` falls to flat directions), ``schedule`` is
    −(η̇/2) mᵀAm − (ηχ̇/2) mᵀF⁻¹Qm.
    """

    total: Array
    momentum: Array
    damping: Array
    flat: Array
    schedule: Array


class EnergyBalance(NamedTuple):
    """Energies along a trajectory, and what the identity leaves over.

    ``energy`` and ``dissipated`` (∫−Ė dt from the start) have shape ``(saves, *ensemble)``; ``residual`` is
    ``max_t |E(t) − E(0) + dissipated(t)| / (|E(0)| + max_t dissipated)``, shape ``(*ensemble,)``, dimensionless.
    """

    energy: np.ndarray
    dissipated: np.ndarray
    residual: np.ndarray


def total_energy(system: RISHD, t: float, w: Array, m: Array) -> Array:
    """E = c·f + (η/2)mᵀAm, shape ``(*ensemble,)``.

    Args:
        system: The dynamics.
        t: Time.
        w: Positions, shape ``(*ensemble, p)``.
        m: Momenta, shape ``(*ensemble, p)``.

    Raises:
        ValueError: for a metric that depends on history: there is no F(w), so no energy.

    Source: docs/theory, claims C2 and C4.
    """
    _require_energy(system)
    system = system.for_arrays(w)
    form = _forms(system, t, w, m)[0]
    return _scalar(system, "gain", t) * system.objective.value(w) + 0.5 * _scalar(system, "eta", t) * form


def dissipation(system: RISHD, t: float, w: Array, m: Array) -> Dissipation:
    """−Ė that the identity predicts, and its parts.

    Args:
        system: The dynamics.
        t: Time.
        w: Positions, shape ``(*ensemble, p)``.
        m: Momenta, shape ``(*ensemble, p)``.

    Raises:
        ValueError: for a metric that depends on history, or η(t) or χ(t) without derivative.

    Source: docs/theory, claims C2 and C4.
    """
    _require_energy(system)
    system = system.for_arrays(w)
    form, flat_form, sharp, flat = _forms(system, t, w, m)
    eta, gain = _scalar(system, "eta", t), _scalar(system, "gain", t)
    momentum = eta * _scalar(system, "alpha", t) * form
    schedule = -0.5 * _squeeze(system.rate("eta", t)) * form
    if system.is_split:
        schedule = schedule - 0.5 * eta * _squeeze(system.rate("chi", t)) * flat_form
    flat_part = gain * eta * flat
    damping = gain * eta * sharp + flat_part
    return Dissipation(momentum + damping + schedule, momentum, damping, flat_part, schedule)


def energy_identity_residual(system: RISHD, trajectory: Trajectory) -> EnergyBalance:
    """How far a trajectory is from the energy identity: of the order of the integrator's error if the identity holds.

    The dissipation is integrated through a quintic spline of its values at the save times (error of sixth order in
    their spacing), so save often enough.

    Args:
        system: The dynamics that the trajectory came from. With ``correction=False`` and a state-dependent metric the
            identity does not hold, and this measures by how much.
        trajectory: At least 6 saved states, all finite.

    Raises:
        ValueError: for too few or non-finite states, a gain that varies in time, or a metric that depends on history.

    Source: docs/theory, claim C2.
    """
    _require_energy(system)
    if isinstance(system.gain, TimeDependent):
        raise ValueError("gain varies in time: E = c·f + … then has another identity than the one checked here.")
    if len(trajectory.times) < 6:
        raise ValueError(f"the trajectory has {len(trajectory.times)} saved states; a quintic spline needs at least 6.")
    energies, rates = [], []
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged trajectory is refused below, in words
        for t, w, m in zip(trajectory.times, trajectory.w, trajectory.m, strict=True):
            energies.append(to_numpy(total_energy(system, float(t), w, m)))
            rates.append(to_numpy(dissipation(system, float(t), w, m).total))
    along, rate = np.stack(energies), np.stack(rates)
    if not (np.isfinite(along).all() and np.isfinite(rate).all()):
        raise ValueError(f"the trajectory has non-finite energies; it ended with {trajectory.message or 'no message'}.")
    lost = make_interp_spline(trajectory.times, rate, k=5, axis=0).antiderivative()
    dissipated = lost(trajectory.times) - lost(trajectory.times[0])
    scale = np.abs(along[0]) + np.abs(dissipated).max(axis=0)
    drift = np.abs(along - along[0] + dissipated).max(axis=0)
    return EnergyBalance(along, dissipated, drift / np.maximum(scale, np.finfo(np.float64).tiny))


def _forms(system: RISHD, t: float, w: Array, m: Array) -> tuple[Array, Array, Array, Array]:
    """(mᵀAm, mᵀF⁻¹Qm, sharp part of gᵀABg, flat part of gᵀABg), each of shape ``(*ensemble,)``."""
    g = system.objective.gradient(w)
    a, d = system.metric.raise_index(w, m), system.metric.raise_index(w, g)
    nesterov = _scalar(system, "nesterov", t)
    if system.flat is None:
        total = inner(g, d) * (nesterov + _scalar(system, "beta_sharp", t))
        return inner(m, a), 0.0 * total, total, 0.0 * total
    flat = system.flat(PhasePoint(w, m, a))
    chi = _scalar(system, "chi", t)
    flat_a, flat_d = flat(a), flat(d)
    flat_form = inner(m, flat_a)
    form = inner(m, a - flat_a) + chi * flat_form
    sharp_part = (nesterov + _scalar(system, "beta_sharp", t)) * inner(g, d - flat_d)
    flat_part = (nesterov + _scalar(system, "beta_flat", t)) * chi * inner(g, flat_d)
    return form, flat_form, sharp_part, flat_part


def _scalar(system: RISHD, name: str, t: float) -> Array:
    return _squeeze(system.at(name, t))


def _squeeze(value: Array) -> Array:
    """Per-member coefficients carry a trailing axis against ``w``; energies have none."""
    return value if isinstance(value, float) or value.ndim == 0 else value[..., 0]


def _require_energy(system: RISHD) -> None:
    if not system.has_energy:
        raise ValueError("the metric depends on history, so F(w) and this energy do not exist (not applicable).")
