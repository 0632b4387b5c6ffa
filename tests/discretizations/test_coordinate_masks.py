"""Sharp coordinates of the sign metric, and what a matrix costs under each preconditioner."""

import pytest
import torch

from discretizations import KroneckerRoot, PolarFactor, Sign


@pytest.mark.parametrize(("fraction", "rank"), [(0.01, 1), (0.25, 3), (0.5, 6), (1.0, 12)])
def test_sharp_under_the_sign_metric_are_the_largest_coordinates_of_each_member(fraction, rank):
    """k = round(rp) of them, at least one, whatever their sign; the threshold is the smallest."""
    generator = torch.Generator().manual_seed(0)
    covector = torch.randn(2, 4, 3, generator=generator)
    rule = Sign(sharp_fraction=fraction)
    flat, memory = rule.flat(rule.initial(covector, batch=1), covector, covector.sign())
    is_sharp = flat(torch.ones_like(covector)) == 0.0
    for x, sharp, threshold in zip(covector, is_sharp, memory["threshold"], strict=True):
        assert int(sharp.sum()) == rank
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
