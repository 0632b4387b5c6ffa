"""Gradients that are not finite: raise, skip or ignore, for every LITE optimizer."""

import pytest
import torch
from torch import nn

from lite import SOAP, SOAPLITE, MuonLITE, NonFiniteError, check_finite_gradients
from lite.execution.finiteness import finite_per_tensor, largest_magnitude
from tests.lite.optimizers import OPTIMIZERS, RULES, build, copies, equal, loss_of, tensors, train

NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


def bad_step(model, optimizer, k, value, names=("second.weight",)):
    optimizer.zero_grad()
    loss_of(model, k).backward()
    for name in names:
        model.get_parameter(name).grad[0, 0] = value
    optimizer.step()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("at", [0, 3])
def test_the_next_step_raises_with_step_and_parameter(make, at, value):
    model, optimizer = build(make)
    optimizer.init_state()
    train(model, optimizer, at)
    before = copies(model, optimizer)
    bad_step(model, optimizer, at, value, ("second.weight", "head.weight"))
    assert equal(before, tensors(model, optimizer))  # of all parameters
    loss_of(model, at).backward()
    with pytest.raises(NonFiniteError, match=rf"at step {at} of this optimizer in second\.weight, head\.weight; lower"):
        optimizer.step()
    assert equal(before, tensors(model, optimizer))
    train(model, optimizer, 3, start=at)  # it is reported once; a caller may continue
    optimizer.check_gradients()
    assert not equal(before, tensors(model, optimizer))
    assert all(x.isfinite().all() for x in tensors(model, optimizer))


@pytest.mark.parametrize("at", [0, 3])
def test_skipped_steps_leave_everything_and_training_goes_on(make, at):
    model, optimizer = build(make, on_nonfinite="skip")
    optimizer.init_state()
    train(model, optimizer, at)
    before = copies(model, optimizer)
    for _ in range(3):
        bad_step(model, optimizer, at, NAN)
    optimizer.check_gradients()
    assert equal(before, tensors(model, optimizer))
    first = loss_of(model, 50).item()
    train(model, optimizer, 25, start=at)
    assert loss_of(model, 50).item() < first
    assert all(x.isfinite().all() for x in tensors(model, optimizer))


@pytest.mark.parametrize("rule", [SOAP, SOAPLITE])
def test_a_bad_first_gradient_does_not_stop_elongated_matrices(rule):
    """Their basis is first refreshed after enough gradients for regular factors, 64 here."""
    p = nn.Parameter(torch.ones(256, 4))
    optimizer = rule([p], 0.1, weight_decay=0.0, on_nonfinite="skip")
    moved = []
    for k in range(10):
        p.grad = torch.randn(256, 4, generator=torch.Generator().manual_seed(k))
        if k == 0:
            p.grad[3, 1] = NAN
        before = p.detach().clone()
        optimizer.step()
        moved.append(not torch.equal(before, p))
    assert moved == 2 * [False] + 8 * [True]  # the first usable gradient sets the basis


@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize("rule", [*RULES, "adamw"])
@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_a_skipped_step_is_as_if_it_had_not_been(rule, on_nonfinite, at):
    """To the last bit: bias correction, the schedule of refreshes and the first basis, also through a checkpoint."""
    gradients = torch.randn(12, 24, 10, generator=torch.Generator().manual_seed(1))
    runs = []
    for bad in ((), (at,), (at, at)):
        p, optimizer = one_parameter(rule, torch.float32, on_nonfinite=on_nonfinite)
        for k, g in enumerate(gradients):
            for _ in range(bad.count(k)):
                p.grad = torch.full_like(p, NAN)
                optimizer.step()
                if on_nonfinite == "raise":
                    with pytest.raises(NonFiniteError):
                        optimizer.check_gradients()
                elif len(bad) == 2:
                    optimizer.load_state_dict(optimizer.state_dict())
            p.grad = g.clone()
            optimizer.step()
        runs.append(state_of(p, optimizer))
    assert equal(runs[0], runs[1])
    assert equal(runs[0], runs[2])


def test_loading_an_earlier_state_takes_the_alarm_back(make):
    model, optimizer = build(make)
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    bad_step(model, optimizer, 2, NAN)
    optimizer.load_state_dict(saved)
    train(model, optimizer, 2, start=2)
    optimizer.check_gradients()


@pytest.mark.parametrize("mask", ["subspace", "threshold"])
def test_ignored_ones_reach_the_weights(mask):
    model, optimizer = build(OPTIMIZERS[mask], on_nonfinite="ignore")
    train(model, optimizer, 2)
    bad_step(model, optimizer, 2, NAN)
    optimizer.check_gradients()
    assert not model.second.weight.isfinite().all()
    assert model.first.weight.isfinite().all()


def test_check_gradients_asks_at_once(make):
    model, optimizer = build(make)
    train(model, optimizer, 2)
    optimizer.check_gradients()
    bad_step(model, optimizer, 2, NAN)
    with pytest.raises(NonFiniteError, match="at step 2"):
        optimizer.check_gradients()
    optimizer.check_gradients()


WIDE = (torch.float32, torch.bfloat16, torch.float64)  # float16's largest number can be squared in float32


def largest(dtype, entries=240):
    """Largest entries of a gradient whose squares can be summed, in the parameter's type."""
    limit = largest_magnitude(entries, torch.promote_types(dtype, torch.float32))
    return 0.99 * min(limit, torch.finfo(dtype).max)


def one_parameter(rule, dtype, **settings):
    """A matrix of a rule, or of AdamW, and its optimizer."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(24, 10).to(dtype))
    if rule == "adamw":
        return p, MuonLITE([{"params": [p], "rule": "adamw", "chi": 4.0}], **settings)
    return p, RULES[rule]([p], **settings)


def state_of(p, optimizer):
    return [x.detach().clone() for x in (p, *optimizer.state[p].values())]


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("rule", [*RULES, "adamw"])
def test_gradients_whose_squares_overflow_are_not_finite(rule, dtype):
    """Although finite: a spike, or many entries each of which could still be squared."""
    p, optimizer = one_parameter(rule, dtype, on_nonfinite="skip")
    p.grad = torch.randn_like(p)
    optimizer.step()
    before = state_of(p, optimizer)
    spike, many = torch.ones_like(p), torch.full_like(p, 3.0 * largest(dtype))
    spike[3, 4] = -4.0 * largest(dtype, entries=1)
    assert many.to(torch.promote_types(dtype, torch.float32)).square().isfinite().all()
    for bad in (spike, many):
        p.grad = bad.clone()
        optimizer.step()
        assert equal(before, state_of(p, optimizer))
        with pytest.raises(NonFiniteError, match=r"non-finite \(or its squares overflow\) at step 7 in w;"):
            check_finite_gradients([("w", p)], step=7)
    p.grad = torch.randn_like(p)
    optimizer.step()
    assert not equal(before, state_of(p, optimizer))
    assert all(x.isfinite().all() for x in state_of(p, optimizer))
    p, optimizer = one_parameter(rule, dtype)  # raise
    p.grad = many.clone()
    optimizer.step()
    with pytest.raises(NonFiniteError, match="at step 0 of this optimizer in 0; lower"):
        optimizer.check_gradients()


@pytest.mark.parametrize("dtype", [*WIDE, torch.float16])
@pytest.mark.parametrize("rule", [*RULES, "adamw"])
def test_the_largest_gradients_that_count_as_finite_keep_everything_finite(rule, dtype):
    p, optimizer = one_parameter(rule, dtype)
    for k in range(12):
        signs = torch.randint(0, 2, p.shape, generator=torch.Generator().manual_seed(k // 4)) * 2 - 1
        p.grad = (largest(dtype) * signs.double()).to(dtype)
        check_finite_gradients([("w", p)])
        optimizer.step()
    optimizer.check_gradients()
    assert all(x.isfinite().all() for x in state_of(p, optimizer))


def test_a_rule_that_computes_in_a_narrower_type_than_the_parameters():
    """Newton–Schulz in bfloat16 or float32 on float64 parameters has float32's range."""
    for ns_dtype in ("bfloat16", "float32"):
        p = nn.Parameter(torch.ones(6, 4, dtype=torch.float64))
        optimizer = MuonLITE([p], ns_dtype=ns_dtype, on_nonfinite="skip")
        p.grad = torch.full_like(p, 1e30)
        optimizer.step()
        assert (p == 1).all()


def test_large_finite_gradients_are_no_alarm(make):
    model, optimizer = build(make)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e15)
    optimizer.step()
    optimizer.check_gradients()


def test_long_lists_are_cut():
    parameters = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(7)]
    optimizer = MuonLITE(parameters)
    for p in parameters:
        p.grad = torch.full_like(p, NAN)
    optimizer.step()
    with pytest.raises(NonFiniteError, match=r"in 0, 1, 2, 3, 4 and 2 more; lower"):
        optimizer.check_gradients()


def test_half_precision_gradients_that_overflow_are_found():
    p = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.float16))
    optimizer = MuonLITE([p], on_nonfinite="skip")
    p.grad = torch.full_like(p, 60000.0) * 2  # beyond float16
    optimizer.step()
    assert torch.equal(p, torch.ones_like(p))
    p.grad = torch.full_like(p, 60000.0)  # its norm is beyond float16, its entries are not
    optimizer.step()
    assert not torch.equal(p, torch.ones_like(p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_bad_number_is_found_in_tensors_of_any_size(dtype, value):
    """Large tensors are checked one by one on a CPU, small ones together."""
    tensors = [
        torch.full(shape, largest(dtype, 7000), dtype=dtype) for shape in ((3,), (70, 100), (0, 4), (2, 2), (5000,))
    ]
    assert finite_per_tensor(tensors).all()
    for i in (0, 1, 3, 4):
        spoiled = [x.clone() for x in tensors]
        spoiled[i].view(-1)[-1] = value
        assert finite_per_tensor(spoiled).tolist() == [j != i for j in range(5)]


def test_shards_are_judged_by_the_size_of_the_whole_tensor():
    whole = torch.full((64, 100), 1.5 * largest_magnitude(6400, torch.float32))
    assert not finite_per_tensor([whole]).any()
    assert finite_per_tensor([whole[:8]]).all()
    assert not finite_per_tensor([whole[:8]], entries=whole.numel()).any()
