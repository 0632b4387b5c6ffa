"""A small Llama on several ranks: DDP or FSDP2, gloo on CPUs or nccl on GPUs, checkpoints for any number of ranks.

    torchrun --standalone --nproc-per-node=2 examples/several_ranks.py --parallel fsdp2
    torchrun --standalone --nproc-per-node=4 examples/several_ranks.py --parallel ddp

Stop it at any time and run it again, with another number of ranks up to 16. Needs transformers.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from lite import SOAPLITE, MuonLITE, param_groups

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
BATCH, LENGTH = 16, 32  # sequences of all ranks together, and their tokens


def build(parallel, optimizer_name, device):
    """The model, the callable that runs it, and its optimizer."""
    torch.manual_seed(0)  # the same weights on every rank
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(device)
    forward, settings = model, {}
    if parallel == "ddp":
        forward = DistributedDataParallel(model)
        settings["process_group"] = dist.group.WORLD  # divide the matrices among the ranks
    else:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)  # the parameters are DTensors: the optimizer needs no group
    if optimizer_name == "soap":
        return model, forward, SOAPLITE(param_groups(model, matrix_rule="soap"), lr=3e-3, **settings)
    return model, forward, MuonLITE(param_groups(model), lr=3e-3, **settings)


def batch(step, device):
    """This rank's sequences: each token is the previous one plus a constant of the sequence."""
    generator = torch.Generator().manual_seed(step)
    start, stride = (torch.randint(SIZES["vocab_size"], (BATCH, 1), generator=generator) for _ in range(2))
    tokens = (start + stride * torch.arange(LENGTH)) % SIZES["vocab_size"]
    return tokens[dist.get_rank() :: dist.get_world_size()].to(device)


def last_checkpoint(folder):
    """The newest complete checkpoint: its metadata is written last."""
    whole = [path.parent for path in Path(folder).glob("step-*/.metadata")]
    return max(whole, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def train(arguments, device):
    """Train, or continue; returns this rank's losses."""
    model, forward, optimizer = build(arguments.parallel, arguments.optimizer, device)
    start, saved = 0, last_checkpoint(arguments.folder)
    if saved is not None:
        optimizer.init_state()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.load(state, checkpoint_id=saved)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = int(saved.name.removeprefix("step-"))

    # An asynchronous save communicates in the background, so it needs a separate group, which is gloo on GPUs too.
    background, saving = dist.new_group(backend="gloo"), None
    losses = []
    for step in range(start, arguments.steps):
        tokens = batch(step, device)
        loss = forward(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # all ranks raise a step later if a gradient was not finite on one of them
        losses.append(loss.detach())
        if (step + 1) % arguments.save_every == 0:
            optimizer.check_gradients()
            if saving is not None:
                saving.result()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            target = Path(arguments.folder) / f"step-{step + 1}"
            saving = dcp.async_save(state, checkpoint_id=target, process_group=background)
    if saving is not None:
        saving.result()
    return [float(loss) for loss in losses]


def main():
    """Run on this rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", choices=("ddp", "fsdp2"), default="fsdp2")
    parser.add_argument("--optimizer", choices=("muon", "soap"), default="muon")
    parser.add_argument("--steps", type=int, default=200, help="steps of the whole run")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--folder", default="runs/several_ranks", help="folder of the checkpoints")
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    if dist.get_world_size() > BATCH:
        raise SystemExit(f"{dist.get_world_size()} ranks, but a batch of {BATCH} sequences; start at most {BATCH}.")
    losses = train(arguments, device)
    if dist.get_rank() == 0:
        print(f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} steps" if losses else "the run was complete")
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the group; C++ then sometimes aborts Python's shutdown


if __name__ == "__main__":
    main()
