r"""Flows whose metric has memory: the state is (w, m, k), with momentum and memory side by side in one array.

.. math::
    \dot w = -\frac{\eta}{c_1}\left[P F_k^{-1}(m + \beta_1 g) + \chi Q F_k^{-1}(m + \beta_2 g)\right]
        - \eta\lambda(P + \chi Q)w, \qquad
    \dot m = -\alpha m + c\,g, \qquad \dot k = (1-\theta)(s(g) - k)

with R = 0, since no F(w) exists, and c₁ = 1 or, with bias correction, the momentum's mass. Integrators see the pair
(w, z), where z holds m and k of every member, shape ``(*ensemble, q)``. The semi-implicit Euler step with h = 1 is the
optimizer's, in float64 to the last bit. Memory that jumps does so at whole times t > 0.

Source: docs/theory, "Flows with memory".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np

from riemannian_ode.arrays import to_numpy
from riemannian_ode.checks import shown
from riemannian_ode.flow import Array, average_rate, lookahead, momentum_rate
from riemannian_ode.memory_arrays import as_tensor, broadcast, in_kind_of, member_axis, sheltered, with_lost
from riemannian_ode.metric import Metric, Variation
from riemannian_ode.preconditioner import Memory, Preconditioner
from riemannian_ode.stages import (
    MASS,
    Directed,
    TakenIn,
    direct,
    initial_memory,
    move,
    per_member,
    shrinkage,
    take_in,
)

_AGREEMENT = 1e-4  # of a preconditioner's own ``observe`` with its rates: far above rounding in float32
_ROUNDING = 1e-9  # a time this close to a whole number counts as one


class RememberedMetric(Metric):
    """The metric F_k of a flow with memory; it has no F(w).

    Args:
        preconditioner: F⁻¹ and its memory.
        shape: Shape of the parameter, whose product is p; ``None`` is ``(p,)``.
        corrects_momentum: Whether momentum is divided by its mass.
        is_split: Whether sharp and flat directions differ.
    """

    variation: ClassVar[Variation] = "history"

    def __init__(
        self,
        preconditioner: Preconditioner,
        *,
        shape: tuple[int, ...] | None = None,
        corrects_momentum: bool = False,
        is_split: bool = False,
    ) -> None:
        self.preconditioner, self.shape = preconditioner, _checked_shape(shape)
        try:
            hash(preconditioner)
        except TypeError:
            raise ValueError(
                f"preconditioner is a {type(preconditioner).__name__} that cannot be hashed; make its class a frozen "
                "dataclass (@dataclass(frozen=True)) with hashable fields."
            ) from None
        if is_split and not preconditioner.has_split:
            raise preconditioner.no_split()
        self.corrects_momentum, self.is_split = corrects_momentum, is_split

    def raise_index(self, w: Array, covector: Array) -> Array:
        raise ValueError("the metric depends on the flow's memory; ask preconditioner.precondition(memory, covector).")

    def lower_index(self, w: Array, vector: Array) -> Array:
        raise ValueError("a preconditioner with memory has no F(w) to lower an index with.")

    def check(self, w: Array) -> None:
        shape = self.shape_of(w)
        if math.prod(shape) != w.shape[-1]:
            raise ValueError(
                f"shape = {shape} has {math.prod(shape)} numbers, but w has {w.shape[-1]} coordinates; give the shape "
                "of the parameter that w holds in row order."
            )
        self.preconditioner.check_shape(shape)

    def shape_of(self, w: Array) -> tuple[int, ...]:
        """Shape of the parameter."""
        return (int(w.shape[-1]),) if self.shape is None else self.shape

    def start(
        self, w: Array, m: Array, g: Array, memory0: Mapping[str, Array] | None = None, *, name: str = "memory0"
    ) -> Array:
        """z at the start: momentum and memory, shape ``(*ensemble, q)``.

        Args:
            w: Positions, shape ``(*ensemble, p)``.
            m: Momentum, same shape.
            g: Gradient there; used if the preconditioner's first gradient only sets its frame.
            memory0: Memory by key, each of shape ``(*ensemble, …)``; by default the memory before the first gradient.
            name: Name used in errors.

        Raises:
            ValueError: for a memory with other keys or shapes, or a preconditioner whose ``observe`` is not the Euler
                step of its ``memory_rates``.
        """
        w, m, g, lost = sheltered(w, m, g)
        parameter, batch = self._shaped(w, w), len(member_axis(w))
        memory = initial_memory(self.preconditioner, parameter, corrects_momentum=self.corrects_momentum, batch=batch)
        if memory0 is not None:
            ensemble = tuple(w.shape[:-1])
            wanted = {key: (*ensemble, *x.shape[batch:]) for key, x in memory.items()}
            given = {key: tuple(np.shape(x)) for key, x in memory0.items()}
            if wanted != given:
                raise ValueError(f"{name} has shapes {given}; give {wanted}, as trajectory.memory has at a save.")
            imaginary = sorted(key for key in memory0 if not bool(np.isrealobj(to_numpy(memory0[key]))))
            if imaginary:
                raise ValueError(f"{name} is complex in {', '.join(imaginary)}; give real numbers.")
            memory = {key: as_tensor(memory0[key]).to(x.dtype).reshape(x.shape) for key, x in memory.items()}
            bad = sorted(key for key, x in memory.items() if not bool(x.isfinite().all()))
            if bad:
                raise ValueError(f"{name} is not finite in {', '.join(bad)}; start from a sound state.")
        elif self.preconditioner.skips_first:
            memory = self.preconditioner.first(memory, self._shaped(g, w))
        if type(self.preconditioner).observe is not Preconditioner.observe:
            self._check_observe(memory, self._shaped(g, w))
        return with_lost(self.pack(self.preconditioner.to_frame(memory, self._shaped(m, w)), memory, w), lost)

    def _check_observe(self, memory: Memory, g: Array) -> None:
        """Refuse an ``observe`` that is no Euler step: other integrators would move the memory differently."""
        preconditioner, h = self.preconditioner, 0.5
        frame_g = preconditioner.to_frame(memory, g)
        observed = preconditioner.observe(memory, g, frame_g, h=h)
        rates = preconditioner.memory_rates(memory, g, frame_g)
        for key, before in memory.items():
            step, change = observed[key] - before, h * rates[key]
            if bool((abs(step - change) > _AGREEMENT * (abs(step) + abs(change) + abs(before))).any()):
                raise ValueError(
                    f"preconditioner {preconditioner.name!r} observes {key!r} by a step that is not its memory_rates "
                    "over h; declare the average by rates() and averaged(), or override memory_rates, too."
                )

    def pack(self, m: Array, memory: Memory, w: Array) -> Array:
        """z of momentum and memory, in the kind of ``w``."""
        import torch

        parts = [m, *(memory[key] for key in sorted(memory))]
        z = torch.cat([part.reshape((*member_axis(w), -1)) for part in parts], dim=-1)
        return in_kind_of(w, z.reshape((*w.shape[:-1], -1)))

    def unpack(self, w: Array, z: Array) -> tuple[Array, Memory]:
        """Momentum (in the frame) and memory of z, tensors with one axis for all members, or none."""
        import torch

        shape, members = self.shape_of(w), member_axis(w)
        layout = _layout(self.preconditioner, shape, self.corrects_momentum)
        sizes = [math.prod(shape), *(math.prod(part) for _, part in layout)]
        first, *others = torch.split(as_tensor(z).reshape((*members, -1)), sizes, dim=-1)
        memory: Memory = {key: x.reshape((*members, *part)) for (key, part), x in zip(layout, others, strict=True)}
        for key in self._masses:
            if key in memory:
                memory[key] = memory[key].double()
        return first.reshape((*members, *shape)), memory

    def rates(self, now: Mapping[str, Any], w: Array, z: Array, g: Array) -> tuple[Array, Array]:
        """(ẇ, ż) for coefficients by name.

        Before the first gradient, momentum and memory over their masses are 0/0; their limit is the value after the
        first gradient.
        """
        w, z, g, lost = sheltered(w, z, g)
        m, memory = self.unpack(w, z)
        memory = self.preconditioner.admissible(memory)
        now = {name: broadcast(value, m, w) for name, value in now.items()}
        gradient = self._shaped(g, w)
        frame_g = self.preconditioner.to_frame(memory, gradient)
        if any(key in memory and not bool(memory[key].all()) for key in self._masses):
            taken = self.taken_in(now, m, memory, gradient, h=1.0)
        else:
            taken = TakenIn(m, memory, frame_g, lookahead(m, frame_g, now["nesterov"]))
        position = self._shaped(w, w)
        velocity = move(0.0 * position, self._direct(now, taken, position, step=0, h=1.0, is_rate=True), eta=now["eta"])
        changes = self.preconditioner.memory_rates(
            {key: value for key, value in memory.items() if key != MASS}, gradient, frame_g
        )
        if MASS in memory:
            changes[MASS] = average_rate(memory[MASS], 1.0, rate=per_member(now["alpha"], memory[MASS]))
        m_dot = momentum_rate(m, frame_g, alpha=now["alpha"], gain=now["gain"])
        return with_lost(in_kind_of(w, velocity.reshape(w.shape)), lost), with_lost(self.pack(m_dot, changes, w), lost)

    def semi_implicit_step(
        self, now: Mapping[str, Any], t: float, w: Array, z: Array, g: Array, h: float
    ) -> tuple[Array, Array]:
        """(w, z) at t + h: memory, momentum and position in turn, with one gradient; h = 1 is the optimizer's step."""
        w, z, g, lost = sheltered(w, z, g)
        m, memory = self.unpack(w, z)
        now = {name: broadcast(value, m, w) for name, value in now.items()}
        position = self._shaped(w, w)
        taken = self.taken_in(now, m, memory, self._shaped(g, w), h=h)
        directed = self._direct(now, taken, position, step=self.jump_time(t, h), h=h)
        moved = move(position, directed, eta=now["eta"], h=h)
        after = self.pack(directed.m, directed.memory, w)
        return with_lost(in_kind_of(w, moved.reshape(w.shape)), lost), with_lost(after, lost)

    @property
    def changes_between_steps(self) -> bool:
        """Whether the memory jumps or has parts that adapt once per step (masks and frames)."""
        averages = {*self.preconditioner.rates(), MASS}
        layout = _layout(self.preconditioner, self.shape or (1,), self.corrects_momentum)
        return self.preconditioner.has_frame or any(key not in averages for key, _ in layout)

    def settle(self, now: Mapping[str, Any], t: float, w: Array, z: Array, g: Array, h: float) -> Array:
        """z after a step to t + h by a scheme that uses only rates: masks adapt, and frames jump.

        Args:
            now: Coefficients at t + h.
            t: Time before the step.
            w: Position after the step.
            z: Momentum and memory after the step.
            g: Gradient at ``w``.
            h: Step size.
        """
        w, z, g, lost = sheltered(w, z, g)
        m, memory = self.unpack(w, z)
        m, memory = m.clone(), {key: value.clone() for key, value in memory.items()}
        now = {name: broadcast(value, m, w) for name, value in now.items()}
        frame_g = self.preconditioner.to_frame(memory, self._shaped(g, w))
        taken = TakenIn(m, memory, frame_g, lookahead(m, frame_g, now["nesterov"]))
        directed = self._direct(now, taken, None, step=self.jump_time(t, h), h=h)
        return with_lost(self.pack(directed.m, directed.memory, w), lost)

    def jump_time(self, t: float, h: float) -> int:
        """The whole number in (t, t + h] at which the memory jumps, if there is one, else 0."""
        if type(self.preconditioner).due is Preconditioner.due:  # never jumps
            return 0
        first, last = max(1, math.floor(t + _ROUNDING) + 1), math.floor(t + h + _ROUNDING)
        return next((k for k in range(first, last + 1) if self.preconditioner.due(k)), 0)

    def direction(self, now: Mapping[str, Any], taken: TakenIn, w: Array | None) -> Array:
        """u of the flow, out of the frame, shape ``(*members, *shape)``.

        Args:
            now: Coefficients that broadcast against the result.
            taken: Momentum, memory, gradient and m̃.
            w: Position; needed with decay.
        """
        return self._direct(now, taken, w, step=0, h=1.0, is_rate=True).u

    def at_state(self, w: Array, m: Array, g: Array, memory: Mapping[str, Array] | None) -> tuple[Array, Memory]:
        """Momentum in the frame and memory at a saved state, as tensors ``(*members, …)``.

        Args:
            w: Positions, shape ``(*ensemble, p)``.
            m: Momenta, same shape.
            g: Gradients, same shape.
            memory: Memory by key, as stored in a trajectory at a save.

        Raises:
            ValueError: for a missing memory, or one with other keys or shapes.
        """
        if memory is None and _layout(self.preconditioner, self.shape_of(w), self.corrects_momentum):
            raise ValueError(
                f"memory is missing, and preconditioner {self.preconditioner.name!r} has one; give that of the state, "
                "e.g. {key: value[k] for key, value in trajectory.memory.items()}."
            )
        m, known = self.unpack(w, self.start(w, m, g, memory, name="memory"))
        return m, self.preconditioner.admissible(known)

    def shaped(self, coefficients: Mapping[str, Any], w: Array, g: Array) -> tuple[dict[str, Any], Array, Array]:
        """Coefficients that broadcast against ``(*members, *shape)``, and position and gradient in that shape."""
        position = self._shaped(w, w)
        return {name: broadcast(x, position, w) for name, x in coefficients.items()}, position, self._shaped(g, w)

    def momentum(self, w: Array, z: Array) -> Array:
        """The momentum in z, out of the frame, shape ``(*ensemble, p)``."""
        m, memory = self.unpack(w, z)
        return in_kind_of(w, self.preconditioner.from_frame(memory, m).reshape(w.shape))

    def memory(self, w: Array, z: Array) -> Memory:
        """The memory in z, arrays of the kind of ``w`` of shape ``(*ensemble, …)``."""
        batch, ensemble = len(member_axis(w)), tuple(w.shape[:-1])
        memory = self.unpack(w, z)[1]
        return {key: in_kind_of(w, x.reshape((*ensemble, *x.shape[batch:]))) for key, x in memory.items()}

    @property
    def _masses(self) -> tuple[str, ...]:
        return MASS, *self.preconditioner.masses

    def _shaped(self, x: Array, w: Array) -> Array:
        return as_tensor(x).reshape((*member_axis(w), *self.shape_of(w)))

    def taken_in(self, now: Mapping[str, Any], m: Array, memory: Memory, g: Array, *, h: float) -> TakenIn:
        """Momentum and memory after taking in a gradient over ``h``."""
        rates = {name: now[name] for name in ("alpha", "gain", "nesterov")}
        return take_in(self.preconditioner, m, memory, g, **rates, h=h)

    def _direct(
        self, now: Mapping[str, Any], taken: TakenIn, w: Array | None, *, step: int, h: float, is_rate: bool = False
    ) -> Directed:
        settings = {name: now[name] for name in ("chi", "beta_sharp", "beta_flat")}
        decayed = None if w is None else shrinkage(taken, w, now["decay"])
        numbers = (0,) * (len(taken.m) if taken.m.ndim > len(self.shape or (0,)) else 1)  # all members jump together
        # The phase: the masses show how many gradients the memory has seen.
        turn: dict[str, Any] = {"step": self.preconditioner.phase(step) or step, "is_phase": True, "h": h}
        turn |= {"numbers": numbers, "is_rate": is_rate}
        return direct(self.preconditioner, taken, **settings, is_split=self.is_split, shrinkage=decayed, **turn)


@cache
def _layout(
    preconditioner: Preconditioner, shape: tuple[int, ...], corrects_momentum: bool
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Keys and shapes of one member's memory, in the order of z."""
    import torch

    w = torch.empty(shape, dtype=torch.float64, device="meta")
    memory = initial_memory(preconditioner, w, corrects_momentum=corrects_momentum)
    return tuple((key, tuple(memory[key].shape)) for key in sorted(memory))


def _checked_shape(shape: Any) -> tuple[int, ...] | None:
    if shape is None:
        return None
    if not isinstance(shape, (tuple, list)) or not all(type(n) is int and n >= 1 for n in shape):
        raise ValueError(f"shape = {shown(shape)} must hold whole numbers of at least 1, such as (rows, columns).")
    return tuple(shape)
