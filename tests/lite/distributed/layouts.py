"""Layouts of the small model on four ranks, and what is checked of them; gradients are given."""

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from lite import MuonLITE, param_groups
from lite.distributed.sharding import local_part
from tests.lite.distributed.checks import STEPS, all_state, digest, distance, load, norms, saved_state
from tests.lite.distributed.models import OPTIMIZERS, groups_of, model_for
from tests.lite.distributed.registry import check

AGAIN, ROWS, COLUMNS, MIDDLE = Replicate(), Shard(0), Shard(1), Shard(2)
BY_ROWS = ("attention.out_proj.weight", "layers.1.weight", "layers.3.weight", "narrow.weight")  # RowwiseParallel


def tensor_parallel(name, p, row=ROWS, column=COLUMNS):
    """How tensor parallelism cuts a parameter: experts whole on ranks, vectors nowhere."""
    if p.ndim == 1:
        return AGAIN
    return column if name in BY_ROWS else row


def fsdp_of_tensor_parallel(name, p):
    """What ``fully_shard`` makes of a parameter that tensor parallelism has cut."""
    other = tensor_parallel(name, p)
    return (_StridedShard(0, split_factor=2) if other == ROWS else ROWS), other


# Shape of the mesh, and the placements of a parameter by its name. Some of its sizes are cut unevenly, or to nothing.
LAYOUTS = {
    "dp 2 x tp 2": ((2, 2), lambda name, p: (AGAIN, tensor_parallel(name, p))),
    "dp 2 x fsdp 2": ((2, 2), lambda name, p: (AGAIN, ROWS)),
    "fsdp 2 x tp 2": ((2, 2), fsdp_of_tensor_parallel),
    "fsdp 2 x ep 2": ((2, 2), lambda name, p: (COLUMNS, ROWS) if p.ndim == 3 else (ROWS, ROWS)),
    "tp 4": ((4,), lambda name, p: (tensor_parallel(name, p, MIDDLE if p.ndim == 3 else ROWS),)),
    "tp 2 x nothing x dp 2": ((2, 1, 2), lambda name, p: (tensor_parallel(name, p), ROWS, AGAIN)),
    "gaps": ((2, 2), lambda name, p: (_StridedShard(0, split_factor=3), AGAIN)),
}
SAVED = [layout for layout in LAYOUTS if layout != "gaps"]  # torch saves a shard as one box


def laid_out(model, layout):
    """The model with its parameters on a mesh of all ranks."""
    shape, placements = LAYOUTS[layout]
    mesh, made = init_device_mesh("cpu", shape), {}
    for name, p in model.named_parameters():
        made[p] = nn.Parameter(distribute_tensor(p.detach(), mesh, placements(name, p), src_data_rank=None))
    for module in model.modules():
        for key, p in module._parameters.items():
            module._parameters[key] = made.get(p)
    return model


def give_gradients(model, step):
    source = torch.Generator().manual_seed(step)
    for p in model.parameters():
        g = torch.randn(p.shape, generator=source, dtype=p.dtype)
        if isinstance(p, DTensor):
            g = distribute_tensor(g, p.device_mesh, p.placements, src_data_rank=None)
        p.grad = g


def train(model, optimizer, steps):
    for step in steps:
        for group in optimizer.param_groups:
            if group["rule"] != "adamw":
                group["chi"] = 1.5 + 0.1 * step
        give_gradients(model, step)
        optimizer.step()


def made(name, layout, **settings):
    model = model_for() if layout is None else laid_out(model_for(), layout)
    return model, OPTIMIZERS[name](groups_of(model, name), **settings)


@check(4)
def layouts(rank, world, folder):
    """By optimizer and layout: distance to one process, collectives, state on this rank, whether a NaN skips a step."""
    found = {}
    for name in ("muon", "sharded soap", "shampoo"):
        alone, reference = made(name, None)
        train(alone, reference, range(STEPS))
        for layout in LAYOUTS:
            model, optimizer = made(name, layout, on_nonfinite="skip")
            with CommDebugMode() as counter:
                train(model, optimizer, range(1))
            train(model, optimizer, range(1, STEPS))
            apart, before = distance(model, alone), digest(all_state(model, optimizer))
            give_gradients(model, STEPS)
            if rank == 2:
                local_part(model.layers[0].weight.grad)[0, 0] = float("nan")
            optimizer.step()
            found[f"{name}/{layout}"] = {
                "distance": apart,
                "collectives": {str(kind).rsplit(".", 1)[-1]: n for kind, n in counter.get_comm_counts().items()},
                "state": sum(local_part(x).numel() for state in optimizer.state.values() for x in state.values()),
                "skipped": digest(all_state(model, optimizer)) == before,
            }
    return found


@check(4)
def layout_checkpoints(rank, world, folder):
    """Digests of what each layout saves and what the next one loads of it, and the result of further training."""
    found = {}
    for name in ("muon", "sharded soap"):
        for layout, following in zip(SAVED, SAVED[1:] + SAVED[:1], strict=True):
            model, optimizer = made(name, layout)
            train(model, optimizer, range(3))
            target = folder / f"{name} from {layout}"
            dcp.save(saved_state(model, optimizer, "plain"), checkpoint_id=target)
            saved = digest(all_state(model, optimizer))
            train(model, optimizer, range(3, 5))
            end = norms(model)
            model, optimizer = made(name, following)
            load(model, optimizer, target, "plain")
            loaded = digest(all_state(model, optimizer))
            train(model, optimizer, range(3, 5))
            found[target.name] = {"saved": saved, "end": end, "loaded": loaded, "end of loaded": norms(model)}
    model, optimizer = made("muon", SAVED[0])
    load(model, optimizer, folder / "muon-one-0-plain", "plain")
    return found | {"of one process": digest(all_state(model, optimizer))}


class Block(nn.Module):
    """Two layers as a transformer has them, cut by columns and by rows."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, 12), nn.Linear(12, 8), nn.LayerNorm(8)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


def blocks():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).double()


@check(4)
def tensor_parallel_training(rank, world, folder):
    """Distance to one process of a model that torch has cut: tensor parallel, and with FSDP2 on the other axis."""
    found = {}
    for data in (1, world // 2):
        mesh = init_device_mesh("cpu", (data, world // data), mesh_dim_names=("data", "tensor"))
        model, alone = blocks(), blocks()
        for block in model:
            parallelize_module(block, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
            if data > 1:
                fully_shard(block, mesh=mesh["data"])
        optimizer, reference = (MuonLITE(param_groups(each), 0.02, ns_dtype="parameter") for each in (model, alone))
        for step in range(STEPS):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            for each, stepped, seen in (
                (model, optimizer, x.chunk(data)[mesh.get_local_rank("data")]),
                (alone, reference, x),
            ):
                stepped.zero_grad()
                each(seen).square().mean().backward()
                stepped.step()
        found[data] = distance(model, alone)
    return found


@check(2)
def replicas_beside_plain_tensors(rank, world, folder):
    """Distance to one process where one block's parameters are replicated DTensors, and the other's plain tensors."""
    model, alone = blocks(), blocks()
    mesh = init_device_mesh("cpu", (world,))
    for module in model[0].modules():
        for key, p in module._parameters.items():
            module._parameters[key] = nn.Parameter(distribute_tensor(p.detach(), mesh, [AGAIN]))
    for each in (model, alone):
        optimizer = MuonLITE(param_groups(each), 0.02, ns_dtype="parameter")
        for step in range(STEPS):
            give_gradients(each, step)
            optimizer.step()
    return distance(model, alone)
