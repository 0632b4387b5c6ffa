"""``chi="auto"``: χ follows the hypergradient of the loss."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from discretizations import HypergradientRatio
from lite import (
    SOAPLITE,
    AdamWLITE,
    LionLITE,
    LITESchedule,
    MuonLITE,
    NorMuonLITE,
    ShampooLITE,
    param_groups,
)

EXACT = {"mask": "exact", "ns_steps": 0, "sharp_fraction": 0.3, "weight_decay": 0.0}
RULES = {
    "muon": partial(MuonLITE, **EXACT, beta_sharp=0.0, beta_flat=0.0),
    "damped": partial(MuonLITE, **EXACT),
    "inside": partial(MuonLITE, **EXACT, damping="inside"),
    "tracked": partial(MuonLITE, **(EXACT | {"mask": "subspace", "weight_decay": 0.1})),
    "normuon": partial(NorMuonLITE, **EXACT),
    "shampoo": partial(ShampooLITE, precondition_frequency=1, epsilon=1e-3, sharp_fraction=0.3),
    "soap": partial(SOAPLITE, precondition_frequency=10, sharp_fraction=0.3, beta_flat=0.5, weight_decay=0.0),
    "lion": partial(LionLITE, sharp_fraction=0.3),
}


def start(make, **settings):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(7, 5, dtype=torch.float64))
    return p, make([p], 0.005, **({"chi": "auto"} | settings))


def loss(p):
    x = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(7, 5)
    return ((p - x).square() * (1 + x.abs())).sum() + (p[:, 0] * p[:, 1]).square().sum()


def step(p, optimizer):
    p.grad = None
    loss(p).backward()
    optimizer.step()


@pytest.mark.parametrize("name", RULES)
def test_it_follows_the_derivative_of_the_loss_by_chi(name):
    """∂f(w_{k+1})/∂ log χ by central differences, from the same state with fixed χ, is what the next cosine has."""
    p, optimizer = start(RULES[name])
    for _ in range(8 if name == "soap" else 3):  # SOAP's thresholds first leave no coordinate flat
        step(p, optimizer)
    before = optimizer.state[p]["chi"].item()
    saved, w = copy.deepcopy(optimizer.state_dict()), p.detach().clone()
    step(p, optimizer)
    chi, flat_step = optimizer.state[p]["chi"].item(), optimizer.state[p]["flat_step"].clone()
    changes = []
    for factor in (math.exp(1e-4), math.exp(-1e-4)):
        other, fixed = start(RULES[name], chi=factor * chi)
        groups = [group | {"chi": factor * chi, "adapts_chi": False} for group in saved["param_groups"]]
        state = {0: {key: x for key, x in saved["state"][0].items() if key not in ("chi", "flat_step")}}
        fixed.load_state_dict({"state": state, "param_groups": groups})
        with torch.no_grad():
            other.copy_(w)
        step(other, fixed)
        changes.append(loss(other).item())
    p.grad = None
    loss(p).backward()
    size = optimizer.learning_rate(optimizer.param_groups[0], (7, 5))
    mass = optimizer.state[p].get("momentum_mass", torch.ones(())).item()
    inner = (p.grad.flatten() * flat_step.flatten()).sum().item()
    assert (changes[0] - changes[1]) / 2e-4 == pytest.approx(-size / mass * inner, rel=1e-4)
    optimizer.step()
    after = optimizer.state[p]["chi"].item()
    expected = chi * math.exp(0.5 * inner / (p.grad.norm() * flat_step.norm()).item())
    assert after == pytest.approx(min(max(expected, 1.0), 4.0), rel=1e-12)
    assert before != chi != after


def test_it_rises_while_the_gradient_persists_and_falls_when_it_turns():
    ratio, g = HypergradientRatio(rate=0.1, smallest=0.5, largest=3.0), torch.randn(2, 4, 3)
    memory = ratio.initial(g, batch=1)
    assert memory["chi"].tolist() == [0.5, 0.5] and not memory["flat_step"].any()
    assert torch.equal(ratio.followed(memory, g)["chi"], memory["chi"])  # no step yet
    seen = []
    for k in range(60):
        memory = ratio.followed(memory | {"flat_step": g}, g * torch.tensor([1.0, (-1.0) ** (k < 30)])[:, None, None])
        seen.append(memory["chi"].tolist())
    assert seen[0] == pytest.approx([0.5 * math.exp(0.1), 0.5])
    assert seen[-1] == [3.0, 3.0] and seen[29] == [3.0, 0.5]
    small = ratio.followed({"chi": torch.ones(2), "flat_step": 1e-30 * g}, 1e30 * g)["chi"]
    assert small.tolist() == pytest.approx([math.exp(0.1)] * 2)
    half = ratio.initial(g.to(torch.bfloat16), batch=1)
    assert half["chi"].dtype == torch.float32 and half["flat_step"].dtype == torch.bfloat16


def test_matrices_have_a_chi_of_their_own_and_other_parameters_keep_theirs():
    model = nn.ModuleDict({"e": nn.Embedding(6, 4), "a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    optimizer = MuonLITE(param_groups(model), 0.05, chi="auto")
    found = {group["kind"]: (group["chi"], group["adapts_chi"]) for group in optimizer.param_groups}
    assert found["matrix"] == (1.0, True) and found["embedding"] == (4.0, False)
    schedule = LITESchedule(optimizer, total_steps=20, warmup_steps=2)
    torch.manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    for sign in (1.0, 1.0, 1.0, -1.0):
        model["b"].weight.grad *= sign
        optimizer.step()
        schedule.step()
    one, two = (optimizer.state[model[name].weight]["chi"].item() for name in "ab")
    assert one > two >= 1.0
    assert next(g for g in optimizer.param_groups if g["kind"] == "matrix")["chi"] == 1.0
    assert "chi" not in optimizer.state[model["e"].weight]
    plain = MuonLITE([{"params": [nn.Parameter(torch.ones(3))], "rule": "adamw"}], chi="auto")
    assert (plain.param_groups[0]["chi"], plain.param_groups[0]["adapts_chi"]) == (1.0, False)


def test_a_skipped_step_leaves_chi():
    p, optimizer = start(RULES["muon"], on_nonfinite="skip")
    for _ in range(3):
        step(p, optimizer)
    before = {key: x.clone() for key, x in optimizer.state[p].items()}
    p.grad = torch.full_like(p, math.nan)
    optimizer.step()
    assert all(torch.equal(x, before[key]) for key, x in optimizer.state[p].items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(AdamWLITE, chi="auto"), "chi = 'auto' sets the χ of matrices, and AdamWLITE has none; give a number"),
        (partial(MuonLITE, chi="auto", norm="constant", weight_decay=0.0), "follows steps that are not normalised"),
        (partial(MuonLITE, chi="automatic"), "chi = 'automatic' must be a number: .* 'auto' adapts"),
    ],
)
def test_what_it_cannot_do_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(4, 3))], 0.1)
