"""Compiled steps of an explicit scheme, made once and reused for many runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from riemannian_ode.arrays import as_float_array, namespace, to_numpy
from riemannian_ode.compiled.coefficients import CoefficientInputs
from riemannian_ode.compiled.inductor import InductorChunk
from riemannian_ode.compiled.native import NativeLoop
from riemannian_ode.dynamics import RISHD
from riemannian_ode.flow import Array
from riemannian_ode.integrators import Integrator, OneStepIntegrator, PhaseState
from riemannian_ode.integrators import integrator as integrator_by_name
from riemannian_ode.noise import GradientNoise
from riemannian_ode.user_functions import check_user_functions

Layout: TypeAlias = Literal["loop", "components", "tensors"]
MAX_COMPONENTS = 16  # coordinates up to which one array element per coordinate pays off
_FAR_OUT = 1e3  # compiled and plain numbers are not compared beyond this growth within the compared steps
_COMPARED = 3  # steps of a loop: enough to see that it continues correctly
_SECONDS_A_PAIR = 0.1  # seconds between states returned to the driver, for its progress bar and for Ctrl-C
_FIRST_CALL = 2_000_000  # members times steps of the first call: some 10 ms


class CompileError(ValueError):
    """A run cannot be compiled; the message says why and what to do instead."""


class CompiledSteps:
    """A scheme's steps of size h on one system, compiled for ensembles of one shape.

    ``simulate(..., compile=True)`` makes one for a single run; make it yourself to compile once for many runs. Its
    results are compared with the uncompiled steps, so that a formula that is not traced correctly raises an error
    instead of giving wrong numbers.

    Args:
        system: The dynamics.
        w0: A start, shape ``(*ensemble, p)``, numpy or torch; runs must have its kind, shape and dtype.
        integrator: An explicit one-step scheme, or the name of one.
        h: Step size, in units of time.
        t: A time at which the comparison is made (from ``w0``, at rest).
        steps: Most steps per call of the kernel. ``None`` allows any number for a loop; for a chunk of torch's Inductor
            the number of operations decides.
        noise: Noise in the gradient with a constant factor; needs the loop in C++.

    Attributes:
        layout: Which kernel was built: ``"loop"`` in C++ (on the CPU, up to 16 coordinates), or a chunk of unrolled
            steps compiled by Inductor on ``"components"`` (one tensor per coordinate) or ``"tensors"``.

    Raises:
        ValueError: for a start that does not fit the system.
        CompileError: for a scheme that is implicit or adaptive, the flow of a preconditioner, formulas that cannot be
            traced, or a missing compiler.
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
        noise: GradientNoise | None = None,
    ) -> None:
        scheme = integrator if isinstance(integrator, Integrator) else integrator_by_name(integrator)
        if not isinstance(scheme, OneStepIntegrator) or scheme.implicit:
            raise CompileError(
                f"integrator {scheme.name!r} solves equations or chooses its own steps, which cannot be unrolled; take "
                "an explicit one-step scheme or compile=False."
            )
        w0 = as_float_array("w0", w0)
        self.scheme, self.source, self.h, self.noise = scheme, system, h, noise
        self.system = system.for_arrays(w0)
        if self.system.memory is not None:
            raise CompileError("flows of a preconditioner (Adam, Muon, …) cannot be compiled; give compile=False.")
        if noise is not None and (callable(noise.factor) or w0.shape[-1] > MAX_COMPONENTS):
            raise CompileError(
                f"noise is compiled with a constant factor and up to {MAX_COMPONENTS} coordinates; the factor is a "
                f"{type(noise.factor).__name__} and w0 has {w0.shape[-1]}: leave compile=False."
            )
        self.start = PhaseState(w0, namespace(w0).zeros_like(w0))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # an unstable member needs no warning here
            check_user_functions(self.system, self.start, t, scheme=scheme)
            self.kernel = self._traced(t, steps)
            try:
                self.kernel.build(t)
            except Exception as error:  # a compiler's tool chain may raise anything
                raise CompileError(
                    f"compiling {self.scheme.name!r} failed ({_first_line(error)}); a C++ compiler (g++ or clang) must "
                    "be installed, or leave compile=False."
                ) from error
            self._verify(t)

    @property
    def layout(self) -> Layout:
        """The form that was built."""
        layout: Layout = self.kernel.layout
        return layout

    def check_fits(
        self, system: RISHD, w0: Array, scheme: Integrator, h: float, noise: GradientNoise | None = None
    ) -> None:
        """Refuse a run that these steps were not compiled for.

        Raises:
            CompileError: naming what differs.
        """
        mine, reference = self.start.w, f"{self.scheme.name} at h = {self.h:g}"
        if scheme.name != self.scheme.name or h != self.h:
            raise CompileError(f"the steps were compiled for {reference}, the run takes {scheme.name} at h = {h:g}.")
        if system is not self.source:
            raise CompileError("the steps were compiled for another system; compile them for this one.")
        if noise is not self.noise:
            raise CompileError("the steps were compiled for another noise; compile them for this one.")
        if (type(w0), w0.shape, w0.dtype) != (type(mine), mine.shape, mine.dtype):
            raise CompileError(
                f"the steps were compiled for {type(mine).__name__} of shape {tuple(mine.shape)} and {mine.dtype}, w0 "
                f"is {type(w0).__name__} of shape {tuple(w0.shape)} and {w0.dtype}."
            )

    def single(self, t0: float, k: int, state: PhaseState) -> PhaseState:
        """The state after step k of a run from t0, not compiled."""
        if self.noise is None:
            return self.scheme.step(self.system, t0 + k * self.h, state, self.h)
        return next(self.scheme.noisy_states(self.system, state, self.noise, t0=t0, h=self.h, first=k, steps=k + 1))

    def _traced(self, t: float, steps: int | None) -> Any:
        """The first kind of kernel for which the scheme's formulas can be traced."""
        layouts: tuple[Layout, ...] = ("loop", "components", "tensors") if self.noise is None else ("loop",)
        reasons = []
        for layout in layouts[2 if self.start.w.shape[-1] > MAX_COMPONENTS else 0 :]:
            arguments = self.scheme, CoefficientInputs(self.system), self.start
            try:
                if layout == "loop":
                    return NativeLoop(*arguments, h=self.h, t=t, steps=steps, noise=self.noise)
                return InductorChunk(*arguments, h=self.h, t=t, steps=steps, layout=layout)
            except Exception as error:  # user formulas may raise anything
                reasons.append(f"{layout}: {type(error).__name__}: {_first_line(error)}")
        raise CompileError(
            f"{self.scheme.name!r} on this system cannot be traced for compile=True ({'; '.join(reasons)}). Write "
            "formulas as array operations that do not branch on values, or leave compile=False."
        )

    def _verify(self, t: float) -> None:
        steps = self.kernel.reach(_COMPARED) or self.kernel.steps
        after = self.kernel.leave(self.kernel.advance(t, 0, self.kernel.enter(self.start), steps))
        state = self.start
        for k in range(steps):
            state = self.single(t, k, state)
        x, y, start = (np.concatenate([to_numpy(s.w), to_numpy(s.m)], axis=-1) for s in (after, state, self.start))
        scale = np.abs(y).max(-1, keepdims=True, initial=0.0)
        # Members that diverge under an unstable learning rate amplify rounding without bound.
        comparable = scale <= _FAR_OUT * (1.0 + np.abs(start).max(-1, keepdims=True))
        tolerance = float(np.finfo(y.dtype).eps) ** 0.6 * (1.0 + scale)  # rounding, amplified by a few steps
        if x.shape != y.shape or np.any(comparable & ~(np.abs(x - y) <= tolerance)):
            raise CompileError(
                f"{steps} compiled steps of {self.scheme.name!r} differ from the plain ones; the scheme may use t or "
                "the numbers outside array operations. Leave compile=False."
            )


def compiled_states(
    compiled: CompiledSteps, state: PhaseState, *, t0: float, first: int, stops: Callable[[int], int]
) -> Iterator[tuple[int, PhaseState]]:
    """Pairs (k, state at t0 + kh): at every stop, occasionally in between, and where a member is lost.

    If a member becomes non-finite during a call, the call is repeated with half the steps, down to one (uncompiled if
    the kernel's chunk is longer). This gives the exact time of the loss.

    Args:
        compiled: The compiled steps.
        state: State after step ``first``.
        t0: Start time.
        first: Number of steps already taken.
        stops: k ↦ the next step > k that must be among the pairs; returning k ends the run.
    """
    kernel, k, lost = compiled.kernel, first, _lost(state)
    inner, shown = kernel.enter(state), time.monotonic()
    limit = max(kernel.steps or 1, _FIRST_CALL // (1 + lost.size))  # steps per call
    while (stop := stops(k)) > k:
        while k < stop:
            steps, begun = kernel.reach(min(stop - k, limit)), time.monotonic()
            is_plain = not steps
            if is_plain:
                steps, after = 1, kernel.enter(compiled.single(t0, k, kernel.leave(inner)))
            else:
                after = kernel.advance(t0, k, inner, steps)
            now = lost if not is_plain and kernel.is_finite(after) else _lost(kernel.leave(after))
            is_news = not np.array_equal(now, lost)
            if is_news and steps > 1:
                limit = steps // 2
                continue
            inner, lost, k = after, now, k + steps
            if time.monotonic() - begun < _SECONDS_A_PAIR / 2:
                limit += steps
            if k == stop or is_plain or is_news or time.monotonic() - shown > _SECONDS_A_PAIR:
                yield k, kernel.leave(inner)
                shown = time.monotonic()


def _lost(state: PhaseState) -> np.ndarray:
    """Members with a number that is not finite."""
    if math.isfinite(float(state.w.sum() + state.m.sum())):
        return np.zeros(tuple(state.w.shape[:-1]), dtype=bool)
    lost: np.ndarray = np.logical_not(np.isfinite(to_numpy(state.w)).all(-1) & np.isfinite(to_numpy(state.m)).all(-1))
    return lost


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
