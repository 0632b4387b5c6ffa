"""Adaptive schemes choose their tolerances by the state's dtype."""

import numpy as np
import pytest
import torch

from riemannian_ode import INTEGRATORS, RISHD, simulate
from riemannian_ode.integrators.step_control import Tolerances, check_step_control, tolerances
from toy_landscapes import Quadratic, RiverValley

ADAPTIVE = [name for name, scheme in INTEGRATORS.items() if scheme.adaptive]
LANDSCAPES = {
    "quadratic": Quadratic.random([3.0, 1.0, 0.1], seed=0),
    "valley": RiverValley([20.0, 12.0], floor_curvatures=[0.02], amplitudes=[0.3, 0.2], phases=[0.0, 1.0]),
}


class Counted:
    """Counts the calls of a landscape's gradient."""

    def __init__(self, landscape):
        self.landscape, self.calls = landscape, 0

    def value(self, w):
        return self.landscape.value(w)

    def gradient(self, w):
        self.calls += 1
        return self.landscape.gradient(w)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("landscape", LANDSCAPES)
def test_float32_takes_no_more_gradients_than_float64_and_is_as_good_as_its_resolution(name, landscape):
    calls, ends = {}, {}
    for kind in (np.float64, np.float32):
        counted = Counted(LANDSCAPES[landscape])
        system = RISHD.from_optimizer(counted, alpha=0.1, eta=0.1)
        run = simulate(system, np.ones(3, dtype=kind), h=2.5, steps=2, integrator=name).checked()
        calls[kind], ends[kind] = counted.calls, run.w[-1]
    assert ends[np.float32].dtype == np.float32
    assert calls[np.float32] <= 1.2 * calls[np.float64]
    assert np.abs(ends[np.float32] - ends[np.float64]).max() < 1e-4


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("start", [np.ones(3, dtype=np.float32), torch.ones(3)], ids=["numpy", "torch"])
def test_a_tolerance_below_the_types_resolution_is_refused(name, start):
    system = RISHD.from_optimizer(LANDSCAPES["quadratic"], alpha=0.1, eta=0.1)
    scheme = INTEGRATORS[name](rtol=1e-10)
    with pytest.raises(ValueError, match=r"rtol = 1e-10 is below the resolution of float32 .*or leave rtol out for"):
        simulate(system, start, steps=1, integrator=scheme)
    assert simulate(system, np.ones(3), h=0.1, steps=1, integrator=scheme).ok
    assert simulate(system, start, h=0.1, steps=1, integrator=INTEGRATORS[name](rtol=1e-4, atol=1e-5)).ok


def test_a_type_that_numpy_lacks_is_refused():
    system = RISHD.from_optimizer(LANDSCAPES["quadratic"], alpha=0.1, eta=0.1)
    with pytest.raises(ValueError, match=r"w0 has dtype torch\.bfloat16; start from float32 or float64"):
        simulate(system, torch.ones(3, dtype=torch.bfloat16), steps=1)


def test_tolerances_are_those_given_or_a_default_that_the_type_resolves():
    default, double, single = Tolerances(1e-8, 1e-10), np.ones(2), np.ones(2, np.float32)
    rounding = float(np.finfo(np.float32).eps)
    for w, rtol, atol, expected in (
        (double, None, None, (1e-8, 1e-10)),
        (double, 1e-5, None, (1e-5, 1e-10)),
        (double, None, 1e-3, (1e-8, 1e-3)),
        (double, 1e-17, 1e-20, (1e-17, 1e-20)),
        (single, None, None, (64 * rounding, 0.64 * rounding)),
        (single, rounding, 1e-9, (rounding, 1e-9)),
    ):
        assert tolerances(rtol, atol, w, default=default) == pytest.approx(expected, rel=1e-12)


def test_step_control_names_what_it_refuses_and_takes_the_smallest_limits():
    check_step_control(None, 1e-12, 1e-9, 1)
    check_step_control(1e-3, None, float("inf"), np.int64(7))
    for name, settings in (
        ("rtol", (0.0, None, 1.0, 1)),
        ("atol", (None, -1.0, 1.0, 1)),
        ("max_step", (None, None, 0.0, 1)),
        ("max_step", (None, None, float("nan"), 1)),
        ("max_steps", (None, None, 1.0, 0)),
        ("max_steps", (None, None, 1.0, 1.0)),
        ("max_steps", (None, None, 1.0, True)),
    ):
        with pytest.raises(ValueError, match=rf"^{name} = "):
            check_step_control(*settings)
