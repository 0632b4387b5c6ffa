"""Settings as functions of the step: they act at their step, survive a checkpoint, and errors name bad ones."""

import copy

import pytest
import torch
from torch import nn

from lite import AdamWLITE, LITESchedule, MuonLITE, SettingSchedule, param_groups


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(8, 12), nn.Linear(12, 10, bias=False)).double()


def optimizer_of(model, **settings):
    return MuonLITE(param_groups(model), 0.05, **{"chi": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0, **settings})


def train(model, optimizer, steps, scheduler=None, each=lambda k, optimizer: None):
    for k in steps:
        each(k, optimizer)
        torch.manual_seed(100 + k)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def by_hand(k, optimizer):
    matrix = next(group for group in optimizer.param_groups if group["kind"] == "matrix")
    matrix |= {"chi": 1.5 - 0.2 * k, "beta_flat": 0.1 * k, "sharp_fraction": 0.5 if k < 3 else 0.2}


FUNCTIONS = {
    "chi": {"matrix": lambda k: 1.5 - 0.2 * k},  # through 1 to below it
    "beta_flat": {"matrix": lambda k: 0.1 * k},
    "sharp_fraction": {"matrix": lambda k: 0.5 if k < 3 else 0.2},
}


@pytest.mark.parametrize("mask", ["subspace", "exact", "random-redrawn"])
def test_settings_act_at_their_step(mask):
    """As if set by hand before each step; the group itself starts as plain Muon."""
    one, other = model_of(), model_of()
    scheduled = optimizer_of(one, mask=mask)
    train(one, scheduled, range(6), SettingSchedule(scheduled, **FUNCTIONS))
    manual = optimizer_of(other, mask=mask)
    for group in manual.param_groups:
        group["is_scheduled"] = group["kind"] == "matrix"
    train(other, manual, range(6), each=by_hand)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert scheduled.param_groups[0]["chi"] == pytest.approx(1.5 - 0.2 * 6)


def test_a_schedule_resumes():
    whole = model_of()
    optimizer = optimizer_of(whole)
    train(whole, optimizer, range(6), SettingSchedule(optimizer, **FUNCTIONS))
    model = model_of()
    first = optimizer_of(model)
    schedule = SettingSchedule(first, **FUNCTIONS)
    train(model, first, range(3), schedule)
    saved = copy.deepcopy((first.state_dict(), schedule.state_dict()))
    second = optimizer_of(model)
    resumed = SettingSchedule(second, **FUNCTIONS)
    second.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(model, second, range(3, 6), resumed)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        assert all(torch.equal(x, optimizer.state[q][key]) for key, x in second.state[p].items())


def test_a_constant_schedule_changes_nothing():
    one, other = model_of(), model_of()
    plain, scheduled = optimizer_of(one, chi=2.0), optimizer_of(other, chi=2.0)
    constant = {"chi": {"matrix": lambda _: 2.0}, "sharp_fraction": {1: lambda _: 0.1}}
    kinds = [group["kind"] for group in scheduled.param_groups]
    assert kinds == ["matrix", "embedding"]
    train(one, plain, range(4))
    train(other, scheduled, range(4), SettingSchedule(scheduled, **constant))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no setting is given"),
        ({"lr": lambda k: 1.0}, "setting = 'lr' is unknown|Choose"),
        ({"chi": 2.0}, "chi = 2.0 must be a function"),
        ({"chi": {"matrices": lambda k: 2.0}}, "chi is given for 'matrices', which is no group's kind or number"),
        ({"chi": {7: lambda k: 2.0}}, "no group's kind or number"),
        ({"chi": lambda k: -1.0}, "chi = -1.0 must be finite and at least 0: at step 0"),
        ({"beta_flat": lambda k: float("nan")}, "beta_flat = nan must be finite"),
        ({"sharp_fraction": lambda k: 2.0}, "sharp_fraction = 2.0 must be finite and between 0 and 1"),
        ({"chi": lambda k: "2"}, "chi = '2' must be a number: at step 0"),
    ],
)
def test_bad_schedules_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SettingSchedule(optimizer_of(model_of()), **settings)


def test_bad_values_are_named_with_their_step_and_change_nothing():
    optimizer = AdamWLITE(model_of().parameters())
    schedule = SettingSchedule(optimizer, chi=lambda k: 1.0 - 0.5 * k, beta_flat=lambda k: 0.1 * k)
    schedule.step()
    schedule.step()
    with pytest.raises(ValueError, match=r"chi = -0\.5 must be .* at step 3"):
        schedule.step()
    assert (optimizer.param_groups[0]["chi"], optimizer.param_groups[0]["beta_flat"]) == (0.0, 0.2)
    with pytest.raises(ValueError, match="has no chi in its groups"):
        SettingSchedule(torch.optim.SGD(model_of().parameters(), 0.1), chi=lambda k: 2.0)


def test_a_rising_sharp_fraction_is_refused_at_its_step():
    model = model_of()
    optimizer = optimizer_of(model, chi=2.0)
    schedule = SettingSchedule(optimizer, sharp_fraction={"matrix": lambda k: 0.2 + 0.2 * k})
    with pytest.raises(ValueError, match="sharp_fraction"):
        train(model, optimizer, range(3), schedule)


def test_the_published_schedule_refuses_a_chi_below_one():
    with pytest.raises(ValueError, match="below 1, where the published schedule"):
        LITESchedule(optimizer_of(model_of(), chi=0.5), total_steps=10, warmup_steps=1)
