"""Any torch function as a landscape: against a landscape with written-out derivatives."""

import numpy as np
import pytest
import torch

from toy_landscapes import ProductValley, TorchLandscape

VALLEY = ProductValley()


def test_it_equals_the_written_out_derivatives(rng):
    landscape = TorchLandscape(VALLEY.value, dimension=2)
    w, v = rng.normal(size=(2, 4, 2))
    np.testing.assert_allclose(landscape.value(w), VALLEY.value(w), rtol=1e-14)
    np.testing.assert_allclose(landscape.gradient(w), VALLEY.gradient(w), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(landscape.hvp(w, v), VALLEY.hvp(w, v), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(landscape.hessian(w), VALLEY.hessian(w), rtol=1e-12, atol=1e-13)


def test_arrays_that_torch_cannot_share_are_copied(rng):
    landscape = TorchLandscape(VALLEY.value, dimension=2)
    w = rng.normal(size=(4, 2))
    expected = landscape.gradient(w)
    np.testing.assert_allclose(landscape.gradient(w[::-1])[::-1], expected, rtol=1e-14)
    w.flags.writeable = False
    np.testing.assert_array_equal(landscape.gradient(w), expected)


def test_no_coordinates_are_refused():
    with pytest.raises(ValueError, match="dimension = 0"):
        TorchLandscape(torch.sum, dimension=0)
