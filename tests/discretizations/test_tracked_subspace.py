"""The tracked subspace against SVD, and its library-free factorisations against LAPACK's."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discretizations.matrices.tracked_subspace import (
    cholesky_orthonormalize,
    initial_subspace,
    sorted_eigenvectors,
    track_subspace,
    tracked_rank,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def with_spectrum(sigma, m, n, seed=0):
    """A matrix with the given singular values."""
    k = len(sigma)
    u, v = (torch.linalg.qr(torch.randn(s, k, generator=generator(seed + s), dtype=torch.float64)).Q for s in (m, n))
    return u * torch.as_tensor(sigma, dtype=torch.float64) @ v.mT


def turning(steps, shape=(24, 40), rank=8, dtype=torch.float64, seed=0):
    """A slowly rotating signal with separated singular values, plus noise."""
    source = generator(seed)
    left, right = (torch.randn(s, rank, generator=source, dtype=torch.float64) for s in shape)
    strength = torch.linspace(3.0, 1.0, rank, dtype=torch.float64)
    for _ in range(steps):
        left = left + 0.02 * torch.randn(left.shape, generator=source, dtype=torch.float64)
        noise = torch.randn(shape, generator=source, dtype=torch.float64)
        yield (left * strength @ right.mT + 0.3 * noise).to(dtype)


def top(x, k):
    return torch.linalg.svd(x.double(), full_matrices=False)[2].mT[..., :k]


def sine(a, b):
    """Sine of the largest angle between two column spaces."""
    a, b = a.double(), b.double()
    return float(torch.linalg.matrix_norm(b - a @ (a.mT @ b), ord=2).max())


def defect(v):
    """How far columns are from orthonormal."""
    return float((v.mT @ v - torch.eye(v.size(-1), dtype=v.dtype)).abs().max())


def off_the_cpu(x, basis):
    """One call by the code path of devices other than the CPU."""
    block = x.mT @ (x @ basis)
    columns = cholesky_orthonormalize(block / torch.linalg.vector_norm(block, dim=-2, keepdim=True))
    image = x @ columns
    return columns @ sorted_eigenvectors(image.mT @ image)


@pytest.mark.parametrize("shape", [(20, 32), (32, 20), (16, 16)])
def test_it_converges_to_the_top_singular_vectors(shape):
    x = with_spectrum([10.0, 8.0, 6.0, 2.0, 1.0, 0.5, 0.2], *shape)
    basis = initial_subspace(x, tracked_rank(3, min(shape)))
    for _ in range(40):
        basis = track_subspace(x, basis)
    # Each call shrinks a direction by the ratio of eigenvalues, here at most (1/6)² with the one more column carried.
    assert sine(top(x, 3), basis[:, :3]) < 1e-12
    # The columns are the singular vectors themselves, largest first.
    torch.testing.assert_close((top(x, 3).mT @ basis[:, :3]).abs(), torch.eye(3, dtype=x.dtype), rtol=0, atol=1e-8)


def test_it_converges_at_the_rate_of_block_iteration():
    x = with_spectrum([4.0, 3.0, 1.5, 1.0], 12, 18)
    basis, errors = initial_subspace(x, 2), []
    for _ in range(12):
        basis = track_subspace(x, basis)
        errors.append(sine(top(x, 2), basis))
    rates = [after / before for before, after in pairwise(errors[4:])]
    assert rates == pytest.approx([(1.5 / 3.0) ** 2] * len(rates), rel=0.02)


@pytest.mark.parametrize("step", [track_subspace, off_the_cpu])
def test_columns_stay_orthonormal_and_near_the_svd_in_float32(step):
    worst = 0.0
    basis = initial_subspace(torch.zeros(24, 40), tracked_rank(8, 24))
    for k, x in enumerate(turning(200, dtype=torch.float32)):
        basis = step(x, basis)
        assert basis.dtype == torch.float32
        assert defect(basis) < 5e-6
        if k >= 10:
            worst = max(worst, sine(top(x, 8), basis[:, :8]))
    assert worst < 0.15  # measured: 0.08, a lag of about one step's rotation


def test_float32_is_float64_rounded():
    narrow, wide = (initial_subspace(torch.zeros(24, 40, dtype=d), 10) for d in (torch.float32, torch.float64))
    for x in turning(60):
        narrow, wide = track_subspace(x.float(), narrow), track_subspace(x, wide)
    assert sine(wide[:, :8], narrow[:, :8]) < 1e-4


@pytest.mark.parametrize("step", [track_subspace, off_the_cpu])
def test_a_batch_is_its_matrices(step):
    batches = torch.stack([torch.stack(list(turning(6, seed=i))) for i in range(3)], dim=1)
    together = initial_subspace(batches[0], 10)
    alone = [initial_subspace(x, 10) for x in batches[0]]
    for batch in batches:
        together = step(batch, together)
        alone = [step(x, basis) for x, basis in zip(batch, alone, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert sine(a[:, :8], b[:, :8]) < 1e-10


BAD = [0.0, float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("everywhere", [True, False])
def test_bad_matrices_keep_the_old_basis_and_it_recovers(dtype, value, everywhere):
    """In a batch only the bad matrix keeps its basis."""
    matrices = list(turning(8, dtype=dtype))
    basis = initial_subspace(torch.zeros(2, 24, 40, dtype=dtype), 10)
    for x in matrices:
        basis = track_subspace(torch.stack([x, x]), basis)
    bad = torch.full_like(x, value) if everywhere or not value else x.clone().index_fill_(0, torch.tensor([3]), value)
    after = track_subspace(torch.stack([x, bad]), basis)
    assert torch.equal(after[1], basis[1])
    assert not torch.equal(after[0], basis[0])
    for _ in range(60):
        after = track_subspace(torch.stack([x, x]), after)
    assert sine(top(x, 8), after[1][:, :8]) < 1e-3


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e-6, 1e6, 1e12, 1e25])
def test_scale_of_the_matrix_does_not_matter(scale):
    """Squares of small or large gradients would leave the range of float32."""
    x = next(iter(turning(1, dtype=torch.float32)))
    start = initial_subspace(x, 10)
    plain, scaled = track_subspace(x, start), track_subspace(scale * x, start)
    assert sine(plain[:, :8], scaled[:, :8]) < 1e-4
    assert sine(start[:, :8], plain[:, :8]) > 0.1  # the basis did move


def test_the_start_is_the_same_for_all_and_a_mask_of_rank_zero_carries_nothing():
    a, b = initial_subspace(torch.zeros(4, 9), 3), initial_subspace(torch.zeros(5, 7, 9), 3)
    assert defect(a) < 1e-6
    assert torch.equal(b, a.expand(5, 9, 3))
    nothing = initial_subspace(torch.zeros(4, 9), 0)
    assert track_subspace(torch.ones(4, 9), nothing).shape == (9, 0)
    assert [tracked_rank(k, 10) for k in (0, 1, 4, 8, 10)] == [0, 2, 5, 10, 10]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cholesky_qr_is_qr(dtype):
    """Up to signs of the columns, for columns as nearly parallel as from warm starts and close singular values."""
    block = torch.randn(3, 40, 6, generator=generator(), dtype=torch.float64)
    block[..., 5] = block[..., 4] + 1e-3 * block[..., 5]
    block = (block / torch.linalg.vector_norm(block, dim=-2, keepdim=True)).to(dtype)
    ours, theirs = cholesky_orthonormalize(block), torch.linalg.qr(block).Q
    signs = (ours * theirs).sum(-2, keepdim=True).sign()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, signs * theirs, rtol=0, atol=1e4 * eps)
    assert all(defect(q) < 20 * eps for q in ours)


def test_cholesky_qr_of_parallel_columns_is_finite():
    """A matrix of rank 1 makes all columns parallel, to rounding."""
    column = torch.randn(40, 1, generator=generator())
    block = column.expand(40, 6) / torch.linalg.vector_norm(column)
    noisy = block + 1e-7 * torch.randn(40, 6, generator=generator(1))
    assert cholesky_orthonormalize(noisy / torch.linalg.vector_norm(noisy, dim=-2, keepdim=True)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvectors_near_the_diagonal_are_lapacks(dtype):
    basis = torch.linalg.qr(torch.eye(8).double() + 0.01 * torch.randn(8, 8, generator=generator())).Q
    eigenvalues = torch.tensor([1.0, 6.0, 2.0, 9.0, 4.0, 0.5, 12.0, 3.0], dtype=torch.float64)
    matrix = (basis * eigenvalues @ basis.mT).to(dtype)
    found = sorted_eigenvectors(matrix)
    expected = torch.linalg.eigh(matrix).eigenvectors.flip(-1)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close((expected.mT @ found).abs(), torch.eye(8, dtype=dtype), rtol=0, atol=tolerance)


def test_eigenvectors_of_a_multiple_of_the_identity_are_orthogonal():
    found = sorted_eigenvectors(torch.eye(5).expand(2, 5, 5))
    assert all(defect(v) < 1e-6 for v in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_lapack_the_sharp_space_is_the_same(dtype):
    """On a warm-started sequence; it compares the mask's space, without the extra columns."""
    lapack = products = initial_subspace(torch.zeros(24, 40, dtype=dtype), 10)
    worst = 0.0
    for k, x in enumerate(turning(60, dtype=dtype)):
        lapack, products = track_subspace(x, lapack), off_the_cpu(x, products)
        assert defect(products) < 50 * torch.finfo(dtype).eps
        if k >= 10:
            worst = max(worst, sine(lapack[:, :8], products[:, :8]))
    assert worst < 1e-3, worst


@given(m=st.integers(1, 12), n=st.integers(1, 12), r=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_any_shape_gives_orthonormal_columns_by_descending_length(m, n, r, seed):
    x = torch.randn(m, n, generator=generator(seed), dtype=torch.float64)
    basis = initial_subspace(x, tracked_rank(round(r * min(m, n)), min(m, n)))
    for _ in range(3):
        basis = track_subspace(x, basis)
    assert basis.shape[0] == n
    if basis.size(-1):
        assert defect(basis) < 1e-12
        lengths = torch.linalg.vector_norm(x @ basis, dim=-2)
        assert (lengths.diff() <= 1e-12 * lengths[0]).all()
