"""Muon's formulas in one pass over memory against the plain formulas."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from discretizations.preconditioners.polar_factor import PolarFactor
from discretizations.update_rule import UpdateRule
from lite import SOAPLITE, LITEOptimizer, Muon, MuonLITE
from lite.execution import fused_muon, fused_step
from riemannian_ode.flow import lite_velocity, lookahead, momentum_step, position_step
from tests.machines import needs_compiler

DTYPE = st.sampled_from([torch.float32, torch.bfloat16])
SHAPE = st.tuples(st.integers(1, 5), st.integers(1, 40))
HALF = 2.0**-7  # largest relative spacing of bfloat16 numbers


def matrices(count, shape, dtype, seed, *, room=0):
    """Matrices whose rows lie ``room`` numbers apart."""
    source = torch.Generator().manual_seed(seed)
    rows, columns = shape
    return [torch.randn(rows, columns + room, generator=source).to(dtype)[:, :columns] for _ in range(count)]


@needs_compiler
@given(
    st.integers(1, 3), SHAPE, DTYPE, DTYPE, st.integers(0, 3), st.floats(0.01, 0.99), st.booleans(), st.integers(0, 99)
)
def test_covectors_are_momentum_and_lookahead(count, shape, m_dtype, g_dtype, room, theta, both, seed):
    before = matrices(count, shape, m_dtype, seed, room=room)
    g = matrices(count, shape, g_dtype, seed + 1, room=room)
    after = [m.clone() for m in before]
    nesterov = (1 - theta) / theta
    result = fused_muon.covectors(after, g, rate=1 - theta, nesterov=nesterov, usable=torch.tensor(True), both=both)
    assert result.shape == (1 + both, count, *shape) and result.dtype == torch.bfloat16
    for i in range(count):
        x = g[i].to(m_dtype)
        m = momentum_step(before[i], x, alpha=1 - theta, gain=1 - theta)
        torch.testing.assert_close(after[i], m, rtol=1e-6 if m_dtype == torch.float32 else HALF, atol=1e-6)
        covector = lookahead(m, x, nesterov).bfloat16()
        atol = 1e-6 if m_dtype == torch.float32 else HALF * (1 + nesterov)
        torch.testing.assert_close(result[0, i], covector, rtol=HALF, atol=atol)
        if both:
            assert torch.equal(result[1, i], x.bfloat16())


@needs_compiler
@given(
    SHAPE,
    DTYPE,
    st.floats(1, 4),
    st.floats(-0.9, 1),
    st.floats(0, 2),
    st.floats(0, 2),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 99),
)
def test_directions_are_those_of_lite(shape, dtype, chi, beta_sharp, beta_flat, chi_sharp, decay, damped, seed):
    """With any linear Q, here a projector: s + Qe is u, and a becomes s + e."""
    a, d = (torch.stack(matrices(2, shape, torch.bfloat16, seed + i)) for i in range(2))
    w = matrices(2, shape, dtype, seed + 2)
    v = torch.linalg.qr(torch.randn(shape[1], min(3, shape[1]), dtype=torch.float64)).Q
    settings = {"chi": chi, "beta_sharp": beta_sharp, "beta_flat": beta_flat, "chi_sharp": chi_sharp}
    exact = lite_velocity(
        a.double(),
        d.double() if damped else None,
        flat=lambda x: x - x @ v @ v.mT,
        decay=decay * torch.stack(w).double(),
        **settings,
    )
    both = a.clone()
    extra = fused_muon.split_direction_(both, d if damped else None, w, decay=decay, **settings)
    u = both.double() - extra.double() @ v @ v.mT
    size = float(both.double().abs().max() + extra.double().abs().max())
    torch.testing.assert_close(u, exact, rtol=0, atol=4 * HALF * size + 1e-6)


@needs_compiler
@given(st.integers(1, 3), SHAPE, DTYPE, st.integers(0, 3), st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 99))
def test_a_move_is_a_step_of_the_position(count, shape, dtype, room, size, decay, seed):
    before = matrices(count, shape, dtype, seed, room=room)
    after = [w.clone() for w in before]
    u = torch.stack(matrices(count, shape, torch.bfloat16, seed + 1))
    fused_muon.move_(after, u, size=size, decay=decay, usable=None)
    w = torch.stack(before).double()
    exact = position_step(w, size * u.double() + decay * w, eta=1)
    rtol = 1e-5 if dtype == torch.float32 else HALF
    torch.testing.assert_close(torch.stack(after).double(), exact, rtol=rtol, atol=1e-5)
    assert all(x._version > y._version for x, y in zip(after, before, strict=True))


@needs_compiler
def test_unusable_gradients_change_nothing():
    m, w = matrices(2, (3, 5), torch.float32, 0), matrices(2, (3, 5), torch.float32, 1)
    before = [x.clone() for x in [*m, *w]]
    g, no = [torch.full((3, 5), torch.nan)] * 2, torch.tensor(False)
    result = fused_muon.covectors(m, g, rate=0.1, nesterov=0.1, usable=no, both=True)
    fused_muon.move_(w, torch.full((2, 3, 5), torch.nan, dtype=torch.bfloat16), size=1.0, decay=0.1, usable=no)
    assert all(torch.equal(x, y) for x, y in zip([*m, *w], before, strict=True))
    assert result.isfinite().all() and torch.equal(result[1], torch.zeros_like(result[1]))


@needs_compiler
def test_numbers_that_are_not_finite_stay_so_where_nobody_asks():
    m, g = [torch.zeros(1, 3)], [torch.tensor([[torch.nan, torch.inf, 1.0]])]
    result = fused_muon.covectors(m, g, rate=0.1, nesterov=0.1, usable=None, both=True)
    assert result[:, 0, 0, 0].isnan().all() and not result[:, 0, 0, 1].isfinite().any()
    assert result[1, 0, 0, 2] == 1 and m[0][0, 0].isnan()


@needs_compiler
def test_torch_knows_the_operators():
    ops, half = torch.ops.lite, torch.bfloat16
    m, g, w = (matrices(2, (3, 5), torch.float32, seed) for seed in range(3))
    a, d = (torch.stack(matrices(2, (3, 5), half, seed)) for seed in (3, 4))
    checks = "test_schema", "test_faketensor"
    for operator, arguments in (
        (ops.muon_covectors, (m, g, torch.tensor(True), 0.1, 0.1, True)),
        (ops.lite_directions, (a, d, w, [0.1, 1.0, 0.1, 1.0, 2.0])),
        (ops.muon_move, (w, a, None, 0.1, 0.1)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=checks)


@needs_compiler
def test_what_the_operators_do_not_take():
    x = torch.zeros(3, 5)
    assert fused_muon.is_supported([x, x.bfloat16(), torch.zeros(3, 9)[:, 2:7]])
    for other in (x.double(), x.half(), x.to("meta"), x[None], x.mT):
        assert not fused_muon.is_supported([x, other])


SETTINGS = {
    "muon": (Muon, {}),
    "lite": (MuonLITE, {}),
    "undamped": (MuonLITE, {"beta_sharp": 0.0, "beta_flat": 0.0}),
    "damped alone": (MuonLITE, {"chi": 1.0, "beta_sharp": 0.5, "beta_flat": 0.5}),
    "inside": (MuonLITE, {"damping": "inside"}),
    "inside, chi 1": (MuonLITE, {"damping": "inside", "chi": 1.0, "weight_decay": 0.0}),
    "graded": (MuonLITE, {"mask": "graded"}),
    "graded, undamped": (MuonLITE, {"mask": "graded-frobenius", "beta_sharp": 0.0, "beta_flat": 0.0}),
    "chi_sharp": (MuonLITE, {"chi_sharp": 0.5, "weight_decay": 0.0}),
}


def moved(name, dtype, *, float32_momentum, fused, ns_dtype="bfloat16"):
    """Moves of batches, single matrices, blocks of a matrix and stacks of experts, and their momenta."""
    make, settings = SETTINGS[name]
    p = [nn.Parameter(0.02 * x) for x in matrices(3, (40, 64), dtype, 0)]
    fusion = nn.Parameter(0.02 * matrices(1, (60, 24), dtype, 1)[0])
    experts = nn.Parameter(0.02 * torch.stack(matrices(4, (24, 40), dtype, 2)))
    groups = [
        {"params": p},
        {"params": [fusion], "blocks": (20, 40)},
        {"params": [experts], "layout": "experts"},
    ]
    start = [x.detach().clone() for x in (*p, fusion, experts)]
    optimizer = make(groups, 0.02, ns_dtype=ns_dtype, float32_momentum=float32_momentum, **settings)
    with mock.patch.object(fused_step, "fused_step_", wraps=fused_step.fused_step_) as taken:
        with mock.patch.object(fused_step, "is_supported", fused_step.is_supported if fused else lambda *_: False):
            for step in range(4):
                source = torch.Generator().manual_seed(step)
                for x in (*p, fusion, experts):
                    x.grad = torch.randn(x.shape, generator=source).to(dtype)
                optimizer.step()
        assert taken.called == fused
    moves = [(x.detach() - y).double() for x, y in zip((*p, fusion, experts), start, strict=True)]
    return moves + [optimizer.state[x]["momentum"].double() for x in (*p, fusion, experts)]


@needs_compiler
@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("float32_momentum", [False, True])
def test_a_fused_step_is_that_of_the_plain_formulas(name, dtype, float32_momentum):
    """To the rounding of bfloat16."""
    both = (moved(name, dtype, float32_momentum=float32_momentum, fused=fused) for fused in (True, False))
    for ours, plain in zip(*both, strict=True):
        assert (ours - plain).norm() < 0.02 * plain.norm()  # measured: 0.006, bfloat16 parameters


@pytest.mark.usefixtures("bfloat16_products")
@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_formulas_alone_step_in_bfloat16_as_in_float32(name):
    """Without a compiler, and with the library's products as on machines with matrix units."""
    options = {"float32_momentum": False, "fused": False}
    both = (moved(name, torch.float32, ns_dtype=dtype, **options) for dtype in ("bfloat16", "float32"))
    for half, exact in zip(*both, strict=True):
        assert (half - exact).norm() < 0.02 * exact.norm()  # measured: 0.007


@pytest.mark.parametrize("base", [MuonLITE, SOAPLITE])
def test_an_update_of_a_subclass_is_heeded(base):
    class Still(base):
        def matrix_update(self, group, w, g, state, **turn):
            return w, {}

    p = nn.Parameter(torch.ones(4, 5))
    optimizer = Still([p], 0.01, **({"ns_dtype": "bfloat16"} if base is MuonLITE else {}))
    for _ in range(2):  # SOAP's first step moves nothing anyway
        p.grad = torch.ones(4, 5)
        optimizer.step()
    assert torch.equal(p, torch.ones(4, 5))


class Halved(PolarFactor):
    def raise_index(self, memory, covector):
        return 0.5 * super().raise_index(memory, covector)


class OwnRule(LITEOptimizer):
    """A user's rule with the polar factor, known only by its declaration."""

    rule = "own"
    polar, declared = PolarFactor, {}

    def update_rule(self, group, shape):
        polar = self.polar(dtype=torch.bfloat16, narrows=True)
        return UpdateRule(**{"preconditioner": polar, "alpha": 0.1, "gain": 0.1, "nesterov": 0.1} | self.declared)


@needs_compiler
@pytest.mark.parametrize(
    ("polar", "declared", "fused"),
    [
        (PolarFactor, {}, True),
        (PolarFactor, {"beta_sharp": 0.5, "beta_flat": 0.5}, True),
        (PolarFactor, {"gain": 1.0}, False),
        (PolarFactor, {"corrects_momentum": True}, False),
        (Halved, {}, False),
    ],
)
def test_a_rule_of_ones_own_is_fused_where_the_formulas_are_its_own(polar, declared, fused):
    class Own(OwnRule):
        pass

    Own.polar, Own.declared = polar, declared
    ends = []
    for supported in (fused_step.is_supported, lambda *_: False):
        params = [nn.Parameter(x) for x in matrices(2, (6, 9), torch.float32, 0)]
        optimizer = Own(params, 0.1)
        with (
            mock.patch.object(fused_step, "is_supported", supported),
            mock.patch.object(fused_step, "fused_step_", wraps=fused_step.fused_step_) as taken,
        ):
            for seed in range(1, 4):
                for p, g in zip(params, matrices(2, (6, 9), torch.float32, seed), strict=True):
                    p.grad = g
                optimizer.step()
        assert taken.called == (fused and supported is fused_step.is_supported)
        ends.append(torch.stack(params) - torch.stack(matrices(2, (6, 9), torch.float32, 0)))
    assert (ends[0] - ends[1]).norm() < (0.02 if fused else 1e-6) * ends[1].norm()
