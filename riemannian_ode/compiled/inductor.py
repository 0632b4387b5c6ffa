"""A few unrolled steps compiled into one kernel by torch's Inductor, for GPUs and for many coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch._inductor
from torch import Tensor

from riemannian_ode.compiled.coefficients import CoefficientInputs
from riemannian_ode.compiled.components import assemble, components, scalar
from riemannian_ode.integrators import OneStepIntegrator, PhaseState

TensorLayout: TypeAlias = Literal["components", "tensors"]
_OPERATION_BUDGET = 1000  # operations per chunk; compiling this many takes 12 to 22 s (measured, two cores)
_MAX_STEPS = 8  # steps per chunk: with eight, the call costs less than the steps even for a single member (measured)
_MANY_MEMBERS = 10_000  # half as many steps cost 2% more at 10⁵ members and compile in half the time (measured)


class InductorChunk:
    """Several consecutive steps, unrolled and compiled.

    Args:
        scheme: The scheme.
        coefficients: Coefficients of the system.
        start: An example of the states, numpy or torch.
        h: Step.
        t: A time at which functions of time may be called.
        steps: Steps per chunk; ``None`` chooses by the number of operations.
        layout: ``"components"`` runs the formulas on one tensor per coordinate, ``"tensors"`` on ``(*ensemble, p)``.

    Raises:
        Exception: whatever formulas that cannot be traced raise.
    """

    def __init__(
        self,
        scheme: OneStepIntegrator,
        coefficients: CoefficientInputs,
        start: PhaseState,
        *,
        h: float,
        t: float,
        steps: int | None,
        layout: TensorLayout,
    ) -> None:
        self.scheme, self.coefficients, self.start, self.h, self.layout = scheme, coefficients, start, h, layout
        self._is_numpy = not isinstance(start.w, Tensor)
        self._trace(t, 1)
        operations = sum(node.op == "call_function" for node in self._graph.graph.nodes)
        members = math.prod(start.w.shape[:-1])
        most = _MAX_STEPS if members < _MANY_MEMBERS else _MAX_STEPS // 2
        self.steps = steps or min(most, max(1, _OPERATION_BUDGET // operations))
        self._trace(t, self.steps)

    def build(self, t: float) -> None:
        """Compile; takes seconds.

        Raises:
            Exception: whatever the compiler's tool chain raises.
        """
        self._compiled: Any = torch._inductor.compile(self._graph, self._inputs(t, *self.enter(self.start)))

    def enter(self, state: PhaseState) -> tuple[Tensor, Tensor]:
        """Convert a state's arrays to tensors in the chunk's layout."""
        w, m = (torch.tensor(x) if self._is_numpy else x.detach() for x in state)
        if self.layout == "components":
            return w.movedim(-1, 0).contiguous(), m.movedim(-1, 0).contiguous()
        return w, m

    def leave(self, inner: Sequence[Tensor]) -> PhaseState:
        """The inverse of :meth:`enter`."""
        w, m = inner[:2]
        if self.layout == "components":
            w, m = w.movedim(0, -1), m.movedim(0, -1)
        return PhaseState(w.numpy(), m.numpy()) if self._is_numpy else PhaseState(w, m)

    def reach(self, wanted: int) -> int:
        """How many of the wanted steps one call takes; 0 if a chunk is longer."""
        return self.steps if wanted >= self.steps else 0

    def advance(self, t0: float, k: int, inner: Sequence[Tensor], steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """w and m after the chunk that begins at step k, and the sum of all their entries."""
        after: tuple[Tensor, Tensor, Tensor] = self._compiled(*self._inputs(t0 + k * self.h, *inner[:2]))
        return after

    def is_finite(self, inner: Sequence[Tensor]) -> bool:
        """Whether every number of a state returned by :meth:`advance` is finite."""
        return math.isfinite(float(inner[2]))

    def _inputs(self, t: float, w: Tensor, m: Tensor) -> list[Any]:
        if not self.coefficients.times:
            return [w, m, self._constants]
        return [w, m, [*self._constants, *self._as_inputs(self.coefficients.at_times(t), w)]]

    def _as_inputs(self, values: Iterable[Any], reference: Tensor) -> list[Tensor]:
        tensors = [torch.as_tensor(value, dtype=reference.dtype, device=reference.device) for value in values]
        if self.layout == "tensors":
            return tensors
        return [x[..., 0].contiguous() if x.ndim else x for x in tensors]  # (*ensemble, 1) for array formulas

    def _trace(self, t: float, steps: int) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        in_components = self.layout == "components"

        def chunk(w: Tensor, m: Tensor, values: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            system = self.coefficients.traced([scalar(value) for value in values] if in_components else values)
            state = PhaseState(components(w), components(m)) if in_components else PhaseState(w, m)
            for k in range(steps):
                state = self.scheme.step(system, k * self.h, state, self.h)
            if in_components:
                total = sum([*state.w, *state.m])  # of a member: part of the same loop
                return assemble(state.w, w), assemble(state.m, m), torch.as_tensor(total).sum()
            return state.w, state.m, state.w.sum() + state.m.sum()

        recording, state = self.coefficients.recording(t), self.start
        for k in range(steps):
            state = self.scheme.step(recording, k * self.h, state, self.h)
        w, m = self.enter(self.start)
        self._constants = self._as_inputs(self.coefficients.constants.values(), w)
        self._graph = make_fx(chunk, tracing_mode="fake")(*self._inputs(t, w, m))
