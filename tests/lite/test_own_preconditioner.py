"""The example of the guide: Shampoo as a LITE optimizer."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from examples import shampoo_lite
from examples.shampoo_lite import ShampooLITE
from lite import param_groups
from tests.lite.optimizers import Net, loss_of


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


def test_it_takes_one_file_of_under_40_lines():
    assert len(inspect.getsource(shampoo_lite).splitlines()) < 40


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


def test_its_bfloat16_parameters_may_be_rounded_stochastically():
    """The shell then works in float32: parameters and gradients come to the rule in one floating type."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.ones(6, 8, dtype=torch.bfloat16))
    optimizer = ShampooLITE([p], 1e-4, weight_decay=0.0, stochastic_rounding=True)
    for k in range(3):
        p.grad = torch.randn(6, 8, generator=torch.Generator().manual_seed(k)).bfloat16()
        optimizer.step()
    assert p.dtype == torch.bfloat16 and (p != 1).any() and (p - 1).abs().max() < 0.02


def test_it_trains_resumes_and_skips_bad_gradients():
    def build():
        torch.manual_seed(0)
        model = Net()
        groups = param_groups(model, head=model.head, matrix_rule="shampoo")
        return model, ShampooLITE(groups, 0.02, beta_flat=0.5, on_nonfinite="skip")

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
