"""An optimizer of any package on the matrices, AdamW on the rest: each gives its results alone, and both resume."""

import copy

import pytest
import torch
from torch import nn

from rishd.pretraining.config import OptimizerConfig
from rishd.pretraining.config_files import ConfigError
from rishd.pretraining.optimizers import build_optimizer

SETTINGS = {"name": "torch.optim:SGD", "lr": 0.1, "settings": {"momentum": 0.9}, "matrices_only": True}


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(8, 6), nn.Linear(6, 5), nn.LayerNorm(5))


def train(model, optimizer, steps):
    for k in steps:
        torch.manual_seed(k)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()


def test_each_part_is_the_optimizer_alone():
    model, alone = model_of(), model_of()
    optimizer = build_optimizer(OptimizerConfig(**SETTINGS), model)
    matrices, rest = [alone[1].weight], [alone[0].weight, alone[1].bias, *alone[2].parameters()]
    parts = [
        torch.optim.SGD(matrices, 0.1, momentum=0.9, weight_decay=0.1),
        torch.optim.AdamW(rest, 0.1, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    for k in range(3):
        train(model, optimizer, [k])
        torch.manual_seed(k)
        for p in alone.parameters():
            p.grad = torch.randn_like(p)
        for part in parts:
            part.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), alone.parameters(), strict=True))


def test_it_resumes_and_schedulers_reach_both_parts():
    model = model_of()
    optimizer = build_optimizer(OptimizerConfig(**SETTINGS), model)
    train(model, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(model)
    second = build_optimizer(OptimizerConfig(**SETTINGS), other)
    second.load_state_dict(saved)
    train(model, optimizer, range(3, 6))
    train(other, second, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    for group in second.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in other.parameters()]
    train(other, second, [6])
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))


def test_lites_optimizers_have_groups_of_their_own():
    with pytest.raises(ConfigError, match="matrices_only has no meaning for muon-lite"):
        build_optimizer(OptimizerConfig(name="muon-lite", matrices_only=True), model_of())
