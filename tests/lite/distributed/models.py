"""A small model with every layout, and its optimizers; float64, to compare ranks with one process closely."""

import torch
from torch import nn

from lite import SOAPLITE, AdamWLITE, LionLITE, MuonLITE, NorMuonLITE, ShampooLITE, param_groups

SIZE, TOKENS, BATCH = 6, 11, 32


class Experts(nn.Module):
    """Mean of experts, their weights one stack; the module's ``num_experts`` identifies it."""

    def __init__(self, experts=3):
        super().__init__()
        self.num_experts = experts
        self.weight = nn.Parameter(0.4 * torch.randn(experts, SIZE, SIZE))

    def forward(self, x):
        return torch.einsum("...i,emi->...m", x, self.weight) / self.num_experts


class Net(nn.Module):
    """Embedding tied to the head, fused attention, convolution, linear layers of two shapes, a norm and experts."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, SIZE)
        self.attention = nn.MultiheadAttention(SIZE, 2, batch_first=True)
        self.convolution = nn.Conv1d(SIZE, SIZE, 3, padding=1)
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE, bias=i == 0) for i in range(4))
        self.wide, self.narrow = nn.Linear(SIZE, 9, bias=False), nn.Linear(9, SIZE, bias=False)
        self.norm = nn.LayerNorm(SIZE)
        self.experts = Experts()
        self.head = nn.Linear(SIZE, TOKENS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.convolution(x.mT).mT
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        x = x + self.narrow(torch.tanh(self.wide(x)))
        return self.head(self.norm(x + self.experts(x)))


def muon(groups, **settings):
    return MuonLITE(groups, 0.02, **{"ns_dtype": "parameter", **settings})


def threshold(groups, **settings):
    return muon(groups, mask="threshold", **settings)


def soap(groups, **settings):
    return SOAPLITE(groups, 0.02, precondition_frequency=2, **settings)


def sharded_soap(groups, **settings):
    return soap(groups, moments="sharded", **settings)


def normuon(groups, **settings):
    return NorMuonLITE(groups, 0.02, **{"ns_dtype": "parameter", **settings})


def lion(groups, **settings):
    return LionLITE(groups, 0.005, **settings)


def adamw(groups, **settings):
    return AdamWLITE(groups, 0.02, beta_flat=0.5, **settings)


def shampoo(groups, **settings):
    return ShampooLITE(groups, 0.02, precondition_frequency=2, epsilon=1e-4, **settings)


def kl_soap(groups, **settings):
    return soap(groups, divergence="kl", **settings)


def cautious(groups, **settings):
    return muon(groups, mask="graded", decay="cautious", **settings)


def sphere(groups, **settings):
    own = {"weight_decay": 0.0, "norm": "constant", "damping": "inside", "beta_flat": 4.0}
    return muon(groups, **own, **settings)


def auto(groups, **settings):
    return muon(groups, chi="auto", **settings)


FAMILY = {"normuon": normuon, "lion": lion, "adamw": adamw, "shampoo": shampoo, "kl soap": kl_soap}
FAMILY |= {"cautious": cautious, "sphere": sphere, "auto": auto}
OPTIMIZERS = {"muon": muon, "threshold": threshold, "soap": soap, "sharded soap": sharded_soap, **FAMILY}


def model_for(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype)


def groups_of(model, name, **settings):
    rule = "soap" if "soap" in name else "muon" if name in ("threshold", "cautious", "sphere", "auto") else name
    # Not Lion for biases: the gradient of attention's key bias is zero up to rounding, so its sign is random.
    return param_groups(model, head=model.head, matrix_rule=rule, **settings)


def loss_of(model, step, rank=0, world=1):
    """Mean loss of a rank's equal part of the step's batch."""
    tokens = torch.randint(0, TOKENS, (BATCH, 5), generator=torch.Generator().manual_seed(step)).chunk(world)[rank]
    logits = model(tokens).flatten(0, 1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(logits, tokens.roll(1, 1).flatten())


def train(model, optimizer, steps, *, forward=None, rank=0, world=1):
    """Some steps with χ changing as under a schedule."""
    for step in steps:
        for group in optimizer.param_groups:
            if group["rule"] != "adamw" and group["sharp_fraction"]:
                group["chi"] = 1.0 if step == 2 else 1.5 + 0.1 * step
        optimizer.zero_grad()
        loss_of(forward or model, step, rank, world).backward()
        optimizer.step()
