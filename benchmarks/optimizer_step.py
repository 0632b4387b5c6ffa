"""Step time, matrix work, state and peak memory of the optimizers, against those of torch and of other packages."""

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

from discretizations.matrices.bfloat16_products import FLOP_FORMULAS
from lite import (
    SOAP,
    SOAPLITE,
    AdamWLITE,
    Lion,
    LionLITE,
    Muon,
    MuonLITE,
    NorMuon,
    NorMuonLITE,
    Shampoo,
    ShampooLITE,
)

THREADS = 2
MODELS = {"S": (512, 1376, 8), "M": (768, 2048, 12)}  # width, feed-forward width, layers
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RULES = ["muon", "soap", "family"]
LR, DECAY, FREQUENCY, SOAP_STEPS = 0.02, 0.1, 10, 40


Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class TwoSidedSOAP(torch.optim.Optimizer):
    """SOAP as in its authors' code (github.com/nikhilvyas/SOAP), one matrix at a time, float32 state.

    Ten products per step: the gradient goes to the eigenbasis (2), the update back (2), the first moment back and to
    the new basis at every step (4), and both factors are computed in full (2). Their first version, Algorithm 3 of
    arXiv:2409.11321, rotates the first moment once instead (8 products); pytorch_optimizer's SOAP does so.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.95, 0.95), eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                g, state = p.grad.float(), self.state[p]
                if not state:
                    state |= {"step": 0, "m": torch.zeros_like(g), "v": torch.zeros_like(g)}
                    state["factors"] = [torch.zeros(side, side) for side in g.shape]
                    self._update_factors(state, g, group["betas"][1])
                    state["bases"] = [torch.linalg.eigh(factor)[1].flip(1) for factor in state["factors"]]
                    continue
                self._step_matrix(p, g, state, group)

    def _step_matrix(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        theta, b2 = group["betas"]
        (left, right), m, v = state["bases"], state["m"], state["v"]
        state["step"] += 1
        rotated = left.T @ g @ right
        m.mul_(theta).add_(rotated, alpha=1 - theta)
        v.mul_(b2).add_(rotated.square(), alpha=1 - b2)
        size = group["lr"] * (1 - b2 ** state["step"]) ** 0.5 / (1 - theta ** state["step"])
        u = left @ (m / v.sqrt().add_(group["eps"])) @ right.T
        p.add_(u.to(p.dtype), alpha=-size)
        p.add_(p, alpha=-group["lr"] * DECAY)
        m = left @ m @ right.T
        self._update_factors(state, g, b2)
        if state["step"] % FREQUENCY == 0:
            for axis, (factor, basis) in enumerate(zip(state["factors"], state["bases"], strict=True)):
                order = (basis.T @ factor @ basis).diagonal().argsort(descending=True)
                state["v"] = state["v"].index_select(axis, order)
                state["bases"][axis] = torch.linalg.qr(factor @ basis[:, order])[0]
        left, right = state["bases"]
        state["m"] = left.T @ m @ right

    @staticmethod
    def _update_factors(state: dict[str, Any], g: Tensor, b2: float) -> None:
        left, right = state["factors"]
        left.lerp_(g @ g.T, 1 - b2)
        right.lerp_(g.T @ g, 1 - b2)


def heavyball_optimizer(name: str) -> Make:
    """An optimizer of heavyball with an eigenbasis, not compiled."""

    def make(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        import heavyball

        heavyball.utils.compile_mode = None
        optimizer: torch.optim.Optimizer = getattr(heavyball, name)(
            params,
            3e-3,
            betas=(0.95, 0.95),
            precondition_frequency=FREQUENCY,
            use_precond_schedule=False,
            merge_dims=False,
        )
        optimizer.consume_grad = False  # else it drops the gradients, and its next steps are empty
        return optimizer

    return make


def pytorch_optimizer_muon(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    import pytorch_optimizer

    group = {"params": params, "use_muon": True}
    optimizer: torch.optim.Optimizer = pytorch_optimizer.Muon([group], LR, weight_decay=DECAY, ns_steps=6)
    return optimizer


def pytorch_optimizer_normuon(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    import pytorch_optimizer

    group = {"params": params, "use_muon": True}
    optimizer: torch.optim.Optimizer = pytorch_optimizer.NorMuon([group], LR, weight_decay=DECAY, ns_steps=6)
    return optimizer


def pytorch_optimizer_lion(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    import pytorch_optimizer

    optimizer: torch.optim.Optimizer = pytorch_optimizer.Lion(params, 1e-4, weight_decay=DECAY)
    return optimizer


def pytorch_optimizer_shampoo(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    import pytorch_optimizer

    optimizer: torch.optim.Optimizer = pytorch_optimizer.ScalableShampoo(
        params, 3e-3, betas=(0.95, 0.95), preconditioning_compute_steps=FREQUENCY, start_preconditioning_step=1,
        block_size=8192, weight_decay=DECAY, decoupled_weight_decay=True,
    )  # fmt: skip
    return optimizer


def pytorch_optimizer_soap(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    import pytorch_optimizer

    optimizer: torch.optim.Optimizer = pytorch_optimizer.SOAP(
        params, 3e-3, betas=(0.95, 0.95), weight_decay=DECAY, precondition_frequency=FREQUENCY
    )
    return optimizer


MUONS: dict[str, Make] = {
    "torch_muon6": lambda p: torch.optim.Muon(p, LR, ns_steps=6, adjust_lr_fn="match_rms_adamw"),
    "muonlite": lambda p: MuonLITE(p, LR),
    "muonlite_beta0": lambda p: MuonLITE(p, LR, beta_sharp=0.0, beta_flat=0.0),
    "muonlite_inside": lambda p: MuonLITE(p, LR, damping="inside"),
    "muonlite_graded": lambda p: MuonLITE(p, LR, mask="graded", beta_sharp=0.0, beta_flat=0.0),
    "muon": lambda p: Muon(p, LR),
    "pytorch_optimizer_muon": pytorch_optimizer_muon,
}
SOAPS: dict[str, Make] = {
    "two_sided_soap": lambda p: TwoSidedSOAP(p, 3e-3),
    "heavyball": heavyball_optimizer("SOAP"),
    "pytorch_optimizer": pytorch_optimizer_soap,
    "soap": lambda p: SOAP(p, 3e-3, precondition_frequency=FREQUENCY),
    "soaplite": lambda p: SOAPLITE(p, 3e-3, precondition_frequency=FREQUENCY),
}
# The other bases: base, LITE on it, and a peer of the base.
FAMILY: dict[str, tuple[Make, Make, str, Make]] = {
    "adamw": (
        lambda p: AdamWLITE(p, 3e-3, chi=1.0),
        lambda p: AdamWLITE(p, 3e-3),
        "torch",
        lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=DECAY, foreach=True),
    ),
    "lion": (lambda p: Lion(p, 1e-4), lambda p: LionLITE(p, 1e-4), "pytorch_optimizer", pytorch_optimizer_lion),
    "normuon": (lambda p: NorMuon(p, LR), lambda p: NorMuonLITE(p, LR), "pytorch_optimizer", pytorch_optimizer_normuon),
    "shampoo": (
        lambda p: Shampoo(p, 3e-3, precondition_frequency=FREQUENCY),
        lambda p: ShampooLITE(p, 3e-3, precondition_frequency=FREQUENCY),
        "pytorch_optimizer",
        pytorch_optimizer_shampoo,
    ),
    "kl_soap": (
        lambda p: SOAP(p, 3e-3, precondition_frequency=FREQUENCY, divergence="kl"),
        lambda p: SOAPLITE(p, 3e-3, precondition_frequency=FREQUENCY, divergence="kl"),
        "heavyball",
        heavyball_optimizer("KLSOAP"),
    ),
    "kl_shampoo": (
        lambda p: Shampoo(p, 3e-3, precondition_frequency=FREQUENCY, divergence="kl"),
        lambda p: ShampooLITE(p, 3e-3, precondition_frequency=FREQUENCY, divergence="kl"),
        "heavyball",
        heavyball_optimizer("KLShampoo"),
    ),
}  # fmt: skip


def parameters(model: str, dtype: torch.dtype, layers: int) -> list[nn.Parameter]:
    """All matrices of a Llama of this size with gradients: a signal of rank 8 and noise."""
    width, wide, _ = MODELS[model]
    source = torch.Generator().manual_seed(0)
    found = []
    for shape in [*[(width, width)] * 4, (wide, width), (wide, width), (width, wide)] * layers:
        p = nn.Parameter((0.02 * torch.randn(shape, generator=source)).to(dtype))
        signal = torch.randn(shape[0], 8, generator=source) @ torch.randn(8, shape[1], generator=source)
        p.grad = (signal + 0.3 * torch.randn(shape, generator=source)).to(dtype)
        found.append(p)
    return found


def step_seconds(
    optimizers: dict[str, torch.optim.Optimizer], repeats: int, *, busy: dict[str, list[float]] | None = None
) -> dict[str, list[float]]:
    """Seconds of every step, with the optimizers' steps interleaved.

    Args:
        optimizers: Optimizers by name.
        repeats: Number of steps of each.
        busy: Receives the share of the processors' time that each step had; a share far below 1 means that it waited
            for other programs.

    Raises:
        RuntimeError: if an optimizer drops its gradients, so that its next steps would do nothing.
    """
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(repeats):
        for name, optimizer in optimizers.items():
            begun, worked = time.perf_counter(), time.process_time()
            optimizer.step()
            seconds[name].append(time.perf_counter() - begun)
            if busy is not None:
                busy.setdefault(name, []).append((time.process_time() - worked) / seconds[name][-1] / THREADS)
            if any(p.grad is None for group in optimizer.param_groups for p in group["params"]):
                raise RuntimeError(f"{name} has dropped its gradients; its next steps would be empty.")
    return seconds


def flops(optimizer: torch.optim.Optimizer) -> int:
    """Operations of the matrix products of a step."""
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        optimizer.step()
    return counter.get_total_flops()


def peak_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Largest sum of allocations minus releases during a step."""
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
    """Operations per second of batched products of 768×768 matrices, the best of sixty."""
    x = torch.randn(4, 768, 768).to(dtype)
    taken = []
    for _ in range(60):
        begun = time.perf_counter()
        torch.bmm(x, x.mT)
        taken.append(time.perf_counter() - begun)
    return 2 * 4 * 768**3 / min(taken)


def muon_rows(model: str, dtype: str, layers: int, repeats: int, row: Callable[..., None]) -> None:
    rate = max(matmul_rate(kind) for kind in DTYPES.values())
    optimizers = {name: make(parameters(model, DTYPES[dtype], layers)) for name, make in MUONS.items()}
    work = {name: flops(optimizer) for name, optimizer in optimizers.items()}  # the first step makes the state
    seconds = step_seconds(optimizers, repeats)
    for name in ("muonlite", "muonlite_beta0", "muon"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["torch_muon6"], strict=True)]
        row(f"{name}_vs_torch_muon6", statistics.median(ratios))
    for name in ("muonlite", "muon"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["pytorch_optimizer_muon"], strict=True)]
        row(f"{name}_vs_pytorch_optimizer_muon6", statistics.median(ratios))
    row("flops_muonlite_vs_muon6", work["muonlite"] / work["torch_muon6"])
    row("state_muonlite_vs_muon", state_bytes(optimizers["muonlite"]) / state_bytes(optimizers["muon"]))
    row("matmul_rate", rate / 1e9, "GFLOP/s")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        row(f"milliseconds_{name}", 1e3 * median, "ms")
        row(f"share_of_matmul_rate_{name}", work[name] / median / rate)
    ours, theirs = (peak_bytes(optimizers[name]) for name in ("muonlite", "torch_muon6"))
    held = sum(p.nbytes + p.grad.nbytes for p in optimizers["muon"].param_groups[0]["params"])
    whole = [held + state_bytes(optimizers[k]) for k in ("muonlite", "torch_muon6")]
    row("peak_muonlite_vs_torch_muon", (whole[0] + ours) / (whole[1] + theirs))
    row("temporaries_muonlite", ours / 2**20, "MiB")
    row("temporaries_torch_muon", theirs / 2**20, "MiB")


def soap_rows(model: str, dtype: str, layers: int, steps: int, row: Callable[..., None]) -> None:
    soaps = {name: make(parameters(model, DTYPES[dtype], layers)) for name, make in SOAPS.items()}
    step_seconds(soaps, 2)  # the first gradients set the bases
    busy: dict[str, list[float]] = {}
    taken = step_seconds(soaps, steps, busy=busy)
    mean = {name: statistics.mean(values) for name, values in taken.items()}
    for peer in ("two_sided_soap", "heavyball", "pytorch_optimizer"):
        for name in ("soap", "soaplite"):
            row(f"{name}_vs_{peer}", mean[name] / mean[peer])
    slowest = taken["soap"].index(max(taken["soap"]))
    row("soap_slowest_vs_median", taken["soap"][slowest] / statistics.median(taken["soap"]))
    row("soap_slowest_step", slowest, "step")
    row("soap_slowest_busy", busy["soap"][slowest])
    row("state_soaplite_vs_soap", state_bytes(soaps["soaplite"]) / state_bytes(soaps["soap"]))
    for name, value in mean.items():
        row(f"milliseconds_{name}", 1e3 * value, "ms")


def family_rows(model: str, dtype: str, layers: int, steps: int, row: Callable[..., None]) -> None:
    """Means over steps, which the refreshes of roots and bases are part of."""
    for base, (make_base, make_lite, package, make_peer) in FAMILY.items():
        makes = {base: make_base, f"{base}_lite": make_lite, "peer": make_peer}
        optimizers = {name: make(parameters(model, DTYPES[dtype], layers)) for name, make in makes.items()}
        step_seconds(optimizers, 2)  # the first gradients set roots and bases
        mean = {name: statistics.mean(values) for name, values in step_seconds(optimizers, steps).items()}
        row(f"{base}_vs_{package}", mean[base] / mean["peer"])
        row(f"{base}_lite_vs_{package}", mean[f"{base}_lite"] / mean["peer"])
        row(f"{base}_lite_vs_{base}", mean[f"{base}_lite"] / mean[base])
        row(f"milliseconds_{base}", 1e3 * mean[base], "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="write rows {name, value, unit} to this file")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--rules", nargs="+", default=["muon", "soap"], choices=[*RULES, "all"])
    parser.add_argument("--layers", type=int, help="only the first layers, for a shorter run; names of rows say so")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved steps of the Muon rows (odd)")
    parser.add_argument(
        "--soap-steps", type=int, default=SOAP_STEPS, help="steps of the rows of SOAP and of the family"
    )
    options = parser.parse_args()
    rules = RULES if "all" in options.rules else options.rules
    torch.set_num_threads(THREADS)
    # As in a training process: freed tensors make the C library's allocator keep memory of this size.
    torch.empty(31 * 2**20, dtype=torch.uint8).fill_(1)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    peers = ", ".join(f"{name} {version(name)}" for name in ("heavyball", "pytorch_optimizer"))
    print(
        f"{capabilities.get('cpu_name', platform.processor())}, bfloat16 instructions: "
        f"{bool(capabilities.get('avx512_bf16') or capabilities.get('amx_bf16'))}, {THREADS} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {peers}"
    )
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        for model in options.models:
            layers = min(options.layers or MODELS[model][2], MODELS[model][2])
            suffix = f"/{model}/{dtype}" + (f"/{layers}_layers" if layers < MODELS[model][2] else "")

            def row(name: str, value: float, unit: str = "ratio", suffix: str = suffix) -> None:
                rows.append({"name": name + suffix, "value": value, "unit": unit})
                print(f"  {name + suffix:58} {value:10.3f} {unit}", flush=True)

            if "muon" in rules:
                muon_rows(model, dtype, layers, options.repeats, row)
            if "soap" in rules:
                soap_rows(model, dtype, layers, options.soap_steps, row)
            if "family" in rules:
                family_rows(model, dtype, layers, options.soap_steps, row)
            if options.json:  # after each part, so that an interrupted run leaves its results so far
                options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
