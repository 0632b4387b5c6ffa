"""The SOAP-LITE rule against an implementation of SOAP's paper, and its further promises."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discretizations.matrices import products
from discretizations.matrices.eigenbases import factor_step_, first_eigenbases, refreshed_eigenbasis
from lite import SOAPLITE
from lite.adamw import adamw_rule, initial_adamw_state
from lite.declaration import rule_update
from tests.lite.reference import SOAPReference
from tests.lite.soap_rule import SoapRule, State

STEPS = 100


def gradients(shape, steps, dtype=torch.float64, seed=0):
    """Gradients with a slowly varying mean and anisotropic noise."""
    generator = torch.Generator().manual_seed(seed)
    mean, turn = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    rows = torch.linspace(1.0, 3.0, shape[-2], dtype=torch.float64)[:, None]
    for k in range(steps):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        yield (rows * (noise + mean * np.cos(0.05 * k) + turn * np.sin(0.05 * k))).to(dtype)


def matrix(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(soap_rule, w, gs, *, numbers=None):
    state = soap_rule.initial(w)
    for step, g in enumerate(gs):
        w, state = soap_rule.step(w, g, state, step=step, numbers=numbers)
    return w, state


def compare(soap_rule, shape, steps=STEPS, **options):
    """Largest difference of weights along two runs from the same first basis."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    reference = SOAPReference(w.numpy(), lr=soap_rule.lr, **options)
    state, worst = soap_rule.initial(w), 0.0
    for step, g in enumerate(gradients(shape, steps)):
        w, state = soap_rule.step(w, g, state, step=step)
        reference.step(g.numpy())
        if step == 0:  # where a factor is singular its eigenbasis is not unique: take ours, see the next test
            reference.q_left, reference.q_right = state.left_basis.numpy(), state.right_basis.numpy()
        worst = max(worst, float(np.abs(w.numpy() - reference.w).max()))
    return worst


def test_the_first_gradient_sets_an_eigenbasis_and_moves_nothing():
    w, (g,) = torch.ones(7, 4, dtype=torch.float64), gradients((7, 4), 1)
    moved, state = run(SoapRule(weight_decay=0.1), w, [g])
    assert torch.equal(moved, w)
    assert not state.momentum.any() and not state.v.any()
    for product, basis in ((g @ g.T, state.left_basis), (g.T @ g, state.right_basis)):
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis), dtype=torch.float64))
        diagonal = basis.T @ product @ basis
        torch.testing.assert_close(
            diagonal, torch.diag(diagonal.diagonal()), rtol=0, atol=1e-12 * float(product.norm())
        )
        assert (diagonal.diagonal().diff() <= 1e-12).all()


@pytest.mark.parametrize(
    ("shape", "frequency"), [((8, 8), 10), ((12, 7), 10), ((5, 11), 10), ((1, 6), 10), ((8, 8), 1), ((12, 7), 1)]
)
def test_without_lite_it_is_soap(shape, frequency):
    assert compare(SoapRule(precondition_frequency=frequency), shape, f=frequency) <= 1e-12
    plain = SoapRule(precondition_frequency=frequency, chi=2.0, beta_flat=1.0, sharp_fraction=0.0, weight_decay=0.1)
    assert compare(plain, shape, f=frequency, wd=0.1) <= 1e-12  # r ≤ 1e−6 is plain SOAP


@pytest.mark.parametrize(
    "settings", [{"chi": 2.0}, {"beta_flat": 1.0}, {"chi": 3.0, "beta_sharp": -0.5, "beta_flat": 2.0}]
)
@pytest.mark.parametrize(("frequency", "decay"), [(10, 0.0), (1, 0.1)])
def test_it_is_lites_algorithm_on_soaps_metric(settings, frequency, decay):
    lite = SoapRule(precondition_frequency=frequency, weight_decay=decay, **settings)
    options = {"chi": lite.chi, "beta1": lite.beta_sharp, "beta2": lite.beta_flat, "wd": decay, "f": frequency}
    assert compare(lite, (12, 7), **options) <= 1e-12
    assert compare(SoapRule(), (12, 7), **options) > 1e-3  # the comparison can fail


@pytest.mark.parametrize(("level", "speed"), [(1e9, 2.0), (1e-9, 1.0)])
def test_decay_of_flat_directions_once_a_period_shrinks_as_much(level, speed):
    """With zero gradients only decay acts: over whole periods as χλ at every step if all is flat, as λ if sharp."""
    lite = SoapRule(lr=0.003, chi=2.0, weight_decay=0.1)
    w = torch.randn(12, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    first, *_ = gradients(w.shape, 1)
    start, state = run(lite, w, [first])
    state = state.replace(lo=torch.full_like(state.lo, level), hi=torch.full_like(state.hi, 2 * level))
    state = state.replace(v=torch.ones_like(w))  # else no coordinate is above any threshold
    w = start
    for step in range(1, 51):
        w, state = lite.step(w, torch.zeros_like(w), state, step=step)
    expected = (1 - lite.lr * lite.weight_decay * speed) ** 50 * start
    torch.testing.assert_close(w, expected, rtol=5 * (10 * lite.lr * lite.weight_decay) ** 2, atol=0)


@pytest.mark.parametrize("chi", [1.0, 2.0])
def test_unrotated_it_is_adamw_lite(chi):
    """Both sides longer than max_precondition_dim; AdamW starts one gradient later."""
    soap = SoapRule(max_precondition_dim=4, precondition_frequency=1, chi=chi, weight_decay=0.1)
    group = {"adamw_betas": soap.betas, "eps": soap.eps, "chi": chi, "sharp_fraction": 0.1}
    group |= {"weight_decay": 0.1, "decay": "decoupled"}
    adamw = adamw_rule(group)
    w = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gs = list(gradients((8, 6), 30))
    ours, state = run(soap, w, gs)
    assert state.left is state.right is state.left_basis is state.right_basis is None
    other = initial_adamw_state(group, w)
    for g in gs[1:]:
        w, other = rule_update(adamw, w, g, other, eta=soap.lr)
    torch.testing.assert_close(ours, w, rtol=0, atol=1e-13)
    torch.testing.assert_close(state.hi, other["hi"])


def test_a_long_side_stays_unrotated():
    one_sided = SoapRule(max_precondition_dim=6)
    w = torch.zeros(9, 6, dtype=torch.float64)
    ours, state = run(one_sided, w, gradients((9, 6), 30))
    assert state.left is None and state.right is not None
    reference = SOAPReference(w.numpy(), lr=0.01)
    reference.rotates_rows = False
    for g in gradients((9, 6), 30):
        reference.step(g.numpy())
    np.testing.assert_allclose(ours.numpy(), reference.w, rtol=0, atol=1e-12)


def test_blocks_of_one_parameter_may_be_rotated_on_different_sides():
    """Cut into 4 and 8 rows with at most 6 to rotate: each block moves as a parameter of its own."""
    whole = torch.nn.Parameter(torch.zeros(12, 5, dtype=torch.float64))
    parts = [torch.nn.Parameter(torch.zeros(n, 5, dtype=torch.float64)) for n in (4, 8)]
    options = {"max_precondition_dim": 6, "precondition_frequency": 1}
    optimizers = SOAPLITE([{"params": [whole], "blocks": (4, 8)}], 0.1, **options), SOAPLITE(parts, 0.1, **options)
    for g in gradients((12, 5), 6):
        whole.grad, parts[0].grad, parts[1].grad = g, g[:4].clone(), g[4:].clone()
        for optimizer in optimizers:
            optimizer.step()
    assert "left/0" in optimizers[0].state[whole] and "left/1" not in optimizers[0].state[whole]
    torch.testing.assert_close(whole.detach(), torch.cat([p.detach() for p in parts]), rtol=0, atol=1e-9)
    optimizers[0].load_state_dict(optimizers[0].state_dict())


@pytest.mark.parametrize("numbers", [range(3, 9), [0, 3, 4, 8, 9, 11]])
@pytest.mark.parametrize("chi", [1.0, 2.0])
def test_a_batch_is_its_matrices(chi, numbers):
    """For any size, and with refreshes staggered by the running number."""
    lite = SoapRule(chi=chi, beta_flat=chi - 1.0, weight_decay=0.1, precondition_frequency=4)
    w = torch.randn(6, 5, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gs = list(gradients((6, 5, 9), 25))
    together, state = run(lite, w, gs, numbers=numbers)
    for i in range(6):
        alone, own = run(lite, w[i], [g[i] for g in gs], numbers=[numbers[i]])
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-12)
        for key, batched in state.items():
            single = own[key]
            torch.testing.assert_close(batched[i], single, rtol=0, atol=1e-9)


def test_arguments_are_not_changed_and_other_bases_are_kept():
    lite = SoapRule(chi=2.0, weight_decay=0.1, precondition_frequency=3)
    w, gs = torch.ones(2, 4, 5), list(gradients((2, 4, 5), 4, torch.float32))
    w, state = run(lite, w, gs[:3])
    before = [x.clone() for x in (w, gs[3], *state.values())]
    _, after = lite.step(w, gs[3], state, step=3)
    assert all(torch.equal(a, b) for a, b in zip(before, (w, gs[3], *state.values()), strict=True))
    assert not torch.equal(after.left_basis[0], state.left_basis[0])  # 3 + 0 is due, 3 + 1 is not
    assert torch.equal(after.left_basis[1], state.left_basis[1])
    _, after = lite.step(w[1], gs[3][1], State({key: x[1] for key, x in state.items()}), step=3, numbers=[1])
    assert torch.equal(after.left_basis, state.left_basis[1])


@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 20), st.integers(1, 30))
def test_refreshes_are_spread_evenly(frequency, step, index, count):
    schedule = SoapRule(precondition_frequency=frequency).preconditioner
    numbers = range(index, index + count)
    assert not schedule.due(0, numbers)
    period = [schedule.due(step + 1 + k, numbers) for k in range(frequency)]
    assert sorted(i for due in period for i in due) == list(range(count))
    assert max(map(len, period)) - min(map(len, period)) <= 1
    for k, due in enumerate(period):
        assert all((step + 1 + k + index + i) % frequency == 0 for i in due)


def test_turns_do_not_depend_on_which_others_have_gradients():
    def last(missing):
        params = [torch.nn.Parameter(torch.ones(4, 3, dtype=torch.float64)) for _ in range(4)]
        optimizer = SOAPLITE(params, 0.1, precondition_frequency=3)
        for g in gradients((4, 4, 3), 8):
            for i, p in enumerate(params):
                p.grad = None if i == missing else g[i]
            optimizer.step()
        return params[3]

    torch.testing.assert_close(last(missing=None), last(missing=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("limit", [1, 50, 10**6])
def test_the_size_of_batches_does_not_matter(limit, monkeypatch):
    """Single matrices, whose factors are changed in place, pairs, and all in one batch."""
    monkeypatch.setattr(SOAPLITE, "largest_cpu_batch", limit)
    params = [torch.nn.Parameter(torch.ones(4, 6, dtype=torch.float64)) for _ in range(5)]
    alone = SOAPLITE([torch.nn.Parameter(torch.ones(4, 6, dtype=torch.float64))], 0.1, precondition_frequency=1)
    optimizer = SOAPLITE(params, 0.1, precondition_frequency=1)
    (single,) = alone.param_groups[0]["params"]
    for g in gradients((5, 4, 6), 12):
        for p, own in zip(params, g, strict=True):
            p.grad = own
        single.grad = g[3]
        alone.step()
        optimizer.step()
    torch.testing.assert_close(params[3], single, rtol=0, atol=1e-12)
    for key, value in alone.state[single].items():
        triangle = torch.tril if key in ("left", "right") else torch.clone
        torch.testing.assert_close(triangle(optimizer.state[params[3]][key]), triangle(value), rtol=0, atol=1e-11)


def test_fast_kernels_are_as_near_to_float64_as_torchs(monkeypatch):
    """Large enough for oneDNN's products and for panels of reflections; every matrix refreshes its basis."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    lite, shape = SoapRule(chi=2.0, beta_flat=1.0, weight_decay=0.1, precondition_frequency=3), (400, 256)
    exact, _ = run(lite, torch.zeros(shape, dtype=torch.float64), gradients(shape, 6))
    errors = []
    for fast in (False, True):
        monkeypatch.setattr(products, "_MKL_IS_SLOW", fast)
        w, state = run(lite, torch.zeros(shape), gradients(shape, 6, torch.float32))
        errors.append(float((w - exact).norm() / exact.norm()))
        torch.testing.assert_close(state.left_basis.T @ state.left_basis, torch.eye(400), rtol=0, atol=1e-5)
    assert errors[0] != errors[1]  # they are different kernels
    assert errors[1] <= 2 * errors[0] <= 0.02


def test_a_step_can_be_traced_whole():
    """By torch.compile without a break, large enough that it would meet oneDNN's products."""
    lite, shape = SoapRule(chi=2.0, beta_flat=1.0, weight_decay=0.1), (256, 384)
    w, state = run(lite, torch.zeros(shape), gradients(shape, 12, torch.float32))
    (g,) = gradients(shape, 1, torch.float32, seed=5)

    def step(w, g, state):
        return lite.step(w, g, state, step=12, numbers=[0])

    traced, _ = torch.compile(step, backend="eager", fullgraph=True)(w, g, state)
    torch.testing.assert_close(traced, step(w, g, state)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(48, 32), (24, 40)])
def test_bases_stay_orthogonal_in_float32(shape):
    _, state = run(SoapRule(), torch.zeros(shape), gradients(shape, 200, torch.float32))
    for basis in (state.left_basis, state.right_basis):
        assert float((basis.T @ basis - torch.eye(len(basis))).abs().max()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
def test_steps_are_finite_and_state_is_at_least_float32(dtype, scale):
    lite = SoapRule(chi=2.0, beta_flat=1.0, weight_decay=0.1, precondition_frequency=3)
    w = torch.ones(2, 6, 9, dtype=dtype)
    moved, state = run(lite, w, (scale * g for g in gradients((2, 6, 9), 12, dtype)))
    wide = torch.promote_types(dtype, torch.float32)
    assert moved.dtype == wide
    assert all(x.isfinite().all() for x in state.values())
    assert all(x.dtype == wide for key, x in state.items() if not key.endswith("mass"))
    assert moved.isfinite().all()
    if scale == 0.0:  # only decay acts, on every coordinate
        assert (moved < 1).all() and (moved > 1 - 2 * 12 * 0.01 * 0.1 * lite.chi).all()
    else:
        assert (moved - 1).abs().max() > 0.01


def test_scale_of_the_gradients_does_not_matter():
    w, gs = torch.zeros(6, 9), list(gradients((6, 9), 30, torch.float32))
    ends = [run(SoapRule(eps=1e-30), w, [scale * g for g in gs])[0] for scale in (1e-6, 1.0, 1e6)]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(ends[2], ends[1], rtol=0, atol=1e-3)


def test_a_matrix_whose_first_gradient_comes_late_catches_up():
    """Its zero basis moves nothing until the refresh computes a basis."""
    soap = SoapRule(precondition_frequency=4)
    w, state = torch.zeros(5, 6), None
    state = soap.initial(w)
    for step, g in enumerate(gradients((5, 6), 12, torch.float32), start=6):
        w, state = soap.step(w, g, state, step=step)
    assert w.isfinite().all() and w.abs().max() > 0.005
    torch.testing.assert_close(state.left_basis.T @ state.left_basis, torch.eye(5), rtol=0, atol=1e-5)


def test_no_step_waits_for_the_device():
    """Under FakeTensorMode a Python branch on a tensor's value raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for shape in ((6, 9), (3, 6, 9)):
            lite = SoapRule(chi=2.0, beta_flat=1.0, weight_decay=0.1, precondition_frequency=2)
            w, state = run(lite, torch.randn(shape), [torch.randn(shape) for _ in range(4)])
            assert w.shape == shape
            assert state.left_basis.shape == (*shape[:-2], 6, 6)


def test_lite_adds_almost_nothing_to_the_state():
    state = SoapRule(chi=2.0).initial(torch.zeros(64, 48))
    sizes = {name: x.numel() * x.element_size() for name, x in state.items()}
    thresholds = sizes.pop("hi") + sizes.pop("lo")
    assert sizes.pop("v_mass") + sizes.pop("momentum_mass") == 16
    assert sum(sizes.values()) == 4 * (2 * 64 * 48 + 2 * 64**2 + 2 * 48**2)
    assert thresholds == 8


@pytest.mark.parametrize("shape", [(300, 20), (2, 130, 5), (128, 3)])
def test_factor_is_the_average_of_products_below_the_diagonal(shape):
    factor, expected = torch.zeros(*shape[:-1], shape[-2], dtype=torch.float64), 0.0
    for g in gradients(shape, 4):
        factor_step_(factor, g, weight=0.1)
        expected = 0.9 * expected + 0.1 * g @ g.mT
    torch.testing.assert_close(factor.tril(), expected.tril())


def test_orthogonal_iteration_converges_to_the_sorted_eigenbasis():
    generator = torch.Generator().manual_seed(4)
    basis = torch.linalg.qr(torch.randn(2, 6, 6, generator=generator, dtype=torch.float64))[0]
    eigenvalues = 4.0 ** -torch.arange(6.0, dtype=torch.float64)
    factor = basis @ torch.diag(eigenvalues) @ basis.mT
    garbage = factor + torch.full((6, 6), 7.0).triu(1)  # above the diagonal nothing is read
    q = torch.eye(6, dtype=torch.float64).flip(-1).expand(2, 6, 6)
    for _ in range(40):
        q, order = refreshed_eigenbasis(garbage, q)
    assert torch.equal(order, torch.arange(6).expand(2, 6))
    for found in (q, *first_eigenbases(basis @ torch.diag(eigenvalues.sqrt()) @ basis.mT)):
        torch.testing.assert_close((found.mT @ basis).abs(), torch.eye(6, dtype=torch.float64).expand(2, 6, 6))


@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (2, 9, 6), (6, 9)])
@pytest.mark.parametrize("rank_is_full", [True, False])
def test_rounding_chooses_no_basis(shape, rank_is_full):
    """Gradients that differ in their last bits alone: weights stay together even if a factor is singular.

    As before a layer normalisation, whose gradient has mean 0, a direction may get a gradient by rounding only. Its
    coordinates move by rounding over ε, which is 1e-16 to 1e-8 here.
    """
    generator = torch.Generator().manual_seed(3)
    split = SoapRule(chi=2.0, beta_flat=1.0, precondition_frequency=2)
    w = torch.ones(shape, dtype=torch.float64)
    exact = list(gradients(shape, 12, seed=2))
    if not rank_is_full:
        axis = -2 if shape[-2] < shape[-1] else -1
        exact = [g - g.mean(axis, keepdim=True) for g in exact]
    rounded = [g * (1 + 2e-16 * torch.randn(shape, generator=generator, dtype=torch.float64)) for g in exact]
    first, second = (run(split, w, gs)[0] for gs in (exact, rounded))
    assert 0 < float((first - second).norm() / (first - w).norm()) < (1e-12 if rank_is_full else 1e-6)


def perturbed(gs, seed, size=2.0**-24):
    """Gradients whose last bits in float32 are others."""
    generator = torch.Generator().manual_seed(seed)
    for g in gs:
        yield g * (1 + size * torch.randn(g.shape, generator=generator, dtype=torch.float64))


SPECTRA = {
    "even": lambda rank: torch.linspace(1.0, 0.1, rank).double(),
    "graded": lambda rank: 10.0 ** -torch.linspace(0, 3, rank).double(),
    "singular": lambda rank: 10.0 ** -torch.linspace(0, 2, rank).double() * (torch.arange(rank) < 0.8 * rank),
}


@pytest.mark.parametrize("spectrum", list(SPECTRA))
@pytest.mark.parametrize("shape", [(32, 32), (64, 24), (24, 64)])
@pytest.mark.parametrize("frequency", [10, 2])
def test_float32_moves_the_weights_no_more_than_the_last_bits_of_gradients_do(shape, spectrum, frequency):
    """Other processors sum in another order, and SOAP amplifies that: by no more than its formula in float64."""
    soap = SoapRule(chi=2.0, beta_flat=1.0, precondition_frequency=frequency)
    rank = min(shape)
    u, v = (torch.linalg.qr(x)[0] for x in (matrix(shape[0], rank, seed=1), matrix(shape[1], rank, seed=2)))
    values = SPECTRA[spectrum](rank)
    # Singular vectors are fixed and singular values vary, as before a layer that drops directions.
    cores = [torch.eye(rank) + 0.3 * matrix(rank, rank, seed=3 + k) for k in range(4)]
    gs = [(0.01 * (u * values.sqrt()) @ core @ (v * values.sqrt()).mT).float().double() for core in cores]
    w = torch.zeros(shape, dtype=torch.float64)
    exact, _ = run(soap, w, gs)
    spread = max(float((run(soap, w, perturbed(gs, seed))[0] - exact).norm()) for seed in range(4))
    ours, _ = run(soap, w.float(), [g.float() for g in gs])
    assert spread < 0.2 * float(exact.norm())  # else nothing is compared
    assert float((ours - exact).norm()) <= 10 * spread  # measured: 1.7 at most


@pytest.mark.parametrize("shape", [(4, 30), (2, 30, 4), (6, 6)])
def test_a_phase_with_its_count_is_the_step(shape):
    """As in a compiled step; also while a factor cannot have full rank and its basis is not refreshed."""
    split, w = SoapRule(chi=2.0, beta_flat=1.0, precondition_frequency=3, weight_decay=0.1), torch.ones(shape).double()
    numbers = range(w.size(0)) if w.ndim == 3 else range(1)
    plain, phased = [(w, split.initial(w)) for _ in range(2)]
    for step, g in enumerate(gradients(shape, 14)):
        plain = split.step(plain[0], g, plain[1], step=step, numbers=numbers)
        phased = split.step(
            phased[0], g, phased[1], step=split.preconditioner.phase(step), numbers=numbers, is_phase=True
        )
        torch.testing.assert_close(plain[0], phased[0], rtol=1e-9, atol=1e-9)
        for key, a in plain[1].items():
            b = phased[1][key]
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_where_moments_lie_is_chosen_by_name():
    """A copy keeps the choice; one process, which has no shards, steps the same."""
    with pytest.raises(ValueError, match=r"moments = 'everywhere' is unknown\. Choose one of: owner, sharded"):
        SOAPLITE([torch.nn.Parameter(torch.ones(4, 3))], moments="everywhere")
    ends = []
    for way, travelling in (("owner", ()), ("sharded", ("momentum", "v"))):
        optimizer = copy.deepcopy(SOAPLITE([torch.nn.Parameter(torch.ones(4, 3))], moments=way))
        assert optimizer.travelling_state == optimizer.sharded_state == travelling
        (w,) = optimizer.param_groups[0]["params"]
        for g in gradients((4, 3), 3):
            w.grad = g.float()
            optimizer.step()
        ends.append(w)
    assert torch.equal(*ends)
