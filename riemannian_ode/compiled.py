"""Chunks of steps compiled into one kernel by torch's Inductor, for long runs and large ensembles.

A step of an explicit scheme is traced as it stands in Python, several steps in a row, and compiled for the CPU or the
GPU that holds the state. With few coordinates the trace runs on :class:`riemannian_ode.components.ComponentArray`, so
that the whole chunk becomes one elementwise loop over the ensemble; otherwise on tensors of shape ``(*ensemble, p)``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch._inductor
from torch import Tensor

from riemannian_ode.arrays import as_float_array, is_torch, namespace, to_numpy
from riemannian_ode.coefficients import COEFFICIENTS, TimeDependent
from riemannian_ode.components import assemble, components, scalar
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.integrators import Integrator, OneStepIntegrator, PhaseState
from riemannian_ode.integrators import integrator as integrator_by_name

Layout: TypeAlias = Literal["components", "tensors"]
MAX_COMPONENTS = 16  # coordinates up to which one array element a coordinate pays
_OPERATION_BUDGET = 1000  # operations a chunk: compile time grows with them, 12 to 22 s there (measured, two cores)
_MAX_STEPS = 8  # steps a chunk: at eight the call costs less than the steps even for a single member (measured)
_MANY_MEMBERS = 10_000  # half as many steps then cost 2% more at 10⁵ members and compile in half the time (measured)
_FAR_OUT = 1e3  # growth within a chunk beyond which compiled and plain numbers are not compared
_SECONDS_A_PAIR = 0.1  # between states shown to the driver, for its progress bar and for Ctrl-C


class CompileError(ValueError):
    """A run cannot be compiled; the message says why and what to do instead."""


class CompiledSteps:
    """A scheme's steps of size h on one system, compiled for ensembles of one shape.

    ``simulate(..., compile=True)`` makes one for a single run; make it yourself to compile once for many runs. What it
    computes is compared with the uncompiled steps, so that a formula which cannot be traced faithfully is an error and
    not a wrong number.

    Args:
        system: The dynamics.
        w0: A start, shape ``(*ensemble, p)``, numpy or torch; runs must have its kind, shape and dtype.
        integrator: An explicit one-step scheme, or the name of one.
        h: Step size, in units of time.
        t: A time at which the comparison is made (from ``w0``, at rest).
        steps: Steps a chunk; ``None`` chooses by the number of operations.

    Raises:
        ValueError: for a start that does not fit the system.
        CompileError: for a scheme that is implicit or adaptive, formulas that cannot be traced, or a missing compiler.
    """

    def __init__(
        self,
        system: RISHD,
        w0: Array,
        *,
        integrator: str | Integrator = "semi-implicit-euler",
        h: float = 1.0,
        t: float = 0.0,
        steps: int | None = None,
    ) -> None:
        scheme = integrator if isinstance(integrator, Integrator) else integrator_by_name(integrator)
        if not isinstance(scheme, OneStepIntegrator) or scheme.implicit:
            raise CompileError(
                f"integrator {scheme.name!r} solves equations or chooses its own steps, which cannot be unrolled; take "
                "an explicit one-step scheme or compile=False."
            )
        w0 = as_float_array("w0", w0)
        self.scheme, self.source, self.h = scheme, system, h
        self.system = system.for_arrays(w0)
        self.start = PhaseState(w0, namespace(w0).zeros_like(w0))
        self._is_numpy = not is_torch(w0)
        self._coefficients = _Coefficients(self.system)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # an unstable member is no warning here
            self._build(t, steps)

    def check_fits(self, system: RISHD, w0: Array, scheme: Integrator, h: float) -> None:
        """Refuse a run that these steps were not compiled for.

        Raises:
            CompileError: naming what differs.
        """
        mine, reference = self.start.w, f"{self.scheme.name} at h = {self.h:g}"
        if scheme.name != self.scheme.name or h != self.h:
            raise CompileError(f"the steps were compiled for {reference}, the run takes {scheme.name} at h = {h:g}.")
        if system is not self.source:
            raise CompileError("the steps were compiled for another system; compile them for this one.")
        if (type(w0), w0.shape, w0.dtype) != (type(mine), mine.shape, mine.dtype):
            raise CompileError(
                f"the steps were compiled for {type(mine).__name__} of shape {tuple(mine.shape)} and {mine.dtype}, w0 "
                f"is {type(w0).__name__} of shape {tuple(w0.shape)} and {w0.dtype}."
            )

    def enter(self, state: PhaseState) -> tuple[Tensor, Tensor]:
        """A state's arrays as the tensors that :meth:`chunk` takes."""
        w, m = (torch.tensor(x) if self._is_numpy else x.detach() for x in state)
        if self.layout == "components":
            return w.movedim(-1, 0).contiguous(), m.movedim(-1, 0).contiguous()
        return w, m

    def leave(self, w: Tensor, m: Tensor) -> PhaseState:
        """The inverse of :meth:`enter`."""
        if self.layout == "components":
            w, m = w.movedim(0, -1), m.movedim(0, -1)
        return PhaseState(w.numpy(), m.numpy()) if self._is_numpy else PhaseState(w, m)

    def chunk(self, t: float, w: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """w and m after :attr:`steps` steps from time t, and the sum of all their numbers, finite if they all are."""
        after: tuple[Tensor, Tensor, Tensor] = self._compiled(*self._inputs(t, w, m))
        return after

    def single(self, t: float, state: PhaseState) -> PhaseState:
        """The state after one step from time t, not compiled."""
        return self.scheme.step(self.system, t, state, self.h)

    def _build(self, t: float, steps: int | None) -> None:
        self._trace(t, steps)
        w, m = self.enter(self.start)
        try:
            self._compiled: Any = torch._inductor.compile(self._graph, self._inputs(t, w, m))
            after = self.leave(*self.chunk(t, w, m)[:2])
        except Exception as error:  # whatever the compiler's tool chain comes up with
            raise CompileError(
                f"compiling {self.steps} steps of {self.scheme.name!r} failed ({_first_line(error)}); a C++ compiler "
                "(g++ or clang) must be installed, or leave compile=False."
            ) from error
        self._verify(t, after)

    def _inputs(self, t: float, w: Tensor, m: Tensor) -> list[Any]:
        if not self._coefficients.times:
            return [w, m, self._constants]
        return [w, m, [*self._constants, *self._as_inputs(self._coefficients.at_times(t), w)]]

    def _as_inputs(self, values: Iterable[Any], reference: Tensor) -> list[Tensor]:
        tensors = [torch.as_tensor(value, dtype=reference.dtype, device=reference.device) for value in values]
        if self.layout == "tensors":
            return tensors
        return [x[..., 0].contiguous() if x.ndim else x for x in tensors]  # (*ensemble, 1) for formulas of arrays

    def _trace(self, t: float, steps: int | None) -> None:
        layouts: tuple[Layout, ...] = ("components", "tensors")
        members = math.prod(self.start.w.shape[:-1])
        most = _MAX_STEPS if members < _MANY_MEMBERS else _MAX_STEPS // 2
        reasons = []
        for layout in layouts[self.start.w.shape[-1] > MAX_COMPONENTS :]:
            self.layout = layout
            try:
                self._trace_steps(t, 1)
                operations = sum(node.op == "call_function" for node in self._graph.graph.nodes)
                self._trace_steps(t, steps or min(most, max(1, _OPERATION_BUDGET // operations)))
                return
            except Exception as error:  # user formulas may raise anything
                reasons.append(f"{self.layout}: {type(error).__name__}: {_first_line(error)}")
        raise CompileError(
            f"{self.scheme.name!r} on this system cannot be traced for compile=True ({'; '.join(reasons)}). Formulas "
            "must be array operations whose course does not depend on the numbers; or leave compile=False."
        )

    def _trace_steps(self, t: float, steps: int) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        in_components = self.layout == "components"

        def chunk(w: Tensor, m: Tensor, values: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            system = self._coefficients.traced([scalar(value) for value in values] if in_components else values)
            state = PhaseState(components(w), components(m)) if in_components else PhaseState(w, m)
            for k in range(steps):
                state = self.scheme.step(system, k * self.h, state, self.h)
            if in_components:
                total = sum([*state.w, *state.m])  # of a member: part of the same loop
                return assemble(state.w, w), assemble(state.m, m), torch.as_tensor(total).sum()
            return state.w, state.m, state.w.sum() + state.m.sum()

        self.steps = steps
        recording, state = self._coefficients.recording(t), self.start
        for k in range(steps):
            state = self.scheme.step(recording, k * self.h, state, self.h)
        w, m = self.enter(self.start)
        self._constants = self._as_inputs(self._coefficients.constants.values(), w)
        self._graph = make_fx(chunk, tracing_mode="fake")(*self._inputs(t, w, m))

    def _verify(self, t: float, after: PhaseState) -> None:
        state = self.start
        for k in range(self.steps):
            state = self.single(t + k * self.h, state)
        x, y, start = (np.concatenate([to_numpy(s.w), to_numpy(s.m)], axis=-1) for s in (after, state, self.start))
        scale = np.abs(y).max(-1, keepdims=True, initial=0.0)
        # Members that an unstable learning rate throws far out magnify rounding without bound.
        comparable = scale <= _FAR_OUT * (1.0 + np.abs(start).max(-1, keepdims=True))
        tolerance = float(np.finfo(y.dtype).eps) ** 0.6 * (1.0 + scale)  # rounding, amplified by a few steps
        if x.shape != y.shape or np.any(comparable & ~(np.abs(x - y) <= tolerance)):
            raise CompileError(
                f"{self.steps} compiled steps of {self.scheme.name!r} differ from the plain ones; the scheme may use t "
                "or the numbers outside array operations. Leave compile=False."
            )


class _Coefficients:
    """A system's coefficients as inputs of a chunk: constants once, functions of time at every time it asks for.

    Neutral numbers (0 and 1) stay constants of the trace: the formulas leave their terms out.
    """

    def __init__(self, system: RISHD) -> None:
        self.system = system
        self.constants: dict[str, Any] = {}
        self.functions: dict[str, TimeDependent] = {}
        for name in COEFFICIENTS:
            value = getattr(system, name)
            if isinstance(value, TimeDependent):
                self.functions[name] = value
            elif not (isinstance(value, float) and value in (0.0, 1.0)):
                self.constants[name] = value
        self.times: dict[tuple[str, float], None] = {}

    def at_times(self, t: float) -> list[Any]:
        """Values of the functions of time that a chunk beginning at time t needs."""
        return [self.functions[name](t + offset) for name, offset in self.times]

    def recording(self, t: float) -> RISHD:
        """The system in time since t, which notes every time that it is asked for."""

        def record(name: str, offset: float) -> Any:
            self.times[name, offset] = None
            return self.functions[name](t + offset)

        changed: dict[str, Any] = {name: TimeDependent(partial(record, name)) for name in self.functions}
        return replace(self.system, **changed)

    def traced(self, inputs: list[Any]) -> RISHD:
        """The system in time since a chunk began; ``inputs`` are the constants, then :meth:`at_times`."""
        given: dict[Any, Any] = dict(zip([*self.constants, *self.times], inputs, strict=True))

        def look_up(name: str, offset: float) -> Any:
            return given[name, offset]

        changed: dict[str, Any] = {name: given[name] for name in self.constants}
        changed |= {name: TimeDependent(partial(look_up, name)) for name in self.functions}
        return replace(self.system, **changed)


def compiled_states(
    compiled: CompiledSteps, state: PhaseState, *, t0: float, first: int, stops: Callable[[int], int]
) -> Iterator[tuple[int, PhaseState]]:
    """Pairs (k, state at t0 + kh): at every stop, at chunks' ends now and then, and every step where chunks do not fit.

    A chunk in which a member becomes non-finite is run again step by step, so that its loss gets its exact time.

    Args:
        compiled: The compiled chunk.
        state: State after step ``first``.
        t0: Start time.
        first: Number of steps already made.
        stops: k ↦ the next step > k that must be among the pairs; k itself ends the run.
    """
    k, h, lost = first, compiled.h, _lost(state)
    w, m = compiled.enter(state)
    shown = time.monotonic()
    while (stop := stops(k)) > k:
        while stop - k >= compiled.steps:
            *after, total = compiled.chunk(t0 + k * h, w, m)
            if not math.isfinite(float(total)) and not np.array_equal(now := _lost(compiled.leave(*after)), lost):
                stop, lost = k + compiled.steps, now
                break
            (w, m), k = after, k + compiled.steps
            if k == stop or time.monotonic() - shown > _SECONDS_A_PAIR:
                yield k, compiled.leave(w, m)
                shown = time.monotonic()
        if k < stop:
            state = compiled.leave(w, m)
            while k < stop:
                state = compiled.single(t0 + k * h, state)
                k += 1
                yield k, state
            w, m = compiled.enter(state)


def _lost(state: PhaseState) -> np.ndarray:
    lost: np.ndarray = np.logical_not(np.isfinite(to_numpy(state.w)).all(-1) & np.isfinite(to_numpy(state.m)).all(-1))
    return lost


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
