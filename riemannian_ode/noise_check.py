"""Check that a scheme, a system and a step size work with noise; refuse what would not converge to the flow."""

from __future__ import annotations

from collections.abc import Sequence

from riemannian_ode.arrays import is_torch, tracks
from riemannian_ode.dynamics import RISHD
from riemannian_ode.events import Event
from riemannian_ode.flow import Array
from riemannian_ode.integrators import INTEGRATORS, Integrator, OneStepIntegrator
from riemannian_ode.noise import GradientNoise
from riemannian_ode.save_grid import SaveGrid
from riemannian_ode.split import ConstantSplit


def check_noise(
    noise: GradientNoise,
    system: RISHD,
    scheme: Integrator,
    w0: Array,
    *,
    grid: SaveGrid,
    events: Sequence[Event],
    is_compiled: bool,
) -> None:
    """Refuse noise of the wrong shape, or where noise is not defined.

    Args:
        noise: Noise in the gradient.
        system: The dynamics, for the arrays of ``w0``.
        scheme: The integrator.
        w0: The start, shape ``(*ensemble, p)``.
        grid: Steps and saves.
        events: Events to watch for.
        is_compiled: Whether the steps are compiled.

    Raises:
        ValueError: naming what does not fit, and the alternatives.
    """
    if not isinstance(noise, GradientNoise):
        raise ValueError(f"noise is of type {type(noise).__name__}; give GradientNoise(factor=…, seed=…).")
    if scheme.stochastic is None or not isinstance(scheme, OneStepIntegrator):
        able = ", ".join(name for name, cls in INTEGRATORS.items() if cls.stochastic is not None)
        raise ValueError(f"integrator {scheme.name!r} has no form with noise; take one of {able}.")
    if tracks(noise.factor) and not is_torch(w0):
        raise ValueError("noise.factor requires gradients, which a numpy w0 cannot carry; give w0 as a torch tensor.")
    noise.columns(grid.t0, w0)
    if events:
        raise ValueError("events are located inside steps, where a path with noise has no states; give events=().")
    if any(grid.save_at.inside(k) for k in range(grid.steps)):
        raise ValueError(
            "save_at holds times between steps, where a path with noise has no states; give times t0 + k·h, "
            f"h = {grid.h:g}."
        )
    if noise.depends_on_state and is_compiled:
        raise ValueError(
            "noise whose factor is a function of (t, w) cannot be compiled; give compile=False, or a constant factor."
        )
    if system.metric.variation == "history" and not (grid.h == 1.0 and "optimizer" in scheme.structure):
        raise ValueError(
            "a metric that depends on gradients has no flow with noise: its averages of s(g), or its nonlinear map, "
            "would see σ dB/dt, whose square is infinite. The optimizer's steps have noise: take "
            "integrator='semi-implicit-euler' with h = 1."
        )
    _check_calculus(noise, system, scheme)


def _check_calculus(noise: GradientNoise, system: RISHD, scheme: Integrator) -> None:
    if scheme.stochastic == "additive" and noise.depends_on_state:
        raise ValueError(
            f"integrator {scheme.name!r} takes noise that does not depend on the state; take 'semi-implicit-euler'."
        )
    moves = (
        noise.depends_on_state
        or system.metric.variation != "constant"
        or not (system.flat is None or isinstance(system.flat, ConstantSplit))
    )
    # With β = 0 noise enters only the momentum and depends only on the position, so both calculi agree.
    if not (moves and system.is_damped) or scheme.stochastic in (noise.calculus, "additive"):
        return
    other = next(name for name, cls in INTEGRATORS.items() if cls.stochastic == noise.calculus and cls.handles_memory)
    raise ValueError(
        f"noise that enters the position (β ≠ 0) varies with the state here, and {scheme.name!r} does not converge to "
        f"the solution of calculus = {noise.calculus!r}: take {other!r}, or give "
        f"GradientNoise(calculus={scheme.stochastic!r})."
    )
