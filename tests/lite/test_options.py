"""Options: dtypes, stochastic rounding, the sharp learning rate."""

import numpy as np
import pytest
import torch
from torch import nn

from discretizations.matrices.sharp_masks import top_right_subspace
from lite import SOAPLITE, Muon, MuonLITE
from lite.execution.rounding import rounded_stochastically
from tests.lite.optimizers import OPTIMIZERS, build, tensors, train

BF16 = torch.bfloat16
NS_DTYPES = ["fastest", "parameter", "bfloat16", "float16", "float32"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rounding_is_unbiased_and_between_neighbours():
    """10⁴ draws of each number: the mean lies within 5 standard errors."""
    torch.manual_seed(0)
    x = torch.tensor([1.0, 1.001, -1.003, 3e-5, -7.77e8, 1e-39, 0.0, 255.5])
    down = (x.view(torch.int32) & -0x10000).view(torch.float32)
    up = ((x.view(torch.int32) & -0x10000) + 0x10000).view(torch.float32)
    rounded = rounded_stochastically(x.expand(10_000, len(x)))
    assert rounded.dtype == BF16
    values = rounded.float()
    assert ((values == down) | (values == up)).all()
    share = (values == up).float().mean(0)
    expected = (x - down) / (up - down)
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / 10_000).sqrt() + 1e-9).all()


def test_rounding_keeps_what_bfloat16_holds_and_what_is_not_finite():
    torch.manual_seed(0)
    kept = torch.tensor([1.0, -2.5, 0.0, float("inf"), -float("inf")])
    assert torch.equal(rounded_stochastically(kept).float(), kept)
    assert rounded_stochastically(torch.full((5,), float("nan"))).isnan().all()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rule", ["matrix", "adamw"])
def test_small_updates_arrive_on_average_where_nearest_rounding_loses_them(name, rule):
    """Weights 1 in bfloat16 are spaced by 2⁻⁷, or 2⁻⁸ below 1, and updates are a twentieth of that."""
    make = OPTIMIZERS[name]
    mean = torch.randn(24, 16, generator=generator())
    gs = [(mean + torch.randn(24, 16, generator=generator(k + 1))).to(BF16) for k in range(60)]
    ends = {}
    for key, dtype, options in (
        ("exact", torch.float32, {}),
        ("nearest", BF16, {}),
        ("stochastic", BF16, {"stochastic_rounding": True}),
    ):
        torch.manual_seed(1)
        p = nn.Parameter(torch.ones(24, 16, dtype=dtype))
        rules = {"rule": "adamw"} if rule == "adamw" else {}
        optimizer = make([{"params": [p], **rules}], 2e-4, weight_decay=0.0, **options)
        for g in gs:
            p.grad = g.to(dtype)
            optimizer.step()
        ends[key] = p.detach().float() - 1
    assert not ends["nearest"].any()
    moved = (ends["stochastic"] * ends["exact"]).sum() / (ends["exact"] ** 2).sum()
    # An entry ends 2⁻⁸ or so off its mean; the projection on the exact change averages 384 of them.
    error = 5 * 2**-8 / float(ends["exact"].norm())
    assert error < 0.25  # else the next line would accept too much
    assert abs(float(moved) - 1) < error


@pytest.mark.parametrize("ns_dtype", NS_DTYPES)
def test_stochastic_rounding_comes_after_the_rule_whatever_its_floating_type(ns_dtype):
    """A rule in bfloat16 that first rounds to nearest would lose the update."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.ones(16, 16, dtype=BF16))
    optimizer = MuonLITE([p], 1e-3, weight_decay=0.0, stochastic_rounding=True, ns_dtype=ns_dtype)
    p.grad = torch.randn(16, 16, generator=generator()).to(BF16)
    optimizer.step()
    assert (p != 1).any()


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_float32_momentum(dtype):
    model, optimizer = build(OPTIMIZERS["subspace"], dtype=dtype, float32_momentum=True)
    train(model, optimizer, 3)
    momentum = optimizer.state[model.second.weight]["momentum"]
    assert momentum.dtype == torch.float32
    assert (momentum != momentum.to(BF16)).any()
    other, other_optimizer = build(OPTIMIZERS["subspace"], dtype=dtype, float32_momentum=True)
    other_optimizer.load_state_dict(optimizer.state_dict())
    assert other_optimizer.state[other.second.weight]["momentum"].dtype == torch.float32


def test_float32_momentum_follows_float32_where_bfloat16_stalls():
    """An EMA in bfloat16 loses increments of (1 − θ)g below its spacing."""
    ends = {}
    for key, dtype, options in (
        ("exact", torch.float64, {}),
        ("float32", BF16, {"float32_momentum": True}),
        ("bfloat16", BF16, {}),
    ):
        p = nn.Parameter(torch.ones(8, 8, dtype=dtype))
        optimizer = Muon([p], 0.0, momentum=0.999, ns_steps=1, **options)
        for k in range(400):
            p.grad = torch.full((8, 8), 1.0 if k < 200 else 0.5).to(dtype)
            optimizer.step()
        ends[key] = optimizer.state[p]["momentum"].double()
    error = {key: float((ends[key] - ends["exact"]).abs().max() / ends["exact"].abs().max()) for key in ends}
    assert error["float32"] < 1e-5
    assert error["bfloat16"] > 0.05


@pytest.mark.parametrize("ns_dtype", NS_DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float64])
def test_floating_types_of_newton_schulz(ns_dtype, dtype):
    """Every choice gives nearly the same movement, and parameters and momentum keep their dtype."""
    ends = []
    for options in ({"ns_dtype": ns_dtype}, {"ns_dtype": "float32"}):
        p = nn.Parameter(torch.zeros(24, 40, dtype=dtype))
        optimizer = Muon([p], 0.01, **options)
        for k in range(3):
            p.grad = torch.randn(24, 40, generator=generator(k)).to(dtype)
            optimizer.step()
        assert p.dtype == dtype and optimizer.state[p]["momentum"].dtype == dtype
        ends.append(p.detach().double())
    difference = float((ends[0] - ends[1]).norm() / ends[1].norm())
    assert difference < 0.03
    if dtype == torch.float32:
        assert (difference == 0) == (ns_dtype in ("parameter", "float32") or ends[0].equal(ends[1]))
        assert ns_dtype not in ("bfloat16", "float16") or difference > 1e-4  # it shows


@pytest.mark.parametrize("mask", ["exact", "subspace"])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_sharp_rate_zero_freezes_sharp_directions(shape, mask):
    p = nn.Parameter(torch.randn(shape, generator=generator(), dtype=torch.float64))
    optimizer = MuonLITE([p], 0.01, mask=mask, chi_sharp=0.0, sharp_fraction=0.3)
    for k in range(4):
        before = p.detach().clone()
        p.grad = torch.randn(shape, generator=generator(k + 1), dtype=torch.float64)
        optimizer.step()
        change = p.detach() - before
        if mask == "exact":  # the mask is that of M̃ = M + (1 − θ)g/θ
            covector = optimizer.state[p]["momentum"] + 0.05 / 0.95 * p.grad
            sharp = top_right_subspace(covector, round(0.3 * 12))
        else:
            sharp = optimizer.state[p]["subspace"][:, : round(0.3 * 12)]
        assert (change @ sharp).norm() < 1e-14
        assert change.norm() > 0.01
    with pytest.raises(ValueError, match="chi_sharp"):
        MuonLITE([p], chi_sharp=0.5, mask="threshold")
    with pytest.raises(ValueError, match="chi_sharp"):
        SOAPLITE([{"params": [p], "chi_sharp": 0.5}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (0.9,)}, "two numbers"),
        ({"betas": 0.9}, r"betas = 0\.9 must be two numbers"),
        ({"adamw_betas": 0.9}, r"adamw_betas = 0\.9 must be two numbers"),
        ({"precondition_frequency": 0}, "whole number of steps"),
        ({"max_precondition_dim": 2.5}, "whole number of rows or columns"),
        ({"eps": 0.0}, "eps = 0"),
    ],
)
def test_soaps_own_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        SOAPLITE([nn.Parameter(torch.ones(2, 2))], **settings)
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = SOAPLITE([p])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], **settings})
    assert len(optimizer.param_groups) == 1 and not tensors(nn.ParameterList([p]), optimizer)[1:]


WRONG_KINDS = {
    **dict.fromkeys(("lr", "weight_decay", "eps", "chi", "beta_sharp", "beta_flat", "sharp_fraction"), "number"),
    **dict.fromkeys(("stochastic_rounding", "float32_momentum", "capturable"), "switch"),
    **dict.fromkeys(("ns_steps", "precondition_frequency", "max_precondition_dim"), "whole number"),
    **dict.fromkeys(("momentum", "chi_sharp"), "number"),
    **dict.fromkeys(("betas", "adamw_betas"), "pair"),
    "blocks": "blocks",
    "block_axis": "whole number",
}
KINDS = {
    "number": (True, False, "0.5", b"0.5", None, [1.0], {}, 1j, torch.tensor(True), torch.ones(2), np.True_, 10**400),
    "switch": (0, 1, 5, 1.0, "yes", "", None, [], torch.tensor(True), np.True_),
    "whole number": (True, False, "6", 2.5, 6.0, None, [6], -7, torch.tensor(6), 10**400),
    "pair": ((True, False), (False, 0.9), ("0.9", "0.9"), (None, 0.9), 0.9, "ab", (0.9, 1j), (0.9, torch.ones(2))),
    "blocks": ((True, 3), ("2", 2), (2.0, 2), 4, "ab", (-4, 8)),
}


@pytest.mark.parametrize("name", WRONG_KINDS)
def test_settings_of_another_kind_are_refused(name):
    """A boolean for a number, text or a number for a switch, and similar."""
    make = SOAPLITE if name in {"betas", "precondition_frequency", "max_precondition_dim"} else MuonLITE
    for value in KINDS[WRONG_KINDS[name]]:
        with pytest.raises(ValueError) as caught:
            if name.startswith("block"):
                make([{"params": [nn.Parameter(torch.ones(4, 4))], "blocks": (2, 2), name: value}])
            else:
                make([nn.Parameter(torch.ones(4, 4))], **{name: value})
        text = str(caught.value)
        assert text.startswith(f"{name} ") and text.isprintable() and len(text) < 250, text
