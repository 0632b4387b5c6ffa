"""Products with few columns against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discretizations.matrices import tracked_subspace
from discretizations.matrices.bfloat16_products import FLOP_FORMULAS
from discretizations.matrices.gram_products import normal_product, projected_gram

needs_program = pytest.mark.usefixtures("needs_bfloat16_program")
HALF = 2.0**-8  # relative error of a number rounded to bfloat16


def inputs(batch, m, n, k, seed=0, scale=1.0):
    source = torch.Generator().manual_seed(seed)
    x = (scale * torch.randn(*batch, m, n, generator=source)).bfloat16()
    return x, torch.randn(*batch, n, k, generator=source)


def unit(x):
    return x.double() / torch.linalg.matrix_norm(x.double(), keepdim=True)


@needs_program
@given(
    st.sampled_from([(), (1,), (2,), (3,), (2, 2)]),
    st.integers(1, 100),
    st.integers(1, 100),
    st.integers(1, 70),
    st.sampled_from([1e-15, 1e-6, 1.0, 1e15]),
    st.integers(0, 99),
)
def test_products_are_those_of_the_library(batch, m, n, k, scale, seed):
    """Up to a factor, and to the rounding of V and XV to bfloat16, for any shape and scale."""
    x, v = inputs(batch, m, n, k, seed, scale)
    image = x.double() / scale @ v.bfloat16().double()
    for ours, exact in (
        (normal_product(x, v), x.double().mT / scale @ image),
        (projected_gram(x, v), image.mT @ image),
    ):
        assert ours.shape == exact.shape and ours.dtype == torch.float32
        assert (unit(ours) - unit(exact)).abs().max() < 4 * HALF


@needs_program
def test_products_do_not_depend_on_threads_or_batch():
    x, v = inputs((3,), 70, 200, 20)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            for f in (normal_product, projected_gram):
                results.append((f(x, v), torch.stack([f(a, b) for a, b in zip(x, v, strict=True)])))
    finally:
        torch.set_num_threads(threads)
    for whole, alone in results:
        assert torch.equal(whole, alone) and any(torch.equal(whole, y) for y, _ in results[:2])


@pytest.mark.usefixtures("bfloat16_products")
@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf, 1e-30, 3e38])
def test_a_matrix_without_a_usable_norm_leaves_the_subspace(bad):
    x, v = inputs((2,), 40, 30, 5)
    v = torch.linalg.qr(v).Q
    x[1] = bad
    tracked = tracked_subspace.track_subspace(x, v)
    assert tracked.isfinite().all() and not torch.equal(tracked[0], v[0])
    if bad not in (1e-30, 3e38):
        assert torch.equal(tracked[1], v[1])


@needs_program
def test_torch_knows_the_operator():
    x, v = inputs((2,), 40, 70, 9)
    operator = torch.ops.lite.gram_product
    for gram in (False, True):
        torch.library.opcheck(operator.default, (x, v, gram), test_utils=("test_schema", "test_faketensor"))
    # Rows of products are padded to 8, all else to 32.
    assert FLOP_FORMULAS[operator](x.shape, v.shape, False) == 2 * 2 * 2 * 16 * 64 * 96
    assert FLOP_FORMULAS[operator](x.shape, v.shape, True) == 2 * 2 * (16 * 64 * 96 + 32 * 32 * 64)


@pytest.mark.usefixtures("bfloat16_products")
@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (3, 70, 40)])
def test_a_subspace_tracked_in_bfloat16_is_as_near_as_one_in_float64(shape):
    """The tracked space is as near to the exact one, and the columns as orthonormal."""
    source = torch.Generator().manual_seed(0)
    *batch, m, n = shape
    left, right = torch.randn(*batch, m, 6, generator=source), torch.randn(*batch, 6, n, generator=source)
    matrices = [(left @ right + 0.3 * torch.randn(shape, generator=source)).bfloat16() for _ in range(12)]
    exact = torch.linalg.svd(matrices[-1].double()).Vh.mT[..., :6]
    errors = []
    for dtype in (torch.bfloat16, torch.float64):
        v = tracked_subspace.initial_subspace(matrices[0].to(torch.promote_types(dtype, torch.float32)), 8)
        for x in matrices:
            v = tracked_subspace.track_subspace(x.to(dtype), v)
        assert (v.mT @ v - torch.eye(8)).abs().max() < 1e-5
        top = v[..., :6].double()
        errors.append(float(torch.linalg.matrix_norm(exact - top @ (top.mT @ exact), ord=2).max()))
    assert errors[0] < errors[1] + 4 * HALF  # measured: 0.002 apart
