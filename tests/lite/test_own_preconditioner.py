"""The examples of the guide: Adafactor's factored second moment, and Shampoo, as LITE optimizers."""

import copy
import inspect
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from examples import factored_moment, factored_on_ranks, shampoo_lite
from examples.factored_moment import FactoredLITE
from examples.shampoo_lite import ShampooLITE
from lite import Muon, param_groups
from riemannian_ode import RISHD, simulate
from tests.lite.optimizers import Net, build, loss_of, train


def shampoo(w, gs, *, lr, momentum, ridge, decay):
    """Algorithm 1 of arXiv:1802.09568 for matrices, with heavy-ball momentum and decoupled decay; numpy, float64."""
    m, left, right = np.zeros_like(w), ridge * np.eye(len(w)), ridge * np.eye(w.shape[1])

    def power(a):
        e, v = np.linalg.eigh(a)
        return v @ np.diag(e**-0.25) @ v.T

    for g in gs:
        left, right, m = left + g @ g.T, right + g.T @ g, momentum * m + g
        w = w - lr * (power(left) @ m @ power(right) + decay * w)
    return w


@pytest.mark.parametrize("example", [factored_moment, shampoo_lite])
def test_it_takes_one_file_of_under_40_lines_of_code(example):
    assert sum(bool(line.strip()) for line in inspect.getsource(example).splitlines()) < 40


def factored(w, gs, *, lr, theta, beta2, decay):
    """Adam with Adafactor's v = RC/ΣR, Algorithms 1 and 4 of arXiv:1804.04235, entry by entry; numpy, float64."""
    m, r, c = np.zeros_like(w), np.zeros(w.shape[0]), np.zeros(w.shape[1])
    for t, g in enumerate(gs, 1):
        m = theta * m + (1 - theta) * g
        r = beta2 * r + (1 - beta2) * (g**2 + 1e-30).sum(1)
        c = beta2 * c + (1 - beta2) * (g**2 + 1e-30).sum(0)
        new = w.copy()
        for i, j in np.ndindex(*w.shape):
            v = r[i] * c[j] / sum(r) / (1 - beta2**t)
            new[i, j] -= lr * (m[i, j] / (1 - theta**t) / np.sqrt(v) + decay * w[i, j])
        w = new
    return w


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_without_lite_it_is_adam_with_adafactors_second_moment(shape):
    rng = np.random.default_rng(0)
    w, gs = rng.normal(size=shape), [rng.normal(size=shape) for _ in range(20)]
    p = nn.Parameter(torch.tensor(w))
    optimizer = FactoredLITE([p], 0.05, chi=1.0, betas=(0.8, 0.9), weight_decay=0.1)
    for g in gs:
        p.grad = torch.tensor(g)
        optimizer.step()
    expected = factored(w, gs, lr=0.05, theta=0.8, beta2=0.9, decay=0.1)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_a_gradient_of_rank_one_has_the_metric_of_its_own_size():
    """For g = a bᵀ the factored moment is exact: F = diag(|g|), so that F⁻¹g is the sign of g."""
    a, b = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([3.0, -1.0, 0.1, 2.0]).double()
    g = torch.outer(a, b)
    optimizer = FactoredLITE([nn.Parameter(g)])
    rule = optimizer.update_rule(optimizer.param_groups[0], (3, 4))
    memory = rule.take_in(0.0 * g, rule.initial_memory(g), g).memory
    torch.testing.assert_close(rule.preconditioner.precondition(memory, g), g.sign(), rtol=1e-12, atol=0)


class Bowl:
    """½|Aw|² + Σ cos w, whose gradient is not linear."""

    def __init__(self, p):
        self.matrix = torch.randn(p, p, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def value(self, w):
        return 0.5 * (w @ self.matrix).square().sum(-1) + torch.cos(w).sum(-1)

    def gradient(self, w):
        return w @ self.matrix @ self.matrix.mT - torch.sin(w)


@pytest.mark.parametrize("optimizer", [FactoredLITE, ShampooLITE])
@pytest.mark.parametrize("settings", [{"chi": 1.0}, {"chi": 3.0, "beta_sharp": 0.2, "beta_flat": 0.5}])
def test_flow_rule_and_optimizer_are_equal_to_the_last_bit(optimizer, settings):
    shape, bowl, lr = (4, 3), Bowl(12), 0.02
    start = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = nn.Parameter(start.clone())
    optimizer = optimizer([p], lr, weight_decay=0.1, sharp_fraction=0.25, **settings)
    rule = optimizer.update_rule(optimizer.param_groups[0], shape)
    split = {"chi": rule.chi, "beta_flat": rule.beta_flat} if rule.splits else {}
    flow = RISHD.from_optimizer(
        bowl,
        rule.preconditioner,
        alpha=rule.alpha,
        gain=rule.gain,
        beta=rule.beta_sharp,
        decay=rule.decay,
        eta=lr,
        corrects_momentum=rule.corrects_momentum,
        shape=shape,
        **split,
    )
    state = rule.start(start)
    for _ in range(30):
        g = bowl.gradient(state.w.flatten()).reshape(shape)
        state, p.grad = rule.step(state, g, eta=lr), g
        optimizer.step()
    run = simulate(flow, start.flatten(), steps=30)
    assert torch.equal(run.w[-1], state.w.flatten())
    assert torch.equal(p.detach(), state.w)
    assert float((state.w - start).norm()) > 0.1


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # of the load in one process
@pytest.mark.parametrize("parallel", ["fsdp2", "ddp"])
def test_two_ranks_resume_exactly_and_agree_with_one_process(parallel, tmp_path):
    spawn(factored_on_ranks.on_rank, args=(2, str(tmp_path), parallel), nprocs=2)
    model, _, optimizer = factored_on_ranks.build()
    factored_on_ranks.load(model, optimizer, tmp_path / "end")
    alone, forward, own = factored_on_ranks.build()
    start = copy.deepcopy(alone)
    factored_on_ranks.train(forward, own, range(12))
    for p, q, before in zip(model.parameters(), alone.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
        assert not torch.equal(q, before)
        assert optimizer.state[p].keys() == own.state[q].keys()
        for key, value in own.state[q].items():
            torch.testing.assert_close(optimizer.state[p][key], value, rtol=1e-9, atol=1e-12)


def test_compiled_it_takes_the_same_steps():
    make = partial(FactoredLITE, beta_flat=0.5)
    (plain, plain_optimizer), (model, optimizer) = build(make), build(make)
    optimizer.compile(backend="aot_eager", fullgraph=True)
    for each in ((plain, plain_optimizer), (model, optimizer)):
        train(*each, steps=5)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_without_lite_it_is_shampoo(shape):
    rng = np.random.default_rng(0)
    w, gs = rng.normal(size=shape), [rng.normal(size=shape) for _ in range(20)]
    p = nn.Parameter(torch.tensor(w))
    settings = {"momentum": 0.9, "ridge": 1e-3, "weight_decay": 0.1}
    optimizer = ShampooLITE([p], 0.05, chi=1.0, **settings)
    for g in gs:
        p.grad = torch.tensor(g)
        optimizer.step()
    expected = shampoo(w, gs, lr=0.05, momentum=0.9, ridge=1e-3, decay=0.1)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=0, atol=1e-9)


def test_flat_directions_move_chi_times_as_far():
    """From equal state, the base step and the LITE step differ by χ off the sharp space and not at all on it."""
    g = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    steps = []
    for chi in (1.0, 3.0):
        p = nn.Parameter(torch.zeros(6, 8))
        optimizer = ShampooLITE([p], 0.1, chi=chi, sharp_fraction=0.25)
        p.grad = g
        optimizer.step()
        steps.append(p.detach())
    sharp = torch.linalg.eigh(optimizer.state[p]["right"])[1][:, -2:]
    flat = torch.eye(8) - sharp @ sharp.T
    torch.testing.assert_close(steps[1] @ sharp, steps[0] @ sharp, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(steps[1] @ flat, 3 * steps[0] @ flat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [FactoredLITE, ShampooLITE])
def test_its_bfloat16_parameters_may_be_rounded_stochastically(make):
    """The shell then works in float32: the rule gets parameters and gradients in one dtype."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.ones(6, 8, dtype=torch.bfloat16))
    optimizer = make([p], 1e-4, weight_decay=0.0, stochastic_rounding=True)
    for k in range(3):
        p.grad = torch.randn(6, 8, generator=torch.Generator().manual_seed(k)).bfloat16()
        optimizer.step()
    assert p.dtype == torch.bfloat16 and (p != 1).any() and (p - 1).abs().max() < 0.02


@pytest.mark.parametrize("make", [FactoredLITE, ShampooLITE])
def test_it_trains_resumes_and_skips_bad_gradients(make):
    def build():
        torch.manual_seed(0)
        model = Net()
        groups = param_groups(model, head=model.head, matrix_rule=make.rule)
        return model, make(groups, 0.02, beta_flat=0.5, on_nonfinite="skip")

    def train(model, optimizer, steps):
        for k in steps:
            optimizer.zero_grad()
            loss_of(model, 0).backward()
            if k == 7:
                model.second.weight.grad.fill_(float("nan"))
            optimizer.step()
        return loss_of(model, 0).item()

    model, optimizer = build()
    first = loss_of(model, 0).item()
    assert train(model, optimizer, range(40)) < 0.7 * first
    half, half_optimizer = build()
    train(half, half_optimizer, range(20))
    resumed, resumed_optimizer = build()
    resumed.load_state_dict(half.state_dict())
    resumed_optimizer.load_state_dict(half_optimizer.state_dict())
    train(resumed, resumed_optimizer, range(20, 40))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


class LastTwo(Muon):
    """Keeps the last two gradients: the new "older" is the old "newer" itself."""

    rule = "last two"

    def matrix_state(self, group, w):
        return {"momentum": torch.zeros_like(w), "newer": torch.zeros_like(w), "older": torch.zeros_like(w)}

    def matrix_update(self, group, w, g, state, *, step, numbers):
        return w - group["lr"] * g, {**state, "newer": g + 0.0, "older": state["newer"]}


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "ignore"])
@pytest.mark.parametrize("count", [1, 2])
def test_state_may_be_handed_from_key_to_key(count, on_nonfinite):
    parameters = [nn.Parameter(torch.zeros(2, 3)) for _ in range(count)]
    optimizer = LastTwo([{"params": parameters}], 0.1, on_nonfinite=on_nonfinite)
    for value in (1.0, 2.0, 3.0):
        for p in parameters:
            p.grad = torch.full_like(p, value)
        optimizer.step()
    for p in parameters:
        torch.testing.assert_close(optimizer.state[p]["older"], torch.full_like(p, 2.0), rtol=0, atol=0)
        torch.testing.assert_close(optimizer.state[p]["newer"], torch.full_like(p, 3.0), rtol=0, atol=0)
