"""What is checked on several ranks."""

import copy
import hashlib
import math
import warnings
import weakref

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

from lite import MuonLITE, NonFiniteError, QKClip
from lite.distributed import megabatch
from lite.distributed.exchange import Transfer
from lite.distributed.sharding import local_part
from tests.lite.distributed.models import FAMILY, OPTIMIZERS, SIZE, groups_of, loss_of, model_for, muon, train
from tests.lite.distributed.registry import check

STEPS = 10


def mode_of(model, mode, world, mesh=None):
    """A model laid out on ranks (by default all), the callable that runs it, and the optimizer's settings."""
    if mode == "ddp":
        group = dist.group.WORLD if mesh is None else mesh.get_group()
        return DistributedDataParallel(model, process_group=group), {"process_group": group}
    if mode == "hsdp":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicas", "shards"))
    elif mesh is None:
        mesh = init_device_mesh("cpu", (world,))
    for layer in [*model.layers, model.experts]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, {}


def modes(world):
    return ["hsdp"] if world == 4 else ["ddp", "fsdp"]


def whole(p):
    return p.detach().full_tensor() if isinstance(p, DTensor) else p.detach()


def distance(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((whole(p) - q.detach()).norm() / q.detach().norm()) for p, q in pairs)


def built(name, mode, rank, world, mesh=None, **settings):
    model = model_for()
    forward, own = mode_of(model, mode, world, mesh)
    return model, forward, OPTIMIZERS[name](groups_of(model, name), **own, **settings)


@check(1, 2, 4)
def equality(rank, world, folder):
    """Distance to one process after some steps, each rank having its part of the batch."""
    found = {}
    # "sharded soap" has the same bits as "soap", see sharded_moments
    for name in ("muon", "threshold", "soap", *(FAMILY if world == 2 else ())):
        alone = model_for()
        train(alone, OPTIMIZERS[name](groups_of(alone, name)), range(STEPS))
        for mode in modes(world):
            model, forward, optimizer = built(name, mode, rank, world)
            train(model, optimizer, range(STEPS), forward=forward, rank=rank, world=world)
            found[f"{name}/{mode}"] = distance(model, alone)
    return found


def lies_as_parameters(optimizer, parameters, keys):
    """Whether these states are sharded like their parameters."""
    return all(
        isinstance(p, DTensor) and getattr(optimizer.state[p].get(key), "placements", None) == p.placements
        for p in parameters
        for key in keys
    )


@check(2, 4)
def state_lies_once(rank, world, folder):
    """By optimizer and mode: elements of matrices' state on this rank and in one process, and the sharded states."""
    found = {}
    for name in ("muon", "threshold", "soap", "sharded soap"):
        for mode in modes(world):
            optimizer = built(name, mode, rank, world)[2]
            optimizer.init_state()
            matrices = [p for group in optimizer.param_groups if group["rule"] != "adamw" for p in group["params"]]
            others = [p for group in optimizer.param_groups if group["rule"] == "adamw" for p in group["params"]]
            local = [local_part(x) for p in matrices for x in optimizer.state[p].values()]
            alone = model_for()
            reference = OPTIMIZERS[name](groups_of(alone, name))
            reference.init_state()
            all_matrices = [p for group in reference.param_groups if group["rule"] != "adamw" for p in group["params"]]
            everything = sum(x.numel() for p in all_matrices for x in reference.state[p].values())
            found[f"{name}/{mode}"] = {
                "here": sum(x.numel() for x in local),
                "needed": everything,
                "sharded": lies_as_parameters(optimizer, matrices, optimizer.elementwise_state(optimizer.defaults)),
                "adamw sharded": lies_as_parameters(optimizer, others, ("momentum", "v")),
            }
    return found


@check(2, 4)
def collectives(rank, world, folder):
    """Collectives of one step by kind, and the numbers of shape classes."""
    found = {}
    for mode in modes(world):
        model, forward, optimizer = built("muon", mode, rank, world)
        train(model, optimizer, range(2), forward=forward, rank=rank, world=world)
        loss_of(forward, 2, rank, world).backward()
        with CommDebugMode() as counter:
            optimizer.step()
        shapes = {(group["rule"], tuple(p.shape)) for group in optimizer.param_groups for p in group["params"]}
        counts = {str(kind).rsplit(".", maxsplit=1)[-1]: count for kind, count in counter.get_comm_counts().items()}
        found[mode] = {"counts": counts, "classes": len(shapes)}
    return found


@check(2, 4)
def sharded_moments(rank, world, folder):
    """SOAP with moments on owners and in shards: digests, before and after a step with a NaN, and collectives."""
    found = {}
    for mode in modes(world):
        for name in ("soap", "sharded soap"):
            model, forward, optimizer = built(name, mode, rank, world, on_nonfinite="skip")
            train(model, optimizer, range(3), forward=forward, rank=rank, world=world)
            digests = [digest(all_state(model, optimizer))]
            loss_of(forward, 3, rank, world).backward()
            if rank == 0:
                local_part(model.layers[1].weight.grad).view(-1)[0] = float("nan")
            with CommDebugMode() as counter:
                optimizer.step()
            digests.append(digest(all_state(model, optimizer)))
            train(model, optimizer, range(4, 6), forward=forward, rank=rank, world=world)
            digests.append(digest(all_state(model, optimizer)))
            groups = optimizer.state_dict()["param_groups"]
            found[f"{mode}/{name}"] = {
                "digests": digests,
                "collectives": counter.get_total_counts(),
                "gradients": sorted({count for group in groups for count in group.get("steps", [])}),
            }
        settings = {"process_group": dist.group.WORLD} if mode == "ddp" else {}
        owner = OPTIMIZERS["soap"](groups_of(model, "soap"), **settings)
        owner.load_state_dict(optimizer.state_dict())  # only owners get whole moments, and must not wait for others
        found[f"{mode}/sharded soap"]["loaded by owners"] = digest(all_state(model, owner))
    return found


@check(2)
def overlap(rank, world, folder):
    """Order in which exchanges start, are waited for and computed on, and how many hold memory at a time."""
    events, transfers, alive = [], [], []
    start, wait = megabatch.all_to_all, Transfer.wait

    def all_to_all(*arguments):
        transfer = start(*arguments)
        transfer.number = len(transfers)
        transfers.append(weakref.ref(transfer))
        alive.append(sum(each() is not None for each in transfers))
        events.append(f"start {transfer.number}")
        return transfer

    def waits(transfer):
        events.append(f"wait {transfer.number}")
        return wait(transfer)

    model, forward, optimizer = built("muon", "fsdp", rank, world)
    train(model, optimizer, range(1), forward=forward, rank=rank, world=world)
    update = optimizer.owner_direct

    def owner_direct(*arguments, **named):
        events.append(f"compute {len(events)}")
        return update(*arguments, **named)

    optimizer.owner_direct, megabatch.all_to_all, Transfer.wait = owner_direct, all_to_all, waits
    try:
        train(model, optimizer, range(1, 2), forward=forward, rank=rank, world=world)
    finally:
        megabatch.all_to_all, Transfer.wait = start, wait
    return {"events": events, "most": max(alive, default=0)}


@check(2)
def bfloat16_exchange(rank, world, folder):
    """How far bfloat16 messages move float32 parameters, relative to how far they moved at all."""
    found = {}
    for mode in modes(world):
        ends = []
        for exchange in ("exact", "bfloat16"):
            model = model_for(torch.float32)
            start = [p.detach().clone() for p in model.parameters()]
            forward, own = mode_of(model, mode, world)
            optimizer = muon(groups_of(model, "muon"), exchange=exchange, ns_dtype="bfloat16", **own)
            train(model, optimizer, range(1), forward=forward, rank=rank, world=world)
            ends.append([whole(p) for p in model.parameters()])
        found[mode] = max(
            float((b - a).norm() / (a - x).norm()) for x, a, b in zip(start, *ends, strict=True) if a.ndim > 1
        )
    return found


@check(2, 4)
def replicas_stay_alike(rank, world, folder):
    """Digests of stochastically rounded bfloat16 parameters, although every rank has its own random numbers."""
    found = {}
    for name in ("muon", "soap", "sharded soap"):
        for mode in modes(world):
            model = model_for(torch.bfloat16)
            forward, own = mode_of(model, mode, world)
            optimizer = OPTIMIZERS[name](groups_of(model, name), stochastic_rounding=True, **own)
            torch.manual_seed(rank)
            train(model, optimizer, range(3), forward=forward, rank=rank, world=world)
            found[f"{name}/{mode}"] = digest({str(i): whole(p) for i, p in enumerate(model.parameters())})
    return found


class Attention(nn.Module):
    """Four query heads on two key heads, without a mask."""

    def __init__(self):
        super().__init__()
        self.head_dim = 3
        self.q_proj, self.k_proj = nn.Linear(SIZE, 12), nn.Linear(SIZE, 6)
        self.v_proj, self.o_proj = nn.Linear(SIZE, 6), nn.Linear(12, SIZE)

    def forward(self, x):
        layers = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (layer(x).unflatten(-1, (-1, 3)).transpose(1, 2) for layer in layers)
        return self.o_proj(scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(-2))


@check(2)
def qk_clip(rank, world, folder):
    """How far the clipped weights are from those of a model that sees all data on every rank."""

    def attention():
        torch.manual_seed(0)
        return nn.Sequential(Attention()).double()

    torch.manual_seed(1)
    x = torch.randn(world, 5, SIZE, dtype=torch.float64)
    found = {}
    for mode in ("ddp", "rows", "columns"):
        model, one = attention(), attention()
        forward = DistributedDataParallel(model) if mode == "ddp" else model
        if mode != "ddp":
            columns = {"shard_placement_fn": lambda p: Shard(p.ndim - 1) if p.shape[-1] % world == 0 else None}
            fully_shard(model, mesh=init_device_mesh("cpu", (world,)), **(columns if mode == "columns" else {}))
        for each, run, seen in ((model, forward, x[rank : rank + 1]), (one, one, x)):
            clip = QKClip(each, threshold=0.3)
            with clip.watching():
                run(seen)
            clip.step()
        found[mode] = {"apart": distance(model, one), "moved": distance(one, attention())}
    return found


def digest(tensors):
    """A hash of named tensors' bytes."""
    bytes_of = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        bytes_of.update(name.encode() + str((tuple(x.shape), x.dtype)).encode())
        bytes_of.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return bytes_of.hexdigest()


def state_of(model, optimizer):
    """Parameters and the optimizer's state of one process, by name."""
    return named_state(model, optimizer) | dict(model.named_parameters())


def named_state(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    return {f"{names[p]}:{key}": x for p, state in optimizer.state.items() for key, x in state.items()}


def all_state(model, optimizer, group=None):
    """Parameters and all optimizer state, whole, on every rank of a group, by default of all."""
    own = named_state(model, optimizer)
    tensors = {key: whole(x) if isinstance(x, DTensor) else x for key, x in own.items()}
    everyone = [None] * dist.get_world_size(group)
    mine = {key: x for key, x in tensors.items() if not isinstance(own[key], DTensor)}
    dist.all_gather_object(everyone, mine, group=group)
    for each in everyone:
        tensors |= each
    return tensors | {name: whole(p) for name, p in model.named_parameters()}


def plain(forward):
    return forward.module if isinstance(forward, DistributedDataParallel) else forward


@check(2, 4)
def none_on_some_ranks(rank, world, folder):
    """A gradient that is missing on the last rank: nobody hangs, and ranks agree."""
    found = {}
    for mode in modes(world):
        model, forward, optimizer = built("muon", mode, rank, world)
        train(model, optimizer, range(2), forward=forward, rank=rank, world=world)
        loss_of(forward, 2, rank, world).backward()
        before = {name: whole(p).clone() for name, p in model.named_parameters()}
        lost = ["layers.1.weight", "norm.weight", "experts.weight"]
        for name, p in model.named_parameters():
            if rank == world - 1 and name in lost:
                p.grad = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
            optimizer.check_gradients()
        steps = {tuple(group["steps"]) for group in optimizer.param_groups if "steps" in group}
        found[mode] = {
            "digest": digest(all_state(model, optimizer)),
            "steps": sorted(map(list, steps)),
            "moved": {name: not torch.equal(whole(p), before[name]) for name, p in model.named_parameters()},
            "warned": sorted(str(each.message) for each in caught if "synchronise" in str(each.message)),
            "again": train(model, optimizer, range(3, 5), forward=forward, rank=rank, world=world),
        }
    return found


@check(2, 4)
def bookkeeping(rank, world, folder):
    """Distance to one process and counted gradients when other operations come before or after a step."""

    def roll_back(model, optimizer, late, **where):
        train(model, optimizer, range(2), **where)
        saved = copy.deepcopy(optimizer.state_dict())
        train(model, optimizer, [2], **where)
        optimizer.load_state_dict(saved)
        train(model, optimizer, [3, 4], **where)

    def add_group(model, optimizer, late, **where):
        train(model, optimizer, [0], **where)
        optimizer.add_param_group(late)
        train(model, optimizer, [1, 2], **where)

    def shard_late(model, optimizer, late, **where):
        train(model, optimizer, range(3), **where)

    def steps(optimizer):
        return [group["steps"] for group in optimizer.param_groups if group["rule"] != "adamw"]

    found = {}
    for name in ("muon", "soap"):
        for way in (roll_back, add_group, shard_late):
            for mode in modes(world):
                model, alone = model_for(), model_for()
                late = [None, None]
                if way is shard_late:
                    if mode == "ddp":
                        continue
                    divided = OPTIMIZERS[name](groups_of(model, name))
                    forward, _ = mode_of(model, mode, world)
                    sharded = dict(model.named_parameters())
                    for group in divided.param_groups:  # as accelerate does in prepare()
                        group["params"] = [sharded[key] for key in group["param_names"]]
                else:
                    forward, settings = mode_of(model, mode, world)
                    own = groups_of(model, name)
                    late[0] = own.pop() if way is add_group else None
                    divided = OPTIMIZERS[name](own, **settings)
                kept = groups_of(alone, name)
                late[1] = kept.pop() if way is add_group else None
                optimizer = OPTIMIZERS[name](kept)
                way(alone, optimizer, late[1])
                way(model, divided, late[0], forward=forward, rank=rank, world=world)
                divided.state_dict()  # counts the last step
                found[f"{name}/{mode}/{way.__name__}"] = distance(model, alone), steps(divided) == steps(optimizer)
    return found


@check(2, 4)
def frozen_on_all_ranks(rank, world, folder):
    """Distance to one process with a matrix and a norm frozen for some of the steps; under DDP from the start."""

    def freeze(model, frozen):
        for name, p in model.named_parameters():
            if name in ("layers.2.weight", "norm.weight"):
                p.requires_grad_(not frozen)

    def run(model, optimizer, turns, **where):
        for frozen in turns:
            freeze(model, frozen)
            train(model, optimizer, range(2), **where)

    found = {}
    for mode in modes(world):
        turns = [True] if mode == "ddp" else [False, True, False]  # DDP forbids a change
        alone, model = model_for(), model_for()
        run(alone, muon(groups_of(alone, "muon")), turns)
        freeze(model, turns[0])
        forward, own = mode_of(model, mode, world)
        run(model, muon(groups_of(model, "muon"), **own), turns, forward=forward, rank=rank, world=world)
        found[mode] = distance(model, alone)
    return found


@check(2, 4)
def nonfinite_on_one_rank(rank, world, folder):
    """A NaN on the last rank, or a number whose square overflows: changes, errors and their time."""
    found = {}
    for policy, value in (("raise", math.nan), ("skip", math.nan), ("raise", 1e160)):
        for mode in modes(world):
            model, forward, optimizer = built("muon", mode, rank, world, on_nonfinite=policy)
            train(model, optimizer, range(2), forward=forward, rank=rank, world=world)
            loss_of(forward, 2, rank, world).backward()
            before = digest(all_state(model, optimizer))
            p = dict(model.named_parameters())["layers.1.weight"]
            if rank == world - 1:
                local_part(p.grad).view(-1)[0] = value
            optimizer.step()
            message = None
            try:
                train(model, optimizer, [3], forward=forward, rank=rank, world=world)
            except NonFiniteError as error:
                message = str(error)
            found[f"{policy}/{mode}/{value}"] = {
                "unchanged": digest(all_state(model, optimizer)) == before,
                "message": message,
            }
    return found


@check(2)
def formats_and_names(rank, world, folder):
    """Kernels in channels_last on all ranks against contiguous ones in one process, from that one's checkpoint.

    Its names have no wrapper prefix and are in another order.
    """
    found = {}
    for name in ("muon", "threshold", "soap"):
        kernels = [torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]

        def built_for(kernels, prefix, name=name, **settings):
            params = [(f"{prefix}{i}.weight", torch.nn.Parameter(kernel)) for i, kernel in kernels]
            group = {"params": params, "layout": "conv"}
            return params, OPTIMIZERS[name]([group], **settings)

        def run(params, optimizer, steps):
            for step in steps:
                for key, p in params:
                    seed = 10 * step + int(key.split(".")[-2])
                    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
                optimizer.step()

        plain, optimizer = built_for(list(enumerate(kernels)), "")
        run(plain, optimizer, range(3))
        kept = [(i, p.detach().to(memory_format=torch.channels_last)) for i, (_, p) in enumerate(plain)]
        other, other_optimizer = built_for(kept[::-1], "module.", process_group=dist.group.WORLD)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        run(plain, optimizer, range(3, 6))
        run(other, other_optimizer, range(3, 6))
        found[name] = {
            "distance": max(
                float((p - q).detach().abs().max()) for (_, p), (_, q) in zip(plain, other[::-1], strict=True)
            ),
            "kept": all(p.is_contiguous(memory_format=torch.channels_last) for _, p in other),
        }
    return found


def message_of(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except ValueError as error:
        return str(error)
    return None


@check(2)
def raised_sharp_fraction(rank, world, folder):
    """Message of a step after r exceeded the tracked directions, and whether the run continues with the old r."""
    found = {}
    for mode in ("ddp", "fsdp"):
        for loaded in (False, True):
            model, forward, optimizer = built("muon", mode, rank, world)
            train(model, optimizer, range(1), forward=forward, rank=rank, world=world)
            if loaded:
                saved = saved_state(model, optimizer, "plain")
                model, forward, optimizer = built("muon", mode, rank, world, sharp_fraction=0.9)
                optimizer.load_state_dict(saved["optimizer"])
            before = digest(all_state(model, optimizer))
            matrices = [group for group in optimizer.param_groups if group["rule"] != "adamw"]
            kept = [group["sharp_fraction"] for group in matrices]
            for group in matrices:
                group["sharp_fraction"] = 0.9
            message = message_of(train, model, optimizer, [1], forward=forward, rank=rank, world=world)
            unchanged = digest(all_state(model, optimizer)) == before
            for group, fraction in zip(matrices, kept, strict=True):
                group["sharp_fraction"] = fraction
            train(model, optimizer, range(2, 3), forward=forward, rank=rank, world=world)
            found[f"{mode}/{loaded}"] = {"message": message, "unchanged": unchanged}
    return found


@check(2, 4)
def groups_in_another_order(rank, world, folder):
    """Messages at construction, with groups in another order on the last rank and then in the same one."""

    def build(mode, reorder):
        model = model_for()
        own = mode_of(model, mode, world)[1]
        groups = groups_of(model, "muon")
        muon(groups[::-1] if reorder and rank == world - 1 else groups, **own)

    return [[message_of(build, mode, True), message_of(build, mode, False)] for mode in modes(world)]


class Travelling(MuonLITE):
    """A rule whose travelling state is not on shards."""

    travelling_state = ("rho",)


@check(4)
def unsupported_layouts(rank, world, folder):
    """Messages for a sum that is not reduced, for shards that are not DTensor's, and for FSDP1."""
    shape = (2, world // 2) if world >= 4 else (1, world)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
    ranks = init_device_mesh("cpu", (world,))
    w = torch.ones(8, 8)
    flat = nn.Parameter(torch.ones(4, 4))
    flat._fsdp_flattened = True
    partial = nn.Parameter(DTensor.from_local(w[:4], mesh, [Shard(0), Partial()], run_check=False))
    local = w[:1] if rank else w[:5]
    other = DTensor.from_local(local, ranks, [Shard(0)], run_check=False, shape=w.shape, stride=w.stride())
    cut = nn.Parameter(distribute_tensor(w, ranks, [Shard(0)]))
    return {
        "partial": message_of(lambda: MuonLITE([("w", partial)])),
        "partial with adamw": message_of(lambda: MuonLITE([{"params": [("w", partial)], "rule": "adamw"}])),
        "another shard": message_of(lambda: MuonLITE([("w", nn.Parameter(other))])),
        "not on shards": message_of(lambda: Travelling([("w", cut)], 0.1)),
        "fsdp1": message_of(lambda: MuonLITE([("w", flat)], process_group=dist.group.WORLD)),
    }


def saved_state(model, optimizer, way):
    if way == "plain":
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    options = StateDictOptions(flatten_optimizer_state_dict=way == "flat")
    parameters, state = get_state_dict(model, optimizer, options=options)
    return {"model": parameters, "optimizer": state}


def load(model, optimizer, folder, way, group=None):
    optimizer.init_state()
    state = saved_state(model, optimizer, way)
    dcp.load(state, checkpoint_id=folder, process_group=group)
    if way == "plain":
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return
    options = StateDictOptions(flatten_optimizer_state_dict=way == "flat")
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options
    )


# How each rule's state is saved; the state-dict functions are the same for all rules.
WAYS = {
    "muon": ("plain", "functions", "flat"),
    "soap": ("plain",),
    "sharded soap": ("plain",),
}
OTHER_LAYOUT = {"soap": "sharded soap", "sharded soap": "soap"}


def norms(model):
    return {key: float(whole(p).norm()) for key, p in model.named_parameters()}


def checkpoints_of_one_process(folder):
    """The digests of :func:`checkpoints` for its own saves, without torch.distributed."""
    found = {}
    for name in ("muon", "sharded soap"):
        model = model_for()
        optimizer = OPTIMIZERS[name](groups_of(model, name))
        train(model, optimizer, range(4))
        before = digest(state_of(model, optimizer))
        dcp.save(saved_state(model, optimizer, "plain"), checkpoint_id=folder / f"{name}-one-0-plain")
        train(model, optimizer, range(4, 6))
        found[f"{name}/one/0"] = {"saved": before, "end": norms(model)}
    return found


def saved_by(target):
    """Optimizer, mode, number of ranks and way of a saved folder."""
    name, mode, ranks, way = target.name.split("-")
    return name, mode, int(ranks), way


@check(1, 2, 4)
def checkpoints(rank, world, folder):
    """Digests of states saved here, of states loaded from other numbers of ranks, and of the continued runs."""
    found = {}
    for name, ways in WAYS.items():
        for mode in modes(world):
            if mode == "ddp" and name == "sharded soap":
                continue
            model, forward, optimizer = built(name, mode, rank, world)
            train(model, optimizer, range(4), forward=forward, rank=rank, world=world)
            before = digest(all_state(model, optimizer))
            saved = {way: folder / f"{name}-{mode}-{world}-{way}" for way in ways}
            for way, target in saved.items():
                dcp.save(saved_state(model, optimizer, way), checkpoint_id=target)
            train(model, optimizer, range(4, 6), forward=forward, rank=rank, world=world)
            found[f"{name}/{mode}/{world}"] = {"saved": before, "end": norms(model)}
    for target in sorted(folder.glob("*-*-*-*")):
        name, mode, ranks, way = saved_by(target)
        # 0 is one process without torch.distributed; by the state-dict functions from half as many only.
        others = {1: {1}, 2: {0, 1, 2}, 4: {1, 2}}[world]
        is_far = 4 * ranks == world  # of these, FSDP's alone
        if ranks not in others or (way != "plain" and 2 * ranks != world) or (is_far and mode != "fsdp"):
            continue
        here = OTHER_LAYOUT.get(name, name), mode if mode in modes(world) else "fsdp"
        found[f"{target.name} on {world} {here}"] = loaded_and_trained(target, *here, rank, world)
    return found


def loaded_and_trained(target, name, mode, rank, world, mesh=None):
    model, forward, optimizer = built(name, mode, rank, world, mesh)
    group = None if mesh is None else mesh.get_group()
    load(model, optimizer, target, saved_by(target)[-1], group)
    loaded = digest(all_state(model, optimizer, group))
    train(model, optimizer, range(4, 6), forward=forward, rank=rank, world=world)
    return {"loaded": loaded, "end": norms(model)}


@check(4)
def checkpoints_of_four_on_two(rank, world, folder):
    """The same of four ranks' checkpoints on two pairs of them, each of which trains a model of its own."""
    pair, found = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pairs", "ranks"))["ranks"], {}
    for target in sorted(folder.glob("*-*-4-plain")):
        found[f"{target.name} on 2"] = loaded_and_trained(target, saved_by(target)[0], "fsdp", rank % 2, 2, pair)
    return found


@check(2)
def asynchronous_checkpoint(rank, world, folder):
    """The content of an asynchronous save while training continued."""
    found = {}
    group = dist.new_group(backend="gloo")
    for mode in modes(world):
        model, forward, optimizer = built("muon", mode, rank, world)
        train(model, optimizer, range(3), forward=forward, rank=rank, world=world)
        before, target = digest(all_state(model, optimizer)), folder / f"async-{mode}-{world}"
        done = dcp.async_save(saved_state(model, optimizer, "plain"), checkpoint_id=target, process_group=group)
        train(model, optimizer, range(3, 5), forward=forward, rank=rank, world=world)
        done.result()
        model, forward, optimizer = built("muon", mode, rank, world)
        load(model, optimizer, target, "plain")
        found[mode] = [before, digest(all_state(model, optimizer))]
    return found


@check(2)
def refused_checkpoints(rank, world, folder):
    """Messages for one rank's part of a state, for the state of another mask and rule, and for another model's."""
    model, forward, optimizer = built("muon", "ddp", rank, world)
    train(model, optimizer, range(1), forward=forward, rank=rank, world=world)
    part = optimizer.state_dict()
    alone = model_for()
    reference = muon(groups_of(alone, "muon"))
    other = built("threshold", "ddp", rank, world)[2]
    other.init_state()
    parts = [None] * world
    dist.all_gather_object(parts, part)
    return {
        "another's part": message_of(lambda: optimizer.load_state_dict(parts[0])),
        "another model, not by dcp": [
            message_of(lambda name=name, mode=mode: narrower(name, mode, rank, world))
            for name, mode in (("muon", "ddp"), ("soap", "fsdp"))
        ],
        "a part": message_of(lambda: reference.load_state_dict(part)),
        "another mask": message_of(lambda: other.load_state_dict(part)),
        "another rule": message_of(lambda: built("soap", "ddp", rank, world)[2].load_state_dict(part)),
        "another model": another_model(rank, world, folder / "another", optimizer.state_dict()),
    }


def another_model_for():
    model = model_for()
    model.wide, model.narrow = nn.Linear(SIZE, 8, bias=False), nn.Linear(8, SIZE, bias=False)
    return model.to(torch.float64)


def narrower(name, mode, rank, world):
    """Load each rank's part of one model's state into an optimizer of another model whose other matrices are alike."""
    saved = built(name, mode, rank, world)[2]
    saved.init_state()
    model = another_model_for()
    own = mode_of(model, mode, world)[1]
    optimizer = OPTIMIZERS[name](groups_of(model, name), **own)
    optimizer.load_state_dict(saved.state_dict())


def another_model(rank, world, folder, state):
    dcp.save({"optimizer": state}, checkpoint_id=folder)
    model = another_model_for()
    optimizer = muon(groups_of(model, "muon"), process_group=dist.group.WORLD)
    optimizer.init_state()
    try:
        dcp.load({"optimizer": optimizer.state_dict()}, checkpoint_id=folder)
    except dcp.CheckpointException as error:
        return str(error)
    return None
