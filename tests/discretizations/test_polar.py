"""Polar factors against float64 SVD."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from discretizations.matrices import bfloat16_products, polar, symmetric_newton_schulz
from discretizations.matrices import newton_schulz as iteration
from discretizations.matrices.newton_schulz import newton_schulz
from discretizations.matrices.polar import exact_polar, fast_dtype, polar_express, polar_express_coefficients
from discretizations.matrices.symmetric_newton_schulz import is_supported

either_way = pytest.mark.usefixtures("bfloat16_products")


@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 10**6),
)
def test_singular_values_of_exact_polar_are_one(m, n, batch, scale, seed):
    x = scale * torch.randn(*batch, m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    polar = exact_polar(x)
    assert polar.shape == x.shape
    gram = polar @ polar.mT if m <= n else polar.mT @ polar
    torch.testing.assert_close(gram, torch.eye(min(m, n), dtype=x.dtype).expand_as(gram), atol=1e-9, rtol=0)
    # It is the polar factor: Oᵀx is symmetric positive semidefinite.
    stretch = polar.mT @ x
    torch.testing.assert_close(stretch, stretch.mT, atol=1e-9 * scale * (m + n), rtol=0)
    assert torch.linalg.eigvalsh(stretch).min() > -1e-9 * scale * (m + n)


@pytest.mark.parametrize("shape", [(32, 32), (20, 64), (64, 20)])
@pytest.mark.parametrize(("steps", "tolerance"), [(6, 0.05), (8, 1e-6), (12, 1e-12)])
def test_polar_express_converges_to_the_svd(shape, steps, tolerance):
    u, _ = torch.linalg.qr(
        torch.randn(shape[0], min(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    v, _ = torch.linalg.qr(
        torch.randn(shape[1], min(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )
    sigma = torch.logspace(0, -2, min(shape), dtype=torch.float64)  # relative to ‖X‖_F all are above 1e−3
    error = torch.linalg.matrix_norm(polar_express((u * sigma) @ v.mT, steps=steps) - u @ v.mT, ord=2)
    assert error < tolerance


def test_six_steps_keep_singular_values_near_one_down_to_a_thousandth():
    """The bound of Polar Express: after 6 steps every σ in [1e−3, 1] is within a few percent of 1."""
    sigma = torch.logspace(0, -3, 64, dtype=torch.float64)
    scaled = torch.diag(sigma / 1.01)  # so that the largest normalised value stays below 1 without the Frobenius norm
    padded = polar_express(scaled * torch.linalg.vector_norm(scaled), steps=6)
    values = torch.linalg.svdvals(padded)
    reachable = sigma / (1.01 * torch.linalg.vector_norm(sigma)) > 1e-3
    assert (values.sort(descending=True).values[: int(reachable.sum())] - 1).abs().max() < 0.05


def test_tall_is_the_transpose_of_wide_and_batches_equal_single_matrices():
    x = torch.randn(3, 24, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(polar_express(x.mT), polar_express(x).mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(polar_express(x)[1], polar_express(x[1]), rtol=1e-12, atol=1e-12)
    assert polar_express(x).is_contiguous()
    torch.testing.assert_close(polar_express(x.reshape(1, 3, 24, 10))[0], polar_express(x), rtol=1e-12, atol=1e-12)


def test_zero_stays_zero_and_scale_does_not_matter():
    assert not polar_express(torch.zeros(3, 4)).any()
    assert not exact_polar(torch.zeros(3, 4)).any()
    x = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(polar_express(1e3 * x), polar_express(x), rtol=1e-7, atol=1e-7)


@either_way
def test_bfloat16_iteration_is_close():
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    half = polar_express(x, dtype=torch.bfloat16)
    assert half.dtype == torch.float32 and torch.equal(half, half.bfloat16().float())
    assert (half - polar_express(x)).norm() / half.norm() < 0.05


def test_rank_deficient_input_has_polar_factor_of_its_rank():
    x = torch.outer(torch.arange(1.0, 5.0), torch.arange(1.0, 4.0)).double()
    values = torch.linalg.svdvals(exact_polar(x))
    np.testing.assert_allclose(values, [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("turned", [False, True])
def test_singular_values_below_the_rounding_of_the_longer_side_count_as_zero(dtype, turned):
    """A batch longer than the sides does not count."""
    rounding = torch.finfo(dtype).eps
    diagonal = torch.zeros(50, 3, 8, dtype=torch.float64)
    diagonal[:, range(3), range(3)] = torch.tensor([2.0, 2.0 * 9 * rounding, 2.0 * 7 * rounding], dtype=torch.float64)
    x = diagonal.to(dtype)
    polar = exact_polar(x.mT).mT if turned else exact_polar(x)
    expected = torch.zeros_like(x)
    expected[:, range(2), range(2)] = 1.0
    torch.testing.assert_close(polar, expected)


@pytest.mark.parametrize("shape", [(10, 40), (40, 10), (10, 12)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.04)]
)
def test_after_few_steps_the_safety_factor_is_that_of_the_published_coefficients(shape, dtype, tolerance):
    """Only the Gram form in half precision, for more rows than these, has another one."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    scaled = x.double() / (1.01 * torch.linalg.matrix_norm(x.double()))
    expected = newton_schulz(scaled, polar_express_coefficients(2), gram=False)
    assert (polar_express(x, steps=2).double() - expected).norm() < tolerance * expected.norm()


def test_coefficients():
    first = polar_express_coefficients(1)[0]
    assert first == pytest.approx(
        (8.28721201814563 / 1.01, -23.595886519098837 / 1.01**3, 17.300387312530933 / 1.01**5)
    )
    assert polar_express_coefficients(10)[7:] == [(1.875, -1.25, 0.375)] * 3
    with pytest.raises(ValueError, match="steps = 0"):
        polar_express_coefficients(0)
    with pytest.raises(ValueError, match="matrices"):
        polar_express(torch.zeros(3))


@pytest.mark.parametrize("shape", [(10, 40), (40, 10), (3, 10, 19), (2, 2, 80, 10), (1, 7), (7, 1)])
@pytest.mark.parametrize("steps", [1, 2, 5, 6, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gram_form_is_the_same_polynomial(shape, steps, dtype, tolerance):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x / torch.linalg.matrix_norm(x, keepdim=True)).to(dtype)
    coefficients = polar_express_coefficients(steps)
    ours, plain = (newton_schulz(x, coefficients, gram=gram) for gram in (True, False))
    assert ours.shape == x.shape and ours.dtype == dtype
    torch.testing.assert_close(ours, plain, rtol=0, atol=tolerance)


def test_gram_form_is_for_elongated_matrices(monkeypatch):
    used = []
    pair = iteration._gram_pair
    monkeypatch.setattr(iteration, "_gram_pair", lambda y, *steps: used.append(tuple(y.shape)) or pair(y, *steps))
    for shape in ((10, 10), (10, 18), (18, 10)):
        polar_express(torch.ones(shape))
    assert not used
    polar_express(torch.ones(10, 20), steps=5)
    assert used == [(10, 20)] * 2  # the fifth step is a plain one


@either_way
@pytest.mark.parametrize("aspect", [2, 3, 4, 8])
def test_gram_form_in_bfloat16_is_finite_and_near_orthogonal(aspect):
    """More steps on one Gram matrix would overflow; it is recomputed every two steps."""
    for seed, scale in ((0, 1.0), (1, 1e-4), (2, 1e4)):
        x = scale * torch.randn(32, 32 * aspect, generator=torch.Generator().manual_seed(seed))
        for y in (x, x.mT):
            polar = polar_express(y, dtype=torch.bfloat16)
            assert polar.isfinite().all()
            assert (torch.linalg.svdvals(polar) - 1).abs().max() < 0.1


def test_which_matrices_take_the_gram_form():
    """Matrices (not batches) with an aspect ratio of at least 1.9; in half precision also at least 128 rows."""
    for shape, dtype, pairs in (
        ((10, 19), torch.float32, 3),
        ((19, 10), torch.float64, 3),
        ((100, 10, 18), torch.float32, 0),
        ((128, 256), torch.bfloat16, 3),
        ((256, 128), torch.bfloat16, 3),
        ((127, 256), torch.bfloat16, 0),
    ):
        assert iteration.gram_pairs(shape, 6, dtype) == pairs
    assert iteration.gram_pairs((10, 20), 5, torch.float32) == 2


def test_the_floor_makes_the_polar_factors_of_tiny_matrices_smaller():
    x = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x / torch.linalg.matrix_norm(x)
    for coefficients in ([(1.0, 0.0, 0.0)], [(1.0, 0.0, 0.0)] * 3):
        scaled = newton_schulz(iteration.normalized(1e-8 * x, (1.01, 1e-8, 1e-18)), coefficients)
        torch.testing.assert_close(scaled, x / 2.01)


def test_fast_dtype_is_exact_where_asked_and_known_to_the_hardware():
    assert fast_dtype(torch.zeros(1, dtype=torch.float64)) == torch.float64
    fast = torch.bfloat16 if polar._CPU_MULTIPLIES_BFLOAT16 else torch.float32
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert fast_dtype(torch.zeros(1, dtype=dtype)) == fast
        # A device that is neither a CPU nor CUDA uses float32.
        assert fast_dtype(torch.zeros(1, dtype=dtype, device="meta")) == torch.float32
        assert fast_dtype(SimpleNamespace(dtype=dtype, device=torch.device("cuda"))) == torch.bfloat16


@either_way
@pytest.mark.parametrize("shape", [(64, 32, 16), (64, 5, 12), (64, 8, 2), (4, 256, 128), (2, 160, 344)])
def test_half_precision_never_diverges(shape):
    """Few large directions and little else: rounding shifts the small eigenvalues of their Gram matrices most."""
    source = torch.Generator().manual_seed(0)
    for rank, noise in ((1, 1e-3), (2, 1e-2), (2, 0.0), (3, 0.1), (8, 1e-2)):
        left = torch.randn(*shape[:-1], rank, generator=source)
        right = torch.randn(*shape[:-2], rank, shape[-1], generator=source)
        x = left @ right + noise * torch.randn(shape, generator=source)
        polar = polar_express(x, steps=6, dtype=torch.bfloat16)
        assert torch.linalg.matrix_norm(polar, ord=2).max() < 1.05  # measured: 1.018


@functools.cache
def dominated(rows: int, columns: int, *, count: int, seed: int) -> torch.Tensor:
    """One direction dominates, with few or many equal entries, as from a constant or an outlying feature."""
    source = torch.Generator().manual_seed(seed)

    def direction(size: int) -> torch.Tensor:
        kept = (size ** torch.rand(count, 1, generator=source)).long()  # 1 to size, each power as likely
        place = torch.rand(count, size, generator=source).argsort(dim=1)
        signs = torch.randn(count, size, generator=source).sign() * (place < kept)
        return signs / signs.norm(dim=1, keepdim=True)

    left, right = direction(rows), direction(columns)
    decay = torch.arange(1, rows + 1) ** -(0.2 + 1.5 * torch.rand(count, 1, generator=source))
    rest = decay[:, :, None] * torch.randn(count, rows, columns, generator=source)
    rest = torch.linalg.qr(torch.randn(count, rows, rows, generator=source)).Q @ rest
    share = 10 ** -(0.3 + 3 * torch.rand(count, 1, 1, generator=source))  # of the square norm
    return (1 - share).sqrt() * left[:, :, None] * right[:, None] + share.sqrt() * rest / torch.linalg.matrix_norm(
        rest, keepdim=True
    )


@either_way
@pytest.mark.parametrize("shape", [(128, 256), (128, 352)])
def test_half_precision_never_diverges_from_a_dominant_direction(shape):
    """With a safety of 1% as in plain steps norms of 10¹¹ were measured on one of a hundred such matrices."""
    x = dominated(*shape, count=400, seed=0)
    for y in (polar_express(x, dtype=torch.bfloat16), polar_express(x[:100].mT, dtype=torch.bfloat16)):
        assert y.isfinite().all()
        gram = y.mT @ y if y.size(-2) > y.size(-1) else y @ y.mT
        assert torch.linalg.eigvalsh(gram).max() < 1.05**2


@pytest.mark.parametrize("shape", [(64, 32, 16), (64, 5, 12), (2, 160, 344)])
def test_float16_never_diverges(shape):
    source = torch.Generator().manual_seed(0)
    for rank, noise in ((1, 1e-3), (2, 0.0), (3, 0.1)):
        left = torch.randn(*shape[:-1], rank, generator=source)
        right = torch.randn(*shape[:-2], rank, shape[-1], generator=source)
        x = left @ right + noise * torch.randn(shape, generator=source)
        assert torch.linalg.matrix_norm(polar_express(x, dtype=torch.float16), ord=2).max() < 1.01


class Largest(TorchDispatchMode):
    """The largest number that any operation in float16 gives."""

    def __init__(self):
        super().__init__()
        self.value = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float16:
            self.value = max(self.value, float(result.abs().max()))
        return result


@pytest.mark.parametrize("shape", [(128, 256), (128, 160)])
def test_float16_is_much_nearer_than_bfloat16_on_dominant_directions(shape):
    """Against the same polynomial in float64; no number comes near the largest of float16, 65504."""
    x = dominated(128, 256, count=400, seed=0)[:24, :, : shape[1]]
    coefficients = polar_express_coefficients(6, safety=1.1 if shape[1] >= 1.9 * shape[0] else 1.01)
    exact = newton_schulz(x.double() / (1.01 * torch.linalg.matrix_norm(x.double(), keepdim=True)), coefficients)
    with Largest() as largest:
        ours = polar_express(x, dtype=torch.float16)
    assert 5.0 < largest.value < 40.0
    assert torch.linalg.matrix_norm(ours, ord=2).max() < 1.01
    error, bfloat16 = (
        (torch.linalg.matrix_norm(y - exact) / torch.linalg.matrix_norm(exact)).median()
        for y in (ours, polar_express(x, dtype=torch.bfloat16))
    )
    assert error < bfloat16 / 4 and error < 0.015  # measured: 0.007, bfloat16 0.04 to 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_float16_takes_any_scale(dtype):
    """Entries far outside the range of float16: they are normalised first."""
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = polar_express(x, dtype=torch.float16)
    assert expected.dtype == dtype
    for scale in (2.0**-50, 2.0**-20, 2.0**50):
        torch.testing.assert_close(polar_express(scale * x, dtype=torch.float16), expected, atol=2e-3, rtol=0)
    assert not polar_express(torch.zeros(3, 4, dtype=dtype), dtype=torch.float16).any()


def test_float16_loses_no_small_singular_value_that_bfloat16_keeps():
    """Singular values of 1e−3, the smallest that Polar Express raises, are entries of 1e−3/√n in a matrix of side n."""
    for side in (256, 4096, 16384):
        entries = 1e-3 / side**0.5 * torch.randn(10**5, generator=torch.Generator().manual_seed(0))
        lost, usual = ((entries.to(t).float() - entries).norm() for t in (torch.float16, torch.bfloat16))
        assert lost < 1.5 * usual


@either_way
@pytest.mark.parametrize(
    "shape", [(1, 1), (40, 70), (70, 40), (2, 33, 31), (3, 130, 300), (5, 300, 130), (2, 2, 96, 64)]
)
def test_polar_express_in_bfloat16_is_the_same_polynomial(shape):
    """As close to float64 as plain steps with the library's products, also for sizes that no block divides."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    gram = max(shape[-2:]) >= 1.9 * min(shape[-2:]) and min(shape[-2:]) >= 128
    coefficients = polar_express_coefficients(6, safety=1.1 if gram else 1.01)
    scaled = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    exact = newton_schulz(scaled.double() / 1.01, coefficients)
    library = newton_schulz((scaled / 1.01).bfloat16(), coefficients)
    ours = polar_express(x)
    assert ours.shape == x.shape and ours.dtype == x.dtype
    error, usual = ((y - exact).norm() / exact.norm() for y in (ours, library))
    assert error < max(1.5 * usual, 0.01)


@pytest.mark.parametrize("bfloat16_products", ["program"], indirect=True)
def test_symmetric_products_do_not_depend_on_threads_or_batch(bfloat16_products):
    x = torch.randn(3, 64, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results += [polar_express(x), torch.stack([polar_express(y) for y in x])]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@either_way
def test_polar_express_traces_whole():
    x = torch.randn(2, 40, 70).bfloat16()
    torch.testing.assert_close(torch.compile(polar_express, fullgraph=True, backend="eager")(x), polar_express(x))


def test_symmetric_products_are_left_where_they_do_not_serve():
    x = torch.randn(40, 70).bfloat16()
    assert not is_supported(x.float()) and not is_supported(x.to("meta")) and not is_supported(x.requires_grad_())


@pytest.mark.usefixtures("needs_bfloat16_program")
def test_symmetric_products_are_a_torch_operator():
    x = torch.randn(2, 40, 70).bfloat16()
    arguments = (x, [1.01, 0.0, 1e-18], [1.5, -0.5, 0.0], 0)
    torch.library.opcheck(torch.ops.lite.symmetric_newton_schulz.default, arguments)


@pytest.mark.parametrize("shape", [(2, 40, 70), (130, 300)])
def test_without_a_compiler_the_library_multiplies(shape, monkeypatch):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    monkeypatch.setattr(bfloat16_products, "_IS_FASTER_HERE", False)
    library = polar_express(x)
    monkeypatch.setattr(bfloat16_products, "_IS_FASTER_HERE", True)
    monkeypatch.setenv("CXX", "/no/compiler")
    assert symmetric_newton_schulz._program.__wrapped__() is None
    monkeypatch.setattr(symmetric_newton_schulz, "_program", lambda: None)
    assert torch.equal(polar_express(x), library)
