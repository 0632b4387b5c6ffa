"""Every optimizer on a GPU against the CPU in float64: steps, checkpoints, CUDA graphs, loss scaling, waiting."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_parts.report import Report
from lite import AdamWLITE, LionLITE, Muon, MuonLITE
from tests.lite.optimizers import RULES
from tests.lite.recording import Recording

SHAPES = [(24, 24), (24, 24), (16, 40), (40, 16)]
LR, STEPS, FIRST = 0.01, 6, 2
# Largest relative difference of the parameters' movement from that of the CPU in float64. Measured on a CPU: float32
# 0.031 and bfloat16 0.26 at most. Shampoo's roots of rank-deficient factors magnify rounding (0.34 and 0.36).
LIMITS = {torch.float64: 1e-6, torch.float32: 0.1, torch.bfloat16: 0.5}
SHAMPOO_LIMIT = 1.0
DRY_RULES = ("subspace", "soap", "adamw")
# torch's eigensolver and SVD wait for their own error code: in every step of these masks, at every refresh of Shampoo.
SOLVERS = {"exact", "svd", "own", *(name for name in RULES if "shampoo" in name)}
SCALED = ("subspace", "soap", "adamw", "lion", "shampoo")  # one of each kind of state
CAPTURED: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "muonlite": partial(MuonLITE, ns_dtype="float32"),
    "muonlite_graded": partial(MuonLITE, ns_dtype="float32", mask="graded"),
    "muon": partial(Muon, ns_dtype="float32"),
    "adamwlite": AdamWLITE,
    "lionlite": LionLITE,
}


def parts(report: Report, device: torch.device, *, dry: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names and work of all checks, the most important first.

    Args:
        report: Gets the rows.
        device: The GPU, or a CPU in a dry run.
        dry: Whether to take some rules only.
    """
    names = DRY_RULES if dry else tuple(RULES)
    for name in names:
        yield f"against_cpu/{name}", partial(against_cpu, report, name, device)
    for name, make in list(CAPTURED.items())[: 1 if dry else None]:
        yield f"graph/{name}", partial(graph, report, name, make, device)
    for name in names:
        yield f"no_sync/{name}", partial(no_sync, report, name, device)
    for name in names:
        yield f"resume/{name}", partial(resume, report, name, device)
    for name in DRY_RULES if dry else SCALED:
        yield f"grad_scaler/{name}", partial(grad_scaler, report, name, device)


def against_cpu(report: Report, name: str, device: torch.device) -> None:
    expected = _moved(_run(name, torch.float64, torch.device("cpu"))[0])
    for dtype, usual in LIMITS.items():
        limit = SHAMPOO_LIMIT if name.startswith("shampoo") and dtype != torch.float64 else usual
        moved = _moved(_run(name, dtype, device)[0])
        report.row(f"against_cpu/{name}/{str(dtype)[6:]}", _distance(moved, expected), limit=limit)


def resume(report: Report, name: str, device: torch.device) -> None:
    """A checkpoint of the CPU resumes on the GPU, and one of the GPU on the CPU."""
    cpu = torch.device("cpu")
    for way, first, second in (("cpu_to_gpu", cpu, device), ("gpu_to_cpu", device, cpu)):
        held, optimizer = _run(name, torch.float64, first, stop=FIRST)
        saved = copy.deepcopy(optimizer.state_dict())
        others = [nn.Parameter(p.detach().to(second, copy=True)) for p in held]
        resumed = RULES[name](others, LR)
        resumed.load_state_dict(saved)
        for k in range(FIRST, STEPS):
            for parameters, each in ((held, optimizer), (others, resumed)):
                _give_gradients(parameters, k)
                each.step()
        report.row(f"resume/{name}/{way}", _distance(_moved(others), _moved(held)), limit=LIMITS[torch.float64])


def graph(report: Report, name: str, make: Callable[..., torch.optim.Optimizer], device: torch.device) -> None:
    """A captured step, replayed with other gradients and learning rates, against plain steps."""
    (plain, stepped), (held, captured) = (
        (parameters, make(parameters, LR, capturable=True, on_nonfinite="skip"))
        for parameters in (_parameters(torch.float32, device), _parameters(torch.float32, device))
    )
    for k in range(STEPS):
        for parameters, optimizer in ((plain, stepped), (held, captured)):
            for group in optimizer.param_groups:
                group["lr"].fill_(LR / (1 + k))
            _give_gradients(parameters, k)
        if k == STEPS - 2:
            plain[0].grad.fill_(float("nan")), held[0].grad.fill_(float("nan"))  # type: ignore[union-attr]
        stepped.step()
        if k < FIRST:
            captured.step()  # makes the state
        elif k == FIRST:
            replay = _capture(captured, device)
            replay()
        else:
            replay()
    report.row(f"graph/{name}", _distance(_moved(held), _moved(plain)), limit=1e-6)


def grad_scaler(report: Report, name: str, device: torch.device) -> None:
    """Scaled gradients give the same steps, and a step with an infinite one is left out."""
    plain, _ = _run(name, torch.float32, device, stop=FIRST + 1)
    scaled = _parameters(torch.float32, device)
    scaled_optimizer = RULES[name](scaled, LR)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    scaler.scale(torch.ones((), device=device))  # makes its scale a tensor
    for k in (0, 1, None, 2):
        _give_gradients(scaled, k or 0)
        for p in scaled:
            p.grad.mul_(scaler.get_scale())  # type: ignore[union-attr]
        if k is None:
            scaled[0].grad[0, 0] = float("inf")  # type: ignore[index]
        scaler.step(scaled_optimizer)
        scaler.update()
    if scaler.get_scale() != 2.0**9:
        raise ValueError(f"the scale is {scaler.get_scale()}, not halved to 512")
    report.row(f"grad_scaler/{name}", _distance(_moved(scaled), _moved(plain)), limit=1e-3)


def no_sync(report: Report, name: str, device: torch.device) -> None:
    """Calls of the last steps that wait for the device, by CUDA's own warnings; a CPU waits for nothing."""
    if device.type != "cuda":
        report.skip(f"no_sync/{name}", "needs CUDA; tests/lite/test_no_sync.py has a stand-in")
        return
    parameters = _parameters(torch.float32, device)
    optimizer = RULES[name](parameters, LR, on_nonfinite="ignore")
    waits = 0
    for k in range(STEPS):
        _give_gradients(parameters, k)
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if k >= FIRST else "default")
            try:
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits += sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
    report.row(f"no_sync/{name}", waits, "waits", limit=None if name in SOLVERS else 0)


def _run(
    name: str, dtype: torch.dtype, device: torch.device, *, stop: int = STEPS
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    parameters = _parameters(dtype, device)
    optimizer = RULES[name](parameters, LR)
    for k in range(stop):
        _give_gradients(parameters, k)
        optimizer.step()
    return parameters, optimizer


def _parameters(dtype: torch.dtype, device: torch.device) -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    drawn = [0.1 * torch.randn(shape, generator=source, dtype=torch.float64) for shape in SHAPES]
    return [nn.Parameter(w.to(device, dtype)) for w in drawn]


def _give_gradients(parameters: list[nn.Parameter], k: int) -> None:
    """A signal of rank 4 and noise of full rank, the same on any device, in the memory of the gradients before."""
    signal, noise = torch.Generator().manual_seed(1), torch.Generator().manual_seed(100 + k)
    for p in parameters:
        left, right = (torch.randn(size, 4, generator=signal, dtype=torch.float64) for size in p.shape)
        g = (left @ right.T + 0.3 * torch.randn(p.shape, generator=noise, dtype=torch.float64)).to(p)
        p.grad = g if p.grad is None else p.grad.copy_(g)


def _moved(parameters: list[nn.Parameter]) -> Tensor:
    """How far the parameters are from where they began, float64 on the CPU."""
    start = _parameters(parameters[0].dtype, torch.device("cpu"))
    pairs = zip(parameters, start, strict=True)
    return torch.cat([(p.detach().cpu().double() - w.detach().double()).flatten() for p, w in pairs])


def _distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


def _capture(optimizer: torch.optim.Optimizer, device: torch.device) -> Callable[[], None]:
    """A step as a CUDA graph, or on the CPU as a record of its operations that has been made already."""
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            optimizer.step()
        return graph.replay
    recording = Recording()
    kept = _kept(optimizer)
    with recording:
        optimizer.step()
    _restore(kept)

    def replay() -> None:
        with torch.no_grad():
            recording.replay()

    return replay


def _kept(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    """All tensors of an optimizer and copies of them."""
    states: list[Any] = [x for state in optimizer.state.values() for x in state.values()]
    found = [p for group in optimizer.param_groups for p in group["params"]] + states
    return [(x, x.detach().clone()) for x in found if isinstance(x, Tensor)]


def _restore(kept: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for x, copied in kept:
            x.copy_(copied)
