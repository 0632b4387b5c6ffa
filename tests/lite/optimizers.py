"""The optimizers under test and a small model for them."""

from functools import partial

import torch
from torch import nn

from examples.factored_moment import FactoredLITE
from examples.shampoo_lite import ShampooLITE as OwnShampoo
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
    param_groups,
)

# SOAP refreshes its bases often here, so that a few steps see all of it.
OPTIMIZERS = {
    "subspace": partial(MuonLITE, mask="subspace"),
    "threshold": partial(MuonLITE, mask="threshold"),
    "exact": partial(MuonLITE, mask="exact"),
    "soap": partial(SOAPLITE, precondition_frequency=2, beta_flat=0.5),
}

# Every rule and every code path through it; MuonLITE for AdamW groups too.
RULES = {
    "subspace": MuonLITE,
    "threshold": partial(MuonLITE, mask="threshold"),
    "exact": partial(MuonLITE, mask="exact"),
    "svd": partial(MuonLITE, ns_steps=0),
    "ablated": partial(MuonLITE, chi_sharp=0.5, float32_momentum=True),
    "tensors": partial(MuonLITE, capturable=True),
    "muon": Muon,
    "soap": partial(SOAPLITE, precondition_frequency=2),
    "soap base": partial(SOAP, precondition_frequency=2),
    "one-sided": partial(SOAPLITE, precondition_frequency=2, max_precondition_dim=10),
    "own": OwnShampoo,
    "factored": FactoredLITE,
}

# The other optimizers, each in the forms that take different code paths through a step.
FAMILY = {
    "adamw": partial(AdamWLITE, beta_flat=0.5),
    "lion": partial(LionLITE, beta_flat=0.5),
    "lion base": Lion,
    "normuon": NorMuonLITE,
    "normuon base": NorMuon,
    "graded": partial(MuonLITE, mask="graded"),
    "inside": partial(MuonLITE, damping="inside", beta_flat=4.0),
    "auto": partial(MuonLITE, chi="auto"),
    "soap, auto": partial(SOAPLITE, precondition_frequency=2, chi="auto", beta_flat=0.5),
    "shampoo": partial(ShampooLITE, precondition_frequency=2),
    "shampoo, newton": partial(ShampooLITE, precondition_frequency=1, root="newton", grafts=False, epsilon=1e-6),
    "shampoo base": partial(Shampoo, precondition_frequency=2),
    "kl-soap": partial(SOAPLITE, precondition_frequency=2, divergence="kl"),
    "kl-shampoo": partial(ShampooLITE, precondition_frequency=2, divergence="kl"),
}
RULES |= FAMILY


class Net(nn.Module):
    """Predicts tokens from tokens; has every kind of layer that a small model has."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 20, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.second(torch.relu(self.first(self.embedding(x))))))


def groups(model, make, **options):
    cls = getattr(make, "func", make)
    other = cls.rule if cls.takes_any_shape else "adamw"
    return param_groups(model, head=model.head, matrix_rule=cls.rule, other_rule=other, **options)


def build(make, lr=0.02, dtype=torch.float32, **settings):
    """A model, always the same, and its optimizer."""
    torch.manual_seed(0)
    model = Net().to(dtype)
    return model, make(groups(model, make), lr, **settings)


def loss_of(model, k):
    """Loss of the k-th batch."""
    x = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(k))
    return nn.functional.cross_entropy(model(x).flatten(0, 1).float(), x.roll(1, 1).flatten())


def train(model, optimizer, steps, start=0):
    for k in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, k).backward()
        optimizer.step()


def tensors(model, optimizer):
    """Parameters, and all state in their order."""
    state = [value for p in model.parameters() for value in optimizer.state.get(p, {}).values()]
    return [*model.parameters(), *state]


def copies(model, optimizer):
    return [x.detach().clone() for x in tensors(model, optimizer)]


def equal(before, after):
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
