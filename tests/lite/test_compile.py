"""Steps that are compiled, or recorded once and replayed: nothing is recompiled as training continues."""

import io
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LinearLR

from lite import SOAP, SOAPLITE, LITESchedule, Muon, MuonLITE, param_groups
from tests.lite.optimizers import OPTIMIZERS, Net, build, groups, loss_of, tensors, train
from tests.lite.recording import Recording
from tests.machines import needs_compiler

LAYOUTS = {  # shapes and layouts
    "matrices": ([(8, 12), (8, 12), (30, 6)], {}),
    "fused": ([(24, 8)], {"blocks": (8, 8, 8)}),
    "experts": ([(3, 6, 8)], {"layout": "experts", "blocks": (3, 3)}),
    "kernels": ([(4, 3, 2, 2)], {"layout": "conv"}),
    "vectors": ([(12,), (5, 7)], {"rule": "adamw", "chi": 4.0}),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def everything(make, **options):
    """Parameters of every layout, and their optimizer."""
    source = torch.Generator().manual_seed(0)
    described = [
        {"params": [nn.Parameter(torch.randn(shape, generator=source)) for shape in shapes], **settings}
        for shapes, settings in LAYOUTS.values()
    ]
    parameters = [p for group in described for p in group["params"]]
    return parameters, make(described, 0.02, **options)


def give_gradients(parameters, k):
    source = torch.Generator().manual_seed(k)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=source)


def same(a, b, atol=1e-5):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("mask", "way", "backend"),
    [
        ("subspace", "in place", "aot_eager"),
        ("subspace", "torch.compile", "aot_eager"),
        ("threshold", "in place", "eager"),
    ],
)
def test_one_graph_for_all_layouts_and_every_learning_rate(mask, way, backend):
    """AOTAutograd's view of memory too: blocks of one parameter are views that share it."""
    make = partial(MuonLITE, mask=mask, ns_dtype="float32")
    (plain, plain_optimizer), (parameters, optimizer) = everything(make), everything(make)
    if way == "in place":
        optimizer.compile(backend=backend, fullgraph=True)
        step = optimizer.step
    else:
        step = torch.compile(optimizer.step, backend=backend)
    for k in range(6):
        for each in (plain_optimizer, optimizer):
            for group in each.param_groups:
                group["lr"], group["weight_decay"] = 0.02 / (k + 1), 0.1 + 0.01 * k
                group["chi"], group["beta_flat"] = 2.0 + 0.1 * k, 1.0 - 0.1 * k
        give_gradients(plain, k), give_gradients(parameters, k)
        plain_optimizer.step()
        with torch._dynamo.config.patch(error_on_recompile=k > 0):
            step()
        assert graphs() == 1
        same(plain, parameters)
    optimizer.check_gradients()


@pytest.mark.parametrize(("name", "most"), [("subspace", 4), ("soap", 3 * 3)])
def test_schedules_compile_only_where_a_part_of_the_update_comes_or_goes(name, most):
    """χ, β₂ and the learning rate follow their whole published schedule; SOAP has a period of 2 here."""
    make = OPTIMIZERS[name]
    # Most of SOAP's first gradients leave a null space, where rounding decides.
    options = {"dtype": torch.float64} if name == "soap" else {"ns_dtype": "float32"}
    runs = [build(make, **options), build(make, **options)]
    runs[1][1].compile(backend="eager", fullgraph=True)
    schedulers = [
        ChainedScheduler(
            [LinearLR(optimizer, 0.1, total_iters=4), LITESchedule(optimizer, warmup_steps=3, total_steps=12)]
        )
        for _, optimizer in runs
    ]
    for k in range(14):
        for run, scheduler in zip(runs, schedulers, strict=True):
            train(*run, 1, start=k)
            scheduler.step()
    assert 2 <= graphs() <= most
    same(runs[0][0].parameters(), runs[1][0].parameters(), atol=1e-4)


def test_soap_has_a_graph_for_each_step_of_a_period():
    runs = []
    for compiled in (False, True):
        parameters = [nn.Parameter(torch.zeros(6, 6, dtype=torch.float64)) for _ in range(2)]
        optimizer = SOAPLITE(parameters, 0.02, precondition_frequency=3)
        if compiled:
            optimizer.compile(backend="eager", fullgraph=True)
        for k in range(10):
            for i, p in enumerate(parameters):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(2 * k + i), dtype=p.dtype)
            optimizer.step()
        runs.append(parameters)
    assert graphs() == 1 + 3  # the first gradient sets the bases
    same(*runs, atol=1e-9)


@pytest.mark.parametrize("cls", [Muon, SOAP])
def test_a_base_method_stays_one_when_compiled(cls):
    """No mask is built for it: as many calls are traced as without any LITE setting of groups."""
    calls = []
    for chi in (None, 3.0):
        counters.clear()
        torch._dynamo.reset()
        settings = {} if chi is None else {"chi": chi}
        optimizer = cls([{"params": [nn.Parameter(torch.ones(6, 8))], **settings}], 0.1)
        optimizer.compile(backend="eager", fullgraph=True)
        for k in range(2):
            give_gradients(optimizer.param_groups[0]["params"], k)
            optimizer.step()
        calls.append(counters["stats"]["calls_captured"])
    assert calls[0] == calls[1]


@needs_compiler
def test_inductor_compiles_the_step():
    make = OPTIMIZERS["subspace"]
    runs = [build(make, ns_dtype="float32", on_nonfinite="skip") for _ in range(2)]
    runs[1][1].compile()
    for k in range(4):
        for model, optimizer in runs:
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / (k + 1)
            with torch._dynamo.config.patch(error_on_recompile=k > 0):
                if k == 2:
                    optimizer.zero_grad()
                    loss_of(model, k).backward()
                    model.second.weight.grad[0, 0] = float("nan")  # skipped as in a plain step
                    optimizer.step()
                else:
                    train(model, optimizer, 1, start=k)
    same(runs[0][0].parameters(), runs[1][0].parameters(), atol=1e-4)


@pytest.mark.parametrize(
    ("rule", "at"), [(partial(SOAPLITE, precondition_frequency=2), at) for at in (0, 4)] + [(MuonLITE, 1)]
)
def test_a_compiled_step_that_is_skipped_is_as_if_it_had_not_been(rule, at):
    """A gradient that is not finite comes first or later, and another parameter gets its first one late."""
    ends = []
    for bad in (False, True):
        source = torch.Generator().manual_seed(0)
        early, late = (nn.Parameter(torch.randn(9, 6, generator=source)) for _ in range(2))
        optimizer = rule([early, late], 0.02, on_nonfinite="skip")
        optimizer.compile(backend="eager", fullgraph=True)
        for k in range(6):
            give_gradients([early], k)
            if k >= 3:
                give_gradients([late], 100 + k)
            if bad and k == at:
                for p in (early, late):
                    if p.grad is not None:
                        p.grad = torch.full_like(p, float("nan"))
                optimizer.step()
                give_gradients([early], k)
                if k >= 3:
                    give_gradients([late], 100 + k)
            optimizer.step()
        ends.append([p.detach().clone() for p in (early, late)] + [*optimizer.state[early].values()])
    assert all(torch.equal(x, y) for x, y in zip(*ends, strict=True))


def test_a_compiled_run_resumes_bit_for_bit():
    def made():
        model, optimizer = build(OPTIMIZERS["subspace"], ns_dtype="float32")
        optimizer.compile(backend="eager", fullgraph=True)
        return model, optimizer

    whole, part, resumed = made(), made(), made()
    train(*whole, 6)
    train(*part, 3)
    file = io.BytesIO()
    torch.save([x.state_dict() for x in part], file)
    file.seek(0)
    for each, saved in zip(resumed, torch.load(file, weights_only=True), strict=True):
        each.load_state_dict(saved)
    train(*resumed, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(tensors(*whole), tensors(*resumed), strict=True))


def test_another_set_of_gradients_is_another_graph():
    make = partial(MuonLITE, ns_dtype="float32")
    (plain, plain_optimizer), (parameters, optimizer) = everything(make), everything(make)
    optimizer.compile(backend="eager", fullgraph=True)
    for k in range(6):
        for each in (plain, parameters):
            give_gradients(each, k)
            if k in (2, 3):
                each[1].grad = None
        plain_optimizer.step(), optimizer.step()
    assert graphs() == 3  # with it, without it, and with it as one younger than those of its shape
    same(plain, parameters)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_may_be_tensors(name):
    """They act like numbers, schedulers overwrite them in place, and checkpoints keep each kind."""
    make = OPTIMIZERS[name]
    dtype = torch.float64 if name == "soap" else torch.float32
    options = {} if name == "soap" else {"ns_dtype": "float32"}
    numbers = build(make, 0.02, dtype, weight_decay=0.1, chi=2.0, **options)
    torch.manual_seed(0)
    model = Net().to(dtype)
    as_tensors = {"weight_decay": torch.tensor(0.1), "chi": torch.tensor(2.0)}
    settings = {"matrix": {"beta_flat": torch.tensor(0.5 if name == "soap" else 1.0), **as_tensors}}
    lr = torch.tensor(0.02, dtype=torch.float64)
    optimizer = make(groups(model, make, settings=settings), lr, weight_decay=0.1, **options)
    before = [group["lr"] for group in optimizer.param_groups]
    assert len({id(x) for x in (lr, *before)}) == 1 + len(before)  # each group has its own
    schedulers = [[LambdaLR(each, lambda k: 1 / (1 + k))] for each in (numbers[1], optimizer)]
    if name != "soap":  # where χ = 1, a number, its mask does not adapt; the value of a tensor is never read
        for each in schedulers:
            each.append(LITESchedule(each[0].optimizer, warmup_steps=0, total_steps=9))
    schedulers = [ChainedScheduler(each) for each in schedulers]
    for k in range(4):
        for run, scheduler in zip((numbers, (model, optimizer)), schedulers, strict=True):
            train(*run, 1, start=k)
            scheduler.step()
    same(numbers[0].parameters(), model.parameters(), atol=2e-5)
    assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, before, strict=True))
    file = io.BytesIO()
    torch.save((numbers[1].state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    with_numbers, with_tensors = torch.load(file, weights_only=True)
    assert isinstance(with_tensors["param_groups"][0]["lr"], torch.Tensor)
    before[0].fill_(7.0)
    optimizer.load_state_dict(with_numbers)
    numbers[1].load_state_dict(with_tensors)
    assert optimizer.param_groups[0]["lr"] is before[0] and float(before[0]) == pytest.approx(0.004)
    assert numbers[1].param_groups[0]["lr"] == pytest.approx(0.004)
    assert isinstance(numbers[1].param_groups[0]["lr"], float)


def test_other_settings_may_not_be_tensors():
    with pytest.raises(ValueError, match="momentum is a tensor; only lr, weight_decay, chi, beta_flat may be"):
        MuonLITE([nn.Parameter(torch.ones(2, 2))], momentum=torch.tensor(0.9))
    with pytest.raises(ValueError, match=r"lr = tensor\(\[0.1000, 0.1000\]\) must be a number"):
        MuonLITE([nn.Parameter(torch.ones(2, 2))], torch.full((2,), 0.1))


@pytest.mark.parametrize("mask", ["subspace", "threshold"])
def test_a_recorded_step_follows_gradients_and_schedules(mask):
    """A step needs no number of the host: with fixed memory, operations and constants training continues."""
    make = partial(MuonLITE, mask=mask, ns_dtype="float32", capturable=True, on_nonfinite="skip")
    runs = [everything(make), everything(make)]
    schedulers = [
        ChainedScheduler([LambdaLR(each, lambda k: 1 / (1 + k)), LITESchedule(each, warmup_steps=1, total_steps=8)])
        for _, each in runs
    ]
    (plain, plain_optimizer), (parameters, optimizer) = runs
    gradients = [torch.empty_like(p) for p in parameters]
    recording = Recording()
    for k in range(8):
        give_gradients(plain, k), give_gradients(parameters, k)
        if k == 4:
            plain[0].grad.fill_(float("nan")), parameters[0].grad.fill_(float("nan"))
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.copy_(p.grad)
        plain_optimizer.step()
        if k == 0:
            optimizer.step()  # makes the state
        elif k == 1:
            with recording:
                optimizer.step()
        else:
            with torch.no_grad():
                recording.replay()
        for scheduler in schedulers:
            scheduler.step()
        assert all(torch.equal(a, b) for a, b in zip(plain, parameters, strict=True))
    assert all(p.isfinite().all() for p in parameters)


def test_a_recorded_step_needs_tensors():
    """The test above can fail: with plain numbers a replayed step keeps the learning rate that it was recorded with."""
    runs = [everything(partial(MuonLITE, capturable=capturable, ns_dtype="float32")) for capturable in (False, True)]
    moved = []
    for parameters, optimizer in runs:
        give_gradients(parameters, 0)
        optimizer.step()
        recording = Recording()
        with recording:
            optimizer.step()
        LambdaLR(optimizer, lambda k: 0.0)
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            recording.replay()
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)))
    assert moved == [True, False]


def test_capturable_settings_are_tensors_on_the_parameters_device():
    model = Net()
    optimizer = MuonLITE(param_groups(model, head=model.head), 0.02, capturable=True)
    matrix, *others = optimizer.param_groups
    assert all(isinstance(matrix[name], torch.Tensor) for name in ("lr", "weight_decay", "chi", "beta_flat"))
    assert all(isinstance(group["lr"], torch.Tensor) for group in others)
    base = Muon(param_groups(model, head=model.head), 0.02, capturable=True)
    assert isinstance(base.param_groups[0]["lr"], torch.Tensor) and base.param_groups[0]["chi"] == 1.0
