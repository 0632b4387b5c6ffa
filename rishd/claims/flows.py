"""Solve flows of trials nearly to rounding, and integrate along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.interpolate import make_interp_spline

from riemannian_ode import RISHD, Trajectory, simulate
from riemannian_ode.integrators.adaptive import DOP853


def solve(
    system: RISHD,
    w0: np.ndarray,
    m0: np.ndarray | None = None,
    *,
    phases: Sequence[tuple[float, int]],
    t0: float = 0.0,
    rtol: float = 1e-10,
) -> Trajectory:
    """The complete, finite trajectory by DOP853.

    Args:
        system: The flow.
        w0: Starts, shape ``(n, p)``.
        m0: Momenta; zero by default.
        phases: Span and number of save points of each part: dense at first, where fast modes decay, then sparse.
        t0: Start time.
        rtol: Relative tolerance of a step; the absolute one is a hundredth of it.
    """
    scheme = DOP853(rtol=rtol, atol=0.01 * rtol)
    parts: list[Trajectory] = []
    for span, saves in phases:
        part = simulate(system, w0, m0, integrator=scheme, h=span / saves, steps=saves, t0=t0, progress=False).checked()
        w0, m0, t0 = part.w[-1], part.m[-1], float(part.times[-1])
        parts.append(part)
    first = [slice(None), *[slice(1, None)] * (len(parts) - 1)]  # a phase begins where the previous one ended
    times, w, m = (
        np.concatenate([getattr(part, name)[keep] for part, keep in zip(parts, first, strict=True)])
        for name in ("times", "w", "m")
    )
    return replace(parts[-1], times=times, w=w, m=m)


def time_integral(times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """∫ from the first time to every time, through a quintic spline, shape of ``values``.

    Args:
        times: Shape ``(saves,)``.
        values: Integrand at these times, shape ``(saves, …)``.
    """
    spline: Any = make_interp_spline(times, values, k=5, axis=0)
    primitive = spline.antiderivative()
    return np.asarray(primitive(times) - primitive(times[0]))


def decay_tightness(
    elapsed: np.ndarray, values: np.ndarray, rate: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
    r"""Tightness of a decay bound :math:`v(t) \le v_0e^{-\rho t}`: ρt/log(v₀/v(t)) at the worst time.

    It is at most 1 exactly if the bound holds at every save time after the first with ρt ≤ 27; at later times the bound
    lies within the rounding of v₀.

    Args:
        elapsed: t, shape ``(saves,)``, starting at 0; or step numbers.
        values: v ≥ 0, shape ``(saves, n)``.
        rate: ρ ≥ 0, shape ``(n,)``.
        start: v₀, shape ``(n,)``; the first value by default.

    Returns:
        Shape ``(n,)``; ∞ if v exceeds v₀ although ρ > 0.
    """
    start = values[0] if start is None else start
    promised = rate * elapsed[1:, None]
    promised = np.where(promised <= 27.0, promised, 0.0)
    exponent = np.log(start / np.maximum(values[1:], 1e-15 * start))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(exponent > 0, promised / exponent, np.where(promised > 0, np.inf, 0.0))
    return np.asarray(ratio.max(0))
