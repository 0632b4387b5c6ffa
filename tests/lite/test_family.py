"""The optimizers other than Muon and SOAP against plain implementations of their papers, and their special cases."""

from functools import partial

import pytest
import torch
from torch import nn

from lite import SOAPLITE, AdamWLITE, Lion, LionLITE, Muon, MuonLITE, NorMuon, NorMuonLITE, Shampoo, ShampooLITE
from tests.lite.optimizers import FAMILY, Net, build, equal, groups, train

STEPS = 25
SHAPE = (5, 3)


def problem(shape=SHAPE, seed=0):
    """Start and ∇f of f = ½‖A vec(w)‖² + Σ log cosh w."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    a = torch.randn(size, size, dtype=torch.float64, generator=generator) / size**0.5
    start = torch.randn(shape, dtype=torch.float64, generator=generator)
    return start, lambda w: (a.T @ (a @ w.reshape(-1))).reshape(shape) + torch.tanh(w)


def path(make, shape=SHAPE, lr=0.02, steps=STEPS):
    start, gradient = problem(shape)
    p = nn.Parameter(start.clone())
    optimizer = make([p], lr)
    points = []
    for _ in range(steps):
        p.grad = gradient(p.detach())
        optimizer.step()
        points.append(p.detach().clone())
    return torch.stack(points)


def plain_path(step, shape=SHAPE, steps=STEPS):
    """Points of an algorithm (w, g, t) ↦ w that keeps its own state."""
    w, gradient = problem(shape)
    points = []
    for t in range(1, steps + 1):
        w = step(w, gradient(w), t)
        points.append(w)
    return torch.stack(points)


def assert_same(found, expected, tolerance=1e-12):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert (found[-1] - found[0]).abs().max() > 1e-2


@pytest.mark.parametrize("shape", [SHAPE, (7,), (), (2, 3, 4)])
def test_lion_is_the_papers_algorithm(shape):
    m = torch.zeros(shape, dtype=torch.float64)

    def step(w, g, t):
        nonlocal m
        u = torch.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
        return w - 0.02 * (u + 0.3 * w)

    assert_same(path(partial(Lion, betas=(0.9, 0.99), weight_decay=0.3), shape), plain_path(step, shape))


@pytest.mark.parametrize("shape", [SHAPE, (3, 6)])
def test_normuon_is_the_papers_algorithm(shape):
    m, v = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[0], 1, dtype=torch.float64)

    def step(w, g, t):
        nonlocal m, v
        m = 0.9 * m + 0.1 * g
        u, _, vh = torch.linalg.svd(0.9 * m + 0.1 * g, full_matrices=False)  # Nesterov's form, as torch.optim.Muon
        v = 0.95 * v + 0.05 * (u @ vh).square().mean(-1, keepdim=True)
        o = (u @ vh) / (v.sqrt() + 1e-8)
        return w - 0.02 * 0.1 * w - 0.2 * 0.02 * w.numel() ** 0.5 / o.norm() * o

    found = path(partial(NorMuon, momentum=0.9, ns_steps=0, weight_decay=0.1), shape)
    assert_same(found, plain_path(step, shape), 1e-9)


def root(a, order, eps=0.0):
    values, vectors = torch.linalg.eigh(a)
    return (vectors * (values + eps) ** (-1 / order)) @ vectors.T


@pytest.mark.parametrize("frequency", [2, 5])
@pytest.mark.parametrize("grafts", [True, False])
def test_shampoo_is_the_papers_algorithm_with_roots_kept_between_refreshes(frequency, grafts):
    rows, columns = SHAPE
    zero = {key: torch.zeros(side, side, dtype=torch.float64) for key, side in (("l", rows), ("r", columns))}
    state = zero | {"m": torch.zeros(SHAPE, dtype=torch.float64), "v": torch.zeros(SHAPE, dtype=torch.float64)}

    def step(w, g, t):
        state["l"] = 0.95 * state["l"] + 0.05 * g @ g.T
        state["r"] = 0.95 * state["r"] + 0.05 * g.T @ g
        state["v"] = 0.95 * state["v"] + 0.05 * g * g
        mass = 1 - 0.95**t
        if t > 1:
            state["m"] = 0.9 * state["m"] + 0.1 * g
            u = state["pl"] @ state["m"] @ state["pr"]
            if grafts:
                adam = state["m"] / ((state["v"] / mass).sqrt() + 1e-8)
                u = u * adam.norm() / u.norm()
            w = w - 0.02 * (u / (1 - 0.9 ** (t - 1)) + 0.1 * w)
        if t == 1 or (t - 1) % frequency == 0:  # the first gradient only sets the roots; they are new after a step
            state["pl"], state["pr"] = root(state["l"] / mass, 4, 1e-3), root(state["r"] / mass, 4, 1e-3)
        return w

    make = partial(
        Shampoo,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        precondition_frequency=frequency,
        grafts=grafts,
        epsilon=1e-3,
    )
    assert_same(path(make), plain_path(step), 1e-10)


@pytest.mark.parametrize("moment", ["soap", "shampoo"])
def test_kl_factors_are_the_papers_algorithm(moment):
    """The KL-optimal factors of Lin et al., each fitted with gradients that the other whitens; basis of the first step.

    Refreshes of the basis are SOAP's and tested there; without a refresh only the equations of the factors remain.
    """
    shape = (3, 3)  # a 5×3 gradient would leave two left directions open
    s = {"m": torch.zeros(shape, dtype=torch.float64), "v": torch.zeros(shape, dtype=torch.float64)}

    def step(w, g, t):
        if t == 1:
            s["ql"], s["qr"] = (torch.linalg.eigh(x)[1].flip(-1) for x in (g @ g.T, g.T @ g))
            s["dl"] = s["dr"] = g.square().mean().sqrt().expand(3)
            return w
        x = s["ql"].T @ g @ s["qr"]
        left = (x.square() / (s["dr"] + 1e-8)[None, :]).mean(1)
        right = (x.square() / (s["dl"] + 1e-8)[:, None]).mean(0)
        s["dl"], s["dr"] = 0.95 * s["dl"] + 0.05 * left, 0.95 * s["dr"] + 0.05 * right
        s["m"] = 0.9 * s["m"] + 0.1 * x
        s["v"] = 0.95 * s["v"] + 0.05 * x.square()
        if moment == "soap":
            f = (s["v"].sqrt() + 1e-8) / (1 - 0.95 ** (t - 1)) ** 0.5
        else:
            f = (s["dl"][:, None] * s["dr"][None, :]).sqrt() + 1e-8
        u = s["ql"] @ (s["m"] / f) @ s["qr"].T
        return w - 0.02 * (u / (1 - 0.9 ** (t - 1)) + 0.1 * w)

    cls = SOAPLITE if moment == "soap" else ShampooLITE
    plain = {"chi": 1.0, "beta_flat": 0.0, "betas": (0.9, 0.95), "weight_decay": 0.1}
    make = partial(cls, **plain, divergence="kl", precondition_frequency=1000)
    assert_same(path(make, shape), plain_path(step, shape), 1e-8)


def test_kl_factors_take_in_whitened_gradients():
    """L of a step is (1 − θ₂)L + θ₂·G R⁻¹ Gᵀ/n with R⁻¹ from the kept basis and eigenvalues."""
    start, gradient = problem()
    p = nn.Parameter(start.clone())
    optimizer = SOAPLITE([p], 0.02, chi=1.0, beta_flat=0.0, betas=(0.9, 0.8), divergence="kl", weight_decay=0.0)
    for _ in range(4):
        before = {key: x.clone() for key, x in optimizer.state[p].items()}
        p.grad = g = gradient(p.detach())
        optimizer.step()
    basis, values = before["right_basis"], before["right_values"]
    whitened = g @ (basis / (values + 1e-8)) @ basis.T @ g.T / SHAPE[1]
    expected = (0.8 * before["left"] + 0.2 * whitened).tril()
    torch.testing.assert_close(optimizer.state[p]["left"].tril(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [SHAPE, (7,), ()])
def test_adamw_lite_reduces_to_torchs_adamw(shape):
    settings = {"betas": (0.9, 0.95), "weight_decay": 0.3}
    found = path(partial(AdamWLITE, chi=1.0, eps=1e-15, **settings), shape)
    assert_same(found, path(partial(torch.optim.AdamW, eps=1e-15, **settings), shape), 1e-11)


def test_adamw_lite_damps_all_coordinates_alike_where_beta_is_one_number():
    """χ = 1 and β₁ = β₂ = b is Adam with m + b(1 − θ)g instead of m: β is in the theory's units."""
    m, v = torch.zeros(SHAPE, dtype=torch.float64), torch.zeros(SHAPE, dtype=torch.float64)

    def step(w, g, t):
        nonlocal m, v
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        metric = (v.sqrt() + 1e-8) / (1 - 0.95**t) ** 0.5
        return w - 0.02 * ((m + 3.0 * 0.1 * g) / metric / (1 - 0.9**t) + 0.1 * w)

    make = partial(AdamWLITE, chi=1.0, beta_sharp=3.0, beta_flat=3.0, betas=(0.9, 0.95), weight_decay=0.1)
    assert_same(path(make), plain_path(step))


BASES = {
    "lion": (LionLITE, Lion),
    "normuon": (partial(NorMuonLITE, mask="exact"), NorMuon),
    "shampoo": (ShampooLITE, Shampoo),
}


@pytest.mark.parametrize("name", BASES)
def test_chi_one_and_beta_zero_is_the_base(name):
    lite, base = BASES[name]
    model, optimizer = build(base)
    train(model, optimizer, 12)
    torch.manual_seed(0)
    other = Net()
    train(other, lite(groups(other, lite, chi=1.0), 0.02, chi=1.0, beta_sharp=0.0, beta_flat=0.0), 12)
    assert equal(list(model.parameters()), list(other.parameters()))


def test_lite_speeds_flat_coordinates_of_lion_up_by_chi():
    start, gradient = problem()
    p = nn.Parameter(start.clone())
    optimizer = LionLITE([p], 0.02, chi=3.0, sharp_fraction=0.2, weight_decay=0.0)
    p.grad = gradient(start)
    optimizer.step()
    moved = (start - p.detach()).abs() / 0.02
    sharp = p.grad.abs() >= p.grad.abs().flatten().topk(3).values[-1]  # the first covector is along g
    torch.testing.assert_close(moved, torch.where(sharp, 1.0, 3.0).double(), rtol=1e-12, atol=0.0)


def test_rows_of_normuon_move_by_equal_amounts_where_muon_s_do_not():
    torch.manual_seed(0)
    g = torch.randn(40, 8, dtype=torch.float64) * torch.logspace(0, -2, 40, dtype=torch.float64)[:, None]

    def spread(make):
        p = nn.Parameter(torch.zeros(40, 8, dtype=torch.float64))
        optimizer = make([p], 0.02, ns_steps=0)
        p.grad = g.clone()
        optimizer.step()
        rows = p.detach().norm(dim=-1)
        return float(rows.max() / rows.min())

    assert spread(NorMuon) < 1.001
    assert spread(Muon) > 10.0


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_continues_bit_for_bit(name, dtype, tmp_path):
    whole, optimizer = build(FAMILY[name], dtype=dtype)
    train(whole, optimizer, 8)
    first, optimizer = build(FAMILY[name], dtype=dtype)
    train(first, optimizer, 3)
    torch.save([first.state_dict(), optimizer.state_dict()], tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=True)
    second, optimizer = build(FAMILY[name], dtype=dtype)
    second.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(second, optimizer, 5, start=3)
    assert equal(list(whole.parameters()), list(second.parameters()))
    assert all(p.isfinite().all() for p in whole.parameters())


@pytest.mark.parametrize("name", ["adamw", "lion", "normuon", "shampoo", "kl-soap"])
def test_a_compiled_step_is_the_step(name):
    torch._dynamo.reset()
    settings = {"ns_dtype": "parameter"} if "normuon" in name else {}
    eager, compiled = (build(FAMILY[name], dtype=torch.float64, **settings) for _ in range(2))
    compiled[1].compile(backend="eager", fullgraph=True)
    for model, optimizer in (eager, compiled):
        train(model, optimizer, 3)
    for a, b in zip(eager[0].parameters(), compiled[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-4)  # bases of null spaces are open to rounding


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(NorMuonLITE, row_beta2=1.0), "row_beta2 = 1"),
        (partial(NorMuonLITE, row_beta2=-0.1), "row_beta2 = -0.1 must be"),
        (partial(NorMuonLITE, mask="threshold"), "take mask='subspace'"),
        (partial(MuonLITE, row_beta2="0.9"), "row_beta2 = '0.9' must be a number"),
        (partial(LionLITE, betas=(0.0, 0.9)), r"betas\[0\] = 0"),
        (partial(ShampooLITE, root="qr"), "root = 'qr' is unknown"),
        (partial(ShampooLITE, divergence="js"), "divergence = 'js' is unknown"),
        (partial(ShampooLITE, divergence="kl", grafts=True), "leave it out"),
        (partial(ShampooLITE, precondition_frequency=0), "whole number"),
        (partial(ShampooLITE, epsilon=0.0), "epsilon = 0"),
        (partial(SOAPLITE, divergence="l2"), "divergence = 'l2' is unknown"),
    ],
)
def test_bad_settings_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(3, 4))])
