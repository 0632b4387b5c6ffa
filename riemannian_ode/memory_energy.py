r"""Energy of flows whose preconditioner is the gradient of a potential: norms, and metrics with memory.

.. math::
    E = c f + \tfrac{\eta}{c_1}\varphi_k(m) + \eta\lambda\langle w, m\rangle, \qquad
    \dot w = -\tfrac{\eta}{c_1}\left[\nabla\varphi_k(m) + d\right] - \eta\lambda w

With η' = η/c₁ and ρ = ηλ, for any d:

.. math::
    -\dot E = \eta'\alpha\langle m, \nabla\varphi\rangle + \eta'\langle cg + \rho m, d\rangle
    + \rho\left[\eta'\langle m, \nabla\varphi\rangle + (\alpha + \rho)\langle w, m\rangle\right]
    - \dot\eta'\varphi - \dot\rho\langle w, m\rangle - \eta'\partial_k\varphi\,\dot k

Hessian damping and look-ahead are parts of d. So is the part of a map that is not the gradient of its potential: the
defect of a tracked or soft mask, or of a Newton–Schulz polynomial.

Source: docs/theory, claims C18 and C19.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from riemannian_ode.arrays import like, to_numpy
from riemannian_ode.flow import Array, lookahead
from riemannian_ode.memory import RememberedMetric
from riemannian_ode.preconditioner import Memory, Preconditioner
from riemannian_ode.stages import MASS, TakenIn

if TYPE_CHECKING:
    from riemannian_ode.dynamics import RISHD

_SHORT = 1e-10  # averages without gradients are evaluated after this time: at 0 they are 0/0
_HOMOGENEOUS = 1e-6  # relative deviation from the declared degree within rounding, even in float32
_NEUTRAL: dict[str, Any] = {"nesterov": 0.0, "beta_sharp": 0.0, "beta_flat": 0.0, "decay": 0.0}


class Losses(NamedTuple):
    """Parts of −Ė, each of shape ``(*ensemble,)``, as :class:`riemannian_ode.Dissipation` names them."""

    momentum: Array
    damping: Array
    flat: Array
    schedule: Array
    memory: Array
    defect: Array
    decay: Array


def energy(system: RISHD, t: float, w: Array, m: Array, memory: Mapping[str, Array] | None) -> Array:
    """Energy E, shape ``(*ensemble,)``; arguments as for :func:`riemannian_ode.total_energy`."""
    state = _state(system, t, w, m, memory)
    kinetic = state.eta * state.potential() + state.shrink * state.inner(state.w, state.covector)
    return state.of_kind(state.scalar("gain")) * system.objective.value(w) + state.of_kind(kinetic)


def losses(system: RISHD, t: float, w: Array, m: Array, memory: Mapping[str, Array] | None) -> Losses:
    """Parts of −Ė; arguments as for :func:`riemannian_ode.dissipation`."""
    state = _state(system, t, w, m, memory)
    eta, shrink, alpha, m_ = state.eta, state.shrink, state.scalar("alpha"), state.covector
    gradient, potential, along = state.gradient(), state.potential(), state.inner(state.w, m_)
    own = state.direction(state.metric, **_NEUTRAL)
    undecayed = state.direction(state.metric, decay=0.0)
    # The force that d acts against: c·g, plus ρm with decay.
    force = state.scalar("gain")[..., *state.axes] * state.g + shrink[..., *state.axes] * m_
    flat = force * 0.0
    if state.metric.is_split:
        flat = undecayed - state.direction(state.metric, decay=0.0, beta_flat=0.0)
    beyond = state.direction(state.metric) - undecayed - state.decay[..., *state.axes] * state.w
    decay = eta * state.inner(force, beyond)
    decay = decay + shrink * (eta * state.inner(m_, gradient) + (alpha + shrink) * along)
    parts = Losses(
        momentum=eta * alpha * state.inner(m_, gradient),
        damping=eta * state.inner(force, undecayed - own),
        flat=eta * state.inner(force, flat),
        schedule=-state.eta_rate(system, t) * potential
        - state.shrink_rate(system, t) * along
        - eta * state.chi_rate(system, t),
        memory=-eta * state.potential_rate(),
        defect=eta * state.inner(force, own - gradient),
        decay=decay,
    )
    return Losses(*map(state.of_kind, parts))


def check_jumps(system: RISHD, times: Array, w: Array, m: Array, memory: Mapping[str, Array]) -> None:
    """Refuse a trajectory on which the memory and thus E jump, which no rate accounts for.

    Raises:
        ValueError: naming the time and the remedy.
    """
    metric = _metric(system)
    averages = {*metric.preconditioner.rates(), MASS}
    for i, (t, later) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True), start=1):
        jump = metric.jump_time(t, later - t)
        if jump:
            raise ValueError(
                f"the memory jumps at t = {jump}, and E with it; give the saves between two jumps (claim C19 bounds "
                "what a jump adds)."
            )
        now, before = ({key: value[k] for key, value in memory.items()} for k in (i, i - 1))
        adapted = {key: x for key, x in before.items() if key not in averages and bool((x != now[key]).any())}
        if not adapted:
            continue
        energies = [to_numpy(energy(system, later, w[i], m[i], x)) for x in (now | adapted, now)]
        if (abs(energies[1] - energies[0]) > 1e-12 * abs(energies[0])).any():
            raise ValueError(
                f"{', '.join(sorted(adapted))} of the memory adapted before t = {later:g}, and E jumped with the mask; "
                "compare total_energy and dissipation at single states, or keep chi = 1 and beta_flat = beta."
            )


def rate_by_memory(
    preconditioner: Preconditioner, memory: Memory, g: Array, function: Callable[[Memory], Array]
) -> Array:
    """∂f/∂k·k̇ of a function f of the memory, by forward-mode differentiation.

    Args:
        preconditioner: Owner of the memory.
        memory: k, as tensors; the momentum's mass is ignored.
        g: Gradient to take in, shape ``(*batch, *shape)``.
        function: f.
    """
    import torch

    known = {key: value for key, value in memory.items() if key != MASS}
    rates = preconditioner.memory_rates(known, g, preconditioner.to_frame(known, g))
    for key in known.keys() & set(preconditioner.elementwise):  # roots have no derivative at 0: 0·∞
        known[key] = known[key].clamp(min=torch.finfo(known[key].dtype).tiny)
    return torch.func.jvp(function, (known,), (rates,))[1]


@dataclass(frozen=True)
class _State:
    """A state of a flow with memory: tensors ``(*members, *shape)``, and per-member numbers ``(*members,)``.

    ``covector``, ``g`` and ``w`` are in the parameter's coordinates, ``m`` and ``frame_g`` in the frame; ``decay`` is
    c₁λ, ``eta`` η/c₁ and ``shrink`` ηλ.
    """

    metric: RememberedMetric
    exact: RememberedMetric
    degree: float
    now: Mapping[str, Any]
    m: Array
    memory: Memory
    w: Array
    g: Array
    frame_g: Array
    covector: Array
    eta: Array
    shrink: Array
    decay: Array
    reference: Array

    @property
    def axes(self) -> tuple[None, ...]:
        """Index that adds a parameter's axes to per-member numbers."""
        return (None,) * len(self.metric.shape_of(self.reference))

    def inner(self, x: Array, y: Array) -> Array:
        """Inner product ⟨x, y⟩ of each member."""
        return (x * y).flatten(len(x.shape) - len(self.axes)).sum(-1)

    def scalar(self, name: str) -> Array:
        """A coefficient as one number per member."""
        return _numbers(self.now[name], self.eta)

    def of_kind(self, numbers: Array) -> Array:
        """Per-member numbers as an array ``(*ensemble,)`` of the caller's kind."""
        return like(numbers.reshape(self.reference.shape[:-1]), self.reference)

    def direction(self, metric: RememberedMetric, *, memory: Memory | None = None, **changes: Any) -> Array:
        """Direction u with some coefficients changed, in the parameter's coordinates."""
        now = {**self.now, **changes}
        taken = TakenIn(self.m, memory or self.memory, self.frame_g, lookahead(self.m, self.frame_g, now["nesterov"]))
        return metric.direction(now, taken, self.w)

    def gradient(self, **changes: Any) -> Array:
        """∇φ(m)."""
        return self.direction(self.exact, **_NEUTRAL, **changes)

    def potential(self) -> Array:
        """φ(m) = ⟨m, ∇φ(m)⟩/p, by Euler's theorem."""
        return self.inner(self.covector, self.gradient()) / self.degree

    def potential_rate(self) -> Array:
        """∂φ/∂k·k̇, by forward-mode differentiation."""
        preconditioner = self.exact.preconditioner
        if not preconditioner.rates():
            return 0.0 * self.eta
        mass = {key: value for key, value in self.memory.items() if key == MASS}

        def potential(k: Memory) -> Array:
            u = self.direction(self.exact, memory=k | mass, **_NEUTRAL)
            return self.inner(self.covector, u) / self.degree

        return rate_by_memory(preconditioner, self.memory, self.g, potential)

    def eta_rate(self, system: RISHD, t: float) -> Array:
        """d(η/c₁)/dt."""
        rate = _numbers(system.rate("eta", t), self.eta)
        if MASS not in self.memory:
            return rate
        mass = self.memory[MASS]
        return (rate - self.eta * self.scalar("alpha") * (1.0 - mass)) / mass

    def shrink_rate(self, system: RISHD, t: float) -> Array:
        """d(ηλ)/dt."""
        decay_rate, eta_rate = (_numbers(system.rate(name, t), self.eta) for name in ("decay", "eta"))
        return eta_rate * self.scalar("decay") + self.scalar("eta") * decay_rate

    def chi_rate(self, system: RISHD, t: float) -> Array:
        """∂φ/∂χ·χ̇: φ is linear in χ."""
        if not self.metric.is_split:
            return 0.0 * self.eta
        more = self.gradient(chi=self.now["chi"] + 1.0) - self.gradient()
        return _numbers(system.rate("chi", t), self.eta) * self.inner(self.covector, more) / self.degree


def _state(system: RISHD, t: float, w: Array, m: Array, memory: Mapping[str, Array] | None) -> _State:
    metric = _metric(system)
    metric.check(w)
    if tuple(m.shape) != tuple(w.shape):
        raise ValueError(f"m has shape {tuple(m.shape)}, w has {tuple(w.shape)}; give the momentum at w.")
    preconditioner = metric.preconditioner
    exact = copy(metric)
    exact.preconditioner = preconditioner.exact
    degree = exact.preconditioner.degree
    if degree is None:
        raise ValueError(
            f"preconditioner {preconditioner.name!r} declares no potential, so no energy is known (not applicable); if "
            "its direction is the gradient of a function of the momentum that is homogeneous of degree p, declare "
            "degree = p."
        )
    gradient = system.objective.gradient(w)
    m, known = metric.at_state(w, m, gradient, memory)
    now, position, g = metric.shaped(system.coefficients(t), w, gradient)
    averages = {*preconditioner.rates(), MASS} & known.keys()
    if any(not bool(known[key].any()) for key in averages):
        m, known, _, _ = metric.taken_in(now, m, known, g, h=_SHORT)
    frame_g = preconditioner.to_frame(known, g)
    numbers = position.new_zeros(position.shape[: position.ndim - len(metric.shape_of(w))])
    mass = known[MASS] if MASS in known else numbers + 1.0
    eta, decay = _numbers(now["eta"], numbers), _numbers(now["decay"], numbers)
    state = _State(
        metric=metric,
        exact=exact,
        degree=degree,
        now=now,
        m=m,
        memory=known,
        w=position,
        g=g,
        frame_g=frame_g,
        covector=preconditioner.from_frame(known, m),
        eta=eta / mass,
        shrink=eta * decay,
        decay=decay * mass,
        reference=w,
    )
    if not exact.preconditioner.is_linear:
        _check_degree(state)
    return state


def _metric(system: RISHD) -> RememberedMetric:
    if system.memory is None:
        raise ValueError(
            "the metric is known only by its action on covectors, so F(w) and this energy do not exist (not "
            "applicable); make it a riemannian_ode.Preconditioner that declares its degree."
        )
    return system.memory


def _check_degree(state: _State) -> None:
    """Refuse a direction that is not homogeneous as declared: φ and Ė would be wrong."""
    once = state.gradient()
    twice = state.exact.direction(
        {**state.now, **_NEUTRAL}, TakenIn(2.0 * state.m, state.memory, state.frame_g, 2.0 * state.m), state.w
    )
    off, size = abs(twice - 2.0 ** (state.degree - 1.0) * once).max(), abs(once).max()
    if bool(off > _HOMOGENEOUS * size):
        name = state.metric.preconditioner.name
        raise ValueError(
            f"preconditioner {name!r} declares degree = {state.degree:g}, but its direction at 2m is not "
            f"{2.0 ** (state.degree - 1.0):g} times that at m (off by {float(off / size):.2g}); E needs a homogeneous "
            "potential: correct the degree, or let it be None."
        )


def _numbers(coefficient: Any, numbers: Array) -> Array:
    """A coefficient as one number per member, in the shape of ``numbers``."""
    if isinstance(coefficient, (int, float)):
        return numbers * 0.0 + coefficient
    return like(coefficient, numbers).reshape(-1 if numbers.ndim else ()).expand(numbers.shape)
