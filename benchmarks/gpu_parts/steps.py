"""Step time, share of the matrix-multiply limit and memory of optimizers on the matrices of Llamas, beside peers."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_parts.report import Report
from benchmarks.optimizer_step import DECAY, FREQUENCY, LR, Make, heavyball_optimizer, peak_bytes, state_bytes
from discretizations.matrices.bfloat16_products import FLOP_FORMULAS
from lite import SOAPLITE, AdamWLITE, Muon, MuonLITE

# Width, feed-forward width, layers. The last set has four of the 32 layers of a 7B model: its step is eight times that.
SETS = {"130M": (768, 2048, 12), "1B": (2048, 5461, 24), "7B_4_layers": (4096, 11008, 4)}
DRY_SETS = {"dry": (16, 48, 1)}
REPEATS, DRY_REPEATS = 15, 2
SIDE, DRY_SIDE = 8192, 128  # of the products whose rate is the limit


def _imported(module: str, name: str, **settings: Any) -> Make:
    def make(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(importlib.import_module(module), name)(params, **settings)
        return optimizer

    return make


def _heavyball_muon(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    import heavyball

    heavyball.utils.compile_mode = None  # compiling would take longer than all steps
    optimizer: torch.optim.Optimizer = heavyball.Muon(params, LR, weight_decay=DECAY)
    optimizer.consume_grad = False  # type: ignore[attr-defined]  # else its next steps are empty
    return optimizer


# In the order of importance: time may end before the last ones.
OPTIMIZERS: dict[str, Make] = {
    "torch_muon": lambda p: torch.optim.Muon(p, LR, weight_decay=DECAY, ns_steps=6, adjust_lr_fn="match_rms_adamw"),
    "muon": lambda p: Muon(p, LR),
    "muonlite": lambda p: MuonLITE(p, LR),
    "dion_muon": _imported("dion", "Muon", lr=LR, weight_decay=DECAY, nesterov=True, use_triton=True),
    "emerging_muon": _imported(
        "emerging_optimizers.orthogonalized_optimizers", "Muon", lr=LR, weight_decay=DECAY, nesterov=True,
        coefficient_type="polar_express", num_ns_steps=6,
    ),
    "heavyball_muon": _heavyball_muon,
    "adamwlite": lambda p: AdamWLITE(p, 3e-3),
    "torch_adamw": lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=DECAY, fused=True),
    "soaplite": lambda p: SOAPLITE(p, 3e-3, precondition_frequency=FREQUENCY),
    "heavyball_soap": heavyball_optimizer("SOAP"),
    "muonlite_inside": lambda p: MuonLITE(p, LR, damping="inside"),
    "muonlite_float16": lambda p: MuonLITE(p, LR, ns_dtype="float16"),
}  # fmt: skip
PACKAGES = {"dion_muon": "dion", "emerging_muon": "emerging_optimizers"} | dict.fromkeys(
    ("heavyball_muon", "heavyball_soap"), "heavyball"
)
MUON_PEERS = ("torch_muon", "dion_muon", "emerging_muon", "heavyball_muon")


def parts(report: Report, device: torch.device, *, dry: bool) -> Iterator[tuple[str, Callable[[float], None]]]:
    """Names and work of all sets; the work takes the time at which it must end.

    Args:
        report: Gets the rows.
        device: The GPU, or a CPU in a dry run.
        dry: Whether to take tiny sizes.
    """
    rate = [0.0]

    def limit(deadline: float) -> None:
        rate[0] = matmul_rate(device, DRY_SIDE if dry else SIDE)
        report.row("matmul_rate/bfloat16", rate[0] / 1e12, "TFLOP/s")

    yield "matmul_rate", limit
    for size, shape in (DRY_SETS if dry else SETS).items():
        repeats = DRY_REPEATS if dry else REPEATS
        yield f"steps/{size}", partial(steps, report, device, size, shape, repeats, lambda: rate[0])


def matmul_rate(device: torch.device, side: int) -> float:
    """Operations a second of a bfloat16 product of square matrices, the best of twenty."""
    x, y = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return 2 * side**3 / min(seconds(partial(torch.mm, x, y), device) for _ in range(20))


def steps(
    report: Report,
    device: torch.device,
    size: str,
    shape: tuple[int, int, int],
    repeats: int,
    rate: Callable[[], float],
    deadline: float,
) -> None:
    """All optimizers on one set of matrices in bfloat16, which they share, since values do not change the time."""
    params = _layers(shape, device)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    work: dict[str, int] = {}
    for name, make in OPTIMIZERS.items():
        label = f"steps/{size}/{name}"
        package = PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            report.skip(label, f"{package} is not installed")
        else:
            report.attempt(label, deadline, partial(_warm, report, label, make, params, device, optimizers, work))
    taken: dict[str, list[float]] = {name.rsplit("/", 1)[1]: [] for name in optimizers}
    for _ in range(repeats):
        if time.perf_counter() > deadline:
            break
        for label, optimizer in optimizers.items():
            taken[label.rsplit("/", 1)[1]].append(seconds(optimizer.step, device))
    _times(report, size, {k: v for k, v in taken.items() if v}, work, rate())


def _warm(
    report: Report,
    label: str,
    make: Make,
    params: list[nn.Parameter],
    device: torch.device,
    optimizers: dict[str, torch.optim.Optimizer],
    work: dict[str, int],
) -> None:
    """Build an optimizer, count the operations of a step, and measure its memory; those that fail are left out."""
    name = label.rsplit("/", 1)[1]
    optimizer = make(params)
    counter = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
    with nullcontext() if name in PACKAGES else counter:  # steps that are compiled, as dion's, cannot be counted
        optimizer.step()
    optimizer.step()
    if any(p.grad is None for p in params):
        raise RuntimeError("it drops its gradients, so that its next steps would be empty")
    work[name] = counter.get_total_flops()
    if held := state_bytes(optimizer):  # heavyball's is not in tensors of ``state``
        report.row(f"{label}/state", held / 2**20, "MiB")
    report.row(f"{label}/temporaries", _temporary_bytes(optimizer, device) / 2**20, "MiB")
    optimizers[label] = optimizer


def _times(report: Report, size: str, taken: dict[str, list[float]], work: dict[str, int], rate: float) -> None:
    """Medians; means, too, where some steps do more than others."""
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name, median in medians.items():
        report.row(f"steps/{size}/{name}/median", 1e3 * median, "ms")
        report.row(f"steps/{size}/{name}/mean", 1e3 * statistics.mean(taken[name]), "ms")
        if work[name] and rate:
            report.row(f"steps/{size}/{name}/share_of_matmul_rate", work[name] / median / rate)
    peers = [medians[name] for name in MUON_PEERS if name in medians]
    for name in ("muon", "muonlite", "muonlite_inside", "muonlite_float16"):
        if peers and name in medians:
            report.row(f"steps/{size}/{name}_vs_fastest_muon", medians[name] / min(peers))


def _layers(shape: tuple[int, int, int], device: torch.device) -> list[nn.Parameter]:
    """All matrices of a Llama's layers with gradients: a signal of rank 8 and noise."""
    width, wide, layers = shape
    source = torch.Generator(device).manual_seed(0)
    params = []
    for m, n in [*[(width, width)] * 4, (wide, width), (wide, width), (width, wide)] * layers:
        left, right, noise, w = (
            torch.randn(size, generator=source, device=device) for size in ((m, 8), (8, n), (m, n), (m, n))
        )
        p = nn.Parameter((0.02 * w).bfloat16())
        p.grad = (left @ right + 0.3 * noise).bfloat16()
        params.append(p)
    return params


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time of a call: on a GPU between events of its stream, on a CPU on the clock."""
    if device.type != "cuda":
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def _temporary_bytes(optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Peak memory of a step beyond what is held before it."""
    if device.type != "cuda":
        return peak_bytes(optimizer)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held
