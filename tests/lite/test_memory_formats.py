"""Parameters that are not contiguous move as contiguous ones do, and keep their memory format."""

import copy

import pytest
import torch
from torch import nn

from lite import MuonLITE
from tests.lite.optimizers import OPTIMIZERS, RULES


def channels_last(x):
    return x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def permuted(x):
    """The same numbers in memory of reversed order."""
    dims = tuple(reversed(range(x.ndim)))
    return x.permute(dims).contiguous().permute(dims)


def strided(x):
    """The same numbers with gaps between them."""
    return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]


CASES = {
    "conv2d": ((6, 4, 3, 2), {"layout": "conv"}, channels_last),
    "grouped": ((6, 4, 3, 3), {"layout": "conv", "blocks": (3, 3)}, channels_last),
    "columns": ((6, 4, 2, 2), {"layout": "conv", "blocks": (6, 10), "block_axis": -1}, channels_last),
    "conv3d": ((6, 4, 2, 2, 3), {"layout": "conv"}, channels_last),
    "conv1d": ((6, 4, 5), {"layout": "conv"}, permuted),
    "conv gaps": ((6, 4, 3, 2), {"layout": "conv"}, strided),
    "matrix": ((6, 9), {}, permuted),
    "matrix gaps": ((6, 9), {}, strided),
    "fused": ((12, 9), {"layout": "matrix", "blocks": (4, 8)}, permuted),
    "experts": ((3, 6, 8), {"layout": "experts"}, permuted),
    "adamw": ((6, 4, 3, 2), {"rule": "adamw", "chi": 4.0}, channels_last),
}


def pair(case, make):
    """Contiguous parameters and equal ones in another format, and their optimizers."""
    shape, settings, convert = CASES[case]
    source = torch.Generator().manual_seed(0)
    plain = [nn.Parameter(torch.randn(shape, generator=source)) for _ in range(2)]
    other = [nn.Parameter(convert(p.detach())) for p in plain]
    assert not any(p.is_contiguous() for p in other)
    return [(ps, make([{"params": ps, **settings}], 0.05)) for ps in (plain, other)]


def run(params, optimizer, steps, convert=lambda x: x):
    for k in steps:
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * k + i))
            p.grad = None if (k, i) == (1, 1) else convert(g)
        optimizer.step()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_parameters_in_any_memory_format(case, rule):
    (plain, optimizer), (other, other_optimizer) = pair(case, RULES[rule])
    strides = [p.stride() for p in other]
    pointers = [p.data_ptr() for p in other]
    run(plain, optimizer, range(4))
    run(other, other_optimizer, range(4), CASES[case][2])
    assert [p.stride() for p in other] == strides and [p.data_ptr() for p in other] == pointers
    rounding = 1e-5 if "adamw" in (case, rule) else 0.0  # its mask has a mean, summed in the order of memory
    for p, q in zip(plain, other, strict=True):
        torch.testing.assert_close(p, q, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_loads_in_either_format_and_continues_bit_for_bit(name):
    (plain, optimizer), (other, other_optimizer) = pair("conv2d", OPTIMIZERS[name])
    run(plain, optimizer, range(3))
    run(other, other_optimizer, range(3), channels_last)
    saved = [copy.deepcopy(each.state_dict()) for each in (optimizer, other_optimizer)]
    optimizer.load_state_dict(saved[1])
    other_optimizer.load_state_dict(saved[0])
    run(plain, optimizer, range(3, 6))
    run(other, other_optimizer, range(3, 6), channels_last)
    assert all(torch.equal(p, q) for p, q in zip(plain, other, strict=True))


def test_a_model_converted_after_construction():
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, 3)
    reference = copy.deepcopy(model)
    optimizers = [MuonLITE([{"params": [m.weight], "layout": "conv"}], 0.05) for m in (model, reference)]
    x = torch.randn(2, 4, 5, 5)
    for k in range(4):
        if k == 2:
            model.to(memory_format=torch.channels_last)
        for m, optimizer in zip((model, reference), optimizers, strict=True):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.weight, reference.weight, rtol=1e-4, atol=1e-5)


def test_a_bad_gradient_leaves_them_alone():
    _, (other, optimizer) = pair("conv2d", lambda groups, lr: MuonLITE(groups, lr, on_nonfinite="skip"))
    run(other, optimizer, range(2), channels_last)
    before = [p.detach().clone() for p in other]
    other[0].grad[0, 0, 0, 0] = float("nan")
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(before, other, strict=True))


def test_compiled_steps():
    (plain, optimizer), (other, other_optimizer) = pair("conv2d", lambda ps, lr: MuonLITE(ps, lr, ns_dtype="float32"))
    other_optimizer.compile(backend="eager")
    for k in range(2):
        for p, q in zip(plain, other, strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
            q.grad = channels_last(p.grad)
        optimizer.step()
        other_optimizer.step()
    assert all(q.is_contiguous(memory_format=torch.channels_last) for q in other)
    for p, q in zip(plain, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
