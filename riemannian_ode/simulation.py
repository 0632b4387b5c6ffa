"""The driver: one call simulates a trajectory or an ensemble, and keeps partial results if it stops early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from riemannian_ode.arrays import as_float_array, is_torch, namespace, tracks
from riemannian_ode.checks import is_number, require_count, require_positive, shown
from riemannian_ode.derivatives import check_attached, check_derivatives
from riemannian_ode.dynamics import RISHD
from riemannian_ode.events import Event
from riemannian_ode.flow import Array
from riemannian_ode.integrators import INTEGRATORS, Integrator, PhaseState
from riemannian_ode.integrators import integrator as integrator_by_name
from riemannian_ode.memory import RememberedMetric
from riemannian_ode.noise import GradientNoise
from riemannian_ode.noise_check import check_noise
from riemannian_ode.objective import check_parts, is_random
from riemannian_ode.progress import progress_bar
from riemannian_ode.recording import Observer, Recorder
from riemannian_ode.run import Run
from riemannian_ode.save_grid import SaveGrid, SavePoints
from riemannian_ode.system_check import SystemCheck
from riemannian_ode.trajectory import Trajectory
from riemannian_ode.user_functions import check_observers, check_user_functions

if TYPE_CHECKING:
    from riemannian_ode.compiled import CompiledSteps


def simulate(
    system: RISHD,
    w0: Array,
    m0: Array | None = None,
    *,
    memory0: Mapping[str, Array] | None = None,
    integrator: str | Integrator = "semi-implicit-euler",
    h: float = 1.0,
    steps: int,
    t0: float = 0.0,
    save_every: int = 1,
    save_at: Sequence[float] | Array = (),
    noise: GradientNoise | None = None,
    observers: Mapping[str, Observer] | None = None,
    keep_states: bool = True,
    events: Sequence[Event] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    compile: bool | int | CompiledSteps = False,
    check_functions: bool = True,
    progress: bool | None = None,
) -> Trajectory:
    """Simulate RISHD from (w0, m0) over ``steps`` steps of size ``h``.

    At the start, a user's functions are compared with their values for single members, and a split is checked against
    the metric. A member that becomes non-finite, or exhausts an adaptive scheme's step limit, is reported with its
    time; the others continue, and the run ends when no member is left. The run ends early, with a partial trajectory
    and a status that says why, if an integrator cannot continue, a coefficient leaves its range, the metric loses its
    symmetry, the split no longer commutes with it, an event function returns NaN, or the user presses Ctrl-C.

    With torch arrays, autograd can differentiate the saved states with respect to w0, m0, the coefficients, and the
    parameters of objective, metric and split. Observed values and events are plain numbers.

    Args:
        system: The dynamics.
        w0: Start, shape ``(p,)`` or ``(*ensemble, p)``; numpy (float64 by default) or torch.
        m0: Initial momentum, shape of ``w0``; zero by default.
        memory0: Initial memory of a preconditioner, by key, each of shape ``(*ensemble, …)``; by default the memory
            before the first gradient. With bias correction, schemes of order above 3 reach their order only if the
            initial memory has seen gradients: otherwise averages over their masses are 0/0 at the start.
        integrator: An :class:`~riemannian_ode.Integrator`, or the name of one. Adaptive integrators choose their
            default tolerances by the dtype of ``w0``.
        h: Step size in units of time (an adaptive scheme's output spacing); 1 is an optimizer's step.
        steps: Number of steps.
        t0: Start time.
        save_every: Steps between saved states; the start and the last step are always saved.
        save_at: Additional save times, increasing and within the span. A state off the grid comes from a separate
            partial step, so the trajectory on the grid does not change by a single bit.
        noise: Noise in the gradient, which becomes g + σ dB/dt wherever it enters. Each member has its own Brownian
            motion; its path is the same alone, in any ensemble, after a checkpoint, and with numpy and torch.
            Integrators with ``weak_order`` accept noise; their orders are declared for additive noise. A gradient
            before the first step that only sets a frame has no noise.
        observers: Name to ``(t, w, m)`` ↦ array (of any fixed shape), evaluated at every save.
        keep_states: Whether the trajectory holds every saved state. ``False`` keeps only the first and the last one, so
            that memory use does not grow with the run (observers still see every save).
        events: Sign changes to locate and record (:class:`~riemannian_ode.Event`); a terminal event ends the trajectory
            there.
        checkpoint: File to which the run's state, saves and events are written atomically; if it exists, the run
            continues from it. One-step integrators continue bit for bit; adaptive ones restart their step-size control
            and continue to their tolerance.
        checkpoint_every: Steps between checkpoints; Ctrl-C and the end of the run write one, too.
        compile: Whether several steps at a time run as one compiled kernel (:mod:`riemannian_ode.compiled`), for
            explicit one-step schemes; a number limits the steps per call. Compiling takes about a second on the CPU and
            many seconds with torch's Inductor, so it pays off for long runs and large ensembles. One
            :class:`~riemannian_ode.CompiledSteps` can serve many runs. Results equal the uncompiled ones up to
            rounding.
        check_functions: Whether your functions are called a few extra times at the start to compare an ensemble with
            its members, and the split with the metric. Turn it off if calls are expensive or counted.
        progress: Whether to show a bar with steps per second and time left; by default it appears in a terminal once
            the run takes more than 2 s.

    Returns:
        The :class:`~riemannian_ode.Trajectory`; look at its ``status``.

    Raises:
        ValueError: for an unknown integrator, arguments out of range or of the wrong kind, shapes that do not match,
            functions written for one member, noise that does not fit w0, the integrator or the step, a metric that is
            not positive definite at the start, a split that does not commute with it, or a checkpoint of another run
            (:class:`CheckpointError`). Also if gradients are requested but impossible: with SciPy's schemes, compiled
            steps, checkpoints, a terminal event of a single trajectory, or parts that are completely cut off from
            autograd (a ``detach()`` inside a formula cannot be detected).
    """
    observers = {} if observers is None else observers
    start = _checked_start(w0, m0)
    require_positive("h", h, "it is the step size in units of time")
    for name, value in (("steps", steps), ("save_every", save_every), ("checkpoint_every", checkpoint_every)):
        require_count(name, value)
    for name, time in (("h", h), ("t0", t0)):
        if tracks(time):
            raise ValueError(
                f"{name} requires gradients, but there are none with respect to times; give {name}.item()."
            )
    if not is_number(t0) or not math.isfinite(t0):
        raise ValueError(f"t0 = {shown(t0)} must be finite: it is the start time.")
    h, t0 = float(h), float(t0)
    scheme = integrator if isinstance(integrator, Integrator) else integrator_by_name(integrator)
    if compile is not False and events:
        raise ValueError("events are looked for at every step, compiled steps show few; give compile=False.")
    grid = SaveGrid(
        t0=t0,
        h=h,
        steps=steps,
        save_every=save_every,
        save_at=SavePoints(save_at, t0=t0, h=h, steps=steps),
        write_every=None if checkpoint is None else checkpoint_every,
    )
    system = _checked_kind(system)
    if tracks(start.w) and not is_random(system.objective):
        check_attached("objective.gradient", system.objective.gradient, start.w)
    checked = _checked_system(system, start.w, t0)
    if checked.memory is not None:
        _check_memory(checked, scheme, is_new=memory0 is None)
        sets_frame = memory0 is None and checked.memory.preconditioner.skips_first
        g = checked.objective.gradient(start.w) if sets_frame else start.w
        start = PhaseState(start.w, checked.memory.start(*start, g, memory0))
        observers = _of_momentum(checked.memory, observers)
        events = [replace(event, function=_of_momentum(checked.memory, {"": event.function})[""]) for event in events]
    elif memory0 is not None:
        raise ValueError("memory0 is given, but the system's metric has no memory; leave it out.")
    if noise is not None:
        check_noise(noise, checked, scheme, start.w, grid=grid, events=events, is_compiled=compile is not False)
    check_derivatives(
        checked,
        start,
        t0=t0,
        scheme=scheme,
        noise=noise,
        is_compiled=compile is not False,
        events=events,
        checkpoint=checkpoint,
    )
    check_observers(observers)
    if check_functions and isinstance(compile, (bool, int, np.integer)):  # CompiledSteps has checked them
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            check_user_functions(checked, start, t0, scheme=scheme, events=events, noise=noise)
    run = Run(
        system=checked,
        scheme=scheme,
        grid=grid,
        start=start,
        recorder=Recorder(t0, start, observers=observers, keep_states=keep_states),
        events=events,
        file=None if checkpoint is None else Path(checkpoint),
        compiled=_compiled(compile, system, start.w, scheme, grid, noise),
        noise=noise,
    )
    bar = progress_bar(steps, progress, first=run.position.step)
    # Overflow on the way to a non-finite number is reported through the status, not as a numpy warning.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"), bar as advance:
        return run.go(advance)


def _checked_start(w0: Array, m0: Array | None) -> PhaseState:
    w0 = as_float_array("w0", w0)
    if "bfloat16" in str(w0.dtype):
        raise ValueError(f"w0 has dtype {w0.dtype}; start from float32 or float64.")
    m0 = namespace(w0).zeros_like(w0) if m0 is None else as_float_array("m0", m0)
    if tuple(m0.shape) != tuple(w0.shape) or is_torch(m0) != is_torch(w0):
        raise ValueError(
            f"m0 has shape {tuple(m0.shape)} ({type(m0).__name__}), w0 has {tuple(w0.shape)} ({type(w0).__name__}); "
            "they must be the same kind of array with the same shape."
        )
    return PhaseState(w0, m0)


def _compiled(
    wanted: bool | int | CompiledSteps,
    system: RISHD,
    w0: Array,
    scheme: Integrator,
    grid: SaveGrid,
    noise: GradientNoise | None,
) -> CompiledSteps | None:
    if wanted is False:
        return None
    from riemannian_ode.compiled import CompiledSteps  # loads torch

    if isinstance(wanted, CompiledSteps):
        wanted.check_fits(system, w0, scheme, grid.h, noise)
        return wanted
    if wanted is not True and not (isinstance(wanted, (int, np.integer)) and wanted >= 1):
        raise ValueError(
            f"compile = {shown(wanted)} must be True, False, CompiledSteps or a number of steps of at least 1."
        )
    last = grid.time(grid.steps - 1)
    steps = None if wanted is True else wanted
    return CompiledSteps(system, w0, integrator=scheme, h=grid.h, t=last, steps=steps, noise=noise)


def _checked_kind(system: RISHD) -> RISHD:
    if not isinstance(system, RISHD):
        raise ValueError(f"system is a {type(system).__name__}; build one with RISHD.from_optimizer(objective, …).")
    return system


def _check_memory(system: RISHD, scheme: Integrator, *, is_new: bool) -> None:
    """Refuse integrators that do not handle a preconditioner's memory, and flows with no solution from their start."""
    if not scheme.handles_memory:
        able = ", ".join(name for name, cls in INTEGRATORS.items() if cls.handles_memory)
        raise ValueError(
            f"integrator {scheme.name!r} does not integrate the memory of a preconditioner; take one of {able}."
        )
    corrects = system.memory is not None and system.memory.corrects_momentum
    if is_new and system.is_damped and corrects and "optimizer" not in scheme.structure:
        raise ValueError(
            f"with corrects_momentum=True, βg over the momentum's mass c₁ ≈ αt has no integral at t = 0, so "
            f"{scheme.name!r} has nothing to converge to; start from a memory that has seen gradients (memory0), take "
            "'semi-implicit-euler', or set corrects_momentum=False."
        )


def _of_momentum(metric: RememberedMetric, functions: Mapping[str, Observer] | None) -> dict[str, Observer]:
    """Turn functions of (t, w, m) into functions of (t, w, z), where z holds momentum and memory."""

    def of_momentum(function: Observer) -> Observer:
        return lambda t, w, z: function(t, w, metric.momentum(w, z))

    return {name: of_momentum(function) for name, function in (functions or {}).items()}


def _checked_system(system: RISHD, w0: Array, t0: float) -> RISHD:
    check_parts(system.objective, system.metric, system.flat)
    system = system.for_arrays(w0)
    system.metric.check(w0)
    SystemCheck(system).coefficients(t0)
    return system
