"""Landscapes: analytic derivatives against autograd and Taylor slopes, spectra, and the solved river."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from riemannian_ode import PhasePoint
from toy_landscapes import (
    Quadratic,
    RiverError,
    RiverValley,
    indefinite_spectrum,
    power_law_spectrum,
    spiked_spectrum,
)

LANDSCAPES = {
    "quadratic": Quadratic.random(power_law_spectrum(5, exponent=1.5), seed=0, minimizer=np.arange(5.0), sharp_rank=2),
    "saddle": Quadratic.random(indefinite_spectrum(5, negative=2), seed=1),
    "straight valley": RiverValley([9.0, 4.0], floor_curvatures=[0.1, 0.3], floor_width=1.5),
    "curved valley": RiverValley([9.0, 4.0], amplitudes=[0.8, 0.3], frequency=0.9, phases=[0.0, 1.0]),
    "curved valley, two rivers": RiverValley([20.0], floor_curvatures=[0.1, 0.3], floor_width=2.0, amplitudes=1.2),
}


@pytest.fixture(params=sorted(LANDSCAPES))
def landscape(request):
    return LANDSCAPES[request.param]


def test_derivatives_equal_autograd(landscape, rng):
    w, v = (torch.as_tensor(x) for x in rng.normal(size=(2, 3, landscape.dimension)))
    gradient = torch.func.vmap(torch.func.grad(landscape.value))(w)
    hessian = torch.stack([torch.autograd.functional.hessian(landscape.value, x) for x in w])
    torch.testing.assert_close(landscape.gradient(w), gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(landscape.hessian(w), hessian, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(landscape.hvp(w, v), torch.einsum("nij,nj->ni", hessian, v), rtol=1e-11, atol=1e-11)


def test_taylor_remainders_have_the_right_slopes(landscape, rng):
    w, v = rng.normal(size=(2, landscape.dimension))
    f, g, hv = landscape.value(w), landscape.gradient(w), landscape.hvp(w, v)
    steps = np.array([1e-1, 5e-2])
    first = [abs(landscape.value(w + h * v) - f - h * (g @ v)) for h in steps]
    second = [np.linalg.norm(landscape.gradient(w + h * v) - g - h * hv) for h in steps]
    assert np.log2(first[0] / first[1]) == pytest.approx(2, abs=0.3)
    if second[0] > 1e-10:  # a quadratic has no remainder
        assert np.log2(second[0] / second[1]) == pytest.approx(2, abs=0.3)


def test_numpy_equals_torch_and_batches_equal_single_points(landscape, rng):
    w = rng.normal(size=(2, 3, landscape.dimension))
    batch = landscape.gradient(w)
    np.testing.assert_allclose(batch, landscape.gradient(torch.as_tensor(w)).numpy(), atol=1e-13)
    np.testing.assert_allclose(batch[1, 2], landscape.gradient(w[1, 2]), atol=1e-13)
    assert landscape.value(w).shape == (2, 3)
    assert landscape.hessian(w).shape == (2, 3, landscape.dimension, landscape.dimension)


def test_sharp_projection_is_on_the_top_eigenspace(landscape, rng):
    w, x = rng.normal(size=(2, landscape.dimension))
    basis = landscape.sharp_basis(w)
    values = np.linalg.eigvalsh(landscape.hessian(w))[::-1]
    np.testing.assert_allclose(
        basis.T @ landscape.hessian(w) @ basis, np.diag(values[: landscape.sharp_rank]), atol=1e-10
    )
    p = landscape.sharp_projection(w, x)
    q = landscape.flat_split(PhasePoint(w, x, x))(x)
    np.testing.assert_allclose(p + q, x, atol=1e-13)
    assert abs(p @ q) < 1e-12
    np.testing.assert_allclose(landscape.sharp_projection(w, p), p, atol=1e-12)


@given(p=st.integers(1, 40), exponent=st.floats(0, 3), largest=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_quadratic_has_the_spectrum_asked_for(p, exponent, largest, seed):
    spectrum = power_law_spectrum(p, exponent=exponent, largest=largest)
    landscape = Quadratic.random(spectrum, seed=seed)
    np.testing.assert_allclose(np.linalg.eigvalsh(landscape.matrix)[::-1], spectrum, atol=1e-12 * largest)
    assert landscape.value(landscape.minimizer) == 0


def test_spectra():
    np.testing.assert_allclose(spiked_spectrum(4, spikes=1, sharp=10, flat=0.1), [10, 0.1, 0.1, 0.1])
    saddle = indefinite_spectrum(6, negative=2, depth=0.4)
    assert (saddle < 0).sum() == 2
    assert saddle.min() == pytest.approx(-0.4)


def test_straight_river_is_the_valley_floor():
    valley = RiverValley([8.0, 5.0], floor_curvatures=[0.1], floor_width=2.0)
    u = np.linspace(-3, 3, 7)[:, None]
    assert valley.is_straight
    np.testing.assert_allclose(valley.river(u), valley.valley_floor(u), atol=1e-12)
    np.testing.assert_allclose(valley.river(u)[:, 1:], 0.0, atol=1e-12)


@pytest.mark.parametrize("name", ["curved valley", "curved valley, two rivers"])
def test_river_solves_its_equation_and_is_not_the_floor(name, rng):
    valley = LANDSCAPES[name]
    u = rng.uniform(-1.5, 1.5, (5, valley.flat_rank))
    points = valley.river(u)
    residual = valley.sharp_projection(points, valley.gradient(points))
    assert np.abs(residual).max() < 1e-10
    np.testing.assert_allclose(points[:, : valley.flat_rank], u)
    assert np.abs(points - valley.valley_floor(u)).max() > 1e-4


def test_river_is_where_the_gradient_is_a_flat_eigenvector():
    """Wen et al.'s definition in two dimensions: ∇f is an eigenvector of the smallest eigenvalue."""
    valley = RiverValley([10.0], floor_curvatures=[0.1], amplitudes=0.7)
    for point in valley.river(np.linspace(-2, 2, 5)[:, None]):
        g, hessian = valley.gradient(point), valley.hessian(point)
        smallest = np.linalg.eigvalsh(hessian)[0]
        np.testing.assert_allclose(hessian @ g, smallest * g, atol=1e-9)


def test_river_offset_from_the_floor_to_first_order():
    """Claim C11b: offset c′h′/(λ(1 + c′²)) + O(λ⁻²) in graph coordinates."""
    gaps = []
    for stiffness in (200.0, 400.0, 800.0):
        valley = RiverValley([stiffness], floor_curvatures=[0.3], amplitudes=0.6, frequency=1.1, phases=0.4)
        u = np.array([0.7])
        slope_h = 0.3 * u[0]
        slope_c = 0.6 * 1.1 * math.cos(1.1 * u[0] + 0.4)
        offset = (valley.river(u) - valley.valley_floor(u))[1]
        first_order = slope_c * slope_h / (stiffness * (1 + slope_c**2))
        gaps.append(abs(offset - first_order))
        assert offset == pytest.approx(first_order, rel=0.05)
    orders = np.diff(-np.log2(gaps))
    assert orders == pytest.approx(2, abs=0.1)


def test_river_that_misses_its_tolerance_is_told():
    with pytest.raises(RiverError, match=r"no river found at u = \[1\.\]: \|P∇f\| ="):
        RiverValley([10.0], amplitudes=0.7).river(np.array([1.0]), tolerance=0.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Quadratic([]), "finite numbers of shape"),
        (lambda: Quadratic([1.0, np.nan]), "finite numbers"),
        (lambda: Quadratic([1.0, 2.0], basis=np.ones((2, 2))), "orthogonal"),
        (lambda: Quadratic([1.0, 2.0], sharp_rank=3), "sharp_rank = 3"),
        (lambda: Quadratic([1.0], minimizer=[1.0, 2.0]), "minimizer has shape"),
        (lambda: RiverValley([0.1], floor_curvatures=[0.2]), "steeper than the floor"),
        (lambda: RiverValley([-1.0]), "positive"),
        (lambda: RiverValley([5.0], floor_width=0.0), "floor_width"),
        (lambda: RiverValley([5.0], amplitudes=[1.0, 2.0]), "amplitudes and phases"),
        (lambda: RiverValley([5.0]).river(np.zeros((3, 2))), "1 flat coordinates"),
        (lambda: power_law_spectrum(0), "p = 0"),
        (lambda: spiked_spectrum(3, spikes=4, sharp=1, flat=0.1), "spikes = 4"),
        (lambda: indefinite_spectrum(3, negative=5), "negative = 5"),
    ],
)
def test_bad_landscapes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
