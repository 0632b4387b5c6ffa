"""MuonLITE against the published algorithm in float64, and its reductions to known optimizers."""

from functools import partial

import numpy as np
import pytest
import torch

from discretizations.matrices.polar import polar_express
from lite import LITESchedule, Muon, MuonLITE
from tests.lite.reference import AdamWLITEReference, MuonLITEReference


def gradients(shape, steps, seed=0):
    """A slowly rotating low-rank signal plus noise, like weight gradients."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(shape[0], 4)), rng.normal(size=(4, shape[1]))
    for _ in range(steps):
        left += 0.1 * rng.normal(size=left.shape)
        yield left @ right + 0.3 * rng.normal(size=shape)


def run(optimizer, p, grads):
    for g in grads:
        p.grad = torch.as_tensor(g, dtype=p.dtype)
        optimizer.step()
    return p.detach().double().numpy()


def relative(change, reference):
    return np.linalg.norm(change - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chi": 3.0, "beta_sharp": 0.0, "beta_flat": 0.5, "sharp_fraction": 0.3, "weight_decay": 0.5},
        {"chi": 1.0},
        {"beta_sharp": 0.0, "beta_flat": 0.0},
    ],
)
def test_threshold_mask_is_the_published_algorithm_with_svd(shape, settings):
    w0 = np.random.default_rng(1).normal(size=shape)
    p = torch.nn.Parameter(torch.tensor(w0))
    optimizer = MuonLITE([p], lr=0.02, ns_steps=0, mask="threshold", **settings)
    optimizer.init_state()
    names = {"chi": "chi", "beta_sharp": "beta1", "beta_flat": "beta2", "sharp_fraction": "r", "weight_decay": "wd"}
    reference = MuonLITEReference(w0, lr=0.02, **{names[key]: value for key, value in settings.items()})
    for g in gradients(shape, 30):
        # With exact polar factors ‖S‖_F is √(whole number): at √k the published comparison is decided by rounding, so ρ
        # is copied from ours and its adaptation is checked where there is no tie.
        reference.rho = float(optimizer.state[p]["rho"])
        p.grad = torch.as_tensor(g)
        optimizer.step()
        reference.step(g)
        tie = abs(reference.mask_norm - np.sqrt(reference.k)) < 1e-9
        assert tie or float(optimizer.state[p]["rho"]) == pytest.approx(reference.rho, rel=1e-12)
        assert relative(p.detach().numpy() - w0, reference.w - w0) < 1e-9


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_float32_newton_schulz_follows_the_same_polynomial_in_float64(shape):
    """50 steps of the threshold mask in float32 against the published formulas in float64, same polynomial."""
    w0 = np.random.default_rng(1).normal(size=shape)
    p = torch.nn.Parameter(torch.tensor(w0, dtype=torch.float32))
    ours = run(MuonLITE([p], lr=0.02, mask="threshold", ns_dtype="float32"), p, gradients(shape, 50))
    reference = MuonLITEReference(
        w0, lr=0.02, orthogonalize=lambda x: polar_express(torch.as_tensor(x), steps=6).numpy()
    )
    for g in gradients(shape, 50):
        reference.step(g)
    assert relative(ours - w0, reference.w - w0) < 1e-4


@pytest.mark.parametrize(("optimizer", "tolerance"), [(Muon, 0.03), (partial(MuonLITE, mask="exact"), 0.08)])
def test_newton_schulz_stays_close_to_the_svd(optimizer, tolerance):
    shape = (24, 40)
    w0 = np.random.default_rng(1).normal(size=shape)
    ends = []
    for steps in (6, 0):
        p = torch.nn.Parameter(torch.tensor(w0))
        ends.append(run(optimizer([p], lr=0.02, ns_steps=steps), p, gradients(shape, 20)) - w0)
    assert relative(*ends) < tolerance


def test_threshold_adapts_while_the_schedule_holds_chi_at_one():
    """The published code computes the mask at every step, warm-up included."""
    p = torch.nn.Parameter(torch.randn(12, 20, generator=torch.Generator().manual_seed(0)))
    optimizer = MuonLITE([p], lr=0.01, beta_sharp=0.0, mask="threshold")
    LITESchedule(optimizer, warmup_steps=5, total_steps=20)
    assert (optimizer.param_groups[0]["chi"], optimizer.param_groups[0]["beta_flat"]) == (1.0, 0.0)
    optimizer.init_state()
    before = float(optimizer.state[p]["rho"])
    run(optimizer, p, gradients((12, 20), 1))
    assert float(optimizer.state[p]["rho"]) != before


@pytest.mark.parametrize("ours", [Muon, lambda p, lr: MuonLITE(p, lr, chi=1.0, beta_sharp=0.0, beta_flat=0.0)])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_base_method_is_torch_muon_up_to_the_polynomial(ours, shape, monkeypatch):
    import torch.optim._muon as torch_muon

    # torch's own rounds to bfloat16 with Jordan's polynomial; everything else must agree.
    monkeypatch.setattr(torch_muon, "_zeropower_via_newtonschulz", lambda g, *_: polar_express(g, steps=6))
    w0 = torch.as_tensor(np.random.default_rng(1).normal(size=shape))
    mine, theirs = torch.nn.Parameter(w0.clone()), torch.nn.Parameter(w0.clone())
    a = run(ours([mine], 0.02), mine, gradients(shape, 30))
    b = run(torch.optim.Muon([theirs], lr=0.02, adjust_lr_fn="match_rms_adamw"), theirs, gradients(shape, 30))
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_base_method_is_close_to_torch_muon_as_it_is():
    """With torch's own bfloat16 polynomial (singular values in 0.7–1.2) updates point the same way."""
    w0 = torch.as_tensor(np.random.default_rng(1).normal(size=(24, 40)), dtype=torch.float32)
    mine, theirs = torch.nn.Parameter(w0.clone()), torch.nn.Parameter(w0.clone())
    a = run(Muon([mine], 0.02, weight_decay=0.0), mine, gradients((24, 40), 10)) - w0.numpy()
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    b = run(other, theirs, gradients((24, 40), 10)) - w0.numpy()
    assert (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.97


@pytest.mark.parametrize("mask", ["subspace", "threshold", "exact"])
def test_many_matrices_in_a_batch_equal_one_at_a_time(mask):
    w0 = np.random.default_rng(1).normal(size=(3, 12, 20))
    together = [torch.nn.Parameter(torch.tensor(w)) for w in w0]
    optimizer = MuonLITE(together, 0.02, mask=mask)
    for grads in zip(*(gradients((12, 20), 10, seed=i) for i in range(3)), strict=True):
        for p, g in zip(together, grads, strict=True):
            p.grad = torch.as_tensor(g)
        optimizer.step()
    for i, p in enumerate(together):
        alone = torch.nn.Parameter(torch.tensor(w0[i]))
        expected = run(MuonLITE([alone], 0.02, mask=mask), alone, gradients((12, 20), 10, seed=i))
        np.testing.assert_allclose(p.detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("r", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("chi", [1.0, 4.0])
def test_adamw_groups_are_the_published_algorithm(r, chi):
    w0 = np.random.default_rng(1).normal(size=(30, 8))
    p = torch.nn.Parameter(torch.tensor(w0))
    optimizer = MuonLITE([{"params": [p], "rule": "adamw", "chi": chi, "sharp_fraction": r}], lr=0.02)
    ours = run(optimizer, p, gradients((30, 8), 30))
    reference = AdamWLITEReference(w0, lr=0.02, chi=chi, r=r)
    for g in gradients((30, 8), 30):
        reference.step(g)
    np.testing.assert_allclose(ours, reference.w, rtol=1e-10, atol=1e-12)


def small_gradients(shape, size):
    """Spread over orders of magnitude, like an embedding's; the first is zero, as before a layer that starts at 0."""
    rng = np.random.default_rng(1)
    scales = np.exp(rng.normal(size=shape))
    return [np.zeros(shape), *(size * scales * rng.normal(size=shape) for _ in range(25))]


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("shape", [(40, 8), (32,)])
def test_adamw_groups_of_the_published_mask_have_its_floor(shape, size):
    """Embeddings and norms under mask="threshold" equal the published code; the default differs for small gradients."""
    w0 = np.random.default_rng(0).normal(size=shape)
    moved = {}
    for mask in ("threshold", "subspace"):
        p = torch.nn.Parameter(torch.tensor(w0))
        optimizer = MuonLITE([{"params": [p], "rule": "adamw", "chi": 4.0}], lr=0.02, mask=mask)
        moved[mask] = run(optimizer, p, small_gradients(shape, size)) - w0
    reference = AdamWLITEReference(w0, lr=0.02, chi=4.0, floor=1e-12)
    for g in small_gradients(shape, size):
        reference.step(g)
    published = reference.w - w0
    np.testing.assert_allclose(moved["threshold"], published, rtol=1e-9, atol=1e-12)
    # The default is independent of scale. After the zero gradient it counts everything as flat, also for decay.
    difference = relative(moved["subspace"], published)
    assert (difference > 0.02) == (size <= 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 5), (3, 2, 2)])
def test_adamw_tensors_in_a_batch_equal_one_at_a_time(shape, dtype):
    """Each tensor has its own mask and step count."""
    source = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=source, dtype=torch.float64).to(dtype) for _ in range(4)]
    together, alone = ([torch.nn.Parameter(w.clone()) for w in tensors] for _ in range(2))
    settings = {"rule": "adamw", "chi": 4.0, "sharp_fraction": 0.3}
    batch = MuonLITE([{"params": together, **settings}], 0.02)
    single = [MuonLITE([{"params": [p], **settings}], 0.02) for p in alone]
    for k in range(8):
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            q.grad = 10.0**i * torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)
            p.grad = None if (k, i) == (2, 1) else q.grad.clone()
        batch.step()
        for i, optimizer in enumerate(single):
            if (k, i) != (2, 1):
                optimizer.step()
    for p, q, optimizer in zip(together, alone, single, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
        for key, value in batch.state[p].items():
            torch.testing.assert_close(value, optimizer.state[q][key], rtol=1e-12, atol=0)


def test_adamw_calls_do_not_grow_with_the_number_of_tensors():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 0 if func.is_view or "_foreach" in func.name() else 1
            return func(*args, **(kwargs or {}))

    counts = []
    for number in (2, 20):
        params = [torch.nn.Parameter(torch.ones(8)) for _ in range(number)]
        optimizer = MuonLITE([{"params": params, "rule": "adamw", "chi": 4.0}], on_nonfinite="ignore")
        for p in params:
            p.grad = torch.ones(8)
        optimizer.step()
        calls = Calls()
        calls.count = 0
        with calls:
            optimizer.step()
        counts.append(calls.count)
    assert counts[0] == counts[1]


def test_adamw_base_is_torch_adamw_for_small_epsilon():
    w0 = torch.as_tensor(np.random.default_rng(1).normal(size=(30, 8)))
    mine, theirs = torch.nn.Parameter(w0.clone()), torch.nn.Parameter(w0.clone())
    group = {"params": [mine], "rule": "adamw"}
    a = run(Muon([group], lr=0.02, eps=1e-14), mine, gradients((30, 8), 30))
    other = torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.99), eps=1e-14, weight_decay=0.1)
    b = run(other, theirs, gradients((30, 8), 30))
    np.testing.assert_allclose(a, b, rtol=1e-9)
