"""The contract of every landscape: derivatives against autograd and Taylor slopes, ensembles, numpy against torch."""

import numpy as np
import pytest
import torch

from riemannian_ode import PhasePoint
from toy_landscapes import (
    BigramModel,
    ConfinedQuadratic,
    KroneckerQuadratic,
    LinearRegression,
    MatrixFactorization,
    ProductValley,
    Quadratic,
    RiverValley,
    StraightValley,
    TinyTransformer,
    TorchLandscape,
    TwoLayerNetwork,
    indefinite_spectrum,
)

SADDLE = ConfinedQuadratic(Quadratic.random(indefinite_spectrum(5, negative=2), seed=0), confinement=0.7)
TEACHER = {"inputs": 3, "width": 2, "outputs": 2, "samples": 7, "noise": 0.1, "seed": 0}
LANDSCAPES = {
    "confined saddle": SADDLE,
    "straight valley": StraightValley(
        Quadratic.random([0.5, 0.2], seed=1),
        [[9.0, 1.0], [1.0, 6.0]],
        variation=[[2.0, -1.0], [-1.0, 0.5]],
        frequency=[0.7, -1.1],
        phase=0.3,
    ),
    "valley on a saddle": StraightValley(SADDLE, [30.0], variation=[8.0], floor_curvature=20.0),
    "curved valley, three rivers, two walls": RiverValley(
        [9.0, 4.0],
        floor_curvatures=[0.1, 0.3, 0.2],
        floor_width=1.5,
        amplitudes=[0.8, 0.3],
        frequency=0.9,
        phases=[0.0, 1.0],
    ),
    "product valley": ProductValley(),
    "Kronecker quadratic": KroneckerQuadratic(
        np.diag([3.0, 1.0]), np.diag([2.0, 0.5, 0.1]) + 0.05, minimizer=np.arange(6.0).reshape(2, 3), sharp_rank=2
    ),
    "linear regression": LinearRegression.synthetic([2.0, 0.5], [1.0, 0.1, 0.3], samples=8, seed=0),
    "matrix factorisation": MatrixFactorization(np.random.default_rng(0).normal(size=(4, 3)), rank=2),
    "tanh network": TwoLayerNetwork.teacher_student(**TEACHER),
    "softplus network": TwoLayerNetwork.teacher_student(**TEACHER, activation="softplus"),
    "bigrams": BigramModel.two_kinds(certain=2, uncertain=1, vocabulary=3, slip=0.1),
    "user function": TorchLandscape(lambda x: torch.sin(x).prod() + (x**4).sum(), dimension=3),
    "transformer": TinyTransformer.on_bigrams(
        BigramModel.two_kinds(certain=2, uncertain=1, vocabulary=3), sequences=3, length=3, width=3, hidden=2, seed=0
    ),
}
QUADRATICS = ("Kronecker quadratic", "linear regression")


@pytest.fixture(params=sorted(LANDSCAPES))
def name(request):
    return request.param


@pytest.fixture
def landscape(name):
    return LANDSCAPES[name]


def test_derivatives_equal_autograd(landscape, rng):
    w, v = (torch.as_tensor(x) for x in rng.normal(size=(2, 3, landscape.dimension)))
    x = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(landscape.value(x).sum(), x)
    # Reverse over reverse: another path than TorchLandscape's forward over reverse.
    hessian = torch.stack([torch.func.jacrev(torch.func.jacrev(landscape.value))(y) for y in w])
    torch.testing.assert_close(landscape.gradient(w), gradient, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(landscape.hessian(w), hessian, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(landscape.hvp(w, v), torch.einsum("nij,nj->ni", hessian, v), rtol=1e-10, atol=1e-10)


def test_taylor_remainder_has_slope_three(name, landscape, rng):
    """f(w + εv) − f − ε g·v − ½ε² vᵀHv = O(ε³), in numpy alone; a quadratic has no remainder."""
    w, v = rng.normal(size=(2, landscape.dimension))
    v /= np.linalg.norm(v)
    f, g, hv = landscape.value(w), landscape.gradient(w), landscape.hvp(w, v)
    steps = np.array([0.04, 0.02, 0.01])
    remainder = np.array([landscape.value(w + e * v) - f - e * (g @ v) - 0.5 * e**2 * (v @ hv) for e in steps])
    if name in QUADRATICS:
        assert np.abs(remainder).max() < 1e-13 * max(1.0, abs(f))
    else:
        assert np.polyfit(np.log(steps), np.log(np.abs(remainder)), 1)[0] == pytest.approx(3, abs=0.2)
    np.testing.assert_allclose(landscape.hessian(w) @ v, hv, rtol=1e-11, atol=1e-11)


def test_ensembles_have_their_shapes_and_equal_single_points_in_numpy_and_torch(landscape, rng):
    p = landscape.dimension
    w, v = rng.normal(size=(2, 2, 3, p))
    results = {
        "value": (landscape.value, (w,), ()),
        "gradient": (landscape.gradient, (w,), (p,)),
        "hvp": (landscape.hvp, (w, v), (p,)),
        "hessian": (landscape.hessian, (w,), (p, p)),
    }
    for label, (function, arguments, shape) in results.items():
        batch = function(*arguments)
        assert isinstance(batch, np.ndarray), label
        assert batch.shape == (2, 3, *shape), label
        tensors = function(*(torch.as_tensor(x) for x in arguments))
        assert tensors.dtype == torch.float64
        np.testing.assert_allclose(batch, tensors.numpy(), rtol=1e-12, atol=1e-12, err_msg=label)
        single = function(*(x[1, 2] for x in arguments))
        np.testing.assert_allclose(batch[1, 2], single, rtol=1e-12, atol=1e-12, err_msg=label)


def test_many_directions_at_one_point(landscape, rng):
    w, v = rng.normal(size=landscape.dimension), rng.normal(size=(2, 3, landscape.dimension))
    np.testing.assert_allclose(landscape.hvp(w, v), v @ landscape.hessian(w), rtol=1e-11, atol=1e-11)


def test_sharp_projection_is_on_the_top_eigenspace(landscape, rng):
    w, x = rng.normal(size=(2, landscape.dimension))
    basis = landscape.sharp_basis(w)
    top = np.linalg.eigvalsh(landscape.hessian(w))[::-1][: landscape.sharp_rank]
    assert basis.shape == (landscape.dimension, landscape.sharp_rank)
    np.testing.assert_allclose(basis.T @ basis, np.eye(landscape.sharp_rank), atol=1e-12)
    np.testing.assert_allclose(basis.T @ landscape.hessian(w) @ basis, np.diag(top), atol=1e-10 * max(1, top[0]))
    sharp, flat = landscape.sharp_projection(w, x), landscape.flat_split(PhasePoint(w, x, x))(x)
    np.testing.assert_allclose(sharp + flat, x, atol=1e-12)
    assert abs(sharp @ flat) < 1e-11


def test_points_of_another_dimension_are_refused(landscape):
    wrong = np.zeros(landscape.dimension + 1)
    for function in (landscape.value, landscape.gradient):
        with pytest.raises(ValueError, match=f"last axis must hold (the )?{landscape.dimension} coordinates"):
            function(wrong)


def test_gradient_and_projector_are_differentiable_in_torch(landscape):
    w, v, x = torch.tensor(np.random.default_rng(3).normal(size=(3, landscape.dimension)) * 0.5)
    w.requires_grad_()
    (along,) = torch.autograd.grad((landscape.gradient(w) * v).sum(), w)
    torch.testing.assert_close(along, landscape.hvp(w.detach(), v), rtol=1e-9, atol=1e-10)
    flat = landscape.flat_projector(w)(x)
    if not flat.requires_grad:  # the same everywhere
        torch.testing.assert_close(flat, landscape.flat_projector(w.detach() + v)(x))
        return
    got = torch.autograd.grad((flat * v).sum(), w)[0] @ x
    ahead, behind = ((landscape.flat_projector(w.detach() + s * x)(x) * v).sum() for s in (1e-5, -1e-5))
    torch.testing.assert_close(got, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-6)
