"""Behaviour that scripts expect of any torch optimizer, for every LITE optimizer."""

import copy
import io
import pickle
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, ReduceLROnPlateau, SequentialLR
from torch.utils._python_dispatch import TorchDispatchMode

from lite import SOAP, SOAPLITE, LITESchedule, Muon, MuonLITE
from tests.lite.optimizers import OPTIMIZERS, Net, build, copies, equal, groups, loss_of, tensors, train


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


def through_a_file(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_resuming_continues_bit_for_bit(make, at, dtype):
    model, optimizer = build(make, dtype=dtype)
    train(model, optimizer, 7)
    first, first_optimizer = build(make, dtype=dtype)
    train(first, first_optimizer, at)
    saved = through_a_file({"model": first.state_dict(), "optimizer": first_optimizer.state_dict()})
    second, second_optimizer = build(make, dtype=dtype)
    second.load_state_dict(saved["model"])
    second_optimizer.load_state_dict(saved["optimizer"])
    train(second, second_optimizer, 7 - at, start=at)
    whole, resumed = tensors(model, optimizer), tensors(second, second_optimizer)
    assert equal(whole, resumed)
    assert [x.dtype for x in whole] == [x.dtype for x in resumed]


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_continue_alike(make, twin):
    both = build(make)
    train(*both, 3)
    other = twin(both)
    for model, optimizer in (both, other):
        train(model, optimizer, 2, start=3)
        optimizer.check_gradients()
    assert equal(tensors(*both), tensors(*other))


def test_closures_are_called_once_with_gradients_enabled(make):
    model, optimizer = build(make)
    other, other_optimizer = build(make)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, len(calls))
        loss.backward()
        calls.append(loss.item())
        return loss

    with torch.no_grad():
        returned = [optimizer.step(closure).item() for _ in range(3)]
    train(other, other_optimizer, 3)
    assert returned == calls and len(calls) == 3
    assert equal(tensors(model, optimizer), tensors(other, other_optimizer))
    assert optimizer.step() is None


@pytest.mark.parametrize("missing", [{0}, {1, 2}, {0, 3}])
def test_a_missing_gradient_leaves_parameter_and_state(make, missing):
    """Also at the very first step, and other parameters move as they would without it."""
    model, optimizer = build(make)
    for k in range(5):
        optimizer.zero_grad()
        loss_of(model, k).backward()
        before = model.second.weight.detach().clone()
        state = {key: value.clone() for key, value in optimizer.state.get(model.second.weight, {}).items()}
        if k in missing:
            model.second.weight.grad = None
        moved = model.norm.weight.detach().clone()
        optimizer.step()
        assert not torch.equal(moved, model.norm.weight)
        if k in missing:
            assert torch.equal(before, model.second.weight)
            assert all(torch.equal(v, optimizer.state[model.second.weight][key]) for key, v in state.items())
    assert not torch.equal(before, model.second.weight) or 4 in missing
    assert all(x.isfinite().all() for x in tensors(model, optimizer))


def test_frozen_parameters_stay(make):
    model, optimizer = build(make)
    model.first.weight.requires_grad_(False)
    model.embedding.weight.requires_grad_(False)
    before = model.first.weight.clone(), model.embedding.weight.clone()
    train(model, optimizer, 3)
    assert torch.equal(before[0], model.first.weight) and torch.equal(before[1], model.embedding.weight)


def test_no_gradient_at_all_is_no_step(make):
    model, optimizer = build(make)
    before = copies(model, optimizer)
    assert optimizer.step() is None
    assert equal(before, tensors(model, optimizer))


def test_groups_with_settings_of_their_own_and_groups_added_later(make):
    model = Net()
    start = model.first.weight.detach().clone(), model.second.weight.detach().clone()
    optimizer = make([{"params": [model.first.weight], "lr": 0.0}], 0.02)
    vectors = [model.first.bias, model.norm.weight, model.norm.bias]
    optimizer.add_param_group({"params": [model.second.weight], "weight_decay": 0.5})
    train(model, optimizer, 2)
    optimizer.add_param_group({"params": vectors, "rule": "adamw"})
    bias = model.first.bias.detach().clone()
    train(model, optimizer, 2, start=2)
    assert torch.equal(start[0], model.first.weight)  # its learning rate is 0
    assert not torch.equal(start[1], model.second.weight)
    assert not torch.equal(bias, model.first.bias)
    other = make([{"params": [model.first.weight], "lr": 0.0}, {"params": [model.second.weight]}], 0.02)
    other.add_param_group({"params": vectors, "rule": "adamw"})
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert other.param_groups[1]["weight_decay"] == 0.5


def test_several_dtypes_and_shapes_in_one_group(make):
    torch.manual_seed(0)
    types = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    parameters = [nn.Parameter(torch.randn(6, 4).to(dtype)) for dtype in types for _ in range(2)]
    parameters += [nn.Parameter(torch.ones(*shape)) for shape in ((0, 3), (3, 0), (1, 5), (5, 1), (1, 1))]
    optimizer = make(parameters, 0.01)
    before = [p.detach().clone() for p in parameters]
    for _ in range(4):
        for p in parameters:
            p.grad = torch.randn(p.shape).to(p.dtype)
        optimizer.step()
    for old, p in zip(before, parameters, strict=True):
        assert p.isfinite().all() and p.dtype == old.dtype
        assert not p.numel() or not torch.equal(old, p)


def test_an_optimizer_of_empty_tensors_steps(make):
    p = nn.Parameter(torch.ones(0, 3))
    p.grad = torch.ones(0, 3)
    optimizer = make([p], 0.01)
    optimizer.step()
    optimizer.check_gradients()


def test_other_checkpoints_are_refused_with_the_difference(make):
    model, optimizer = build(make)
    train(model, optimizer, 2)
    saved = through_a_file(optimizer.state_dict())
    wider = Net()
    wider.second = nn.Linear(12, 9, bias=False)
    with pytest.raises(ValueError, match=r"has shape \(9, 12\), but its saved \w+ has \(8, 12\)"):
        make(groups(wider, make), 0.02).load_state_dict(saved)
    for name, other in OPTIMIZERS.items():
        if other is make:
            continue
        key = "rule" if (name == "soap") != (make is OPTIMIZERS["soap"]) else "mask"
        with pytest.raises(ValueError, match=rf"group 0 has {key} = .* in the checkpoint but .* here"):
            build(other)[1].load_state_dict(saved)
    model, optimizer = build(make)
    before = copies(model, optimizer)
    with pytest.raises(ValueError, match="parameter groups"):
        optimizer.load_state_dict({**saved, "param_groups": saved["param_groups"][:1]})
    assert equal(before, tensors(model, optimizer))  # a refused checkpoint changes nothing


def test_a_checkpoint_without_a_setting_keeps_the_optimizers_own(make):
    """As for checkpoints of an earlier version, which did not have it yet."""
    model, optimizer = build(make)
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["stochastic_rounding"], group["weight_decay"]
    other, other_optimizer = build(make, weight_decay=0.3)
    other.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(through_a_file(saved))
    assert {group["weight_decay"] for group in other_optimizer.param_groups} == {0.3}
    train(other, other_optimizer, 1, start=2)


def test_load_hooks_of_torch_have_their_say(make):
    """A hook that changes the loaded state, also its names, and one that sees and changes the state afterwards."""
    model, optimizer = build(make)
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        if "param_names" in group:
            group["param_names"] = [f"module.{name}" for name in group["param_names"]]
    seen = []

    def before(own, state_dict):
        changed = copy.deepcopy(state_dict)
        for group in changed["param_groups"]:
            if "param_names" in group:
                group["param_names"] = [name.removeprefix("module.") for name in group["param_names"]]
        for state in changed["state"].values():
            for x in state.values():
                x.zero_()
        return changed

    def after(own):
        seen.append([bool(x.any()) for state in own.state.values() for x in state.values()])
        for state in own.state.values():
            for x in state.values():
                x.fill_(1)

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
    optimizer.load_state_dict(saved)
    assert seen
    assert not any(seen[0])
    assert all(bool((x == 1).all()) for state in optimizer.state.values() for x in state.values())


def test_torch_schedulers_reach_every_group(make):
    model, optimizer = build(make)
    warm = LinearLR(optimizer, 0.1, total_iters=2)
    rates = SequentialLR(optimizer, [warm, CosineAnnealingLR(optimizer, 4)], [2])
    both = ChainedScheduler([rates, LITESchedule(optimizer, warmup_steps=2, total_steps=6)])
    seen = []
    for k in range(6):
        seen.append(optimizer.param_groups[-1]["lr"])
        train(model, optimizer, 1, start=k)
        both.step()
    assert seen == pytest.approx([0.002, 0.011, 0.02, 0.02 * 0.5 * (1 + 0.5**0.5), 0.01, 0.02 * 0.5 * (1 - 0.5**0.5)])
    assert {group["lr"] for group in optimizer.param_groups} == {optimizer.param_groups[0]["lr"]}
    plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    now = optimizer.param_groups[0]["lr"] = 0.02
    plateau.step(1.0), plateau.step(2.0)
    assert optimizer.param_groups[0]["lr"] == now / 2


def test_gradient_clipping_scales_what_the_rules_see(make):
    """AdamW's and SOAP's second moments show it; Muon's direction does not depend on the scale."""
    model, optimizer = build(make)
    loss_of(model, 0).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert norm > 1e-3
    optimizer.step()
    total = sum(float(optimizer.state[p]["v"].sum()) for p in (model.norm.weight, model.embedding.weight))
    grads = sum(float((p.grad**2).sum()) for p in (model.norm.weight, model.embedding.weight))
    assert total == pytest.approx(0.01 * grads, rel=1e-4)  # (1 − b₂)g²
    assert grads < 1e-6


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_grad_scaler_unscales_and_skips(make):
    scaled, scaled_optimizer = build(make)
    plain, plain_optimizer = build(make)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for k in range(4):
        scaled_optimizer.zero_grad()
        loss = scaler.scale(loss_of(scaled, k))
        loss.backward()
        if k == 2:
            scaled.second.weight.grad[0, 0] = float("inf")
            before = copies(scaled, scaled_optimizer)
        scaler.step(scaled_optimizer)
        scaler.update()
        if k == 2:
            assert equal(before, tensors(scaled, scaled_optimizer))
        else:
            train(plain, plain_optimizer, 1, start=k)
    assert scaler.get_scale() == 2.0**9
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_complex_and_sparse_are_refused(make):
    with pytest.raises(ValueError, match=r"parameter 0 is complex; optimize its real view"):
        make([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])
    table = nn.Embedding(4, 2, sparse=True)
    for optimizer in (make([table.weight]), make([{"params": [("table", table.weight)], "rule": "adamw"}])):
        optimizer.zero_grad()
        table(torch.tensor([1])).sum().backward()
        before = table.weight.detach().clone()
        with pytest.raises(ValueError, match="is sparse; dense ones are needed"):
            optimizer.step()
        assert torch.equal(before, table.weight)


def test_foreign_tensors_as_groups_are_refused(make):
    with pytest.raises(ValueError, match=r"shape \(3,\), but layout 'matrix' takes 2 dimensions"):
        make([nn.Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match=r"on_nonfinite = 'stop' is unknown\. Choose one of: raise, skip, ignore"):
        make([nn.Parameter(torch.ones(3, 3))], on_nonfinite="stop")


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_ratio_and_damping_it_is_the_base_bit_for_bit(name, dtype, decay):
    settings = {"weight_decay": decay} | ({"precondition_frequency": 2} if name == "soap" else {})
    runs = []
    off = {"chi": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0} | ({} if name == "soap" else {"mask": name})
    for cls, lite in ((SOAP if name == "soap" else Muon, {}), (OPTIMIZERS[name].func, off)):
        torch.manual_seed(0)
        model = Net().to(dtype)
        optimizer = cls(groups(model, OPTIMIZERS[name], chi=1.0), 0.02, **settings, **lite)
        train(model, optimizer, 5)
        runs.append(list(model.parameters()))
    assert equal(*runs)


class Counting(TorchDispatchMode):
    """Counts calls of operations."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_ratio_and_damping_it_costs_what_the_base_costs(name):
    """The same operations, call by call, and the same state except for the unused subspace or threshold."""
    calls = []
    off = {"chi": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0}
    base = partial(SOAP, precondition_frequency=2) if name == "soap" else Muon
    for cls, options in ((base, {}), (OPTIMIZERS[name], off), (OPTIMIZERS[name], {})):
        torch.manual_seed(0)
        model = Net()
        optimizer = cls(groups(model, OPTIMIZERS[name], chi=1.0 if options or not calls else None), 0.02, **options)
        train(model, optimizer, 2)
        loss_of(model, 2).backward()
        with Counting() as counting:
            optimizer.step()
        calls.append(counting.calls)
    assert calls[0] == calls[1]
    assert calls[0] != calls[2]  # LITE's own


def test_the_classes_are_what_they_say():
    assert MuonLITE([nn.Parameter(torch.ones(2, 2))]).defaults["mask"] == "subspace"
    assert SOAPLITE([nn.Parameter(torch.ones(2, 2))]).defaults["rule"] == "soap"
    assert {group["chi"] for group in SOAP([nn.Parameter(torch.ones(2, 2))]).param_groups} == {1.0}
