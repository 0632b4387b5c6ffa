"""Cost of a step on several ranks: deviation, collectives, bytes, FLOPs; and large models by formula.

Measured are MuonLITE and SOAPLITE under DDP, FSDP2, HSDP, tensor and expert parallelism on gloo processes of this
machine, one thread each, with a small Llama's parameters and given gradients. Step times are medians of interleaved
steps, relative to FSDP2's. Bytes are those that a rank sends to others: exact for all-to-all and all-gather (a ring),
2(N−1)/N of the buffer for an all-reduce. dion (https://github.com/microsoft/dion) is not run: its
traffic for Muon is taken by formula, each shard once to its matrix's owner and once back, in bfloat16.

    python benchmarks/distributed_step.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.multiprocessing.spawn import spawn
from torch.utils.flop_counter import FlopCounterMode

from discretizations import CoordinateMask, EigenbasisMoment
from lite import SOAPLITE, LITEOptimizer, MuonLITE, param_groups
from lite.distributed import exchange
from lite.distributed.division import Division, WorkItem
from lite.distributed.sharding import RankMesh, Sharding, local_part
from lite.distributed.step import LARGEST_MEGABATCH
from lite.soap_lite import Moments

HIDDEN, FFN, LAYERS, VOCABULARY, STEPS, EXPERTS, TIMED = 128, 344, 4, 512, 10, 4, 9
SHARDED = "soap-lite-sharded"  # SOAPLITE(moments="sharded")
DTYPES = {"muon-lite": ("exact", "bfloat16"), "soap-lite": ("exact",), SHARDED: ("exact",)}  # of messages
MODES = ("ddp", "fsdp2", "hsdp", "tp", "ddp-tp", "fsdp2-tp", "fsdp2-ep")
LR = 3e-3  # published for LLaMA 0.25B, arXiv:2602.22681
HALF = 2  # bytes of a bfloat16
# (hidden, ffn, layers, width of keys and values): arXiv:2302.13971, table 2, and arXiv:2307.09288 for 70B
LLAMAS = {"7B": (4096, 11008, 32, 4096), "70B": (8192, 28672, 80, 1024)}


class Layer(nn.Module):
    """The parameters of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(HIDDEN, FFN, bias=False) for _ in range(2))
        self.down = nn.Linear(FFN, HIDDEN, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(HIDDEN) for _ in range(2))


class Parameters(nn.Module):
    """The parameters of a small Llama; gradients are given, so there is no forward pass."""

    def __init__(self, *, has_experts: bool) -> None:
        super().__init__()
        self.num_experts = EXPERTS  # says that a stack of matrices is one of experts
        self.experts = nn.Parameter(0.02 * torch.randn(EXPERTS, FFN, HIDDEN)) if has_experts else None
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)


def mesh_shape(mode: str, world: int) -> tuple[int, ...]:
    return (world,) if mode in ("ddp", "fsdp2", "tp") else (2, world // 2)


def placements(mode: str, name: str, p: Tensor, shape: tuple[int, ...]) -> tuple[Placement, ...]:
    """How torch lays out a parameter; attention's output and the second layer of an MLP are cut along columns."""
    if mode == "fsdp2-ep":
        return (Shard(1), Shard(0)) if p.ndim == 3 else (Shard(0), Shard(0))
    tensor: Placement = Replicate() if p.ndim == 1 else Shard(int(".o." in name or ".down." in name))
    first: Placement = Replicate()
    if mode == "fsdp2-tp":  # FSDP2 cuts what tensor parallelism has cut
        first = _StridedShard(0, split_factor=shape[1]) if tensor == Shard(0) else Shard(0)
    return (tensor,) if mode == "tp" else (first, tensor)


def lay_out(model: nn.Module, mode: str, world: int) -> None:
    shape = mesh_shape(mode, world)
    mesh = init_device_mesh("cpu", shape)
    for path, module in model.named_modules():
        for key, p in list(module.named_parameters(recurse=False)):
            own = placements(mode, f"{path}.{key}", p, shape)
            setattr(module, key, nn.Parameter(distribute_tensor(p.detach(), mesh, own, src_data_rank=None)))


def build(name: str, mode: str, world: int, *, like: str = "", **settings: Any) -> tuple[Parameters, LITEOptimizer]:
    """Model and optimizer of a mode, or in one process with the parameters that the mode ``like`` has."""
    torch.manual_seed(0)
    model = Parameters(has_experts=(like or mode) == "fsdp2-ep")
    group = dist.group.WORLD if mode == "ddp" else None
    if mode in ("tp", "ddp-tp", "fsdp2-tp", "fsdp2-ep"):
        lay_out(model, mode, world)
    if mode in ("fsdp2", "hsdp"):
        shape = mesh_shape(mode, world)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    if name != "muon-lite":
        groups = param_groups(model, head=model.head, matrix_rule="soap")
        moments: Moments = "sharded" if name == SHARDED else "owner"
        return model, SOAPLITE(groups, LR, process_group=group, moments=moments, **settings)
    groups = param_groups(model, head=model.head)
    return model, MuonLITE(groups, LR, ns_dtype="float32", process_group=group, **settings)


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        g = torch.randn(p.shape, generator=generator)
        p.grad = distribute_tensor(g, p.device_mesh, p.placements, src_data_rank=None) if isinstance(p, DTensor) else g


class Wire:
    """Counts the collectives of the optimizer and the bytes that this rank sends to others."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes = 0
        self._own = dist.all_to_all_single, exchange._all_gather_single, dist.all_reduce

    def __enter__(self) -> Wire:
        to_all, gather, reduce = self._own

        def all_to_all(out: Tensor, x: Tensor, sizes: Any, split: list[int], **options: Any) -> Any:
            own = split[dist.get_rank(options["group"])]
            return self._count("all-to-all", sum(split) - own, to_all(out, x, sizes, split, **options))

        def all_gather(out: Tensor, x: Tensor, **options: Any) -> Any:
            return self._count("all-gather", out.numel() - x.numel(), gather(out, x, **options))

        def all_reduce(x: Tensor, **options: Any) -> Any:
            size = dist.get_world_size(options["group"])
            return self._count("all-reduce", 2 * (size - 1) * x.nbytes // size, reduce(x, **options))

        dist.all_to_all_single, exchange._all_gather_single, dist.all_reduce = all_to_all, all_gather, all_reduce
        return self

    def __exit__(self, *_: Any) -> None:
        dist.all_to_all_single, exchange._all_gather_single, dist.all_reduce = self._own

    def _count(self, kind: str, sent: int, work: Any) -> Any:
        self.calls[kind] += 1
        self.bytes += sent
        return work


def whole(p: Tensor) -> Tensor:
    return p.detach().full_tensor() if isinstance(p, DTensor) else p.detach()


def measure(name: str, mode: str, world: int, reference: list[Tensor]) -> dict[str, Any]:
    model, optimizer = build(name, mode, world, exchange="exact")
    for step in range(STEPS):
        set_gradients(model, step)
        optimizer.step()
    pairs = zip(model.parameters(), reference, strict=True)
    found: dict[str, Any] = {"deviation": max(float((whole(p) - q).norm() / q.norm()) for p, q in pairs)}
    set_gradients(model, STEPS)
    with FlopCounterMode(display=False) as flops:
        optimizer.step()
    found["flops"] = flops.get_total_flops()
    states = [optimizer.state.get(p, {}) for g in optimizer.param_groups if g["rule"] != "adamw" for p in g["params"]]
    found["state"] = sum(local_part(x).nbytes for state in states for x in state.values())
    for dtype in DTYPES[name]:
        model, optimizer = build(name, mode, world, exchange=dtype)
        set_gradients(model, 0)
        optimizer.step()
        set_gradients(model, 1)
        with Wire() as wire:
            optimizer.step()
        found[dtype] = {"bytes": wire.bytes, "calls": dict(wire.calls)}
    return found


def step_times(name: str, modes: list[str], world: int) -> dict[str, float]:
    """Median time of a step in seconds, the modes taking turns."""
    built = {mode: build(name, mode, world) for mode in modes}
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    for step in range(TIMED + 1):
        for mode, (model, optimizer) in built.items():
            set_gradients(model, step)
            dist.barrier()
            start = time.perf_counter()
            optimizer.step()
            optimizer.check_gradients()
            times[mode].append(time.perf_counter() - start)
    return {mode: statistics.median(each[1:]) for mode, each in times.items()}


def one_process(name: str, like: str) -> tuple[list[Tensor], int]:
    model, optimizer = build(name, "one", 1, like=like)
    for step in range(STEPS):
        set_gradients(model, step)
        optimizer.step()
    set_gradients(model, STEPS)
    after = [p.detach().clone() for p in model.parameters()]
    with FlopCounterMode(display=False) as flops:
        optimizer.step()
    return after, flops.get_total_flops()


def on_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store-{world}", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    merged = {}
    for name in DTYPES:
        modes = [mode for mode in MODES if (name, mode) != (SHARDED, "ddp") and min(mesh_shape(mode, world)) > 1]
        references = {like: one_process(name, like) for like in ("fsdp2", "fsdp2-ep")}
        found, work = {}, {}
        for mode in modes:
            reference, work[mode] = references[mode if mode in references else "fsdp2"]
            found[mode] = measure(name, mode, world, reference)
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, found)
        ranks = {mode: [each[mode] for each in everyone] for mode in found}
        merged[name] = {"ranks": ranks, "one process": work, "seconds": step_times(name, modes, world)}
    if rank == 0:
        Path(folder, f"{world}.json").write_text(json.dumps(merged))
    dist.destroy_process_group()


def matrices(hidden: int, ffn: int, layers: int, narrow: int) -> list[tuple[int, int]]:
    own = [(hidden, hidden)] * 2 + [(narrow, hidden)] * 2 + [(ffn, hidden)] * 2 + [(hidden, ffn)]
    return own * layers


def newton_schulz_flops(rows: int, columns: int) -> float:
    """FLOPs of msign(M̃) and msign(g), six steps, by the cheaper form (docs/guides/several_ranks)."""
    short, long = sorted((rows, columns))
    step = 4 * short * short * long + 2 * short**3
    pair = 4 * short * short * long + 10 * short**3
    return 2 * (3 * pair if long >= 1.9 * short else 6 * step)


def divided(shapes: list[tuple[int, int]], costs: list[float], world: int) -> tuple[list[float], list[int]]:
    """Cost of every rank's matrices, and the owner of each matrix."""
    mesh, division = RankMesh(tuple(range(world))), Division()
    items = [WorkItem(Sharding(mesh, shape), cost, False) for shape, cost in zip(shapes, costs, strict=True)]
    owners = division.divide(items)
    return division.loads(mesh), [own[0].rank for own in owners]


def prediction(name: str, world: int) -> dict[str, float]:
    """Costs of one rank and step under FSDP2, bfloat16 messages; computed from shapes and the division of the work."""
    shapes = matrices(*LLAMAS[name])
    loads, _ = divided(shapes, [newton_schulz_flops(*shape) for shape in shapes], world)
    numbers = sum(m * n for m, n in shapes)
    largest = max(m * n for m, n in shapes)
    return {
        "flops of the busiest rank": max(loads),
        "its share of one process": max(loads) / sum(loads),
        "bytes sent per rank": 4 * HALF * numbers * (world - 1) / world**2,
        "momentum per rank, bytes": 4 * numbers / world,
        "largest whole matrix, bytes": 4 * largest,
    }


def soap_prediction(name: str, world: int) -> dict[str, float]:
    """Predicted costs of SOAP-LITE under FSDP2, float32 messages, with its moments on owners and in shards.

    Messages are those of the largest megabatch on the rank that owns most of it: in both directions.
    """
    shapes = matrices(*LLAMAS[name])
    metric = EigenbasisMoment(beta2=0.95, mask=CoordinateMask(sharp_fraction=0.1))
    loads, owners = divided(shapes, [metric.cost(*shape) for shape in shapes], world)
    moments, factors = [0.0] * world, [0.0] * world
    for (m, n), owner in zip(shapes, owners, strict=True):
        sizes = {key: x.nbytes for key, x in metric.initial(torch.empty(m, n, device="meta")).items()}
        moments[owner] += 2 * sizes["v"]  # momentum has as many bytes
        factors[owner] += sum(sizes.values()) - sizes["v"]
    both = [a + b for a, b in zip(moments, factors, strict=True)]
    once = 4 * sum(m * n for m, n in shapes) * (world - 1) / world**2  # each number there or back, float32
    owned = Counter(zip(shapes, owners, strict=True))
    largest = 0
    for m, n in set(shapes):
        chunks = math.ceil(shapes.count((m, n)) * m * n / world / LARGEST_MEGABATCH)
        most = max(count for (shape, _), count in owned.items() if shape == (m, n))
        largest = max(largest, math.ceil(most / chunks) * m * n)
    found = {
        "operations of the busiest rank": max(loads),
        "its share of one process": max(loads) / sum(loads),
        "state of a rank, mean": sum(both) / world,
    }
    for layout, transfers, state in (
        ("owner", 3, max(both)),  # g, W there, W back
        ("sharded", 7, max(factors) + sum(moments) / world),  # m and v there and back as well
    ):
        messages = 4 * transfers * largest
        found |= {
            f"{layout}, bytes sent per rank": transfers * once,
            f"{layout}, state of the busiest rank": state,
            f"{layout}, messages of the largest megabatch": messages,
            f"{layout}, both": state + messages,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write rows {name, value, unit} to this file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def row(name: str, value: float, unit: str) -> None:
        rows.append({"name": name, "value": value, "unit": unit})
        print(f"{name:84} {value:14.6g} {unit}", flush=True)

    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, gloo, 1 thread per rank")
    shapes = matrices(HIDDEN, FFN, LAYERS, HIDDEN)
    numbers, classes = sum(m * n for m, n in shapes), len({*shapes, (VOCABULARY, HIDDEN), (HIDDEN,)})
    with tempfile.TemporaryDirectory() as folder:
        for world in (2, 4):
            spawn(on_rank, (world, folder), world)
            merged = json.loads(Path(folder, f"{world}.json").read_text())
            for name, dtypes in DTYPES.items():
                found, rule = merged[name], "" if name == "muon-lite" else f"/{name}"
                for mode, ranks in found["ranks"].items():
                    end = f"{mode}/{world}{rule}"
                    row(f"deviation_vs_one_process/{end}", max(each["deviation"] for each in ranks), "relative")
                    calls = ranks[0]["exact"]["calls"]
                    row(f"collectives_per_step/{end}", sum(calls.values()), str(calls))
                    for dtype in dtypes:
                        row(f"bytes_per_rank/{end}/{dtype}", max(each[dtype]["bytes"] for each in ranks), "bytes")
                    work = max(x["flops"] for x in ranks) / found["one process"][mode]
                    row(f"matrix_work_per_rank/{end}", work, "of one")
                    row(f"matrix_state_per_rank/{end}", max(each["state"] for each in ranks), "bytes")
                    row(f"step_time/{end}", found["seconds"][mode] / found["seconds"]["fsdp2"], "of fsdp2's")
            share = numbers * (world - 1) / world
            row(f"bytes_formula/ddp/{world}/bfloat16", HALF * share, "bytes: each update once, U of every matrix")
            row(f"bytes_formula/fsdp2/{world}/bfloat16", 4 * HALF * share / world, "bytes: M̃, g, W there and U back")
            dion = 2 * HALF * share / world
            row(f"bytes_formula/dion/{world}", dion, "bytes: M̃ there and U back")
            sent = max(each["bfloat16"]["bytes"] for each in merged["muon-lite"]["ranks"]["fsdp2"])
            row(f"bytes_vs_dion/fsdp2/{world}", sent / dion, "ratio")
    row("shape_classes", classes, "matrices, embedding and head, norms")
    print("Computed, not measured: FSDP2, one rank and step")
    for name in LLAMAS:
        for world in (64, 1024):
            for what, value in prediction(name, world).items():
                row(f"prediction/muon-lite/{name}/{world}/{what}", value, "")
            for what, value in soap_prediction(name, world).items():
                row(f"prediction/soap-lite/{name}/{world}/{what}", value, "")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
