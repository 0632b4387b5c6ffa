r"""Energy of the flow, its dissipation, and how well a trajectory satisfies the identity between them.

.. math::
    E = c f + \tfrac{\eta}{2} m^\top A m, \qquad
    \dot E = -\eta\alpha\, m^\top A m - c\,\eta\, g^\top A B g + \tfrac{\dot\eta}{2} m^\top A m
    + \tfrac{\eta\dot\chi}{2} m^\top F^{-1}Qm, \qquad A = F^{-1}(P + \chi Q), \quad B = \beta_1 P + \beta_2 Q

Without a split it holds for any metric with R kept (claim C2); with a split it holds if Q, F and B are constant and
commute (claim C4, which treats χ̇ like η̇). Norms and metrics with memory have no F(w), but they have a potential of
the momentum: see :mod:`riemannian_ode.memory_energy` (claims C18 and C19).

Source: derived in docs/theory, claims C2 and C4 (c = 1 there).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.interpolate import make_interp_spline

from riemannian_ode import memory_energy
from riemannian_ode.arrays import inner, to_numpy
from riemannian_ode.coefficients import TimeDependent
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.saved_states import SavedStates
from riemannian_ode.split import PhasePoint


class Dissipation(NamedTuple):
    """−Ė and its parts, each of shape ``(*ensemble,)``, energy per unit time.

    ``momentum`` is ηα mᵀAm, ``damping`` is cη gᵀABg (``flat`` is its part in flat directions), ``schedule`` is −(η̇/2)
    mᵀAm − (ηχ̇/2) mᵀF⁻¹Qm. The others are 0 unless a preconditioner replaces the metric: ``memory`` is the loss due to
    F's own motion; ``defect`` is the work of the part of the map that is not the gradient of its potential (an
    approximate mask or polar factor); ``decay`` is the loss due to decoupled weight decay.
    """

    total: Array
    momentum: Array
    damping: Array
    flat: Array
    schedule: Array
    memory: Array = 0.0
    defect: Array = 0.0
    decay: Array = 0.0


class EnergyBalance(NamedTuple):
    """Energies along a trajectory, and the residual of the energy identity.

    ``energy`` and ``dissipated`` (∫−Ė dt from the start) have shape ``(saves, *ensemble)``; ``residual`` is
    ``max_t |E(t) − E(0) + dissipated(t)| / (|E(0)| + max_t dissipated)``, shape ``(*ensemble,)``, dimensionless.
    """

    energy: np.ndarray
    dissipated: np.ndarray
    residual: np.ndarray


def total_energy(system: RISHD, t: float, w: Array, m: Array, memory: Mapping[str, Array] | None = None) -> Array:
    r"""Energy of a flow at a state, shape ``(*ensemble,)``.

    .. math::
        E = c f + \tfrac{\eta}{2}m^\top Am, \qquad
        E = c f + \tfrac{\eta}{c_1}\varphi_k(m) + \eta\lambda\langle w, m\rangle

    The second form is for a preconditioner with potential φ.

    Args:
        system: The dynamics.
        t: Time.
        w: Positions, shape ``(*ensemble, p)``.
        m: Momenta, shape ``(*ensemble, p)``.
        memory: A preconditioner's memory by key, as stored in a trajectory at a save.

    Raises:
        ValueError: for a map without F(w) and without a homogeneous potential, or a memory that is missing or does not
            fit.

    Source: docs/theory, claims C2, C4, C18 and C19.
    """
    system = system.for_arrays(w)
    if not system.has_energy:
        return memory_energy.energy(system, t, w, m, memory)
    _require_no_memory(memory)
    form = _forms(system, t, w, m)[0]
    return _scalar(system, "gain", t) * system.objective.value(w) + 0.5 * _scalar(system, "eta", t) * form


def dissipation(system: RISHD, t: float, w: Array, m: Array, memory: Mapping[str, Array] | None = None) -> Dissipation:
    """The dissipation −Ė predicted by the energy identity, and its parts.

    Args:
        system: The dynamics.
        t: Time.
        w: Positions, shape ``(*ensemble, p)``.
        m: Momenta, shape ``(*ensemble, p)``.
        memory: As for :func:`total_energy`.

    Raises:
        ValueError: as in :func:`total_energy`, or if η(t), χ(t) or λ(t) has no derivative.

    Source: docs/theory, claims C2, C4, C18 and C19.
    """
    system = system.for_arrays(w)
    if not system.has_energy:
        parts = memory_energy.losses(system, t, w, m, memory)
        total = parts.momentum + parts.damping + parts.schedule + parts.memory + parts.defect + parts.decay
        return Dissipation(total, **parts._asdict())
    _require_no_memory(memory)
    form, flat_form, sharp, flat = _forms(system, t, w, m)
    eta, gain = _scalar(system, "eta", t), _scalar(system, "gain", t)
    momentum = eta * _scalar(system, "alpha", t) * form
    schedule = -0.5 * _squeeze(system.rate("eta", t)) * form
    if system.is_split:
        schedule = schedule - 0.5 * eta * _squeeze(system.rate("chi", t)) * flat_form
    flat_part = gain * eta * flat
    damping = gain * eta * sharp + flat_part
    return Dissipation(momentum + damping + schedule, momentum, damping, flat_part, schedule)


def energy_identity_residual(system: RISHD, trajectory: SavedStates) -> EnergyBalance:
    """How far a trajectory is from the energy identity: of the order of the integrator's error if the identity holds.

    The dissipation is integrated through a quintic spline of its values at the save times (error of sixth order in
    their spacing), so save often enough.

    Args:
        system: The dynamics that produced the trajectory. With ``correction=False`` and a state-dependent metric the
            identity does not hold; the residual then measures by how much.
        trajectory: At least 6 saved states, all finite.

    Raises:
        ValueError: for too few or non-finite states, a gain that varies in time, a map without energy, or a memory that
            jumps between saves.

    Source: docs/theory, claims C2, C18 and C19.
    """
    if isinstance(system.gain, TimeDependent):
        raise ValueError("gain varies in time: E = c·f + … then satisfies another identity than the one checked here.")
    if len(trajectory.times) < 6:
        raise ValueError(f"the trajectory has {len(trajectory.times)} saved states; a quintic spline needs at least 6.")
    memories = [{key: value[i] for key, value in trajectory.memory.items()} for i in range(len(trajectory.times))]
    if not system.has_energy:
        memory_energy.check_jumps(system, trajectory.times, trajectory.w, trajectory.m, trajectory.memory)
    energies, rates = [], []
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged trajectory is refused below with a message
        for t, w, m, memory in zip(trajectory.times, trajectory.w, trajectory.m, memories, strict=True):
            state = float(t), w, m, memory or None
            energies.append(to_numpy(total_energy(system, *state)))
            rates.append(to_numpy(dissipation(system, *state).total))
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
    """Remove the trailing axis that per-member coefficients have for broadcasting; energies have none."""
    return value if isinstance(value, float) or value.ndim == 0 else value[..., 0]


def _require_no_memory(memory: Mapping[str, Array] | None) -> None:
    if memory is not None:
        raise ValueError(f"memory has {', '.join(sorted(memory))}, but the metric is a function of w; leave it out.")
