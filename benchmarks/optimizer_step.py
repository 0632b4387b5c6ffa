"""Step time, matrix work, state and peak memory of the matrix optimizers, beside torch's Muon and other SOAPs."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lite import SOAP, SOAPLITE, Muon, MuonLITE

THREADS = 2
MODELS = {"S": (512, 1376, 8), "M": (768, 2048, 12)}  # width, feed-forward width, layers
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LR, DECAY, FREQUENCY, SOAP_STEPS = 0.02, 0.1, 10, 40


class TwoSidedSOAP(torch.optim.Optimizer):
    """SOAP as its paper writes it (arXiv:2409.11321, Algorithm 3): one matrix at a time, both sides rotated."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.95, 0.95), eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            theta, b2 = group["betas"]
            for p in group["params"]:
                g, state = p.grad.float(), self.state[p]
                if not state:
                    left, right = g @ g.T, g.T @ g
                    state |= {"t": 0, "left": (1 - b2) * left, "right": (1 - b2) * right}
                    state |= {"ql": torch.linalg.eigh(left)[1], "qr": torch.linalg.eigh(right)[1]}
                    state |= {"m": torch.zeros_like(g), "v": torch.zeros_like(g)}
                    continue
                state["t"] += 1
                ql, qr, t = state["ql"], state["qr"], state["t"]
                state["m"].lerp_(g, 1 - theta)
                rotated = ql.T @ g @ qr
                state["v"].mul_(b2).addcmul_(rotated, rotated, value=1 - b2)
                m = ql.T @ state["m"] @ qr
                u = (m / (1 - theta**t)) / ((state["v"] / (1 - b2**t)).sqrt() + group["eps"])
                p.mul_(1 - group["lr"] * DECAY).add_((ql @ u @ qr.T).to(p.dtype), alpha=-group["lr"])
                state["left"].lerp_(g @ g.T, 1 - b2)
                state["right"].lerp_(g.T @ g, 1 - b2)
                if t % FREQUENCY == 0:
                    state["ql"] = torch.linalg.qr(state["left"] @ ql)[0]
                    state["qr"] = torch.linalg.qr(state["right"] @ qr)[0]


def heavyball_soap(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    import heavyball

    heavyball.utils.compile_mode = None
    optimizer: torch.optim.Optimizer = heavyball.SOAP(
        params, 3e-3, betas=(0.95, 0.95), precondition_frequency=FREQUENCY, use_precond_schedule=False, merge_dims=False
    )
    optimizer.consume_grad = False  # else it drops the gradients, and its next steps are empty
    return optimizer


MUONS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "torch_muon6": lambda p: torch.optim.Muon(p, LR, ns_steps=6, adjust_lr_fn="match_rms_adamw"),
    "muonlite": lambda p: MuonLITE(p, LR),
    "muonlite_beta0": lambda p: MuonLITE(p, LR, beta_sharp=0.0, beta_flat=0.0),
    "muon": lambda p: Muon(p, LR),
}
SOAPS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "two_sided_soap": lambda p: TwoSidedSOAP(p, 3e-3),
    "heavyball": heavyball_soap,
    "soap": lambda p: SOAP(p, 3e-3, precondition_frequency=FREQUENCY),
    "soaplite": lambda p: SOAPLITE(p, 3e-3, precondition_frequency=FREQUENCY),
}


def parameters(model: str, dtype: torch.dtype) -> list[nn.Parameter]:
    """All matrices of a Llama of this size with gradients: a signal of rank 8 and noise."""
    width, wide, layers = MODELS[model]
    source = torch.Generator().manual_seed(0)
    found = []
    for shape in [*[(width, width)] * 4, (wide, width), (wide, width), (width, wide)] * layers:
        p = nn.Parameter((0.02 * torch.randn(shape, generator=source)).to(dtype))
        signal = torch.randn(shape[0], 8, generator=source) @ torch.randn(8, shape[1], generator=source)
        p.grad = (signal + 0.3 * torch.randn(shape, generator=source)).to(dtype)
        found.append(p)
    return found


def step_seconds(optimizers: dict[str, torch.optim.Optimizer], repeats: int) -> dict[str, list[float]]:
    """Seconds of every step, one step of each in turn.

    Raises:
        RuntimeError: if an optimizer drops its gradients, so that its next steps would do nothing.
    """
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(repeats):
        for name, optimizer in optimizers.items():
            begun = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - begun)
            if any(p.grad is None for group in optimizer.param_groups for p in group["params"]):
                raise RuntimeError(f"{name} has dropped its gradients; its next steps would be empty.")
    return seconds


def flops(optimizer: torch.optim.Optimizer) -> int:
    """Operations of the matrix products of a step."""
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    return counter.get_total_flops()


def peak_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Largest sum of allocations minus releases during a step, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        optimizer.step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(x.nbytes for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor))


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations a second of batched products of 768×768 matrices, the best of sixty."""
    x = torch.randn(4, 768, 768).to(dtype)
    taken = []
    for _ in range(60):
        begun = time.perf_counter()
        torch.bmm(x, x.mT)
        taken.append(time.perf_counter() - begun)
    return 2 * 4 * 768**3 / min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="write rows {name, value, unit} to this file")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=9, help="interleaved steps of the Muon rows (odd)")
    parser.add_argument("--soap-steps", type=int, default=SOAP_STEPS, help="steps of the SOAP rows; 0 leaves them out")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    # As in a training process: freed tensors have told the C library's allocator to keep memory of this size.
    torch.empty(31 * 2**20, dtype=torch.uint8).fill_(1)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    print(
        f"{capabilities.get('cpu_name', platform.processor())}, bfloat16 instructions: "
        f"{bool(capabilities.get('avx512_bf16') or capabilities.get('amx_bf16'))}, {THREADS} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}, heavyball {version('heavyball')}"
    )
    rows: list[dict[str, Any]] = []

    def row(name: str, value: float, unit: str = "ratio") -> None:
        rows.append({"name": name, "value": value, "unit": unit})
        print(f"  {name:48} {value:10.3f} {unit}", flush=True)

    for dtype in options.dtypes:
        rates = {name: matmul_rate(kind) for name, kind in DTYPES.items()}
        print(f"batched products: {', '.join(f'{v / 1e9:.0f} GF/s {k}' for k, v in rates.items())}")
        for model in options.models:
            suffix = f"/{model}/{dtype}"
            optimizers = {name: make(parameters(model, DTYPES[dtype])) for name, make in MUONS.items()}
            work = {name: flops(optimizer) for name, optimizer in optimizers.items()}  # the first step makes the state
            seconds = step_seconds(optimizers, options.repeats)
            for name in ("muonlite", "muonlite_beta0", "muon"):
                ratios = [a / b for a, b in zip(seconds[name], seconds["torch_muon6"], strict=True)]
                row(f"{name}_vs_torch_muon6{suffix}", statistics.median(ratios))
            row(f"flops_muonlite_vs_muon6{suffix}", work["muonlite"] / work["torch_muon6"])
            row(
                f"state_muonlite_vs_muon{suffix}", state_bytes(optimizers["muonlite"]) / state_bytes(optimizers["muon"])
            )
            for name, taken in seconds.items():
                median = statistics.median(taken)
                row(f"milliseconds_{name}{suffix}", 1e3 * median, "ms")
                row(f"share_of_matmul_rate_{name}{suffix}", work[name] / median / max(rates.values()))
            ours, theirs = (peak_bytes(optimizers[name]) for name in ("muonlite", "torch_muon6"))
            held = sum(p.nbytes + p.grad.nbytes for p in optimizers["muon"].param_groups[0]["params"])
            whole = [held + state_bytes(optimizers[k]) for k in ("muonlite", "torch_muon6")]
            row(f"peak_muonlite_vs_torch_muon{suffix}", (whole[0] + ours) / (whole[1] + theirs))
            row(f"temporaries_muonlite{suffix}", ours / 2**20, "MiB")
            row(f"temporaries_torch_muon{suffix}", theirs / 2**20, "MiB")
            del optimizers
            if not options.soap_steps:
                continue
            soaps = {name: make(parameters(model, DTYPES[dtype])) for name, make in SOAPS.items()}
            step_seconds(soaps, 2)  # the first gradients set the bases
            taken = step_seconds(soaps, options.soap_steps)
            mean = {name: statistics.mean(values) for name, values in taken.items()}
            row(f"soap_vs_two_sided_soap{suffix}", mean["soap"] / mean["two_sided_soap"])
            row(f"soap_vs_heavyball{suffix}", mean["soap"] / mean["heavyball"])
            row(f"soaplite_vs_two_sided_soap{suffix}", mean["soaplite"] / mean["two_sided_soap"])
            row(f"soap_slowest_vs_median{suffix}", max(taken["soap"]) / statistics.median(taken["soap"]))
            row(f"state_soaplite_vs_soap{suffix}", state_bytes(soaps["soaplite"]) / state_bytes(soaps["soap"]))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
