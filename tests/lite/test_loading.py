"""Loading checkpoints of the same model under other names or in another order, and damaged ones."""

import copy
import warnings

import pytest
import torch
from torch import nn

from lite import MuonLITE
from tests.lite.optimizers import OPTIMIZERS, Net, build, copies, equal, groups, tensors, train


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    @property
    def head(self):
        return self.model.head

    def forward(self, x):
        return self.model(x)


def compiled_inside(model):
    """One layer compiled, so that ``_orig_mod`` stands in the middle of its name; nothing is traced."""
    model.second = torch.compile(model.second, backend="eager")
    return model


WRAPPERS = {
    "plain": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled inside": compiled_inside,
    "wrapped": Wrapper,
    "parallel": nn.DataParallel,
    "compiled, parallel and wrapped": lambda model: Wrapper(nn.DataParallel(torch.compile(model, backend="eager"))),
}


def wrapped(make, how):
    """A model, always the same, in a wrapper, and its optimizer whose parameters have the wrapper's names."""
    plain, _ = build(make)
    names = {p: name for name, p in WRAPPERS[how](plain).named_parameters()}
    mine = groups(plain, make)
    for group in mine:
        group["params"] = [(names[p], p) for _, p in group["params"]]
    return plain, make(mine, 0.02)


def quietly(load, saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(saved)


@pytest.mark.parametrize("here", WRAPPERS)
@pytest.mark.parametrize("saved", WRAPPERS)
def test_wrappers_of_a_model_do_not_matter(saved, here):
    """Any combination of wrappers at saving and loading; then training continues bit for bit, without a warning."""
    make = OPTIMIZERS["soap"]  # refreshes in an order by names
    model, optimizer = wrapped(make, saved)
    train(model, optimizer, 3)
    other, other_optimizer = wrapped(make, here)
    names = [group["param_names"] for group in other_optimizer.param_groups]
    for p, q in zip(other.parameters(), model.parameters(), strict=True):
        p.data.copy_(q)
    quietly(other_optimizer.load_state_dict, copy.deepcopy(optimizer.state_dict()))
    assert [group["param_names"] for group in other_optimizer.param_groups] == names
    train(model, optimizer, 3, start=3)
    train(other, other_optimizer, 3, start=3)
    assert equal(tensors(model, optimizer), tensors(other, other_optimizer))


def shuffled(make, order):
    """The model of :func:`build` with groups and the parameters in them in another order."""
    model, _ = build(make)
    mine = groups(model, make)
    for group in mine:
        group["params"] = order(group["params"])
    return model, make(order(mine), 0.02)


def test_the_same_names_in_another_order_load_by_name(make):
    model, optimizer = build(make)
    train(model, optimizer, 3)
    other, other_optimizer = shuffled(make, lambda items: list(reversed(items)))
    other.load_state_dict(model.state_dict())
    quietly(other_optimizer.load_state_dict, copy.deepcopy(optimizer.state_dict()))
    assert equal(tensors(model, optimizer), tensors(other, other_optimizer))
    train(model, optimizer, 3, start=3)
    train(other, other_optimizer, 3, start=3)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)  # batches have another order


def test_counts_of_gradients_go_with_their_parameters():
    """SOAP needs them, since a matrix's first gradient only sets its basis."""
    a, b = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))
    make = OPTIMIZERS["soap"]
    optimizer = make([("a", a), ("b", b)], 0.1)
    for p in (b, None):
        if p is not None:
            p.grad = torch.randn(4, 4)
        optimizer.step()
    assert optimizer.param_groups[0]["steps"] == [0, 2]
    other = make([("b", b), ("a", a)], 0.1)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["steps"] == [2, 0]
    assert other.param_groups[0]["param_names"] == ["b", "a"]


def renamed(make, names):
    model, _ = build(make)
    mine = groups(model, make)
    for group in mine:
        group["params"] = [(names(name), p) for name, p in group["params"]]
    return model, make(mine, 0.02)


def test_other_names_of_equal_shapes_load_by_order_with_a_warning(make):
    model, optimizer = build(make)
    train(model, optimizer, 3)
    other, other_optimizer = renamed(make, lambda name: name.replace("first", "first_one"))
    other.load_state_dict(model.state_dict())
    with pytest.warns(
        UserWarning, match=r"2 parameters have other names .*\(first\.weight is first_one\.weight here\)"
    ) as caught:
        other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert caught[0].filename == __file__
    train(model, optimizer, 2, start=3)
    train(other, other_optimizer, 2, start=3)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["checkpoint", "here"])
def test_parameters_without_names_load_by_order(side):
    """As in torch's optimizers."""
    p = nn.Parameter(torch.randn(4, 6))
    both = [MuonLITE([("a", p)]), MuonLITE([p])]
    saver, loader = both if side == "here" else both[::-1]
    p.grad = torch.randn(4, 6)
    saver.step()
    quietly(loader.load_state_dict, saver.state_dict())
    assert equal(list(saver.state[p].values()), list(loader.state[p].values()))
    assert loader.param_groups[0].get("param_names") == (["a"] if side == "checkpoint" else None)


def without_second(model):
    del model.second
    return model


def swapped(model):
    """The two matrices under each other's names."""
    model.first, model.second = nn.Linear(12, 8), nn.Linear(8, 12, bias=False)
    return model


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            without_second,
            r"2 parameters in the checkpoint, 1 here\. Parameters only in the checkpoint: second\.weight\.",
        ),
        (swapped, r"parameter first\.weight has shape \(12, 8\), but its saved \w+ has \(8, 12\)|\(8, 12\).*\(12, 8\)"),
    ],
)
def test_other_models_are_refused_by_name(make, other, message):
    model, optimizer = build(make)
    train(model, optimizer, 2)
    changed = other(Net())
    before = optimizer.state_dict()
    target = make(groups(changed, make), 0.02)
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(before)
    assert not target.state


def test_a_parameter_of_another_group_is_refused_by_name():
    model = Net()
    named = dict(model.named_parameters())

    def optimizer(first, second):
        mine = [{"params": [(name, named[name]) for name in names]} for names in (first, second)]
        return MuonLITE(mine)

    saved = optimizer(["first.weight"], ["second.weight", "head.weight"]).state_dict()
    with pytest.raises(ValueError, match=r"parameter second\.weight is in group 1 .* but in group 0 .* here"):
        optimizer(["first.weight", "second.weight"], ["head.weight"]).load_state_dict(saved)


def test_plain_numbers_load_as_counts(make):
    """As in torch's optimizers."""
    model, optimizer = build(make)
    train(model, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        for key, value in state.items():
            if not value.ndim:
                state[key] = int(value) if key == "step" else float(value)
    other, other_optimizer = build(make)
    other.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(saved)
    assert equal(tensors(model, optimizer), tensors(other, other_optimizer))
    same = zip(tensors(model, optimizer), tensors(other, other_optimizer), strict=True)
    assert all(x.dtype == y.dtype for x, y in same)


VALUES = ({"a": 1}, [1.0], None, "x", True, 1.0, torch.tensor(1 + 2j), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_state_that_is_no_tensor_is_refused_by_key(make, value):
    """In every key of every rule; numbers are accepted only for counts and thresholds."""
    model, optimizer = build(make)
    train(model, optimizer, 2)
    before = copies(model, optimizer)
    clean = optimizer.state_dict()
    names = [name for group in clean["param_groups"] for name in group["param_names"]]
    for index, state in clean["state"].items():
        for key in state:
            if isinstance(value, float) and not state[key].ndim:
                continue
            damaged = {**clean, "state": {**clean["state"], index: {**state, key: value}}}
            with pytest.raises(ValueError) as refused:
                optimizer.load_state_dict(damaged)
            text = str(refused.value)
            assert f"parameter {names[index]} has {key} = " in text and "\n" not in text and len(text) < 300
    assert equal(before, tensors(model, optimizer))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: [], "must have a dict 'state' and a list 'param_groups'"),
        (lambda saved: {"state": saved["state"]}, "must have a dict 'state' and a list 'param_groups'"),
        (lambda saved: {**saved, "state": [1]}, "must have a dict 'state' and a list 'param_groups'"),
        (lambda saved: {**saved, "param_groups": [1] * 5}, "group 0 of the checkpoint has params = None; a list"),
        (lambda saved: damaged_group(saved, params=3), "group 0 of the checkpoint has params = 3; a list"),
        (lambda saved: damaged_group(saved, steps={"a": 1}), "group 0 of the checkpoint has steps = .*; a list"),
        (lambda saved: damaged_group(saved, steps=["a"]), "group 0 of the checkpoint has steps = .*; whole numbers"),
        (lambda saved: damaged_group(saved, param_names=["a"]), "group 0 of the checkpoint has 1 names for 2 param"),
        (lambda saved: {**saved, "state": {**saved["state"], 0: 1.0}}, r"parameter first\.weight has state 1\.0"),
        (lambda saved: {**saved, "state": {**saved["state"], 0: {1: 2}}}, r"parameter first\.weight has state \['1'\]"),
    ],
)
def test_damaged_checkpoints_are_refused(damage, message):
    model, optimizer = build(OPTIMIZERS["subspace"])
    train(model, optimizer, 1)
    before = copies(model, optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(damage(optimizer.state_dict()))
    assert equal(before, tensors(model, optimizer))


def damaged_group(saved, **values):
    return {**saved, "param_groups": [saved["param_groups"][0] | values, *saved["param_groups"][1:]]}
