"""MuonLITE as a torch optimizer: state, resuming, schedules, refusals."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR

from lite import (
    LITESchedule,
    Muon,
    MuonLITE,
    NonFiniteError,
    check_finite_gradients,
    learning_rate_factor,
    param_groups,
)
from tests.lite.optimizers import Net

TOTAL, WARMUP = 12, 3


def build(cls=MuonLITE, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    model = Net().to(dtype)
    optimizer = cls(param_groups(model, head=model.head), 0.02, **settings)
    span = {"schedule": "cosine", "warmup_steps": WARMUP, "total_steps": TOTAL}
    schedulers = [LambdaLR(optimizer, lambda k: learning_rate_factor(k, **span))]
    if cls is MuonLITE:
        schedulers.append(LITESchedule(optimizer, **span))
    return model, optimizer, ChainedScheduler(schedulers)


def train(model, optimizer, scheduler, steps, start=0):
    for k in range(start, start + steps):
        x = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).flatten(0, 1).float(), x.roll(1, 1).flatten()).backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("mask", ["subspace", "threshold", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [0, 1, 5, 11])
def test_resuming_at_any_step_continues_bit_for_bit(at, dtype, mask):
    whole = build(dtype=dtype, mask=mask)
    train(*whole, TOTAL)

    first = build(dtype=dtype, mask=mask)
    train(*first, at)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = build(dtype=dtype, mask=mask)
    for part, saved in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(saved)
    train(*second, TOTAL - at, start=at)

    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)
    for p, q in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        for key, value in whole[1].state[p].items():
            assert torch.equal(value, second[1].state[q][key])
            assert value.dtype == second[1].state[q][key].dtype
    for a, b in zip(whole[1].param_groups, second[1].param_groups, strict=True):
        assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}


def test_state_is_tensors_and_keeps_float32_beside_bfloat16():
    model, optimizer, scheduler = build(dtype=torch.bfloat16, mask="threshold")
    train(model, optimizer, scheduler, 2)
    state = optimizer.state[model.embedding.weight]
    assert state["v"].dtype == torch.float32
    assert optimizer.state[model.first.weight]["rho"].dtype == torch.float32
    assert all(isinstance(v, torch.Tensor) for s in optimizer.state.values() for v in s.values())
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[model.embedding.weight]["v"].dtype == torch.float32


def test_init_state_creates_everything_before_the_first_step():
    model, optimizer, _ = build()
    optimizer.init_state()
    keys = {p: set(s) for p, s in optimizer.state.items()}
    assert len(keys) == len(list(model.parameters()))
    fresh = build()
    train(*fresh, 1)
    assert [set(s) for s in fresh[1].state.values()] == list(keys.values())


def test_schedule_reaches_its_published_values():
    model, optimizer, scheduler = build()
    seen = []
    for k in range(TOTAL + 5):
        matrix, embedding = optimizer.param_groups[0], optimizer.param_groups[1]
        seen.append((matrix["lr"], matrix["chi"], matrix["beta_flat"], embedding["chi"]))
        train(model, optimizer, scheduler, 1, start=k)
    lr, chi, beta_flat, embedding_chi = map(list, zip(*seen, strict=True))
    assert lr[0] == 0
    assert lr[WARMUP] == pytest.approx(0.02)
    assert lr[TOTAL] == pytest.approx(0.002)
    assert chi[: WARMUP + 1] == [1.0] * (WARMUP + 1)
    assert max(chi) > 1.3
    assert chi[TOTAL:] == pytest.approx([1.0] * 5)
    assert embedding_chi[0] == pytest.approx(4.0)
    assert embedding_chi[TOTAL] == pytest.approx(1.0)
    assert beta_flat[: WARMUP + 1] == [-0.25] * (WARMUP + 1)
    assert beta_flat[WARMUP + 4 :] == [1.0] * (TOTAL - WARMUP + 1)
    assert all(1 <= c <= 2 for c in chi)


def test_wsd_schedule():
    _, optimizer, _ = build()
    LITESchedule(optimizer, schedule="wsd", warmup_steps=2, total_steps=10)
    assert optimizer.param_groups[0]["chi"] == 2.0
    factors = [
        learning_rate_factor(k, schedule="wsd", warmup_steps=2, total_steps=10, min_ratio=0.0) for k in range(12)
    ]
    assert factors == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1, 1, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear", "warmup_steps": 1, "total_steps": 5}, "Choose one of: cosine, wsd"),
        ({"warmup_steps": 5, "total_steps": 5}, "below total_steps"),
        ({"warmup_steps": 1, "total_steps": 5, "min_ratio": 2.0}, "min_ratio"),
    ],
)
def test_bad_schedules_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LITESchedule(build()[1], **settings)
    with pytest.raises(ValueError, match="no chi"):
        LITESchedule(torch.optim.SGD(Net().parameters(), 0.1), warmup_steps=1, total_steps=5)


def test_closure_and_missing_gradients():
    model = Net()
    optimizer = MuonLITE(param_groups(model, head=model.head), 0.02)
    before = copy.deepcopy(model.state_dict())

    def closure():
        optimizer.zero_grad()
        loss = model.first(torch.ones(1, 8)).sum()
        loss.backward()
        return loss

    expected = nn.functional.linear(torch.ones(1, 8), before["first.weight"], before["first.bias"]).sum()
    assert optimizer.step(closure).item() == pytest.approx(float(expected))
    assert not torch.equal(model.first.weight, before["first.weight"])
    assert torch.equal(model.second.weight, before["second.weight"])  # its gradient was None
    assert model.second.weight not in optimizer.state


def test_frozen_parameters_are_left_out_of_groups():
    model = Net()
    model.embedding.weight.requires_grad_(False)
    grouped = [p for group in param_groups(model) for _, p in group["params"]]
    assert all(p is not model.embedding.weight for p in grouped)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        param_groups(model)


def test_checkpoints_of_other_optimizers_are_refused_with_the_difference():
    model, optimizer, scheduler = build()
    train(model, optimizer, scheduler, 1)
    saved = optimizer.state_dict()

    with pytest.raises(ValueError, match="mask = 'subspace' in the checkpoint but 'exact'"):
        build(mask="exact")[1].load_state_dict(saved)
    wider = Net()
    wider.second = nn.Linear(12, 9, bias=False)
    with pytest.raises(ValueError, match=r"has shape \(9, 12\), but its saved momentum has \(8, 12\)"):
        MuonLITE(param_groups(wider, head=wider.head), 0.02).load_state_dict(saved)
    smaller = Net()
    del smaller.second
    with pytest.raises(ValueError, match=r"2 parameters .* 1 here\. Parameters only in the checkpoint: second\.weight"):
        MuonLITE(param_groups(smaller, head=smaller.head), 0.02).load_state_dict(saved)
    with pytest.raises(ValueError, match="parameter groups"):
        MuonLITE([model.first.weight], 0.02).load_state_dict(saved)
    other = nn.Linear(4, 4, bias=False)
    adam = torch.optim.AdamW([other.weight])
    other.weight.grad = torch.ones(4, 4)
    adam.step()
    with pytest.raises(ValueError, match="rule = None in the checkpoint"):
        MuonLITE([other.weight]).load_state_dict(adam.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1}, r"lr = -0\.1 must be finite and at least 0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"chi": -0.9}, r"chi = -0\.9 must be finite and at least 0"),
        ({"beta_sharp": -1.0}, "must be above −1"),
        ({"beta_sharp": 0.5, "beta_flat": 0.0}, "is below beta_sharp"),
        ({"beta_flat": float("inf")}, "beta_flat = inf"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"sharp_fraction": 1.5}, "sharp_fraction"),
        ({"mask": "tracked"}, "Choose one of: exact, graded"),
        ({"ns_steps": -1}, "ns_steps"),
        ({"adamw_betas": (0.9, 1.0)}, "adamw_betas"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MuonLITE([nn.Parameter(torch.ones(2, 2))], **settings)


def test_parameters_that_the_rule_cannot_take_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\), but layout 'matrix' takes 2 dimensions"):
        MuonLITE([nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="complex"):
        MuonLITE([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])
    optimizer = MuonLITE([nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(ValueError, match="rule = 'soap' is unknown"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "rule": "soap"})
    assert len(optimizer.param_groups) == 1
    sparse = nn.Embedding(4, 2, sparse=True)
    optimizer = MuonLITE(param_groups(sparse))
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()


def test_muon_ignores_lite_settings_of_groups():
    model = Net()
    optimizer = Muon(param_groups(model), 0.01)
    assert {group["chi"] for group in optimizer.param_groups} == {1.0}
    assert {group["beta_flat"] for group in optimizer.param_groups} == {0.0}


def test_nonfinite_gradients_are_named_with_the_step():
    model = Net()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    check_finite_gradients(model.named_parameters())
    model.second.weight.grad[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"at step 7 in second\.weight; lower the learning rate"):
        check_finite_gradients(model.named_parameters(), step=7)
    model.second.weight.grad[0, 0] = 1e17
    check_finite_gradients(model.named_parameters())
    model.second.weight.grad[0, 0] = 1e30  # finite, but clipping and every rule would square it
    with pytest.raises(NonFiniteError, match=r"in second\.weight; lower the learning rate"):
        check_finite_gradients(model.named_parameters())


def test_chi_may_be_raised_at_any_step():
    p = nn.Parameter(torch.ones(3, 4))
    optimizer = MuonLITE([p], 0.01, chi=1.0, beta_sharp=0.0, beta_flat=0.0)
    for chi in (1.0, 2.0):
        optimizer.param_groups[0]["chi"] = chi
        p.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        optimizer.step()
    assert p.isfinite().all()


@pytest.mark.parametrize("mask", ["subspace", "threshold"])
@pytest.mark.parametrize("first", [0.0, 0.25])
def test_a_sharp_fraction_raised_beyond_its_state_is_refused_before_anything_moves(first, mask):
    """Also for matrices and vectors that come before the offending one."""
    source = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(8, n, generator=source)) for n in (8, 12)] + [nn.Parameter(torch.ones(8))]
    groups = [{"params": [parameters[2]], "rule": "adamw"}, {"params": [parameters[0]]}]
    optimizer = MuonLITE([*groups, {"params": [parameters[1]], "sharp_fraction": first}], 0.01, mask=mask)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=source)
    optimizer.step()
    before = [x.clone() for p in parameters for x in (p.detach(), *optimizer.state[p].values())]
    optimizer.param_groups[2]["sharp_fraction"] = 0.5
    if first and mask == "threshold":  # its threshold adapts to any rank
        optimizer.step()
        return
    with pytest.raises(ValueError, match=r"sharp_fraction = 0\.5 needs (4 directions, but [03]|a threshold)"):
        optimizer.step()
    after = [x for p in parameters for x in (p.detach(), *optimizer.state[p].values())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    optimizer.param_groups[2]["sharp_fraction"] = first / 2  # a smaller one needs nothing
    optimizer.step()
    optimizer.check_gradients()


@pytest.mark.parametrize("mask", ["subspace", "threshold"])
@pytest.mark.parametrize("lowered", [0.0, 0.25])
@pytest.mark.parametrize("blocks", [None, (4, 4)])  # a fused projection, whose parts have separate state
def test_a_checkpoint_after_a_lower_sharp_fraction_loads_and_goes_on(lowered, mask, blocks):
    ends = []
    for loads in (False, True):
        p = nn.Parameter(torch.ones(8, 12))
        groups = [{"params": [p], "blocks": blocks}]
        optimizer = MuonLITE(groups, 0.01, mask=mask, sharp_fraction=0.5)
        for k in range(4):
            if k == 2:
                optimizer.param_groups[0]["sharp_fraction"] = lowered
                saved = copy.deepcopy(optimizer.state_dict())
                if loads:
                    optimizer = MuonLITE([{"params": [p], "blocks": blocks}], 0.01, mask=mask, sharp_fraction=0.5)
                    optimizer.load_state_dict(saved)
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
            optimizer.step()
        ends.append(p.detach())
    assert torch.equal(*ends)
    saved["state"][0]["momentum"] = torch.zeros(8, 13)  # only what a lower fraction leaves may be wider
    with pytest.raises(ValueError, match="another model"):
        optimizer.load_state_dict(saved)


def test_the_ratio_of_sharp_directions_does_not_act_on_plain_matrices():
    """They have no sharp directions: routers and matrices of unknown type in an ablation do not change."""
    ends = []
    for chi_sharp in (0.0, 1.0):
        p = nn.Parameter(torch.ones(4, 6))
        optimizer = MuonLITE([{"params": [p], "sharp_fraction": 0.0}], 0.1, chi_sharp=chi_sharp)
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        ends.append(p.detach())
    assert torch.equal(*ends)


def test_float16_zero_gradients_stay_finite():
    p = nn.Parameter(torch.ones(3, 4, dtype=torch.float16))
    optimizer = MuonLITE([p], 0.01)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert p.isfinite().all()


def test_groups_added_after_the_schedule_join_it():
    model = Net()
    optimizer = MuonLITE([model.first.weight], 0.01)
    schedule = LITESchedule(optimizer, warmup_steps=2, total_steps=10)
    optimizer.add_param_group({"params": [model.second.weight], "initial_lr": 0.01})
    schedule.step()
    assert optimizer.param_groups[1]["peak_chi"] == 2.0


def test_warm_up_without_room_for_a_rise_keeps_beta_sharp():
    from lite.schedules import flat_damping

    span = {"schedule": "cosine", "warmup_steps": 20, "total_steps": 21}
    assert [flat_damping(k, -0.25, 1.0, **span) for k in (0, 19, 20)] == [-0.25, -0.25, 1.0]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"chii": 3.0}, "unknown settings"),
        ({"lr": None}, "lr = None must be a number"),
        ({"eps": 0.0}, "eps = 0"),
        ({"adamw_betas": (0.9, 0.9, 0.9)}, "two numbers"),
    ],
)
def test_bad_groups_are_refused(group, message):
    with pytest.raises(ValueError, match=message):
        MuonLITE([{"params": [nn.Parameter(torch.ones(2, 2))], **group}])
