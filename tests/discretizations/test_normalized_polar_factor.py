"""NorMuon's metric against a plain implementation of its equations with the polar factor from an SVD."""

import pytest
import torch

from discretizations import NormalizedPolarFactor, ThresholdMask, TrackedSubspace
from discretizations.preconditioners.masks import wide_dtype

THETA, EPS = 0.8, 0.05
RULE = NormalizedPolarFactor(beta2=THETA, eps=EPS, iteration="svd")


def matrices(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def polar(x):
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


def scaled(x, rows, by):
    """ρ diag(√v + ε)⁻¹X with the Frobenius norm of ``by``."""
    weights = 1.0 / (rows.sqrt() + EPS)
    rho = torch.linalg.matrix_norm(by) / torch.linalg.matrix_norm(weights[..., None] * by)
    return rho[..., None, None] * weights[..., None] * x


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 3)])
@pytest.mark.parametrize("h", [None, 1.0, 0.3, 0.0])
def test_a_step_averages_the_squares_of_rows_and_divides_by_their_root(shape, h):
    """The average includes the step's own rows; one metric raises covector and gradient."""
    m, g = matrices(*shape), matrices(*shape, seed=1)
    rows = torch.linspace(0.01, 0.3, shape[-2], dtype=torch.float64).expand(shape[:-1])
    memory, options = {"rows": rows, "kept": 1}, {} if h is None else {"h": h}
    a, d, after = RULE.raise_step(memory, m, g, **options)
    squares = polar(m).square().sum(-1) / shape[-1]
    v = rows + (1.0 if h is None else h) * (1.0 - THETA) * (squares - rows)
    torch.testing.assert_close(after["rows"], v, rtol=1e-12, atol=0.0)
    assert after["kept"] == 1 and memory["rows"] is rows
    torch.testing.assert_close(a, scaled(polar(m), v, polar(m)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(d, scaled(polar(g), v, polar(m)), rtol=1e-10, atol=1e-12)
    alone, none, same = RULE.raise_step(memory, m, None, **options)
    assert none is None
    torch.testing.assert_close(alone, a, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(same["rows"], v, rtol=1e-12, atol=0.0)


def test_a_flow_raises_with_the_rows_as_they_are():
    m, g = matrices(2, 4, 3), matrices(2, 4, 3, seed=1)
    rows = 0.1 * matrices(2, 4, seed=2).square()
    first, second = RULE.raise_two({"rows": rows}, m, g)
    for x, found in ((m, first), (g, second), (m, RULE.raise_index({"rows": rows}, m))):
        torch.testing.assert_close(found, scaled(polar(x), rows, polar(x)), rtol=1e-10, atol=1e-12)
        norms = torch.linalg.matrix_norm(found)
        torch.testing.assert_close(norms, torch.full_like(norms, 3**0.5))  # that of the polar factor


def test_before_the_first_gradient_rows_are_those_of_the_covector():
    """Member by member, since one member has seen gradients. It is the limit of the flow from v = 0."""
    m = matrices(2, 4, 3)
    rows = torch.tensor([[0.0] * 4, [0.0, 0.1, 0.2, 0.3]], dtype=torch.float64)
    found = RULE.raise_index({"rows": rows}, m)
    own = polar(m).square().mean(-1)
    torch.testing.assert_close(found[0], scaled(polar(m), own, polar(m))[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], scaled(polar(m), rows, polar(m))[1], rtol=1e-10, atol=1e-12)
    limit = RULE.raise_step({"rows": torch.zeros(2, 4, dtype=torch.float64)}, m, None, h=1.0 / (1.0 - THETA))[0]
    torch.testing.assert_close(limit[0], found[0], rtol=1e-10, atol=1e-12)


def test_nothing_comes_of_a_covector_of_zeros():
    a, d, memory = RULE.raise_step(RULE.initial(matrices(4, 3)), torch.zeros(4, 3).double(), None)
    assert d is None and not a.any() and not memory["rows"].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_kept_in_single_precision_at_least(dtype):
    rule = NormalizedPolarFactor(mask=TrackedSubspace(sharp_fraction=0.5))
    w = matrices(2, 4, 3, dtype=dtype)
    memory = rule.initial(w, batch=1)
    assert memory["rows"].shape == (2, 4) and memory["rows"].dtype == wide_dtype(w) and not memory["rows"].any()
    assert memory["subspace"].shape[0] == 2
    a, d, after = rule.raise_step(memory, w, w)
    assert a.dtype == d.dtype == dtype and after["rows"].dtype == wide_dtype(w)
    own = rule.polar(w).double()
    torch.testing.assert_close(after["rows"].double(), 0.05 * own.square().mean(-1), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(torch.linalg.matrix_norm(a.double()), torch.linalg.matrix_norm(own), rtol=5e-3, atol=0.0)
    assert rule.initial(w[..., :1])["rows"].shape == (2, 4)


def test_the_published_soft_mask_is_refused():
    with pytest.raises(ValueError, match="take TrackedSubspace or ExactSubspace"):
        NormalizedPolarFactor(mask=ThresholdMask(sharp_fraction=0.3))
