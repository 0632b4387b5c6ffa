"""A C++ loop on the CPU that takes any number of steps in one call.

Blocks of members stay in the cache for all steps of a call, and their coordinates stay in vector registers where the
compiler vectorises. In float64, sine and cosine are this package's own; the exponential and similar functions come from
glibc's libmvec.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from riemannian_ode.arrays import is_torch
from riemannian_ode.compiled.coefficients import CoefficientInputs
from riemannian_ode.compiled.cpp import SUFFIXES, built, loop_source
from riemannian_ode.integrators import OneStepIntegrator, PhaseState
from riemannian_ode.noise import GradientNoise

_LANES = 32  # members per block: four vectors of eight doubles (16 to 64 are equally fast, measured)
_PARALLEL = 50_000  # members times steps above which threads are worth waking, which takes some 30 µs
_TABLE = 1 << 22  # most numbers in a table of time-dependent coefficients


class NativeLoop:
    """A scheme's step compiled into a C++ loop.

    Args:
        scheme: The scheme.
        coefficients: Coefficients of the system.
        start: An example of the states, numpy or torch on the CPU, in float64 or float32.
        h: Step.
        t: A time at which functions of time may be called.
        steps: Most steps per call; ``None`` is any number.
        noise: Noise in the gradient, with a constant factor.

    Raises:
        TypeError: for other arrays, or a step with operations that are not elementwise.
        Exception: whatever formulas that cannot be traced raise.
    """

    layout = "loop"

    def __init__(
        self,
        scheme: OneStepIntegrator,
        coefficients: CoefficientInputs,
        start: PhaseState,
        *,
        h: float,
        t: float,
        steps: int | None,
        noise: GradientNoise | None = None,
    ) -> None:
        self._is_torch = is_torch(start.w)
        if self._is_torch and start.w.device.type != "cpu":
            raise TypeError(f"the state is on {start.w.device}, the loop runs on the CPU")
        w = self._numpy(start.w)
        if w.dtype not in SUFFIXES:
            raise TypeError(f"a compiled loop computes in float64 or float32, not {w.dtype}")
        self.coefficients, self.h = coefficients, h
        self.shape, self.dtype, self.members = w.shape, w.dtype, int(np.prod(w.shape[:-1]))
        self.lanes = _LANES if self.members > 1 else 1
        self.padded = -(-self.members // self.lanes) * self.lanes
        self._pool: ThreadPoolExecutor | None = None
        self._draws: Any = None  # key, first member and first step of a noise

        count = 0
        if noise is not None:
            count = scheme.normals * noise.columns(t, start.w)
            fixed = noise.for_arrays(w)
            self._draws = (ctypes.c_uint64 * 4)(noise.seed % 2**64, noise.seed >> 64, noise.first_member, 0)

        def step(w: Any, m: Any, inputs: list[Any], normals: Any) -> tuple[Any, Any]:
            system = coefficients.traced(inputs)
            if noise is None:
                return scheme.step(system, 0.0, PhaseState(w, m), h)
            return scheme.noisy_step(system, 0.0, PhaseState(w, m), h, noise=fixed, normals=normals)

        scheme.step(coefficients.recording(t), 0.0, start, h)
        functions = [self._column(value) for value in coefficients.at_times(t)]
        self._constants = [self._column(value) for value in coefficients.constants.values()]
        of_members = [column.size > 1 for column in (*self._constants, *functions)]
        self._source = loop_source(step, w.shape[-1], w.dtype, of_members, self.lanes, normals=count)
        longest = _TABLE // max((column.size for column in functions), default=1) if functions else None
        self.steps = min((most for most in (steps, longest) if most is not None), default=None)

    def build(self, t: float) -> None:
        """Compile; takes about a second.

        Raises:
            BuildError: if no compiler builds it.
        """
        self._advance = built(self._source)

    def enter(self, state: PhaseState) -> np.ndarray:
        """Convert a state to the loop's layout: one row per coordinate, padded with copies of the last member."""
        p = self.shape[-1]
        rows = np.empty((2 * p, self.padded), self.dtype)
        for half, x in zip((rows[:p], rows[p:]), state, strict=True):
            half[:, : self.members] = self._numpy(x).reshape(self.members, p).T
        rows[:, self.members :] = rows[:, self.members - 1 : self.members]
        return rows

    def leave(self, rows: np.ndarray) -> PhaseState:
        """The inverse of :meth:`enter`."""
        p = self.shape[-1]
        parts = (np.ascontiguousarray(half[:, : self.members].T).reshape(self.shape) for half in (rows[:p], rows[p:]))
        return PhaseState(*(torch.from_numpy(x) if self._is_torch else x for x in parts))

    def reach(self, wanted: int) -> int:
        """How many of the wanted steps one call takes."""
        return wanted if self.steps is None else min(wanted, self.steps)

    def advance(self, t0: float, k: int, rows: np.ndarray, steps: int) -> np.ndarray:
        """The state after the steps k, …, k + steps − 1 of a run from t0."""
        after = np.empty_like(rows)
        table: list[Sequence[Any]] = [()]
        if self.coefficients.times:
            table = [self.coefficients.at_times(t0 + j * self.h) for j in range(k, k + steps)]
        columns = [np.stack([self._column(value) for value in column]) for column in zip(*table, strict=True)]
        inputs = [*self._constants, *columns]
        strides = [0] * len(self._constants) + [column.shape[1] for column in columns]
        pointers = (ctypes.c_void_p * (len(inputs) + 1))(*(x.ctypes.data for x in inputs))
        between = (ctypes.c_int64 * (len(inputs) + 1))(*strides)
        draws = self._draws
        if draws is not None:
            draws[3] = k

        def part(first: int, last: int) -> None:
            ends = rows.ctypes.data, after.ctypes.data
            self._advance(*ends, pointers, between, self.padded, first, last, steps, draws)

        blocks = self.padded // self.lanes
        threads = min(torch.get_num_threads(), blocks)
        if threads < 2 or self.members * steps < _PARALLEL:
            part(0, self.padded)
            return after
        if self._pool is None:
            self._pool = ThreadPoolExecutor()
        ends = [blocks * i // threads * self.lanes for i in range(threads + 1)]
        others = [self._pool.submit(part, *ends[i : i + 2]) for i in range(1, threads)]
        part(*ends[:2])
        for other in others:
            other.result()
        return after

    def is_finite(self, rows: np.ndarray) -> bool:
        """Whether every number of a state is finite."""
        return bool(np.isfinite(rows.sum())) or bool(np.isfinite(rows).all())

    def _column(self, value: Any) -> np.ndarray:
        """A coefficient as one number, or as one number per member, padded."""
        column = np.ravel(np.asarray(self._numpy(value), self.dtype))
        return column if column.size == 1 else np.pad(column, (0, self.padded - self.members), mode="edge")

    @staticmethod
    def _numpy(x: Any) -> np.ndarray:
        return x.detach().numpy() if is_torch(x) else np.asarray(x)
