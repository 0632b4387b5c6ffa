"""Metrics of optimizers against their formulas: memory, averages, raised covectors, sharp directions."""

from dataclasses import replace

import pytest
import torch

from discretizations import (
    CoordinateMask,
    ExactSubspace,
    GradedMask,
    KroneckerRoot,
    PolarFactor,
    SecondMoment,
    Sign,
    ThresholdMask,
    TrackedSubspace,
)
from discretizations.matrices import newton_schulz
from discretizations.matrices.polar import exact_polar, fast_dtype, polar_express
from discretizations.preconditioners import polar_factor


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("fraction", "rank"), [(0.01, 1), (0.25, 3), (0.5, 6), (1.0, 12)])
def test_sharp_under_the_sign_metric_are_the_largest_coordinates_of_each_member(fraction, rank):
    """k = round(rp) of them, at least one, of either sign; the threshold is the smallest."""
    generator = torch.Generator().manual_seed(0)
    covector = torch.randn(2, 4, 3, generator=generator)
    rule = Sign(sharp_fraction=fraction)
    flat, memory = rule.flat(rule.initial(covector, batch=1), covector, covector.sign())
    is_sharp = flat(torch.ones_like(covector)) == 0.0
    for x, sharp, threshold in zip(covector, is_sharp, memory["threshold"], strict=True):
        assert int(sharp.sum()) == rank and flat.flatness.dtype == covector.dtype
        assert threshold == x.abs()[sharp].min()
        assert bool((x.abs()[~sharp] < threshold).all())


def test_without_sharp_coordinates_everything_is_flat():
    covector = torch.ones(3)
    flat, memory = Sign().flat(Sign().initial(covector), covector, covector)
    torch.testing.assert_close(flat(covector), covector)
    assert memory == {}


def test_costs_are_the_operations_of_their_products_and_decompositions():
    assert KroneckerRoot(beta2=0.9, eps=1e-8).cost(3, 4) == (3 + 4) * 3 * 4 + 25 * (27 + 64)
    assert PolarFactor().cost(3, 4) == PolarFactor().cost(4, 3) == 36.0


def test_the_sign_raises_to_signs_whatever_the_batch():
    covector = torch.tensor([[-2.0, 0.0, 0.5]])
    assert Sign().raise_index({}, covector).tolist() == [[-1.0, 0.0, 1.0]]
    assert Sign().degree == 1.0
    assert Sign(sharp_fraction=0.5).initial(covector)["threshold"].shape == ()
    flat, _ = Sign(sharp_fraction=0.5).flat({"threshold": torch.tensor(0.0)}, covector, covector)
    assert flat(torch.ones(1, 3)).tolist() == [[0.0, 1.0, 0.0]]  # round(0.5 · 3) = 2 of them


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_second_moments_are_kept_in_at_least_float32(dtype):
    w, wide = torch.zeros(3, 4, 2, dtype=dtype), torch.promote_types(dtype, torch.float32)
    memory = SecondMoment(beta2=0.9).initial(w, batch=1)
    assert {key: (tuple(x.shape), x.dtype) for key, x in memory.items()} == {
        "v": ((3, 4, 2), wide),
        "v_mass": ((3,), torch.float64),
    }
    assert SecondMoment(beta2=0.9).initial(w)["v_mass"].shape == ()
    assert set(SecondMoment(beta2=0.9, corrects_bias=False).initial(w)) == {"v"}
    g = torch.full((3, 4, 2), 1.0 + 2.0**-7, dtype=dtype)  # whose square bfloat16 does not hold
    taken = SecondMoment(beta2=0.9).observe(memory, g, g)
    torch.testing.assert_close(taken["v"], 0.1 * g.to(wide) ** 2, rtol=1e-6, atol=0)
    plain = SecondMoment(beta2=0.9, corrects_bias=False)
    torch.testing.assert_close(plain.observe(plain.initial(w), g, g), {"v": taken["v"]}, rtol=1e-6, atol=0)
    torch.testing.assert_close(taken["v_mass"], torch.full((3,), 0.1, dtype=torch.float64))


def test_second_moments_under_a_mask_are_ranked_by_it():
    mask = CoordinateMask(sharp_fraction=0.25)
    rule, v = SecondMoment(beta2=0.9, mask=mask), normal(0, 2, 3, 4) ** 2
    memory = rule.initial(v, batch=1)
    assert set(memory) == {"v", "v_mass", "hi", "lo"} and memory["hi"].shape == (2,)
    memory |= {"v": v}
    for settings in ({"h": 0.5}, {}):
        flat, after = rule.flat(memory, torch.zeros_like(v), None, **settings)
        expected, moved = mask.flat(memory, v, **settings)
        assert torch.equal(flat(v), expected(v)) and torch.equal(after["hi"], moved["hi"])
    assert set(SecondMoment(beta2=0.9).initial(v)) == {"v", "v_mass"}


@pytest.mark.parametrize("tracks", [False, True])
def test_adams_metric_has_epsilon_where_it_says(tracks):
    """After the bias correction, before it, or without one; at v = 0 the derivative is 0."""
    v = torch.tensor([[0.0, 4.0], [9.0, 1.0]], dtype=torch.float64, requires_grad=tracks)
    x, mass = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(), torch.tensor([0.25, 0.64]).double()
    root, scale = torch.tensor([[0.0, 2.0], [3.0, 1.0]]).double(), torch.tensor([[0.5], [0.8]]).double()
    corrected = {"v": v, "v_mass": mass}
    for rule, memory, metric in (
        (SecondMoment(beta2=0.9, eps=0.1), corrected, root / scale + 0.1),
        (SecondMoment(beta2=0.9, eps=0.1, eps_first=True), corrected, (root + 0.1) / scale),
        (SecondMoment(beta2=0.9, eps=0.1, corrects_bias=False), {"v": v}, root + 0.1),
    ):
        raised = rule.raise_index(memory, x)
        torch.testing.assert_close(raised, x / metric)
        if tracks:
            (slope,) = torch.autograd.grad(raised.sum(), v)
            assert slope[0, 0] == 0.0 and bool((slope.flatten()[1:] < 0).all())
    torch.testing.assert_close(v.detach(), torch.tensor([[0.0, 4.0], [9.0, 1.0]]).double(), rtol=0, atol=0)


def test_second_moments_that_left_their_bounds_come_back():
    below = torch.tensor([-1.0, 2.0])
    for rule, expected in (
        (SecondMoment(beta2=0.9), [0.0, 2.0]),
        (KroneckerRoot(beta2=0.9, eps=1e-2, grafts=True), [0.0, 2.0]),
        (KroneckerRoot(beta2=0.9, eps=1e-2), [-1.0, 2.0]),
    ):
        memory = rule.admissible({"v": below, "other": 1})
        assert memory["v"].tolist() == expected
        assert memory["other"] == 1
    assert SecondMoment(beta2=0.9).admissible({"left": 1}) == {"left": 1}


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values[..., None, :] ** -0.25) @ vectors.mT


@pytest.mark.parametrize("method", ["eigh", "newton"])
@pytest.mark.parametrize("beta2", [None, 0.8])
def test_shampoo_is_the_product_of_its_roots(beta2, method):
    """Sums, or averages over their mass, of GGᵀ and GᵀG."""
    rule = KroneckerRoot(beta2=beta2, eps=1e-3, root=method)
    w = normal(0, 2, 4, 3)
    memory = rule.initial(w, batch=1)
    assert set(memory) == {"left", "right"} | (set() if beta2 is None else {"mass"})
    sums, weight = [torch.zeros(2, n, n, dtype=torch.float64) for n in (4, 3)], 0.0
    for k in range(5):
        g = normal(k, 2, 4, 3)
        memory = rule.observe(memory, g, g)
        keep, gain = (1.0, 1.0) if beta2 is None else (beta2, 1.0 - beta2)
        sums = [keep * s + gain * taken for s, taken in zip(sums, (g @ g.mT, g.mT @ g), strict=True)]
        weight = keep * weight + gain
    left, right = (s / (1.0 if beta2 is None else weight) for s in sums)
    eye = [1e-3 * torch.eye(n, dtype=torch.float64) for n in (4, 3)]
    raised = rule.raise_index(memory, w)
    torch.testing.assert_close(raised, root(left + eye[0]) @ w @ root(right + eye[1]), rtol=1e-6, atol=1e-8)
    flat, after = replace(rule, sharp_fraction=0.6).flat(memory, w, None)
    vectors = torch.linalg.eigh(right).eigenvectors[..., -2:]  # round(0.6 · 3) of them, the largest
    torch.testing.assert_close(flat(w), w - w @ vectors @ vectors.mT)
    assert after is memory


def test_shampoo_grafted_has_the_size_of_adam_matrix_by_matrix():
    plain, grafted = (KroneckerRoot(beta2=0.8, eps=1e-3, grafts=grafts) for grafts in (False, True))
    adam = SecondMoment(beta2=0.8, eps=1e-8)
    assert plain.is_linear and not grafted.is_linear
    w = 1e-7 * normal(0, 2, 4, 3)  # so that ε of the grafted step counts
    memories = [rule.initial(w, batch=1) for rule in (plain, grafted, adam)]
    for k in range(3):
        g = 1e-7 * normal(k, 2, 4, 3)
        memories = [rule.observe(x, g, g) for rule, x in zip((plain, grafted, adam), memories, strict=True)]
    direction, ours, theirs = (rule.raise_index(x, w) for rule, x in zip((plain, grafted, adam), memories, strict=True))
    norms = [x.flatten(1).norm(dim=1)[:, None, None] for x in (theirs, direction)]
    torch.testing.assert_close(ours, direction * norms[0] / norms[1])
    assert not grafted.raise_index(memories[1], torch.zeros_like(w)).any()


def test_shampoo_keeps_roots_and_sharp_directions_between_refreshes():
    """They are those of the first gradient; later only the matrices due for a refresh get new ones."""
    rule = KroneckerRoot(beta2=0.8, eps=1e-3, frequency=3, sharp_fraction=0.6)
    fresh = replace(rule, frequency=1)
    assert rule.skips_first and not fresh.skips_first
    w = normal(0, 2, 4, 3)
    memory = rule.initial(w, batch=1)
    assert {key: tuple(x.shape[1:]) for key, x in memory.items()} == {
        "left": (4, 4),
        "right": (3, 3),
        "left_root": (4, 4),
        "right_root": (3, 3),
        "sharp": (3, 2),
        "mass": (),
    }
    assert "sharp" not in replace(rule, sharp_fraction=0.0).initial(w)
    memory = rule.first(memory, normal(1, 2, 4, 3))
    torch.testing.assert_close(rule.raise_index(memory, w), fresh.raise_index(memory, w))
    seen = rule.observe(memory, normal(2, 2, 4, 3), normal(2, 2, 4, 3))
    assert all(seen[key] is memory[key] for key in ("left_root", "right_root", "sharp"))
    torch.testing.assert_close(rule.raise_index(seen, w), rule.raise_index(memory, w), rtol=0, atol=0)
    after, m = rule.jump(seen, w, 3, due=[1])
    assert m is w
    raised, flat = rule.raise_index(after, w), rule.flat(after, w, None)[0](w)
    old, new = (x.raise_index(seen, w) for x in (rule, fresh))
    torch.testing.assert_close(raised, torch.stack([old[0], new[1]]))
    old, new = (x.flat(y, w, None)[0](w) for x, y in ((rule, seen), (fresh, strip(seen))))
    assert not torch.allclose(old[0], new[0])
    torch.testing.assert_close(flat, torch.stack([old[0], new[1]]))
    alone, _ = rule.jump({key: x[1] for key, x in seen.items()}, w[1], 3)
    torch.testing.assert_close(rule.raise_index(alone, w[1]), raised[1])
    first = replace(rule, sharp_fraction=0.0).first(seen, normal(3, 2, 4, 3))
    torch.testing.assert_close(first["sharp"], seen["sharp"], rtol=0, atol=0)


def test_shampoo_that_refreshes_every_other_step_keeps_its_roots():
    rule = KroneckerRoot(beta2=0.8, eps=1e-3, frequency=2)
    w = normal(0, 4, 3)
    memory = rule.initial(w)
    assert memory["mass"].shape == () and memory["left_root"].shape == (4, 4)
    memory = rule.first(memory, w)
    seen = rule.observe(memory, normal(1, 4, 3), normal(1, 4, 3))
    assert torch.equal(rule.raise_index(seen, w), rule.raise_index(memory, w))
    assert [rule.phase(step) for step in range(5)] == [0, 1, 2, 1, 2]


def test_shampoo_takes_half_precision_in_and_raises_it_in_its_memorys_type():
    rule = KroneckerRoot(beta2=0.8, eps=1e-3)
    g = normal(0, 4, 3, dtype=torch.bfloat16)
    memory = rule.observe(rule.initial(g), g, g)
    torch.testing.assert_close(memory["left"], 0.2 * g.float() @ g.float().mT)
    assert torch.equal(rule.raise_index(memory, g), rule.raise_index(memory, g.float()))


def strip(memory):
    return {key: x for key, x in memory.items() if key != "sharp"}


def test_matrices_take_turns_in_refreshing():
    rule = KroneckerRoot(beta2=0.8, eps=1e-3, frequency=3)
    assert [rule.due(step, (0, 1, 2)) for step in range(5)] == [[], [2], [1], [0], [2]]
    assert [rule.due(step) for step in range(4)] == [[], [], [], [0]]
    assert [rule.phase(step) for step in range(8)] == [0, 1, 2, 3, 1, 2, 3, 1]
    every = replace(rule, frequency=1)
    assert (every.due(3, (0, 1)), every.phase(5)) == ([], 0)
    assert rule.cost(3, 4) == (3 + 4) * 3 * 4 + 25 * (27 + 64) / 3


def test_what_shampoo_refuses():
    with pytest.raises(ValueError, match="grafts = True needs averages"):
        KroneckerRoot(beta2=None, eps=1e-3, grafts=True)
    with pytest.raises(ValueError, match="eps = 0"):
        KroneckerRoot(beta2=0.9, eps=0.0)


def test_polar_factors_by_each_iteration():
    x = normal(0, 2, 4, 7)
    torch.testing.assert_close(PolarFactor(iteration="svd").raise_index({}, x), exact_polar(x), rtol=0, atol=0)
    torch.testing.assert_close(PolarFactor(steps=5).raise_index({}, x), polar_express(x, steps=5), rtol=0, atol=0)
    small = PolarFactor(floor=0.1).raise_index({}, 1e-3 * x)
    torch.testing.assert_close(small, polar_express(1e-3 * x, floor=0.1), rtol=0, atol=0)
    steps = ((2.0, -1.5, 0.5), (1.5, -0.5, 0.0))
    for iteration, used in ((steps[0], [steps[0]] * 3), (steps, [*steps, steps[1]])):
        rule = PolarFactor(iteration=iteration, steps=3, floor=1e-7)
        y = x / torch.linalg.matrix_norm(x, keepdim=True)
        for a, b, c in used:
            gram = y @ y.mT
            y = a * y + (b * gram + c * gram @ gram) @ y
        torch.testing.assert_close(rule.raise_index({}, x), y)
        assert not rule.raise_index({}, torch.zeros_like(x)).any()
    tiny = PolarFactor(iteration=(1.0, 0.0, 0.0), steps=1, floor=1e-2).raise_index({}, 1e-4 * x)
    torch.testing.assert_close(tiny, 1e-2 * x)


@pytest.mark.parametrize("shape", [(4, 7), (2, 4, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("iteration", ["svd", "polar-express"])
def test_two_polar_factors_at_once_are_two(iteration, dtype, shape):
    rule = PolarFactor(iteration=iteration)
    first, second = normal(0, *shape, dtype=dtype), normal(1, *shape, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for found, x in zip(rule.raise_two({}, first, second), (first, second), strict=True):
        torch.testing.assert_close(found, rule.raise_index({}, x), rtol=0, atol=tolerance)


def test_batches_of_matrices_go_through_one_iteration_together(monkeypatch):
    """Except single matrices and the SVD; torch's coefficients never use the Gram form, as in torch."""
    shapes = []

    def seen(x, **settings):
        shapes.append(tuple(x.shape))
        return x

    monkeypatch.setattr(polar_factor, "polar_express", seen)
    monkeypatch.setattr(polar_factor, "exact_polar", seen)
    for shape, iteration, expected in (
        ((4, 7), "polar-express", [(4, 7)] * 2),
        ((2, 4, 7), "polar-express", [(4, 4, 7)]),
        ((2, 4, 7), "svd", [(2, 4, 7)] * 2),
    ):
        shapes.clear()
        first, second = normal(0, *shape), normal(1, *shape)
        found = PolarFactor(iteration=iteration).raise_two({}, first, second)
        assert shapes == expected and torch.equal(found[0], first) and torch.equal(found[1], second)
    monkeypatch.setattr(newton_schulz, "_gram_pair", None)
    PolarFactor(iteration=(1.5, -0.5, 0.0), floor=1e-7).raise_index({}, normal(0, 4, 40))


def test_the_iteration_has_its_own_floating_type():
    """Covectors are at least as wide, unless they are rounded to it first; the SVD uses the covector's dtype."""
    x, half = normal(0, 4, 7, dtype=torch.float32), torch.bfloat16
    for rule, iteration, at_work in (
        (PolarFactor(), torch.float32, torch.float32),
        (PolarFactor(dtype=half), half, torch.float32),
        (PolarFactor(dtype=half, narrows=True), half, half),
        (PolarFactor(dtype=torch.float64), torch.float64, torch.float64),
        (PolarFactor(dtype="fastest"), fast_dtype(x), torch.float32),
        (PolarFactor(iteration="svd", dtype=half), torch.float32, torch.float32),
    ):
        assert rule.iteration_dtype(x) == iteration
        assert rule.at_work(x).dtype == at_work
        assert rule.raise_index({}, x).dtype == torch.float32
    rounded = PolarFactor(dtype=half).raise_index({}, x)
    torch.testing.assert_close(rounded, polar_express(x, dtype=half), rtol=0, atol=0)
    own = PolarFactor(iteration=(1.5, -0.5, 0.0), steps=2, dtype=half, floor=1e-7).raise_index({}, x)
    assert own.dtype == torch.float32 and torch.equal(own, own.to(half).float())


def learned(rule, x, **step):
    """The threshold after a step."""
    return rule.flat({"rho": torch.tensor(0.5, dtype=torch.float64)}, x, exact_polar(x), **step)[1]["rho"]


def test_a_polar_factor_is_what_its_mask_is():
    base, graded = PolarFactor(), PolarFactor(mask=GradedMask())
    threshold = PolarFactor(mask=ThresholdMask(sharp_fraction=0.3))
    tracked = PolarFactor(mask=TrackedSubspace(sharp_fraction=0.3))
    assert [rule.masks_decay for rule in (base, graded, threshold)] == [True, False, True]
    assert [rule.applies_twice for rule in (base, graded, threshold, tracked)] == [False, False, True, False]
    assert tracked.exact == PolarFactor(iteration="svd", mask=ExactSubspace(sharp_fraction=0.3))
    assert base.exact == PolarFactor(iteration="svd")
    assert base.exact.degree == tracked.exact.degree == 1.0
    assert base.degree is None and PolarFactor(iteration="svd", mask=GradedMask()).degree is None
    assert PolarFactor(iteration="svd", mask=GradedMask(by="frobenius")).degree == 1.0
    assert base.initial(torch.zeros(4, 3)) == {}
    x = normal(0, 4, 3)
    memory = tracked.initial(x)
    assert not torch.equal(tracked.watch(memory, x)["subspace"], memory["subspace"])
    assert base.watch({"other": 1}, x) == {"other": 1}
    for rule, raised in ((base, x), (tracked, None)):
        with pytest.raises(ValueError, match="no sharp directions; keep"):
            rule.flat(rule.initial(x), x, raised)
    flat, _ = PolarFactor(iteration="svd", mask=ThresholdMask(sharp_fraction=0.3)).flat(
        {"rho": torch.tensor(0.5, dtype=torch.float64)}, x, exact_polar(x)
    )
    seen = {h: learned(threshold, x, h=h) for h in (0.5, 1.0)}
    assert learned(threshold, x) == seen[1.0] != seen[0.5]
    vectors = torch.linalg.svd(x).Vh[torch.linalg.svdvals(x) > 0.5 * torch.linalg.matrix_norm(x)]
    torch.testing.assert_close(flat(x), x - x @ vectors.mT @ vectors)
