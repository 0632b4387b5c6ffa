"""Steps per second of `riemannian_ode` on a curved river valley, against torchdiffeq, diffrax and SciPy.

All integrate RISHD with the χ split on the same two-dimensional valley in float64 with equal steps. Ours are
semi-implicit Euler steps; the peers take explicit Euler steps (SciPy: RK45 held to the same step) of the right-hand
side written by hand in each peer's own idiom, for speed. Every peer runs in the best of the listed settings;
compilation is timed separately. Runs are interleaved and the medians compared.

    python benchmarks/ensemble_simulation.py [--json FILE] [--repeats 7]

Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import scipy
import torch
import torchdiffeq
from scipy.integrate import solve_ivp

from riemannian_ode import RISHD, CompiledSteps, integrator, simulate
from riemannian_ode.integrators import PhaseState
from toy_landscapes import RiverValley

THREADS = 2
ALPHA, ETA, CHI, BETA_FLAT, H = 0.1, 0.01, 2.0, 1.0, 1.0
WALL, FLOOR, WIDTH, AMPLITUDE, FREQUENCY = 20.0, 0.05, 3.0, 1.0, 0.7
STEPS = {1: 5000, 1000: 400, 100_000: 200}
VALLEY = RiverValley([WALL], floor_curvatures=[FLOOR], floor_width=WIDTH, amplitudes=AMPLITUDE, frequency=FREQUENCY)


def system() -> RISHD:
    return RISHD.from_optimizer(VALLEY, alpha=ALPHA, eta=ETA, chi=CHI, beta_flat=BETA_FLAT, flat=VALLEY.flat_split)


def rates(u: Any, s: Any, m_u: Any, m_s: Any, xp: Any, beta_flat: float = BETA_FLAT) -> tuple[Any, Any, Any, Any]:
    """(u̇, ṡ, ṁ_u, ṁ_s) by hand: 2×2 Hessian, its flat projector ½(I − M/r) from the traceless part M."""
    stretch = xp.sqrt(1.0 + (u / WIDTH) ** 2)
    angle = FREQUENCY * u
    wave, slope = AMPLITUDE * xp.sin(angle), AMPLITUDE * FREQUENCY * xp.cos(angle)
    residual = s - wave
    g_s = WALL * residual
    g_u = FLOOR * u / stretch - g_s * slope
    head = FLOOR / stretch**3 + WALL * (slope * slope + residual * FREQUENCY**2 * wave)
    half, off = 0.5 * (head - WALL), -WALL * slope
    scale = 0.5 / xp.sqrt(half * half + off * off)
    x_u, x_s = (CHI - 1.0) * m_u, (CHI - 1.0) * m_s
    if beta_flat:
        x_u, x_s = x_u + CHI * beta_flat * g_u, x_s + CHI * beta_flat * g_s
    q_u = 0.5 * x_u - scale * (half * x_u + off * x_s)
    q_s = 0.5 * x_s - scale * (off * x_u - half * x_s)
    return -ETA * (m_u + q_u), -ETA * (m_s + q_s), g_u - ALPHA * m_u, g_s - ALPHA * m_s


class Contender(NamedTuple):
    """One way to run: ``run(steps)`` makes the steps; ``compile_seconds`` is the compilation time of its first call.

    If ``share`` is below 1, ``run`` only makes that share of the members' steps, and its time is scaled up.
    """

    name: str
    setting: str
    run: Callable[[int], Any]
    compile_seconds: float
    share: float = 1.0


def start(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 2)) if n > 1 else rng.normal(size=2)


def ours(n: int) -> list[Contender]:
    flow, w0 = system(), start(n)
    begun = time.perf_counter()
    compiled = CompiledSteps(flow, w0)
    seconds = time.perf_counter() - begun
    run = {"progress": False, "h": H}
    return [
        Contender("rishd", "plain", lambda k: simulate(flow, w0, steps=k, save_every=k, **run), 0.0),
        Contender(
            "rishd",
            f"compiled, {compiled.layout}",
            lambda k: simulate(flow, w0, steps=k, save_every=k, compile=compiled, **run),
            seconds,
        ),
    ]


def with_torchdiffeq(n: int) -> list[Contender]:
    w0 = torch.as_tensor(start(n)).reshape(-1, 2).T.contiguous()
    y0 = torch.cat([w0, torch.zeros_like(w0)])

    def right_hand_side(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack(rates(*y.unbind(0), torch))

    compiled = torch.compile(right_hand_side, fullgraph=True, dynamic=False)

    def run(function: Callable[..., Any], steps: int) -> torch.Tensor:
        grid = torch.tensor([0.0, steps * H], dtype=torch.float64)
        with torch.no_grad():
            return torchdiffeq.odeint(function, y0, grid, method="euler", options={"step_size": H})

    begun = time.perf_counter()
    run(compiled, 2)
    seconds = time.perf_counter() - begun
    return [
        Contender("torchdiffeq", "eager", lambda k: run(right_hand_side, k), 0.0),
        Contender("torchdiffeq", "compiled right-hand side", lambda k: run(compiled, k), seconds),
    ]


def with_diffrax(n: int, steps: int) -> list[Contender]:
    w0 = jnp.asarray(start(n).reshape(-1, 2).T)
    y0 = jnp.concatenate([w0, jnp.zeros_like(w0)])

    def right_hand_side(t: Any, y: Any, args: Any) -> Any:
        return jnp.stack(rates(*y, jnp))

    def solve(y: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(right_hand_side),
            diffrax.Euler(),
            t0=0.0,
            t1=steps * H,
            dt0=H,
            y0=y,
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.ConstantStepSize(),
            adjoint=diffrax.ForwardMode(),
            max_steps=None,
        ).ys

    contenders = []
    for setting, function in (
        ("jit, ensemble as one state", jax.jit(solve)),
        ("jit + vmap", jax.jit(jax.vmap(solve, in_axes=1, out_axes=1))),
    ):
        begun = time.perf_counter()
        jax.block_until_ready(function(y0))
        seconds = time.perf_counter() - begun

        def run(k: int, function: Callable[..., Any] = function) -> Any:
            assert k == steps  # compiled for this span
            return jax.block_until_ready(function(y0))

        contenders.append(Contender("diffrax", setting, run, seconds))
    return contenders


def with_scipy(n: int) -> list[Contender]:
    """A loop over members, ten at most: it costs the same for each."""
    w0 = np.atleast_2d(start(n))[:10]

    def right_hand_side(t: float, y: np.ndarray) -> tuple[float, ...]:
        return rates(*y.tolist(), math)

    def run(k: int) -> None:
        loose = {"rtol": 1e9, "atol": 1e9}  # no step is rejected: steps stay at the cap
        for w in w0:
            solved = solve_ivp(right_hand_side, (0.0, k * H), [*w, 0.0, 0.0], "RK45", max_step=H, first_step=H, **loose)
            assert solved.status == 0 and solved.t.size <= k + 2

    return [Contender("SciPy", "RK45, scalar right-hand side", run, 0.0, share=len(w0) / n)]


def check() -> None:
    """Check that the hand-written right-hand side equals the package's."""
    w, m = np.random.default_rng(1).normal(size=(2, 50, 2))
    by_hand = np.stack(rates(*w.T, *m.T, np), axis=-1)
    np.testing.assert_allclose(by_hand, np.concatenate(system().rates(0.0, w, m), axis=-1), rtol=1e-9, atol=1e-9)


def interleaved(contenders: list[Contender], steps: int, repeats: int) -> dict[tuple[str, str], float]:
    """Median seconds per step of each contender, with interleaved runs."""
    seconds: dict[tuple[str, str], list[float]] = {(c.name, c.setting): [] for c in contenders}
    for _ in range(repeats):
        for contender in contenders:
            begun = time.perf_counter()
            contender.run(steps)
            taken = (time.perf_counter() - begun) / (steps * contender.share)
            seconds[contender.name, contender.setting].append(taken)
    return {key: statistics.median(values) for key, values in seconds.items()}


def driver_overhead(n: int, steps: int, repeats: int, *, save_every: int) -> float:
    """Overhead of `simulate` over a bare loop of the same plain steps that keeps only the last state."""
    flow, scheme, w0 = system(), integrator("semi-implicit-euler"), start(n)
    ratios = []
    for _ in range(repeats):
        begun = time.perf_counter()
        state = PhaseState(w0, np.zeros_like(w0))
        for k in range(steps):
            state = scheme.step(flow, k * H, state, H)
        bare = time.perf_counter() - begun
        begun = time.perf_counter()
        simulate(flow, w0, steps=steps, save_every=save_every, progress=False)
        ratios.append((time.perf_counter() - begun) / bare - 1.0)
    return statistics.median(ratios)


def scaling(axis: str, repeats: int) -> list[tuple[int, float]]:
    """Nanoseconds per step and number as N grows (p = 2) or as p grows (N = 1), plain numpy."""
    found = []
    for size in (1_000, 10_000, 100_000, 1_000_000):
        if axis == "N":
            valley, w0 = VALLEY, start(size // 2)
        else:
            rng = np.random.default_rng(0)
            valley = RiverValley(
                rng.uniform(10.0, 20.0, size // 2),
                floor_curvatures=np.full(size - size // 2, FLOOR),
                floor_width=WIDTH,
                amplitudes=1.0 / math.sqrt(size),
                frequency=FREQUENCY,
            )
            w0 = rng.normal(size=size)
        flow = RISHD.from_optimizer(valley, alpha=ALPHA, eta=ETA, chi=CHI, beta_flat=BETA_FLAT, flat=valley.flat_split)
        steps = max(2, 200_000 // size)
        seconds = []
        for _ in range(repeats):
            begun = time.perf_counter()
            simulate(flow, w0, steps=steps, save_every=steps, progress=False)
            seconds.append((time.perf_counter() - begun) / steps)
        found.append((size, 1e9 * statistics.median(seconds) / size))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="write rows {name, value, unit} to this file")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats (odd)")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    jax.config.update("jax_enable_x64", True)
    check()
    print(
        f"{platform.machine()}, {THREADS} threads, Python {platform.python_version()}, numpy {np.__version__}, torch "
        f"{torch.__version__}, torchdiffeq {torchdiffeq.__version__}, diffrax {diffrax.__version__}, jax "
        f"{jax.__version__}, SciPy {scipy.__version__}"
    )
    rows: list[dict[str, Any]] = []

    def row(name: str, value: float, unit: str) -> None:
        rows.append({"name": name, "value": value, "unit": unit})

    for n, steps in STEPS.items():
        print(f"\nN = {n}: microseconds per step, median of {options.repeats}")
        contenders = ours(n) + with_torchdiffeq(n) + with_diffrax(n, steps)
        if n <= 1000:  # beyond, a loop over members is out of the question
            contenders += with_scipy(n)
        medians = interleaved(contenders, steps, options.repeats)
        for contender in contenders:
            median = medians[contender.name, contender.setting]
            compiling = f"   compiling {contender.compile_seconds:.1f} s" if contender.compile_seconds else ""
            print(f"  {contender.name:12} {contender.setting:32} {1e6 * median:12.2f}{compiling}")
            if contender.compile_seconds:
                row(f"compile_seconds/{contender.name}/N={n}", contender.compile_seconds, "s")
        best = {name: min(v for (who, _), v in medians.items() if who == name) for name, _ in medians}
        for peer in ("torchdiffeq", "diffrax", "SciPy"):
            if peer in best:
                ratio = best[peer] / best["rishd"]
                print(f"  speed over {peer}: {ratio:.1f}")
                row(f"speed_vs_{peer.lower()}/N={n}", ratio, "ratio")
        row(f"microseconds_per_step/N={n}", 1e6 * best["rishd"], "us")

    for name, save_every in (("driver_overhead", 400), ("driver_overhead_every_step_saved", 1)):
        overhead = driver_overhead(1000, 400, options.repeats, save_every=save_every)
        print(f"\n{name.replace('_', ' ')}, over a bare loop of plain steps, N = 1000: {100 * overhead:+.1f} %")
        row(f"{name}/N=1000", overhead, "ratio")
    for axis in ("N", "p"):
        for size, nanoseconds in scaling(axis, options.repeats):
            print(f"plain cost along {axis}: {size:>9} numbers  {nanoseconds:8.1f} ns per number and step")
            row(f"nanoseconds_per_number/{axis}={size}", nanoseconds, "ns")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
