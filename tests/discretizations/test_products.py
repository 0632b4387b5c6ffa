"""The fast float32 kernels agree with torch's products and bases on every processor."""

import pytest
import torch

from discretizations.matrices import products
from discretizations.matrices.products import orthonormal_columns, product


@pytest.fixture(params=["torch", "oneDNN"])
def kernel(request, monkeypatch):
    if request.param == "oneDNN" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_MKL_IS_SLOW", request.param == "oneDNN")


def matrix(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


LAYOUTS = {
    "rows": (matrix(300, 200), matrix(200, 150, seed=1)),
    "columns": (matrix(200, 300).mT, matrix(150, 200, seed=1).mT),
    "tall, columns": (matrix(200, 900).mT, matrix(200, 60, seed=1)),
    "parts": (matrix(320, 220)[5:305, 7:207], matrix(210, 160, seed=1)[3:203, 4:154]),
    "batch": (matrix(3, 300, 200), matrix(3, 150, 200, seed=1).mT),
    "small": (matrix(8, 7), matrix(7, 9, seed=1)),
    "one row": (matrix(1, 2000), matrix(2000, 2500, seed=1)),
    "empty": (matrix(300, 0), matrix(0, 200, seed=1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("kernel")
def test_products_are_exact_to_rounding(layout):
    a, b = LAYOUTS[layout]
    exact = a.double() @ b.double()
    computed = product(a, b)
    assert computed.dtype == torch.float32
    torch.testing.assert_close(computed.double(), exact, rtol=0, atol=1e-5 * max(1, a.size(-1)) ** 0.5)
    doubled = product(a.double(), b.double())
    assert torch.equal(doubled, exact)


@pytest.mark.usefixtures("kernel")
def test_products_have_gradients_where_they_are_asked_for():
    a, b = matrix(300, 200).requires_grad_(), matrix(200, 150, seed=1)
    product(a, b).sum().backward()
    torch.testing.assert_close(a.grad, b.sum(1).expand(300, 200))


@pytest.mark.parametrize("n", [1, 50, 384, 500])
@pytest.mark.parametrize("kind", ["regular", "graded", "singular", "identity", "zero"])
@pytest.mark.usefixtures("kernel")
def test_columns_are_orthonormal_and_span_those_of_the_matrix(n, kind):
    a = {
        "regular": lambda: matrix(n, n),
        "graded": lambda: matrix(n, n) * torch.logspace(0, -12, n),
        "singular": lambda: matrix(n, n) * (torch.arange(n) % 3 > 0) * (torch.arange(n) % 5 > 0)[:, None],
        "identity": lambda: torch.eye(n),
        "zero": lambda: torch.zeros(n, n),
    }[kind]()
    q = orthonormal_columns(a)
    torch.testing.assert_close(q.mT @ q, torch.eye(n), rtol=0, atol=5e-6)
    # The first k columns of Q span the first k of A: R is upper triangular, column by column.
    below = (q.double().mT @ a.double()).tril(-1)
    assert (below.norm(dim=0) <= 3e-6 * a.double().norm(dim=0)).all()
    if kind == "regular":
        torch.testing.assert_close(q.double(), torch.linalg.qr(a.double())[0], rtol=0, atol=1e-3)


@pytest.mark.usefixtures("kernel")
def test_shapes_are_known_without_numbers():
    """No branch on a value: under FakeTensorMode it would raise."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert product(torch.randn(300, 200), torch.randn(200, 150)).shape == (300, 150)
        assert orthonormal_columns(torch.randn(500, 500)).shape == (500, 500)
