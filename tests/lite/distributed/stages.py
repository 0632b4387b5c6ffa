"""Stages of a pipeline, which agree on bad gradients, and compiled stages of a step."""

import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from lite import SOAPLITE, MuonLITE, NonFiniteError, param_groups
from lite.distributed.sharding import local_part
from tests.lite.distributed.checks import STEPS, distance, message_of
from tests.lite.distributed.layouts import blocks, give_gradients
from tests.lite.distributed.registry import check


def optimizer_of(model, rule="muon", **settings):
    if rule == "soap":
        return SOAPLITE(param_groups(model, matrix_rule="soap"), 0.02, precondition_frequency=2, **settings)
    return MuonLITE(param_groups(model), 0.02, ns_dtype="parameter", **settings)


def loss_of(y, target):
    return (y - target).square().mean()


def batch_of(step):
    return torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def run(schedule, rank, x, target):
    """Forward and backward passes of a pipeline of two stages."""
    if rank == 0:
        schedule.step(x)
    else:
        schedule.step(target=target, losses=[])


def after_a_bad_gradient(stage, optimizer, is_bad):
    """Whether a step with a NaN on one rank moved parameters here, and whether the next one did, or what it raised."""
    gradient = local_part(stage.up.weight.grad)
    kept, before = gradient.clone(), [local_part(p).detach().clone() for p in stage.parameters()]
    if is_bad:
        gradient[0, 0] = float("nan")
    moved, error = [], None
    for _ in range(2):
        try:
            optimizer.step()
        except NonFiniteError as raised:
            error = str(raised)
        moved.append(any(not torch.equal(a, local_part(b)) for a, b in zip(before, stage.parameters(), strict=True)))
        gradient.copy_(kept)
    return {"moved": moved, "error": error}


@check(2)
def pipeline(rank, world, folder):
    """By policy and stage with a bad gradient: distance to one process before, and what followed."""
    found = {}
    for policy in ("skip", "raise"):
        for bad in range(world):
            alone, stage = blocks(), blocks()[rank]
            reference = optimizer_of(alone)
            optimizer = optimizer_of(stage, on_nonfinite=policy, agreement_group=dist.group.WORLD)
            schedule = ScheduleGPipe(PipelineStage(stage, rank, world, torch.device("cpu")), 4, loss_fn=loss_of)
            for step in range(STEPS):
                for each in (reference, optimizer):
                    each.zero_grad()
                loss_of(alone(batch_of(step)[0]), batch_of(step)[1]).backward()
                run(schedule, rank, *batch_of(step))
                reference.step()
                optimizer.step()
            apart = distance(stage, alone[rank])
            found[f"{policy}/{bad}"] = after_a_bad_gradient(stage, optimizer, rank == bad) | {"distance": apart}
    settings = {"on_nonfinite": ("skip", "raise")[rank], "agreement_group": dist.group.WORLD}
    return found | {"other policies": message_of(lambda: optimizer_of(blocks()[rank], **settings))}


@check(4)
def parallel_stages(rank, world, folder):
    """The same where two ranks hold the first stage whole, and two have the second one cut, by the rank that is bad."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "data"))["data"]
    found = {}
    for bad in range(world):
        stage, settings = blocks()[rank // 2], {"agreement_group": dist.group.WORLD}
        if rank < 2:
            settings["process_group"] = mesh.get_group()
        else:
            fully_shard(stage, mesh=mesh)
        optimizer = optimizer_of(stage, **settings)
        give_gradients(stage, 0)
        found[bad] = after_a_bad_gradient(stage, optimizer, rank == bad)
    return found


@check(2)
def compiled_steps(rank, world, folder):
    """Distance between compiled and plain steps, and the number of graphs after each step; SOAP has a period of 2."""
    found = {}
    for rule, is_cut in (("muon", True), ("soap", False)):
        torch._dynamo.reset()
        counters.clear()
        runs, graphs = [], []
        for compiles in (False, True):
            model = blocks()
            optimizer = optimizer_of(model, rule, process_group=None if is_cut else dist.group.WORLD)
            if compiles:
                optimizer.compile(backend="eager", fullgraph=True)
            if is_cut:  # only now, as accelerate does in prepare()
                fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
                sharded = dict(model.named_parameters())
                for group in optimizer.param_groups:
                    group["params"] = [sharded[name] for name in group["param_names"]]
            runs.append((model, optimizer))
        for step in range(7):
            for model, optimizer in runs:
                for group in optimizer.param_groups:
                    group["lr"], group["chi"], group["weight_decay"] = (
                        0.02 / (step + 1),
                        1.5 + 0.1 * step,
                        0.1 + 0.01 * step,
                    )
                optimizer.zero_grad()
                loss_of(model(batch_of(step)[0]), batch_of(step)[1]).backward()
                optimizer.step()
            graphs.append(counters["stats"]["unique_graphs"])
        pairs = zip(*(each.parameters() for each, _ in runs), strict=True)
        found[rule] = {"graphs": graphs, "apart": max(float((p - q).detach().norm()) for p, q in pairs)}
    return found
