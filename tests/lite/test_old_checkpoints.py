"""Checkpoints of version 0.1.0 load, and training continues as with the code that wrote them."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lite.optimizers import FAMILY, RULES

# Of each rule: state after 6 gradients, weights there, and weights after 6 more. Written by version 0.1.0, in float32.
SAVED = torch.load(Path(__file__).parent / "data" / "checkpoints_0.1.0.pt")


def gradients():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(24, 10, generator=generator), torch.randn(7, generator=generator)) for _ in range(12)]


def build(rule, weights):
    p, q = (nn.Parameter(w.clone()) for w in weights)
    groups = [{"params": [("matrix", p)]}, {"params": [("vector", q)], "rule": "adamw", "chi": 4.0}]
    return p, q, RULES[rule](groups)


@pytest.mark.parametrize("rule", SAVED)
def test_training_goes_on(rule):
    saved = SAVED[rule]
    p, q, optimizer = build(rule, saved["weights"])
    optimizer.load_state_dict(saved["state"])
    for matrix, vector in gradients()[6:]:
        p.grad, q.grad = matrix.clone(), vector.clone()
        optimizer.step()
    # Polar factors in bfloat16, where there are instructions for it, differ between processors by a per cent.
    rtol = 1e-5 if "soap" in rule or rule in ("svd", "one-sided", "own") else 3e-2
    for now, then, before in zip((p, q), saved["after"], saved["weights"], strict=True):
        moved = then - before
        assert float((now.detach() - then).norm()) <= (rtol if now is p else 1e-5) * float(moved.norm())


def test_every_rule_has_one():
    assert set(SAVED) == set(RULES) - {"factored", *FAMILY}  # which version 0.1.0 did not have


@pytest.mark.parametrize("count", [-5, 2.5, math.nan, 10**400, torch.tensor(-1.0), "six"])
def test_counts_that_are_none_are_refused(count):
    saved = SAVED["subspace"]
    *_, optimizer = build("subspace", saved["weights"])
    state = {index: dict(values) for index, values in saved["state"]["state"].items()}
    state[1]["step"] = count
    with pytest.raises(ValueError, match=r"parameter vector has step = .* where a number of steps"):
        optimizer.load_state_dict({**saved["state"], "state": state})
