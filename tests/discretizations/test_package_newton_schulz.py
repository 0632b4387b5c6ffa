"""Newton–Schulz by the gram-newton-schulz package, its torch back end against our own iteration."""

from types import SimpleNamespace

import pytest
import torch

from discretizations.matrices import package_newton_schulz as package
from discretizations.matrices import polar
from discretizations.matrices.newton_schulz import gram_pairs, newton_schulz, normalized
from discretizations.matrices.polar import fast_dtype, polar_express, polar_express_coefficients
from tests.discretizations.test_polar import dominated

SCALE = (1.01, 0.0, 1e-18)
HOPPER = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))


def on_the_cpu(x, coefficients, *, scale, pairs, kernels):
    return package.package_newton_schulz(x, coefficients, scale=scale, pairs=pairs, kernels=False)


@pytest.mark.parametrize("shape", [(40, 70), (3, 24, 24), (2, 128, 256), (256, 128), "dominated"])
@pytest.mark.parametrize("steps", [5, 6])
def test_it_is_the_same_polynomial(shape, steps):
    """Same coefficients, restarts and safety as ours; both differ from float64 by the rounding of float16."""
    pytest.importorskip("gram_newton_schulz")
    source = torch.Generator().manual_seed(0)
    x = dominated(128, 256, count=400, seed=0)[:4] if shape == "dominated" else torch.randn(shape, generator=source)
    pairs = gram_pairs(x.shape, steps, torch.float16)
    coefficients = polar_express_coefficients(steps, safety=1.1 if pairs else 1.01)
    exact = newton_schulz(normalized(x.double(), SCALE), coefficients)
    for scale in (1.0, 1e-12, 1e12):
        theirs = on_the_cpu(scale * x, coefficients, scale=SCALE, pairs=pairs, kernels=False)
        ours = newton_schulz(normalized(scale * x, SCALE, torch.float16), coefficients)
        error, usual = ((y - exact).norm() / exact.norm() for y in (theirs, ours))
        assert theirs.dtype == torch.float32 and error < max(1.5 * usual, 2e-3)  # measured: 0.001; dominated: 0.007


def test_it_is_a_torch_operator():
    pytest.importorskip("gram_newton_schulz")
    numbers = [number for step in polar_express_coefficients(3) for number in step]
    torch.library.opcheck(torch.ops.lite.package_newton_schulz.default, (torch.randn(2, 4, 9), numbers, 1, False))


def test_zero_stays_zero():
    pytest.importorskip("gram_newton_schulz")
    assert not on_the_cpu(
        torch.zeros(2, 4, 9), polar_express_coefficients(6), scale=SCALE, pairs=3, kernels=False
    ).any()


def test_it_serves_hopper_and_later_where_it_is_installed(monkeypatch):
    assert not package.serves(torch.zeros(2, 2))
    for is_installed, capability, expected in (
        (True, (9, 0), torch.float16),
        (True, (10, 0), torch.float16),
        (True, (8, 6), torch.bfloat16),
        (False, (9, 0), torch.bfloat16),
    ):
        monkeypatch.setattr(package, "_IS_INSTALLED", is_installed)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, known=capability: known)
        assert package.serves(HOPPER) == (expected == torch.float16)
        assert fast_dtype(HOPPER) == expected


def test_only_float16_without_a_floor_goes_there(monkeypatch):
    """The package has only its own floor and dtype."""
    calls = []

    def note(x, coefficients, *, scale, pairs, kernels):
        calls.append((coefficients, scale, pairs, kernels))
        return x.float()

    monkeypatch.setattr(polar, "serves", lambda x: True)
    monkeypatch.setattr(polar, "package_newton_schulz", note)
    x = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    polar_express(x, dtype=torch.bfloat16), polar_express(x), polar_express(x, dtype=torch.float16, floor=1e-8)
    assert not calls
    assert polar_express(x.bfloat16(), dtype=torch.float16).dtype == torch.bfloat16
    assert calls == [(polar_express_coefficients(6, safety=1.1), SCALE, 3, True)]
