"""Masks of preconditioners: their memory before the first step, their flat part, and their declared properties."""

import itertools
import math

import numpy as np
import pytest
import torch

from discretizations import (
    CoordinateMask,
    ExactSubspace,
    GradedMask,
    RandomSubspace,
    ThresholdMask,
    TrackedSubspace,
)
from discretizations.matrices.polar import exact_polar
from discretizations.matrices.random_subspace import _uniform, random_subspace
from discretizations.preconditioners.masks import wide_dtype

SIGMA = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)


def basis(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, len(SIGMA), dtype=torch.float64, generator=generator)).Q


U, V = basis(4, 0), basis(7, 1)
X = U * SIGMA @ V.mT
ASKED = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def flat_part(mask, *, steps):
    """The flat projector after steps with the same covector, and the memory."""
    memory = mask.initial(X)
    for _ in range(steps):
        flat, memory = mask.flat(memory, X, exact_polar(X))
    return flat, memory


def sharp_part(directions):
    return ASKED @ directions @ directions.mT


@pytest.mark.parametrize("mask", [ExactSubspace, TrackedSubspace])
@pytest.mark.parametrize(("fraction", "rank"), [(0.0, 0), (0.3, 1), (0.5, 2), (1.0, 4)])
def test_sharp_is_the_top_right_singular_space(mask, fraction, rank):
    """The space has rank round(r·min(m, n)); the tracked one converges to it from its own start."""
    flat, _ = flat_part(mask(sharp_fraction=fraction), steps=60)
    torch.testing.assert_close(flat(ASKED), ASKED - sharp_part(V[:, :rank]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("h", [1.0, 0.5])
@pytest.mark.parametrize(("fraction", "aim"), [(0.1, 1), (0.25, 2), (0.5, 3), (1.0, 3)])
def test_the_published_mask_keeps_singular_values_above_its_level_which_moves_towards_its_aim(fraction, aim, h):
    """Above ρ‖M̃‖; ρ moves by 5% per unit of time, until min(⌊r·min(m, n)⌋ + 1, min(m, n) − 1) pass."""
    mask = ThresholdMask(sharp_fraction=fraction)
    assert float(mask.initial(X)["rho"]) == 0.5  # 1/√min(m, n)
    for rho, passing in ((0.5, 1), (0.3, 2), (0.15, 3), (0.05, 4)):
        memory = {"rho": torch.tensor(rho, dtype=torch.float64), "other": 1}
        flat, after = mask.flat(memory, X, exact_polar(X), orthogonalize=exact_polar, h=h)
        torch.testing.assert_close(flat(ASKED), ASKED - sharp_part(V[:, :passing]), rtol=0, atol=1e-6)
        assert after["other"] == 1
        if passing != aim:  # where they are equal rounding decides
            assert float(after["rho"]) == pytest.approx(rho * (1.05 if passing > aim else 0.95) ** h)


def test_a_random_subspace_stays_what_it_is():
    mask = RandomSubspace(sharp_fraction=0.5)
    flat, memory = flat_part(mask, steps=3)
    start = mask.initial(X)["subspace"]
    assert start.shape == (7, 2)
    assert torch.equal(memory["subspace"], start)
    torch.testing.assert_close(flat(ASKED), ASKED - sharp_part(start), rtol=0, atol=1e-6)
    assert mask.observed(memory, X) is memory


def test_a_redrawn_subspace_is_another_one_every_step():
    mask = RandomSubspace(sharp_fraction=0.5, is_redrawn=True)
    bases, memory = [], mask.initial(X)
    for k in range(3):
        assert float(memory["draws"]) == k
        flat, memory = mask.flat(memory, X, X)
        basis = flat.basis
        torch.testing.assert_close(basis.mT @ basis, torch.eye(2, dtype=X.dtype), rtol=0, atol=1e-6)
        bases.append(basis)
    again, _ = mask.flat(mask.initial(X), X, X)
    assert torch.equal(again.basis, bases[0])
    assert min(float((a @ a.mT - b @ b.mT).norm()) for a, b in itertools.combinations(bases, 2)) > 0.1


def test_redrawn_subspaces_are_uniform():
    """E[VVᵀ] = (k/n)I, and entries of V have the kurtosis 3n/(n + 2) of a point on a sphere."""
    n, k, draws = 6, 2, 20_000
    v = random_subspace(torch.zeros(draws, 5, n, dtype=torch.float64), k, torch.arange(draws))
    error = ((v @ v.mT).mean(0) - k / n * torch.eye(n, dtype=torch.float64)).abs().max()
    assert float(error) < 5 * 0.3 / math.sqrt(draws)
    kurtosis = float((v**4).mean() / (v**2).mean() ** 2)
    assert kurtosis == pytest.approx(3 * n / (n + 2), rel=0.02)


def splitmix64(counter):
    """Output of SplitMix64 from seed 0, as published, number ``counter``."""
    x = counter * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_redrawn_subspaces_are_those_of_splitmix64_and_box_muller():
    """So a run continued from a saved number of draws sees the same subspaces. The first outputs are published."""
    assert [splitmix64(k) for k in (1, 2, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    n, k, numbers = 5, 2, (0, 3, 10**9)
    counters = np.array(numbers)[:, None] * (2 * n * k) + np.arange(1, 2 * n * k + 1)
    uniform = np.vectorize(lambda counter: ((splitmix64(int(counter)) >> 40) + 1) / 2**24)(counters)
    np.testing.assert_array_equal(_uniform(torch.as_tensor(counters)), uniform)
    radius, angle = uniform[:, : n * k], uniform[:, n * k :]
    normals = np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle)
    exact = np.linalg.qr(normals.reshape(3, n, k)).Q
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        w = torch.zeros(3, 4, n, dtype=dtype)
        for draws in (torch.tensor(numbers), torch.tensor(numbers, dtype=torch.float64)):
            found = random_subspace(w, k, draws)
            assert found.dtype == dtype
            np.testing.assert_allclose(found.double(), exact, rtol=0, atol=tolerance)
    double = random_subspace(torch.zeros(4, n, dtype=torch.float64), k, torch.tensor(0))
    torch.testing.assert_close(double.mT @ double, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-14)
    abstract = random_subspace(torch.zeros(3, 4, n, device="meta"), k, torch.zeros(3, device="meta"))
    assert abstract.is_meta and abstract.shape == (3, n, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("by", "sigma"), [("spectral", 8.0), ("frobenius", math.sqrt(85.0))])
def test_the_graded_mask_leaves_flat_what_a_singular_value_is_below_the_largest(by, sigma, scale, dtype):
    """It is 1 − σ_i/σ along v_i, at any scale: for msign(X) itself, for others, and for tall and wide matrices."""
    tolerance = 2e-5 if dtype == torch.float32 else 1e-8
    for x, right in ((X, V), (X.mT, U)):
        mask, scaled = GradedMask(by=by), (scale * x).to(dtype)
        memory, polar = mask.initial(scaled), exact_polar(x).to(dtype)
        for _ in range(40):
            flat, memory = mask.flat(memory, scaled, polar)
        others = torch.randn(9, len(right), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        for asked in (polar, others.to(dtype), others[:3].to(dtype)):
            expected = asked.double() - asked.double() @ right * (SIGMA / sigma) @ right.mT
            torch.testing.assert_close(flat(asked).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "mask",
    [
        ExactSubspace(sharp_fraction=0.5),
        TrackedSubspace(sharp_fraction=0.5),
        RandomSubspace(sharp_fraction=0.5),
        ThresholdMask(sharp_fraction=0.5),
        GradedMask(),
        GradedMask(by="frobenius"),
    ],
)
def test_matrices_of_a_batch_have_their_own_masks_in_the_type_of_the_covector(mask, dtype):
    """Also if there are fewer of them than rows, and one is 1e30 times another."""
    x = torch.stack([X, 1e-30 * X.flip(0)]).to(dtype)
    asked = ASKED.to(dtype)
    results = []
    for covector in (x, *x):
        memory, polar = mask.initial(covector), exact_polar(covector)
        for _ in range(3):
            flat, memory = mask.flat(memory, covector, polar, orthogonalize=exact_polar, h=1.0)
        results.append(flat(asked.expand(*covector.shape[:-2], 3, 7)))
        assert results[-1].dtype == dtype
    tolerance = 1e-6 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(results[0], torch.stack(results[1:]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("mask", [TrackedSubspace, RandomSubspace])
def test_a_fraction_that_falls_keeps_the_first_directions(mask):
    memory = mask(sharp_fraction=0.5).initial(X)
    flat, after = mask(sharp_fraction=0.25).flat(memory, X, X)
    torch.testing.assert_close(flat(ASKED), ASKED - sharp_part(after["subspace"][:, :1]))


@pytest.mark.parametrize("by", ["spectral", "frobenius"])
def test_the_graded_mask_of_nothing_is_finite(by):
    zero = torch.zeros(2, 3, 4)
    flat, memory = GradedMask(by=by).flat(GradedMask(by=by).initial(zero), zero, zero)
    torch.testing.assert_close(flat(torch.ones(2, 3, 4)), torch.ones(2, 3, 4), rtol=0, atol=0)
    assert all(x.isfinite().all() for x in memory.values())


def test_what_masks_see_of_a_step_without_flat_directions():
    """The tracked space and the leading direction are updated; other masks keep no memory of the step."""
    tracked, graded = TrackedSubspace(sharp_fraction=0.5), GradedMask()
    for mask, key in ((tracked, "subspace"), (graded, "leading")):
        memory = mask.initial(X) | {"other": 1.0}
        seen, (_, after) = mask.observed(memory, X), mask.flat(memory, X, exact_polar(X))
        assert seen["other"] == 1.0
        assert not torch.equal(seen[key], memory[key])
        torch.testing.assert_close(seen[key], after[key], rtol=0, atol=0)
    for mask in (ExactSubspace(sharp_fraction=0.5), ThresholdMask(sharp_fraction=0.5), GradedMask(by="frobenius")):
        memory = mask.initial(X)
        assert mask.observed(memory, X) is memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_memory_has_the_shapes_of_a_batch_and_at_least_float32_for_levels(dtype):
    w = torch.zeros(3, 6, 4, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    assert wide_dtype(w) == wide
    levels = CoordinateMask(sharp_fraction=0.1).initial(w, batch=1)
    assert {key: (x.tolist(), x.dtype) for key, x in levels.items()} == {
        "hi": ([1.0] * 3, wide),
        "lo": ([0.5] * 3, wide),
    }
    rho = ThresholdMask(sharp_fraction=0.1).initial(w)["rho"]
    assert (rho.tolist(), rho.dtype) == ([0.5] * 3, wide)
    leading = GradedMask().initial(w)["leading"]
    assert (tuple(leading.shape), leading.dtype) == ((3, 4), wide)
    torch.testing.assert_close(leading.norm(dim=-1), torch.ones(3, dtype=wide))
    assert TrackedSubspace(sharp_fraction=0.5).initial(w)["subspace"].shape == (3, 4, 3)  # one more than the rank
    assert RandomSubspace(sharp_fraction=0.5).initial(w)["subspace"].shape == (3, 4, 2)
    redrawn = RandomSubspace(sharp_fraction=0.5, is_redrawn=True)
    draws = redrawn.initial(w)["draws"]
    assert (draws.tolist(), draws.dtype) == ([0.0] * 3, wide) and redrawn.initial(w.to("meta"))["draws"].is_meta
    assert GradedMask(by="frobenius").initial(w) == ExactSubspace(sharp_fraction=0.5).initial(w) == {}
    assert ThresholdMask(sharp_fraction=0.1).initial(torch.zeros(0, 4))["rho"] == 1.0  # an empty shard
    assert ThresholdMask(sharp_fraction=0.1).initial(w.to("meta"))["rho"].is_meta


def test_the_exact_form_of_a_mask():
    exact = ExactSubspace(sharp_fraction=0.3)
    assert exact.exact is exact
    assert TrackedSubspace(sharp_fraction=0.3).exact == ThresholdMask(sharp_fraction=0.3).exact == exact
    for mask in (GradedMask(), RandomSubspace(sharp_fraction=0.3)):
        assert mask.exact is mask


@pytest.mark.parametrize("shape", [(12,), (3, 4)])
def test_the_coordinate_mask_of_a_parameter_ranks_its_second_moment(shape):
    """p = 1 from hi·mean(v) on and 0 below lo·mean(v), linear between; then both levels move, h times 5%."""
    mask = CoordinateMask(sharp_fraction=0.25)
    v = torch.arange(12.0, dtype=torch.float64).reshape(shape) / 5.5  # mean 1
    memory = mask.initial(v, batch=0) | {"v": v, "other": 1}
    flat, after = mask.flat(memory, v, h=0.5)
    ones = torch.ones(shape, dtype=torch.float64)
    torch.testing.assert_close(flat(3.0 * ones), 3.0 * (2.0 - 2.0 * v).clamp(0.0, 1.0))
    assert after["other"] == 1
    # Half of the elements are above the mean, and 9 of 12 above half the mean: both levels rise.
    assert (float(after["hi"]), float(after["lo"])) == (pytest.approx(1.05**0.5), pytest.approx(0.5 * 1.05**0.5))
    torch.testing.assert_close(mask.flat(memory, v)[1]["hi"], torch.tensor(1.05, dtype=torch.float64))
    _, rest = CoordinateMask(sharp_fraction=1.0).flat(memory, v)
    assert float(rest["hi"]) == 0.95


def test_each_parameter_of_a_batch_has_its_own_levels():
    mask = CoordinateMask(sharp_fraction=0.25, floor=1e-3)
    v = torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v[1] *= 1e-3
    levels = {"hi": torch.tensor([1.5, 0.8]).double(), "lo": torch.tensor([0.5, 0.2]).double()}
    flat, after = mask.flat(levels, v)
    ones = torch.ones_like(v)
    for i in range(2):
        alone, own = mask.flat({key: x[i] for key, x in levels.items()}, v[i])
        torch.testing.assert_close(flat(ones)[i], alone(ones[i]))
        assert all(own[key] == after[key][i] for key in levels)
    # The floor widens the band where v is small: nothing below hi is fully sharp there.
    plain, _ = CoordinateMask(sharp_fraction=0.25).flat(levels, v)
    assert bool((flat(ones)[1] >= plain(ones)[1]).all()) and not torch.allclose(flat(ones)[1], plain(ones)[1])


def test_below_its_least_fraction_every_coordinate_is_flat_and_levels_rest():
    for fraction, is_all_flat in ((1e-6, True), (1e-5, False), (0.1, False)):
        mask = CoordinateMask(sharp_fraction=fraction, all_flat_below=1e-5)
        assert mask.is_all_flat is is_all_flat
    v = torch.ones(3)
    mask = CoordinateMask(sharp_fraction=0.0, all_flat_below=1e-5)
    memory = mask.initial(v, batch=0)
    flat, after = mask.flat(memory, v)
    assert after is memory
    assert torch.equal(flat(v), v)
    assert not CoordinateMask(sharp_fraction=0.0).is_all_flat
