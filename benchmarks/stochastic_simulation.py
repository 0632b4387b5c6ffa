"""Steps per second of `riemannian_ode` with noise on a curved river valley, against torchsde and diffrax.

All integrate RISHD with the χ split (β = 0) and the same gradient noise on the same two-dimensional valley in float64
with equal Euler–Maruyama steps: ours is semi-implicit Euler. Noise enters only the momentum, so that it is additive and
peers draw two numbers per step and member. The peers' right-hand side is written out by hand in their own idiom;
torchsde gets the product with the noise instead of a matrix, and diffrax its fastest Brownian path. Every peer runs in
the best of the listed settings; compilation is timed separately. Runs are interleaved and the medians compared.

    python benchmarks/stochastic_simulation.py [--json FILE] [--repeats 5]

Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import torch
import torchsde
from ensemble_simulation import ALPHA, CHI, ETA, THREADS, VALLEY, Contender, interleaved, rates, start

from riemannian_ode import RISHD, CompiledSteps, GradientNoise, simulate

SIGMA = 0.3
H = 0.25  # explicit Euler is unstable on the walls from h = α/(η·wall) = 0.5
STEPS = {1000: 200, 100_000: 40}


def system() -> RISHD:
    return RISHD.from_optimizer(VALLEY, alpha=ALPHA, eta=ETA, chi=CHI, flat=VALLEY.flat_split)


def ours(n: int) -> list[Contender]:
    flow, w0, noise = system(), start(n), GradientNoise(factor=SIGMA)
    begun = time.perf_counter()
    compiled = CompiledSteps(flow, w0, h=H, noise=noise)
    seconds = time.perf_counter() - begun

    def run(k: int, **settings: Any) -> None:
        simulate(flow, w0, steps=k, save_every=k, h=H, noise=noise, progress=False, **settings)

    return [
        Contender("rishd", "plain", run, 0.0),
        Contender("rishd", f"compiled, {compiled.layout}", lambda k: run(k, compile=compiled), seconds),
    ]


class Valley(torch.nn.Module):
    """The flow in torchsde's form: drift, and the product of its diffusion with an increment."""

    noise_type, sde_type = "additive", "ito"

    def __init__(self, n: int, drift: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.drift, self.still = drift, torch.zeros(n, 2, dtype=torch.float64)
        self.diffusion = torch.zeros(n, 4, 2, dtype=torch.float64)
        self.diffusion[:, 2, 0] = self.diffusion[:, 3, 1] = SIGMA

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.drift(y)

    def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.diffusion

    def g_prod(self, t: torch.Tensor, y: torch.Tensor, increment: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.still, SIGMA * increment], dim=-1)


def with_torchsde(n: int) -> list[Contender]:
    y0 = torch.cat([torch.as_tensor(start(n)), torch.zeros(n, 2, dtype=torch.float64)], dim=-1)

    def drift(y: torch.Tensor) -> torch.Tensor:
        return torch.stack(rates(*y.unbind(-1), torch, beta_flat=0.0), dim=-1)

    def run(sde: Valley, steps: int) -> torch.Tensor:
        times = torch.tensor([0.0, steps * H], dtype=torch.float64)
        with torch.no_grad():
            return torchsde.sdeint(sde, y0, times, method="euler", dt=H)

    contenders = []
    for setting, function in (("eager", drift), ("compiled drift", torch.compile(drift, dynamic=False))):
        sde = Valley(n, function)
        begun = time.perf_counter()
        run(sde, 2)
        seconds = 0.0 if setting == "eager" else time.perf_counter() - begun
        contenders.append(Contender("torchsde", setting, lambda k, sde=sde: run(sde, k), seconds))
    return contenders


def with_diffrax(n: int, steps: int) -> list[Contender]:
    w0 = jnp.asarray(start(n).T)
    y0 = jnp.concatenate([w0, jnp.zeros_like(w0)])

    def drift(t: Any, y: Any, args: Any) -> Any:
        return jnp.stack(rates(*y, jnp, beta_flat=0.0))

    def solve(y: Any, key: Any) -> Any:
        shape = jax.ShapeDtypeStruct((2, *y.shape[1:]), jnp.float64)
        path = diffrax.UnsafeBrownianPath(shape, key)

        def diffusion(t: Any, y: Any, args: Any) -> Any:
            def product(increment: Any) -> Any:
                return jnp.concatenate([jnp.zeros_like(increment), SIGMA * increment])

            return lineax.FunctionLinearOperator(product, shape)

        return diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)),
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

    key = jax.random.key(0)
    settings: dict[str, Callable[[], Any]] = {}
    together, alone = jax.jit(solve), jax.jit(jax.vmap(solve, in_axes=(1, 0), out_axes=1))
    keys = jax.random.split(key, n)
    settings["jit, ensemble as one state"] = lambda: together(y0, key)
    settings["jit + vmap"] = lambda: alone(y0, keys)
    contenders = []
    for setting, function in settings.items():
        begun = time.perf_counter()
        jax.block_until_ready(function())
        seconds = time.perf_counter() - begun

        def run(k: int, function: Callable[[], Any] = function) -> Any:
            assert k == steps  # compiled for this span
            return jax.block_until_ready(function())

        contenders.append(Contender("diffrax", setting, run, seconds))
    return contenders


def check() -> None:
    """Check that the hand-written right-hand side equals the package's and the peers' ensembles have our spread."""
    w, m = np.random.default_rng(1).normal(size=(2, 50, 2))
    by_hand = np.stack(rates(*w.T, *m.T, np, beta_flat=0.0), axis=-1)
    np.testing.assert_allclose(by_hand, np.concatenate(system().rates(0.0, w, m), axis=-1), rtol=1e-9, atol=1e-9)
    n, steps = 4000, 20
    w0 = start(n)
    noise = GradientNoise(factor=SIGMA)
    euler = simulate(system(), w0, h=H, steps=steps, noise=noise, integrator="explicit-euler", progress=False)
    mine = euler.m[-1].std(0)
    np.testing.assert_allclose(with_torchsde(n)[0].run(steps)[-1, :, 2:].numpy().std(0), mine, rtol=0.08)
    np.testing.assert_allclose(np.squeeze(with_diffrax(n, steps)[0].run(steps))[2:].std(1), mine, rtol=0.08)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="write rows {name, value, unit} to this file")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats (odd)")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    jax.config.update("jax_enable_x64", True)
    check()
    print(
        f"{platform.machine()}, {THREADS} threads, Python {platform.python_version()}, numpy {np.__version__}, torch "
        f"{torch.__version__}, torchsde {torchsde.__version__}, diffrax {diffrax.__version__}, jax {jax.__version__}"
    )
    rows: list[dict[str, Any]] = []
    for n, steps in STEPS.items():
        print(f"\nN = {n}: microseconds per step, median of {options.repeats}")
        contenders = ours(n) + with_torchsde(n) + with_diffrax(n, steps)
        medians = interleaved(contenders, steps, options.repeats)
        for contender in contenders:
            median = medians[contender.name, contender.setting]
            compiling = f"   compiling {contender.compile_seconds:.1f} s" if contender.compile_seconds else ""
            print(f"  {contender.name:10} {contender.setting:28} {1e6 * median:12.1f}{compiling}")
        best = {name: min(v for (who, _), v in medians.items() if who == name) for name, _ in medians}
        plain = medians["rishd", "plain"]
        for peer in ("torchsde", "diffrax"):
            print(f"  speed over {peer}: {best[peer] / best['rishd']:.1f} compiled, {best[peer] / plain:.2f} plain")
            rows.append({"name": f"speed_vs_{peer}/N={n}", "value": best[peer] / best["rishd"], "unit": "ratio"})
        rows.append({"name": f"microseconds_per_step/N={n}", "value": 1e6 * best["rishd"], "unit": "us"})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
