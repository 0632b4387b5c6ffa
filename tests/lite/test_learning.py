"""Optimizers on a tiny language model, each at the best of a few learning rates."""

import functools

import pytest
import torch
from torch import nn

from lite import SOAP, SOAPLITE, Muon, MuonLITE, param_groups

VOCABULARY, WIDTH, CONTEXT, STEPS = 48, 48, 3, 80


class TinyLanguageModel(nn.Module):
    """The next token from the last three, by two residual layers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.mix = nn.Linear(CONTEXT * WIDTH, WIDTH, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = self.mix(self.embedding(tokens).flatten(-2))
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def text(source, teacher, count):
    """Contexts, Zipf-distributed, and a token that a fixed random network predicts after them."""
    zipf = 1.0 / torch.arange(1, VOCABULARY + 1)
    contexts = torch.multinomial(zipf, count * CONTEXT, replacement=True, generator=source).view(count, CONTEXT)
    with torch.no_grad():
        likely = (4.0 * teacher(contexts)).softmax(-1)
    return contexts, torch.multinomial(likely, 1, generator=source)[:, 0]


def validation_loss(name, lr, seed):
    torch.manual_seed(100 + seed)
    teacher, source = TinyLanguageModel(), torch.Generator().manual_seed(200 + seed)
    held_out = text(source, teacher, 2048)
    torch.manual_seed(seed)
    model = TinyLanguageModel()
    if name == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.1)
    else:
        kinds = {"muon": Muon, "muonlite": MuonLITE, "soap": SOAP, "soaplite": SOAPLITE}
        rule = name.removesuffix("lite")
        settings = {"ns_dtype": "float32"} if rule == "muon" else {}
        optimizer = kinds[name](param_groups(model, matrix_rule=rule), lr, **settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min((k + 1) / 8, (STEPS - k) / (STEPS - 8)))
    for _ in range(STEPS):
        contexts, targets = text(source, teacher, 256)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(contexts), targets).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(held_out[0]), held_out[1]))


# The best, measured, lies inside: AdamW and SOAP lose above and below 3e-2 and 2e-2, Muon from 4e-2 to 8e-2.
LEARNING_RATES = {
    "adamw": (1e-2, 3e-2, 1e-1),
    "muon": (2e-2, 4e-2),
    "muonlite": (1e-2, 2e-2),
    "soap": (2e-2, 4e-2),
    "soaplite": (1e-2, 2e-2),
}


@functools.cache
def best(name):
    """Loss at the best learning rate, mean over three models, texts and starts."""
    return min(sum(validation_loss(name, lr, seed) for seed in range(3)) / 3 for lr in LEARNING_RATES[name])


@pytest.mark.parametrize(("name", "base"), [("muonlite", "muon"), ("soaplite", "soap")])
def test_lite_learns_faster_than_its_base_and_adamw(name, base):
    """By 0.016 nats and more, measured; one seed alone differs by as much.

    Rounding changes no mean by more than 0.0005, measured with gradients perturbed in their last bits.
    """
    assert best(name) < best(base)
    assert best(name) < best("adamw")
