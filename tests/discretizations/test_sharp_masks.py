"""Masks: the directions that they keep, and how their thresholds move."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from discretizations.matrices.polar import exact_polar, polar_express
from discretizations.matrices.sharp_masks import (
    CoordinateThresholds,
    GradedComplement,
    SubspaceComplement,
    adapt_coordinate_thresholds,
    adapt_threshold,
    coordinate_mask,
    initial_threshold,
    leading_direction,
    mask_complement,
    passing_fractions,
    published_rank,
    threshold_mask,
    top_right_subspace,
)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _matrix(shape, sigma, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(shape[0], len(sigma), dtype=torch.float64, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(shape[1], len(sigma), dtype=torch.float64, generator=generator))[0]
    return (u * torch.tensor(sigma, dtype=torch.float64)) @ v.mT, u, v


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_threshold_mask_keeps_singular_directions_above_the_threshold(shape):
    sigma = [8.0, 4.0, 2.0, 1.0, 0.5]
    x, u, v = _matrix(shape, sigma)
    rho = 3.0 / float(torch.linalg.vector_norm(x))  # τ = 3: between the second and third singular value
    mask = threshold_mask(x, exact_polar(x), rho, orthogonalize=exact_polar)
    torch.testing.assert_close(mask, u[:, :2] @ v[:, :2].mT, atol=1e-8, rtol=0)
    y = torch.randn(4, shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = y - (y @ v[:, :2]) @ v[:, :2].mT
    torch.testing.assert_close(mask_complement(mask)(y), expected, atol=1e-7, rtol=0)


def test_exact_split_is_the_limit_of_the_threshold_mask():
    x, _, v = _matrix((6, 9), [9.0, 7.0, 5.0, 3.0, 2.0, 1.0])
    basis = top_right_subspace(x, 3)
    torch.testing.assert_close(basis @ basis.mT, v[:, :3] @ v[:, :3].mT, atol=1e-12, rtol=0)
    mask = threshold_mask(x, exact_polar(x), 4.0 / torch.linalg.vector_norm(x), orthogonalize=exact_polar)
    y = torch.randn(2, 9, dtype=torch.float64)
    torch.testing.assert_close(mask_complement(mask)(y), SubspaceComplement(basis)(y), atol=1e-8, rtol=0)


def test_rank_out_of_range_is_refused():
    with pytest.raises(ValueError, match="rank = 4 must lie between 0 and min"):
        top_right_subspace(torch.zeros(3, 5), 4)


def test_published_constants():
    assert published_rank(0.1, 128) == 13
    assert published_rank(1.0, 8) == 7
    assert published_rank(0.1, 1) == 0
    assert initial_threshold(64) == pytest.approx(1 / 8)


def test_rho_grows_while_too_much_passes_and_is_capped():
    x, _, _ = _matrix((5, 8), [8.0, 4.0, 2.0, 1.0, 0.5])
    everything, nothing = exact_polar(x), torch.zeros_like(x)
    rho = torch.tensor([0.5, 0.5, 0.99], dtype=torch.float64)
    moved = adapt_threshold(rho, torch.stack([everything, nothing, everything]), rank=2)
    torch.testing.assert_close(moved, torch.tensor([0.525, 0.475, 1.0], dtype=torch.float64))


def test_threshold_settles_at_the_rank_asked_for():
    x, _, _ = _matrix((20, 30), torch.logspace(0, -2, 20).tolist())
    rho = torch.tensor(initial_threshold(20), dtype=torch.float64)
    passed = []
    for _ in range(200):
        mask = threshold_mask(x, exact_polar(x), rho, orthogonalize=exact_polar)
        rho = adapt_threshold(rho, mask, rank=4)
        passed.append(float(torch.linalg.vector_norm(mask) ** 2))
    assert 3 <= sum(passed[-50:]) / 50 <= 5


def test_coordinate_mask_is_linear_between_its_thresholds():
    v = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)  # mean 2
    mask = coordinate_mask(v, CoordinateThresholds(torch.tensor(1.5).double(), torch.tensor(0.5).double()))
    torch.testing.assert_close(mask, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]).double())
    assert torch.isfinite(
        coordinate_mask(torch.zeros(3), CoordinateThresholds(torch.tensor(1.0), torch.tensor(0.5)))
    ).all()


def test_parts_of_a_vector_need_only_its_mean():
    v, thresholds = torch.arange(1.0, 9.0), CoordinateThresholds(torch.tensor(1.5), torch.tensor(0.5))
    parts = [coordinate_mask(part, thresholds, mean=v.mean()) for part in v.split(3)]
    torch.testing.assert_close(torch.cat(parts), coordinate_mask(v, thresholds))
    first, second = (passing_fractions(x, thresholds, mean=v.mean()) for x in v.split(4))
    for whole, a, b in zip(passing_fractions(v, thresholds), first, second, strict=True):
        torch.testing.assert_close((a + b) / 2, whole)


def test_coordinate_masks_of_a_batch_are_those_of_its_members():
    v = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v *= torch.tensor([1e-6, 1.0, 1e3]).double()[:, None, None]
    batch = CoordinateThresholds(torch.tensor([1.5, 1.0, 0.8]).double(), torch.tensor([0.5, 0.4, 0.3]).double())
    mask = coordinate_mask(v, batch, dim=(-2, -1))
    adapted = adapt_coordinate_thresholds(batch, passing_fractions(v, batch, dim=(-2, -1)), sharp_fraction=0.3)
    for i in range(3):
        own = CoordinateThresholds(batch.hi[i], batch.lo[i])
        torch.testing.assert_close(mask[i], coordinate_mask(v[i], own))
        alone = adapt_coordinate_thresholds(own, passing_fractions(v[i], own), sharp_fraction=0.3)
        torch.testing.assert_close((adapted.hi[i], adapted.lo[i]), tuple(alone))


def test_coordinate_thresholds_settle_at_the_fraction():
    v = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    thresholds = CoordinateThresholds(torch.tensor(1.0).double(), torch.tensor(0.5).double())
    for _ in range(200):
        thresholds = adapt_coordinate_thresholds(thresholds, passing_fractions(v, thresholds), sharp_fraction=0.1)
    above = [float((v > level * v.mean()).double().mean()) for level in thresholds]
    assert above[0] == pytest.approx(0.1, abs=0.02)
    assert above[1] == pytest.approx(0.2, abs=0.02)
    assert thresholds.lo <= 0.95 * thresholds.hi


def test_the_complement_of_a_subspace_broadcasts_over_batches():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 5, 6, generator=g, dtype=torch.float64)
    bases = torch.linalg.qr(torch.randn(3, 2, 6, 2, generator=g, dtype=torch.float64))[0]
    for basis in (bases, bases[0], bases[0, 0]):
        torch.testing.assert_close(SubspaceComplement(basis)(x), x - x @ (basis @ basis.mT))
    torch.testing.assert_close(SubspaceComplement(bases[0])(x[0]), x[0] - x[0] @ (bases[0] @ bases[0].mT))


def test_thresholds_stay_apart():
    """lo ≤ 0.95·hi, however many elements pass."""
    near = CoordinateThresholds(torch.tensor(1.0), torch.tensor(0.99))
    passing = CoordinateThresholds(torch.tensor(0.0), torch.tensor(1.0))  # hi falls, lo rises
    hi, lo = adapt_coordinate_thresholds(near, passing, sharp_fraction=0.1)
    assert hi == 0.95
    assert lo == 0.95 * hi


def test_threshold_mask_of_a_zero_momentum_is_finite():
    zero = torch.zeros(3, 4)
    assert torch.isfinite(threshold_mask(zero, zero, 0.5, orthogonalize=lambda x: x)).all()


@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize("tracks", [False, True])
def test_the_coordinate_mask_is_its_formula_recorded_by_autograd_or_not(tracks, floor):
    """1 from hi·mean on, hi·mean included; the floor widens the band below."""
    v = torch.tensor([0.0, 1.0, 1.5, 2.0, 3.0, 4.5], dtype=torch.float64, requires_grad=tracks)  # mean 2
    mask = coordinate_mask(v, CoordinateThresholds(torch.tensor(1.5), torch.tensor(0.25)), floor=floor)
    inside = (v.detach() - 0.5) / (3.0 - 0.5 + floor)
    expected = torch.where(v >= 3.0, 1.0, inside.clamp(min=0.0))
    torch.testing.assert_close(mask.detach(), expected.detach())
    assert mask.requires_grad == tracks
    assert v.tolist() == [0.0, 1.0, 1.5, 2.0, 3.0, 4.5]


def test_elements_may_each_be_a_parameter():
    """Then every element is its own mean."""
    v, hi = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 1.0])
    levels = CoordinateThresholds(hi, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(coordinate_mask(v, levels, dim=()), torch.tensor([0.5 / 1.5, 1.0]))
    assert [x.tolist() for x in passing_fractions(v, levels, dim=())] == [[0.0, 1.0], [1.0, 1.0]]


def test_an_element_at_a_level_passes_it():
    v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    passing = passing_fractions(v, CoordinateThresholds(torch.tensor(1.5), torch.tensor(0.5)))
    assert [float(x) for x in passing] == pytest.approx([1 / 3, 1.0])


def test_levels_fall_by_five_percent_a_unit_of_time():
    levels = CoordinateThresholds(torch.tensor(2.0).double(), torch.tensor(1.0).double())
    nothing = CoordinateThresholds(torch.tensor(0.0), torch.tensor(0.0))
    hi, lo = adapt_coordinate_thresholds(levels, nothing, sharp_fraction=0.3, h=0.5)
    assert (float(hi), float(lo)) == (pytest.approx(2.0 * 0.95**0.5), pytest.approx(0.95**0.5))


def test_rho_compares_the_size_of_the_mask_with_the_root_of_the_rank():
    mask, rho = torch.zeros(4, 5), torch.tensor(0.5)
    for size, factor in ((1.6, 0.95), (1.8, 1.05)):  # √3 = 1.73
        mask[0, 0] = size
        assert float(adapt_threshold(rho, mask, rank=3)) == pytest.approx(0.5 * factor)


@pytest.mark.parametrize("shape", [(2, 3), (5, 3, 3)])
def test_half_precision_of_nothing_is_finite(shape):
    """Floors that float16 cannot hold are added in float32."""
    zero = torch.zeros(shape, dtype=torch.float16)
    mask = threshold_mask(zero, zero, 0.5, orthogonalize=lambda x: x)
    assert mask.dtype == torch.float16 and not mask.any()
    assert not polar_express(zero).any()


def test_threshold_masks_of_a_batch_have_their_own_levels():
    x = torch.stack([_matrix((4, 6), [8.0, 4.0, 2.0, 1.0], seed)[0] * scale for seed, scale in ((0, 1.0), (1, 1e3))])
    rho = torch.tensor([0.3, 0.15], dtype=torch.float64)
    together = threshold_mask(x, exact_polar(x), rho, orthogonalize=exact_polar)
    for i, rank in ((0, 2), (1, 3)):
        alone = threshold_mask(x[i], exact_polar(x[i]), rho[i], orthogonalize=exact_polar)
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-9)
        assert float(torch.linalg.matrix_norm(alone) ** 2) == pytest.approx(rank)


def test_a_direction_stays_where_the_matrix_is_zero():
    direction = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    x = torch.stack([torch.zeros(3, 2), torch.ones(3, 2)])
    found = leading_direction(x, direction)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.5**0.5, 0.5**0.5]]))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_complements_multiply_through_the_shorter_side(batch):
    """Wide matrices never form n×n; for tall ones the small Gram matrix is formed once."""
    one_product = 2 * 50 * 3 * 3 * math.prod(batch)
    for shape, formed in (((*batch, 3, 50), 0), ((*batch, 50, 3), 1)):
        mask, x, polar = (normal(seed, *shape) for seed in range(3))
        with FlopCounterMode(display=False) as making:
            project = mask_complement(mask)
        with FlopCounterMode(display=False) as using:
            projected = project(x)
        assert making.get_total_flops() == formed * one_product
        assert using.get_total_flops() == (2 - formed) * one_product
        torch.testing.assert_close(projected, x - x @ mask.mT @ mask)
        with FlopCounterMode(display=False) as graded:
            projected = GradedComplement(mask, polar, torch.full((1, 1), 2.0, dtype=x.dtype))(x)
        assert graded.get_total_flops() == 2 * one_product
        torch.testing.assert_close(projected, x - x @ polar.mT @ mask / 2.0)


def test_as_much_as_is_wanted_is_not_too_much():
    rho = torch.tensor(0.5, dtype=torch.float64)
    assert float(adapt_threshold(rho, torch.eye(4, dtype=torch.float64), rank=4)) == 0.5 * 0.95
    levels = CoordinateThresholds(torch.tensor(2.0), torch.tensor(1.0))
    passing = CoordinateThresholds(torch.tensor(0.25), torch.tensor(0.25 + 0.1))
    found = adapt_coordinate_thresholds(levels, passing, sharp_fraction=0.25)
    assert (float(found.hi), float(found.lo)) == (pytest.approx(1.9), pytest.approx(0.95))


def test_the_threshold_has_a_floor():
    """τ = ρ‖M̃‖ + 10⁻⁹: singular values of 1.5·10⁻⁹ are below 2·10⁻⁹ and above 1.25·10⁻⁹."""
    covector = 1.5e-9 * torch.eye(2, dtype=torch.float64)
    for level, expected in ((1e-9, 0.0), (0.25e-9, 1.0)):
        rho = level / float(torch.linalg.matrix_norm(covector))
        mask = threshold_mask(covector, exact_polar(covector), rho, orthogonalize=exact_polar)
        torch.testing.assert_close(mask, expected * torch.eye(2, dtype=torch.float64))


def test_the_rank_of_a_subspace_is_bounded_by_the_matrix_and_not_by_the_batch():
    basis = top_right_subspace(normal(0, 2, 5, 6), 4)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(4, dtype=basis.dtype).expand(2, 4, 4))


def test_directions_have_unit_length_in_their_own_type():
    direction = torch.nn.functional.normalize(normal(0, 3, 9), dim=-1).float()
    found = leading_direction(normal(1, 3, 7, 9).bfloat16(), direction)
    assert found.dtype == torch.float32
    torch.testing.assert_close(torch.linalg.vector_norm(found, dim=-1), torch.ones(3), rtol=1e-6, atol=0)
