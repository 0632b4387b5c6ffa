"""Fingerprints that identify a run, so that only the same run continues a checkpoint."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from riemannian_ode.arrays import is_torch, to_numpy
from riemannian_ode.coefficients import COEFFICIENTS, TimeDependent
from riemannian_ode.dynamics import RISHD
from riemannian_ode.events import Event
from riemannian_ode.flow import Array
from riemannian_ode.integrators import Integrator, PhaseState
from riemannian_ode.noise import GradientNoise
from riemannian_ode.recording import Recorder
from riemannian_ode.save_grid import SaveGrid

_DEEPEST = 4  # depth of nested objects that are examined: a split's landscape, its layout, …


def fingerprint(
    system: RISHD,
    start: PhaseState,
    scheme: Integrator,
    *,
    grid: SaveGrid,
    recorder: Recorder,
    events: Sequence[Event],
    noise: GradientNoise | None = None,
) -> dict[str, Any]:
    """Identify a run by its settings, start, coefficients, and the numbers in objective, metric and split.

    Functions (time-dependent coefficients, functions stored in objects, observers, events) are identified by name only.
    Objects are identified by their floats, strings, flags and arrays. Their integers and dictionaries are ignored,
    since objects use them as counters and caches. An adaptive scheme's step limit is ignored too, so that a run that
    reached it can continue with a higher one.

    Args:
        system: The dynamics.
        start: State at the start.
        scheme: Integrator with its settings.
        grid: Steps and saves.
        recorder: Holds the observers.
        events: Events to watch for.
        noise: Noise in the gradient.

    Returns:
        Plain values by name, suitable for JSON.
    """
    coefficients = {
        name: "varies in time" if isinstance(value := getattr(system, name), TimeDependent) else _digest(value)
        for name in (COEFFICIENTS if system.memory is None else (*COEFFICIENTS, "decay"))
    }
    times = grid.save_at.times
    numbers = {k: v for k, v in vars(scheme).items() if isinstance(v, (int, float, str)) and k != "max_steps"}
    return {
        "h": float(grid.h),
        "t0": float(grid.t0),
        "save_every": int(grid.save_every),
        "integrator": scheme.name,
        "integrator's settings": numbers,
        "objective": _identity(system.objective),
        "metric": _identity(system.metric),
        "split": "none" if system.flat is None else _identity(system.flat),
        "correction": bool(system.correction),
        **coefficients,
        "start": _digest(*start),
        "shape": list(start.w.shape),
        "observers": sorted(recorder.observers),
        "keep_states": recorder.keep_states,
        "events": [[event.name, event.direction, event.terminal] for event in events],
        "noise": None if noise is None else [_identity(noise), str(noise.seed), str(noise.first_member)],
        "save_at": f"{len(times)} times ({_digest(times)})" if len(times) else "nothing",
    }


def _digest(*arrays: Array) -> str:
    parts = (np.ascontiguousarray(to_numpy(x)).tobytes() for x in arrays)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _identity(x: Any) -> str:
    """Name of a function or of an object's type, and a digest of its numbers."""
    content = hashlib.sha256()
    for part in _parts(x, depth=0):
        content.update(part)
    function = x.func if isinstance(x, functools.partial) else x
    name = getattr(function, "__qualname__", type(x).__name__)
    return f"{name} ({content.hexdigest()[:16]})"


def _parts(x: Any, *, depth: int) -> Iterator[bytes]:
    """Bytes that distinguish an object from others of its type."""
    if isinstance(x, (bool, float, complex, str, np.floating, np.bool_)):
        yield repr(x).encode()
    elif isinstance(x, np.ndarray) or is_torch(x):
        array = to_numpy(x)
        yield repr(array.shape).encode()
        if array.dtype != object:  # their bytes are addresses
            yield np.ascontiguousarray(array).tobytes()
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from _parts(part, depth=depth)
    elif isinstance(x, functools.partial):
        yield from _parts([x.func, *x.args, *x.keywords.values()], depth=depth)
    elif callable(x) and hasattr(x, "__qualname__"):
        yield x.__qualname__.encode()
        yield from _parts(getattr(x, "__self__", None), depth=depth + 1)
    elif hasattr(x, "__dict__") and depth < _DEEPEST:
        yield type(x).__qualname__.encode()
        for name, value in sorted(vars(x).items()):
            if not isinstance(getattr(type(x), name, None), functools.cached_property):
                yield name.encode()
                yield from _parts(value, depth=depth + 1)
