"""Settings of Muon kinds and of weight decay: against torch's Muon and plain implementations of the papers."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lite import SOAPLITE, AdamWLITE, Lion, LITEOptimizer, Muon, MuonLITE, Shampoo, param_groups
from lite.muon_settings import inside_unit
from tests.lite.optimizers import build, equal, train

SHAPE = (6, 4)


def problem(shape=SHAPE):
    generator = torch.Generator().manual_seed(0)
    size = torch.Size(shape).numel()
    a = torch.randn(size, size, dtype=torch.float64, generator=generator) / size**0.5
    start = torch.randn(shape, dtype=torch.float64, generator=generator)
    return start, lambda w: (a.T @ (a @ w.reshape(-1))).reshape(shape) + torch.tanh(w)


def path(make, shape=SHAPE, lr=0.02, steps=20, schedule=None):
    start, gradient = problem(shape)
    p = nn.Parameter(start.clone())
    optimizer = make([p], lr)
    scheduler = LambdaLR(optimizer, schedule) if schedule else None
    points = [start]
    for _ in range(steps):
        p.grad = gradient(p.detach())
        optimizer.step()
        points.append(p.detach().clone())
        if scheduler:
            scheduler.step()
    return torch.stack(points)


def assert_same(found, expected, tolerance=1e-12):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert (found[-1] - found[0]).abs().max() > 1e-2


@pytest.mark.parametrize("shape", [SHAPE, (4, 6), (5, 5)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("scale", "theirs"), [("rms", "match_rms_adamw"), ("original", "original")])
def test_jordan_s_iteration_and_torch_s_scales_are_torch_s_muon(scale, theirs, nesterov, shape):
    """torch iterates in bfloat16; its covector's scale decides how it is rounded, so paths agree to that rounding."""
    settings = {"momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov, "ns_steps": 5}
    found = path(partial(Muon, ns="jordan", ns_dtype="bfloat16", scale=scale, **settings), shape)
    expected = path(partial(torch.optim.Muon, adjust_lr_fn=theirs, **settings), shape)
    assert_same(found, expected, 0.01)


def test_jordan_s_iteration_is_torch_s_polynomial():
    start, gradient = problem()
    a, b, c = 3.4445, -4.7750, 2.0315
    m, w, points = torch.zeros(SHAPE, dtype=torch.float64), start, [start]
    for _ in range(20):
        g = gradient(w)
        m = 0.9 * m + 0.1 * g
        x = m / m.norm()
        for _ in range(5):
            x = a * x + (b * x @ x.T + c * (x @ x.T) @ (x @ x.T)) @ x
        w = w - 0.02 * 0.1 * w - 0.02 * (6 / 4) ** 0.5 * x
        points.append(w)
    settings = {"momentum": 0.9, "weight_decay": 0.1, "nesterov": False, "ns_steps": 5, "ns_dtype": "parameter"}
    assert_same(path(partial(Muon, ns="jordan", scale="original", **settings)), torch.stack(points))
    listed = partial(Muon, ns=[[a, b, c]], scale=lambda shape: max(1.0, shape[0] / shape[1]) ** 0.5, **settings)
    assert_same(path(listed), torch.stack(points))


@pytest.mark.parametrize("ns", ["cubic", "jordan", "polar-express", [(1.875, -1.25, 0.375)]])
def test_iterations_tend_to_the_polar_factor(ns):
    settings = {"momentum": 0.9, "weight_decay": 0.0, "ns_dtype": "parameter"}
    exact = path(partial(Muon, ns="svd", **settings), steps=1)
    found = path(partial(Muon, ns=ns, ns_steps=5 if ns == "jordan" else 30, **settings), steps=1)
    # Jordan's polynomial is made to bring singular values near 1, not to 1.
    assert (found - exact).abs().max() <= (0.4 if ns == "jordan" else 1e-9) * (exact[1] - exact[0]).abs().max()


@pytest.mark.parametrize(
    ("scale", "expected"), [("rms", 0.2 * 8**0.5), ("original", 2.0), ("spectral", 2.0), (lambda shape: 7.0, 7.0)]
)
def test_scales_multiply_the_direction_and_not_the_decay(scale, expected):
    w = nn.Parameter(torch.full((8, 2), 3.0, dtype=torch.float64))
    optimizer = Muon([w], 0.1, scale=scale, ns_steps=0, weight_decay=0.5)
    w.grad = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(w.grad, full_matrices=False)
    optimizer.step()
    torch.testing.assert_close(w.detach(), 3.0 - 0.1 * (expected * u @ vh + 0.5 * 3.0), rtol=1e-12, atol=0.0)


def test_a_scale_of_ones_own_is_saved_as_numbers(tmp_path):
    model, optimizer = build(MuonLITE, scale=lambda shape: 1.0 + 1.0 / max(shape))
    train(model, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=True)
    other, again = build(MuonLITE, scale="spectral")
    other.load_state_dict(model.state_dict())
    again.load_state_dict(saved)
    for pair in ((model, optimizer), (other, again)):
        train(*pair, 2, start=2)
    assert equal(list(model.parameters()), list(other.parameters()))


EVERY = {
    "muon": partial(Muon, ns_steps=0),
    "muon-lite": partial(MuonLITE, ns_steps=0, chi=2.0),
    "soap": partial(SOAPLITE, chi=2.0, precondition_frequency=2),
    "shampoo": partial(Shampoo, precondition_frequency=1, grafts=False, epsilon=1e-3),
    "lion": Lion,
    "adamw": partial(AdamWLITE, chi=2.0),
}


@pytest.mark.parametrize("name", EVERY)
def test_cautious_decay_shrinks_where_direction_and_weight_agree(name):
    """The step without decay gives the direction u; with cautious decay w moves by −η(u + λ[u∘w > 0]w)."""
    start, gradient = problem()
    ends = []
    for settings in ({"weight_decay": 0.0}, {"weight_decay": 0.4, "decay": "cautious"}):
        p = nn.Parameter(start.clone())
        optimizer = EVERY[name]([p], 0.02, **settings)
        for _ in range(3):  # gradients at one point, so that both have the same state
            before = p.detach().clone()
            p.grad = gradient(start)
            optimizer.step()
            ends.append((before, p.detach().clone()))
    plain, cautious = ends[:3], ends[3:]
    for (w, after), (v, found) in zip(plain, cautious, strict=True):
        u = (w - after) / 0.02
        expected = v - 0.02 * (u + (u * v > 0) * (0.4 * v))
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_independent_decay_does_not_depend_on_the_learning_rate(name):
    """A step shrinks weights by λ·lr/peak for any peak; tested with a gradient of 0."""
    shrunk = []
    for peak in (0.01, 0.3):
        p = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
        make = EVERY[name] if name in ("muon", "lion", "shampoo") else partial(EVERY[name].func, chi=1.0, beta_flat=0.0)
        optimizer = make([p], peak, weight_decay=0.1, decay="independent")
        scheduler = LambdaLR(optimizer, lambda k: 1.0 - 0.2 * k)
        for _ in range(4):
            p.grad = torch.zeros_like(p)
            optimizer.step()
            scheduler.step()
        shrunk.append(float(p.detach().mean()))
    skips = name == "soap"  # its first gradient makes no step
    expected = 1.0
    for k in range(int(skips), 4):
        expected *= 1.0 - 0.1 * (1.0 - 0.2 * k)
    assert shrunk == pytest.approx([expected, expected], rel=1e-12)


@pytest.mark.parametrize("name", ["muon", "muon-lite", "soap", "shampoo"])
def test_a_constant_norm_is_hyperball(name):
    """w ← R·normalised(w − ηR·û): the direction from a step without decay, over its norm."""
    start, gradient = problem()
    ends = []
    for norm in ("free", "constant"):
        p = nn.Parameter(start.clone())
        optimizer = EVERY[name]([p], 0.05, weight_decay=0.0, norm=norm)
        for _ in range(3):
            before = p.detach().clone()
            p.grad = gradient(start)
            optimizer.step()
            ends.append((before, p.detach().clone()))
    for (w, after), (v, found) in zip(ends[:3], ends[3:], strict=True):
        u = w - after
        if not u.norm():
            assert torch.equal(found, v)
            continue
        expected = v - 0.05 * v.norm() * u / u.norm()
        expected *= v.norm() / expected.norm()
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
        assert float(found.norm()) == pytest.approx(float(start.norm()), rel=1e-12)


@pytest.mark.parametrize("name", ["muon", "muon-lite", "soap", "shampoo"])
def test_a_constant_norm_keeps_weights_without_a_gradient(name):
    p = nn.Parameter(problem()[0])
    before = p.detach().clone()
    optimizer = EVERY[name]([p], 0.3, weight_decay=0.0, norm="constant")
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    torch.testing.assert_close(p.detach(), before, rtol=1e-14, atol=0.0)


def test_norms_are_kept_over_a_training_in_bfloat16():
    settings = {"matrix": {"weight_decay": 0.0, "norm": "constant", "lr": 0.05}}
    model, _ = build(MuonLITE, dtype=torch.bfloat16)
    optimizer = MuonLITE(param_groups(model, head=model.head, settings=settings), 0.02)
    before = [float(p.detach().float().norm()) for p in (model.first.weight, model.second.weight)]
    train(model, optimizer, 30)
    after = [float(p.detach().float().norm()) for p in (model.first.weight, model.second.weight)]
    assert after == pytest.approx(before, rel=0.01)


def one_step(**settings):
    """Covector and direction of a matrix's second step: (M̃, G, u) in float64 with exact polar factors."""
    start, gradient = problem()
    p = nn.Parameter(start.clone())
    optimizer = MuonLITE([p], 1.0, ns_steps=0, weight_decay=0.0, momentum=0.9, sharp_fraction=0.5, **settings)
    m = torch.zeros(SHAPE, dtype=torch.float64)
    for _ in range(2):
        before = p.detach().clone()
        g = gradient(before)
        m = 0.9 * m + 0.1 * g
        p.grad = g.clone()
        optimizer.step()
    return m + g / 9.0, g, (before - p.detach()) / (0.2 * 6**0.5)


def msign(x):
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("beta_flat", [0.0, 0.7])
def test_the_graded_mask_takes_the_singular_value_s_share_from_a_direction(beta_flat):
    """u = χ·msign(M̃) − (χ−1)M̃/σ, and the same Q for the damping; Q commutes with |M̃| = (M̃ᵀM̃)^½."""
    x, g, found = one_step(mask="graded-frobenius", chi=1.6, beta_sharp=0.0, beta_flat=beta_flat)
    size = torch.linalg.matrix_norm(x)
    flat = torch.eye(4, dtype=torch.float64) - msign(x).T @ x / size
    expected = msign(x) + 0.6 * msign(x) @ flat + 1.6 * beta_flat * msign(g) @ flat
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


def test_the_graded_mask_finds_the_largest_singular_value():
    x = torch.randn(30, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = nn.Parameter(torch.zeros(30, 12, dtype=torch.float64))
    optimizer = MuonLITE(
        [p], 1.0, ns_steps=0, weight_decay=0.0, mask="graded", chi=1.5, beta_sharp=0.0, beta_flat=0.0, nesterov=False
    )
    for _ in range(200):  # the same gradient: the covector keeps its directions
        before = p.detach().clone()
        p.grad = x.clone()
        optimizer.step()
    found = (before - p.detach()) / (0.2 * 30**0.5)
    expected = 1.5 * msign(x) - 0.5 * x / torch.linalg.matrix_norm(x, ord=2)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)


def test_the_graded_frobenius_direction_is_a_gradient():
    """Of χ‖X‖_* − (χ−1)‖X‖_F, by autograd."""
    x, _, found = one_step(mask="graded-frobenius", chi=1.6, beta_sharp=0.0, beta_flat=0.0)
    x.requires_grad_()
    potential = 1.6 * torch.linalg.matrix_norm(x, ord="nuc") - 0.6 * torch.linalg.matrix_norm(x)
    torch.testing.assert_close(found, torch.autograd.grad(potential, x)[0], rtol=0.0, atol=1e-10)


def test_the_random_mask_has_the_rank_of_the_subspace_and_another_place():
    ends = {}
    for mask in ("exact", "random", "random-redrawn"):
        x, _, found = one_step(mask=mask, chi=2.0, beta_sharp=0.0, beta_flat=0.0)
        flat = msign(x).T @ (found - msign(x))  # O has orthonormal columns: Q itself
        ends[mask] = flat
        torch.testing.assert_close(flat @ flat, flat, rtol=0.0, atol=1e-10)
        assert float(flat.trace()) == pytest.approx(2.0)
    assert all((ends["exact"] - ends[mask]).norm() > 0.1 for mask in ("random", "random-redrawn"))


@pytest.mark.parametrize("chi", [1.0, 2.0])
def test_damping_inside_the_map(chi):
    """u = O + (χ−1)OQ with O = msign(M̃ + √((1−θ)/(1+θ))·(β₁GP + β₂GQ)) and Q from M̃."""
    x, g, found = one_step(mask="exact", damping="inside", chi=chi, beta_sharp=-0.5, beta_flat=4.0)
    v = torch.linalg.svd(x)[2][:2].T
    sharp = v @ v.T
    flat = torch.eye(4, dtype=torch.float64) - sharp
    polar = msign(x + (-0.5 * g @ sharp + 4.0 * g @ flat) * (0.1 / 1.9) ** 0.5)
    torch.testing.assert_close(found, polar + (chi - 1.0) * polar @ flat, rtol=0.0, atol=1e-12)


def test_damping_inside_with_equal_beta_is_another_look_ahead():
    """Without a mask it only increases Nesterov's correction."""
    x, g, found = one_step(mask="exact", damping="inside", chi=1.0, beta_sharp=2.0, beta_flat=2.0)
    torch.testing.assert_close(found, msign(x + 2.0 * g * (0.1 / 1.9) ** 0.5), rtol=0.0, atol=1e-12)


def test_damping_inside_moves_as_much_as_outside_where_noise_dominates():
    """Gradients are white noise: β changes the direction by the same mean amount inside and outside the map."""
    torch.manual_seed(0)
    theta, beta = 0.95, 0.1
    gradients = torch.randn(150, 20, 24, 60, dtype=torch.float64)
    x, g = torch.zeros_like(gradients[0]), gradients[-1]
    for each in gradients:
        x = theta * x + (1 - theta) * each
    x = x + (1 - theta) / theta * g
    inside = torch.stack([msign(a + inside_unit(theta) * beta * b) - msign(a) for a, b in zip(x, g, strict=True)])
    outside = torch.stack([beta * msign(b) for b in g])
    assert float(inside.norm() / outside.norm()) == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(MuonLITE, mask="graded", damping="inside"), "on which mask = 'graded' depends"),
        (partial(MuonLITE, mask="graded", row_beta2=0.9), "take mask='subspace'"),
        (partial(MuonLITE, damping="before"), "damping = 'before' is unknown"),
        (partial(MuonLITE, norm="constant"), "set weight_decay=0"),
        (partial(MuonLITE, decay="cautious", weight_decay=0.0), "set weight_decay"),
        (partial(MuonLITE, decay="independent", lr=0.0), "set lr to the peak"),
        (partial(SOAPLITE, decay="l2"), "decay = 'l2' is unknown"),
        (partial(MuonLITE, norm="spectral"), "norm = 'spectral' is unknown"),
        (partial(MuonLITE, scale="muon"), "scale = 'muon' is unknown"),
        (partial(MuonLITE, scale=2.0), "a function of"),
        (partial(MuonLITE, scale=lambda shape: float("nan")), r"gives nan for a matrix of shape \(3, 4\)"),
        (partial(MuonLITE, scale=lambda shape: shape), "must be positive"),
        (partial(MuonLITE, ns="quintic"), "ns = 'quintic' is unknown"),
        (partial(MuonLITE, ns=[(1.5, -0.5)]), "a list of coefficients"),
        (partial(MuonLITE, ns=[(1.5, float("inf"), 0.0)]), "not a finite number"),
        (partial(MuonLITE, nesterov=1), "nesterov = 1 must be True or False"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.ones(3, 4))])


def test_every_optimizer_has_the_settings_of_decay():
    for make in EVERY.values():
        optimizer = make([nn.Parameter(torch.ones(3, 4))])
        assert isinstance(optimizer, LITEOptimizer)
        assert optimizer.param_groups[0]["decay"] == "decoupled"
