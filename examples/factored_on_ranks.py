"""FactoredLITE on several ranks under FSDP2 or DDP, saved and continued by torch.distributed.checkpoint."""

import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from examples.factored_moment import FactoredLITE
from lite import param_groups


def build(parallel=None):
    """The model, the callable that runs it, and its optimizer; in one process, or on the ranks of the default group."""
    torch.manual_seed(0)  # the same weights on every rank
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    forward, settings = model, {}
    if parallel == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    elif parallel == "ddp":
        forward, settings = DistributedDataParallel(model), {"process_group": dist.group.WORLD}
    groups = param_groups(model, matrix_rule="factored-moment")
    return model, forward, FactoredLITE(groups, lr=0.01, beta_flat=0.5, **settings)


def train(forward, optimizer, steps, rank=0, world=1):
    """Train for some steps, each rank on its part of the batch; returns the last loss of this rank."""
    loss = torch.zeros(())
    for step in steps:
        x = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))[rank::world]
        loss = nn.functional.mse_loss(forward(x), torch.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def state_of(model, optimizer):
    """Model and optimizer state, as a checkpoint holds them."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def load(model, optimizer, folder):
    """Continue from a checkpoint of any number of ranks."""
    optimizer.init_state()  # a fresh optimizer has no state to load into
    state = state_of(model, optimizer)
    dcp.load(state, checkpoint_id=folder)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


def on_rank(rank, world, folder, parallel="fsdp2"):
    """Train twelve steps in one go, then six and six with a checkpoint in between; both end with the same bits."""
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", world), rank=rank, world_size=world)
    whole, forward, optimizer = build(parallel)
    loss = train(forward, optimizer, range(12), rank, world)
    half, forward, optimizer = build(parallel)
    train(forward, optimizer, range(6), rank, world)
    dcp.save(state_of(half, optimizer), checkpoint_id=f"{folder}/half")
    resumed, forward, optimizer = build(parallel)
    load(resumed, optimizer, f"{folder}/half")
    assert train(forward, optimizer, range(6, 12), rank, world) == loss
    dcp.save(state_of(resumed, optimizer), checkpoint_id=f"{folder}/end")
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(*(x.full_tensor() if parallel == "fsdp2" else x for x in (p, q)))
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group; C++ then sometimes aborts Python's shutdown
