"""Checkpoints with settings or state that no optimizer has: refused in one plain sentence before anything changes."""

import copy
import math
import re
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR
from torch.optim.swa_utils import SWALR

from lite import LITESchedule, MuonLITE
from tests.lite.optimizers import OPTIMIZERS, build, copies, equal, tensors, train

HUGE = 10**400


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


def refused(model, optimizer, damaged, *words):
    """The message of a refusal that leaves parameters, state and groups unchanged."""
    before, groups = copies(model, optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict(damaged)
    text = str(caught.value)
    for word in words:
        assert word in text, text
    assert text.isprintable() and len(text) < 500, text
    assert equal(before, tensors(model, optimizer))
    assert optimizer.state_dict()["param_groups"] == groups
    return text


def with_settings(saved, number, **settings):
    groups = list(saved["param_groups"])
    groups[number] = groups[number] | settings
    return {**saved, "param_groups": groups}


def with_state(saved, index, **state):
    return {**saved, "state": {**saved["state"], index: saved["state"][index] | state}}


NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    -1.5,
    HUGE,
    None,
    True,
    "0.5",
    [0.5],
    1j,
    torch.ones(2),
    torch.tensor(math.nan),
]
SETTINGS = {
    **dict.fromkeys(("lr", "weight_decay", "chi", "chi_sharp", "sharp_fraction", "beta_sharp", "beta_flat"), NUMBERS),
    **dict.fromkeys(("eps", "initial_lr", "peak_chi", "peak_beta_flat"), NUMBERS),
    "adamw_betas": [3, None, (0.9,), (0.9, 1.0), (0.9, math.nan), (False, 0.9), ("0.9", 0.9), (0.9, torch.ones(2))],
    "stochastic_rounding": [5, "yes", None, 1.0],
}
OF_RULES = {
    "muon": {
        "momentum": [math.nan, 1.0, 0.0, None, True, "0.5", HUGE],
        "ns_steps": [-1, 1.5, True, None, "6", HUGE],
        "ns_dtype": ["int8", None, 3],
        "mask": [None, "all", 3, torch.ones(2)],
        "float32_momentum": ["yes", 1, None],
    },
    "soap": {
        "betas": [3, (0.9, 1.0), (True, False), ("a", "b")],
        "precondition_frequency": [0, True, 2.5, None, HUGE],
        "max_precondition_dim": [0, True, "9", None],
    },
}


def test_settings_of_a_checkpoint_are_checked_as_those_of_new_groups(make):
    model, optimizer = build(make)
    train(model, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    matrices = next(i for i, group in enumerate(saved["param_groups"]) if group["rule"] != "adamw")
    for name, values in (SETTINGS | OF_RULES[optimizer.rule]).items():
        for value in values:
            words = () if name == "mask" else ("cannot be loaded: ",)
            text = refused(model, optimizer, with_settings(saved, matrices, **{name: value}), name, *words)
            assert text.startswith(f"group {matrices} ") and " checkpoint" in text
    refused(model, optimizer, with_settings(saved, 0, lr=-1), "group 0 of the checkpoint", "lr = -1 must be")
    refused(model, optimizer, with_settings(saved, 0, maximize=True, foreach=None), "['foreach', 'maximize']")
    refused(model, optimizer, with_settings(saved, 0, block_axis=-1), "block_axis = -1 in the checkpoint but -2 here")
    optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: LambdaLR(optimizer, lambda k: 0.5),
        lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=9, cycle_momentum=False),
        lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=9),
        lambda optimizer: CyclicLR(optimizer, 0.01, 0.1),
        lambda optimizer: SWALR(optimizer, 0.01),
        lambda optimizer: LITESchedule(optimizer, warmup_steps=1, total_steps=9),
    ],
    ids=["LambdaLR", "OneCycleLR", "OneCycleLR with momentum", "CyclicLR", "SWALR", "LITESchedule"],
)
def test_what_schedulers_leave_in_groups_loads(schedule):
    model, optimizer = build(OPTIMIZERS["subspace"])
    schedule(optimizer)
    train(model, optimizer, 1)
    _, other_optimizer = build(OPTIMIZERS["subspace"])
    other_optimizer.load_state_dict(optimizer.state_dict())
    assert other_optimizer.param_groups[0]["initial_lr"] == optimizer.param_groups[0]["initial_lr"]


def test_keys_of_a_copied_optimizer_and_of_ones_own_load(make):
    _, optimizer = build(make)
    again = copy.deepcopy(optimizer)
    again.add_param_group({"params": [("more", nn.Parameter(torch.ones(4, 4)))]})  # torch adds "differentiable"
    fresh = build(make)[1]
    fresh.add_param_group({"params": [("more", nn.Parameter(torch.ones(4, 4)))]})
    fresh.param_groups[0]["mine"] = torch.ones(2)
    saved = again.state_dict()
    fresh.load_state_dict(with_settings(saved, 0, mine=torch.zeros(2)))
    assert torch.equal(fresh.param_groups[0]["mine"], torch.zeros(2))


def test_checkpoints_without_a_setting_load(make):
    model, optimizer = build(make)
    train(model, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for name in ("stochastic_rounding", "chi_sharp", "eps", "ns_dtype", "max_precondition_dim", "block_axis"):
            group.pop(name, None)
    before = copy.deepcopy(optimizer.state_dict()["param_groups"])
    optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["param_groups"] == before


@pytest.mark.parametrize("index", [None, True, 1.0, [0], torch.tensor(0), (0,)], ids=repr)
def test_parameters_of_groups_are_plain_numbers_once(make, index):
    model, optimizer = build(make)
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    first, *others = saved["param_groups"][0]["params"]
    text = refused(model, optimizer, with_settings(saved, 0, params=[index, *others]), "group 0 of the checkpoint")
    assert "plain whole numbers" in text
    last = len(saved["param_groups"]) - 1
    twice = with_settings(saved, last, params=[first, *saved["param_groups"][last]["params"][1:]])
    refused(model, optimizer, twice, f"parameter {first} twice, in group 0 and in group {last}")
    refused(model, optimizer, with_settings(saved, 0, steps=[HUGE]), "group 0 of the checkpoint has steps")


TENSORS = {
    "sparse": lambda x: x.reshape(1, -1).to_sparse() if not x.ndim else x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "complex": lambda x: x.to(torch.complex64),
    "boolean": lambda x: x.bool(),
    "nan": lambda x: torch.full_like(x, math.nan),
    "one infinite": lambda x: torch.where(torch.arange(x.numel()).view(x.shape) == x.numel() - 1, math.inf, x),
    "minus infinity": lambda x: torch.full_like(x, -math.inf),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_state_that_no_optimizer_has_is_refused_by_key(make, kind):
    """In every key of every rule."""
    model, optimizer = build(make)
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    for index, state in saved["state"].items():
        for key, value in state.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's quantized tensors are deprecated
                bad = TENSORS[kind](value)
            refused(model, optimizer, with_state(saved, index, **{key: bad}), f"parameter {names[index]} has {key} = ")


MASSES = [-0.5, math.nan, math.inf, 1.5, HUGE, -HUGE]


@pytest.mark.parametrize("mass", MASSES, ids=lambda mass: "huge" if abs(mass) == HUGE else repr(mass))
def test_masses_that_are_none_are_refused(make, mass):
    model, optimizer = build(make)
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    tensor = [] if isinstance(mass, int) else [torch.tensor(mass)]
    for index, state in saved["state"].items():
        for key in (key for key in state if key.endswith("mass")):
            for value in (mass, *tensor):
                refused(model, optimizer, with_state(saved, index, **{key: value}), f"{names[index]} has {key} = ")


def test_masses_load_as_numbers(make):
    model, optimizer = build(make)
    train(model, optimizer, 1)
    saved = optimizer.state_dict()
    index = next(index for index, state in saved["state"].items() if "v_mass" in state)
    for mass in (0, 0.5, torch.tensor(0.5), torch.tensor(1), torch.tensor(1, dtype=torch.uint8)):
        optimizer.load_state_dict(with_state(saved, index, v_mass=mass))
        assert optimizer.state_dict()["state"][index]["v_mass"] == float(mass)


def named(names, seed=0, shape=(6, 4)):
    """An optimizer of matrices by name after a step, and its parameters."""
    torch.manual_seed(seed)
    params = {name: nn.Parameter(torch.randn(shape)) for name in names}
    optimizer = MuonLITE(list(params.items()), 0.1)
    for p in params.values():
        p.grad = torch.randn(shape)
    optimizer.step()
    return params, optimizer


def momenta(params, optimizer):
    return {name: optimizer.state[p]["momentum"] for name, p in params.items()}


@pytest.mark.parametrize(
    ("saved", "here", "pairs", "count"),
    [
        ("a b c d", "d a x c", {"x": "b"}, "1 parameter has another name"),
        ("a b c d", "x y d a", {"x": "b", "y": "c"}, "2 parameters have other names"),
        ("m.a m.b m.c", "c a x", {"x": "b"}, "1 parameter has another name"),  # inside a wrapper
        ("a b", "x y", {"x": "a", "y": "b"}, "2 parameters have other names"),
    ],
)
def test_renamed_parameters_match_by_order_behind_those_that_match_by_name(saved, here, pairs, count):
    params, optimizer = named(saved.split())
    other, other_optimizer = named(here.split(), seed=1)
    with pytest.warns(UserWarning, match=rf"^{count} in the checkpoint") as told:
        other_optimizer.load_state_dict(optimizer.state_dict())
    kept = len(other) - len(pairs)
    assert (f"by order and that of the other {kept} by name" in str(told[0].message)) == bool(kept)
    before, after = momenta(params, optimizer), momenta(other, other_optimizer)
    prefix = "m." if saved.startswith("m.") else ""
    for name, momentum in after.items():
        assert torch.equal(momentum, before[prefix + pairs.get(name, name)]), name


def test_a_renamed_parameter_of_another_shape_is_refused():
    _, optimizer = named(["a", "b"])
    p = {"a": nn.Parameter(torch.ones(6, 4)), "x": nn.Parameter(torch.ones(4, 6))}
    with pytest.raises(ValueError, match=r"parameter x \(loaded by order\) has shape \(4, 6\)"):
        MuonLITE(list(p.items())).load_state_dict(optimizer.state_dict())
    reshaped = {"a": nn.Parameter(torch.ones(4, 6)), "x": nn.Parameter(torch.ones(6, 4))}
    with pytest.raises(ValueError, match=r"parameter a has shape"):  # which matched by name
        MuonLITE(list(reshaped.items())).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.weight b.module.weight", "a.weight b.weight"),
        ("a.weight b.module.weight", "a.module.weight b.weight"),
        ("model.a.weight model.b.module.weight", "a.weight b.weight"),
        ("a.module.weight b.module.weight", "a.module.weight b.weight"),  # a's is its own
        ("_orig_mod.a.module.x.module.y b.z", "a.x.y b.z"),
    ],
)
def test_a_parallel_wrapper_inside_the_model_does_not_matter(first, second, turned):
    saved, here = (second, first) if turned else (first, second)
    params, optimizer = named(saved.split())
    other, other_optimizer = named(list(reversed(here.split())), seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other_optimizer.load_state_dict(optimizer.state_dict())
    before, after = momenta(params, optimizer), momenta(other, other_optimizer)
    for old, new in zip(saved.split(), here.split(), strict=True):
        assert torch.equal(before[old], after[new])


def test_a_component_module_of_the_model_is_told_from_the_one_beside_it():
    params, optimizer = named(["a.module.w", "a.w", "b"])
    other, other_optimizer = named(["a.w", "a.module.w", "c"], seed=1)
    with pytest.warns(UserWarning, match=re.escape("1 parameter has another name in the checkpoint (b is c here)")):
        other_optimizer.load_state_dict(optimizer.state_dict())
    before, after = momenta(params, optimizer), momenta(other, other_optimizer)
    assert all(torch.equal(before[old], after[new]) for old, new in (("a.w", "a.w"), ("a.module.w",) * 2, ("b", "c")))
