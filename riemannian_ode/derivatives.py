"""Check that torch's autograd can differentiate a simulation; refuse runs whose gradients would be silently cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from riemannian_ode.arrays import is_torch, to_numpy, tracks
from riemannian_ode.coefficients import COEFFICIENTS
from riemannian_ode.dynamics import RISHD
from riemannian_ode.events import Event
from riemannian_ode.flow import Array
from riemannian_ode.integrators import INTEGRATORS, Integrator, PhaseState
from riemannian_ode.noise import GradientNoise
from riemannian_ode.objective import is_random
from riemannian_ode.split import PhasePoint

_SHIFT = 1e-3  # relative perturbation that reveals whether a function depends on an argument that its graph misses


def check_derivatives(
    system: RISHD,
    start: PhaseState,
    *,
    t0: float,
    scheme: Integrator,
    noise: GradientNoise | None,
    is_compiled: bool,
    events: Sequence[Event],
    checkpoint: str | Path | None,
) -> None:
    """Refuse a run whose gradients are requested but would be missing or wrong.

    Gradients are requested if w0, m0, a coefficient, the noise's factor, or the values of objective, metric and split
    require them, unless torch.no_grad() is on.

    Args:
        system: The dynamics, for the arrays of ``start``.
        start: State at ``t0``.
        t0: Start time.
        scheme: The integrator.
        noise: Noise in the gradient.
        is_compiled: Whether the steps are compiled.
        events: Events to watch for.
        checkpoint: Checkpoint file.

    Raises:
        ValueError: for SciPy's schemes, compiled steps, checkpoints, a terminal event that ends a single trajectory,
            or an objective, metric or split whose numbers are cut off from autograd.
    """
    if not is_torch(start.w):
        return
    import torch

    if not torch.is_grad_enabled():
        return
    wanted = {"w0": start.w, "m0": start.m, **{name: system.at(name, t0) for name in COEFFICIENTS}}
    if noise is not None:
        wanted["noise.factor"] = noise.factor_at(t0, start.w)
    names = [name for name, value in wanted.items() if tracks(value)]
    if not names and (is_random(system.objective) or not any(map(tracks, system.rates(t0, *start)))):
        return
    who = " and ".join(names) if names else "the objective, metric or split"
    asked = f"{who} require{'s' if len(names) == 1 or not names else ''} gradients"
    plain = "or call simulate under torch.no_grad()"
    if not scheme.differentiable:
        others = ", ".join(name for name, cls in INTEGRATORS.items() if cls.differentiable)
        raise ValueError(f"{asked}, but {scheme.name!r} has none: it is SciPy's; take one of {others}, {plain}.")
    if system.memory is not None and not system.memory.preconditioner.differentiable:
        name = system.memory.preconditioner.name
        raise ValueError(f"{asked}, but the memory of preconditioner {name!r} has none; take another one, {plain}.")
    if is_compiled:
        raise ValueError(f"{asked}, but compiled steps have none; give compile=False, {plain}.")
    if checkpoint is not None:
        raise ValueError(f"{asked}, but a checkpoint cannot hold them; give checkpoint=None, {plain}.")
    if start.w.ndim == 1 and any(event.terminal for event in events):
        raise ValueError(f"{asked}, but a terminal event's time is not differentiable; give terminal=False, {plain}.")
    _check_parts(system, start)


def _check_parts(system: RISHD, start: PhaseState) -> None:
    w, m = start.w.detach(), start.m.detach()
    if system.memory is not None:
        if not is_random(system.objective):
            check_attached("objective.gradient", system.objective.gradient, w)
        return
    metric, flat = system.metric, system.flat
    covector = w + m
    if not is_random(system.objective):
        check_attached("objective.gradient", system.objective.gradient, w)
        covector = system.objective.gradient(w).detach() + m
    check_attached("metric.raise_index", lambda x: metric.raise_index(w, x), covector)
    velocity = metric.raise_index(w, covector).detach()
    if metric.variation == "state":
        check_attached("metric.raise_index", lambda x: metric.raise_index(x, covector), w)
        if system.riemannian_correction(w, velocity, covector) is not None:
            check_attached("metric.correction", lambda x: metric.correction(x, velocity, covector), w)
            check_attached("metric.correction", lambda x: metric.correction(w, x, covector), velocity)
            check_attached("metric.correction", lambda x: metric.correction(w, velocity, x), covector)
    if flat is not None:
        check_attached("flat", lambda x: flat(PhasePoint(x, covector, velocity))(velocity), w)
        check_attached("flat", lambda x: flat(PhasePoint(w, x, velocity))(velocity), covector)
        check_attached("flat", flat(PhasePoint(w, covector, velocity)), velocity)


def check_attached(name: str, function: Callable[[Array], Any], x: Array) -> None:
    """Refuse a function whose value depends on a tensor although autograd's graph does not.

    Args:
        name: Name used in the error.
        function: Tensor ↦ tensor.
        x: Argument, without a graph.

    Raises:
        ValueError: if so.
    """
    import torch

    def depends(value: Any, leaf: Any) -> bool:
        if not tracks(value):
            return False
        return torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] is not None

    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        try:
            value = function(leaf)
        except RuntimeError as problem:
            reason = (str(problem).strip().splitlines() or [""])[0][:100]
        else:
            if depends(value, leaf):
                return
            reason = "its result has no graph"
            with torch.no_grad():
                moved = function(x + _SHIFT * (1.0 + x.abs()))
            if value is None or np.allclose(to_numpy(value), to_numpy(moved), rtol=1e-5, atol=0.0, equal_nan=True):
                return  # a constant function
    raise ValueError(
        f"{name} cannot be differentiated ({reason}), so gradients through the run would be wrong; compute it with "
        "torch operations and without detach() (torch.autograd.grad needs create_graph=True), or call simulate under "
        "torch.no_grad()."
    )
