import sys

import numpy as np
import pytest

from riemannian_ode import INTEGRATORS, RISHD, OneStepIntegrator, PhaseState, integrator, simulate
from riemannian_ode.registry import Registry


class Bowl:
    """f(w) = ‖w‖²/2."""

    def value(self, w):
        return 0.5 * (w * w).sum(-1)

    def gradient(self, w):
        return w


MODULE = """
from {package} import THINGS
THINGS.add({name!r}, {name!r}.upper(), place={place})
"""


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """A package whose modules register things, never imported before."""
    name = "package_of_" + request.node.name.split("[")[0]
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(
        f"from riemannian_ode.registry import Registry\nTHINGS = Registry('thing', {name!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def things_of(package):
    return __import__(package.name).THINGS


def test_a_file_in_the_package_is_all_that_a_thing_needs(package):
    for name, place in (("b", 1), ("a", 2), ("d", "float('inf')"), ("c", "float('inf')")):
        (package / f"module_{name}.py").write_text(MODULE.format(package=package.name, name=name, place=place))
    (package / "_helper.py").write_text("raise AssertionError('a module with an underscore was imported')")
    things = things_of(package)
    assert f"{package.name}.module_a" not in sys.modules, "nothing is imported before the registry is read"
    assert dict(things) == {"b": "B", "a": "A", "c": "C", "d": "D"}
    assert list(things) == ["b", "a", "c", "d"], "by place, then by name"


def test_a_name_used_twice_is_an_error_whenever_the_registry_is_read(package):
    for file in ("one", "two"):
        (package / f"{file}.py").write_text(MODULE.format(package=package.name, name="same", place=1))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"thing = 'same' is registered twice; give one of them another name"):
            list(things_of(package))


def test_a_thing_can_be_replaced_and_removed():
    things = Registry("thing")
    things.add("first", 1, place=1)
    things.add("second", 2, place=2)
    things["first"] = 10
    assert list(things.items()) == [("first", 10), ("second", 2)]
    del things["first"]
    things.add("first", 3)
    assert list(things) == ["second", "first"]


def test_a_decorated_integrator_runs_by_name(request):
    request.addfinalizer(lambda: INTEGRATORS.pop("of-a-test", None))

    @INTEGRATORS.register()
    class OfATest(OneStepIntegrator):
        name = "of-a-test"
        order = 1

        def __init__(self, *, slowness=1.0):
            self.slowness = slowness

        def step(self, system, t, state, h):
            w_rate, m_rate = system.rates(t, state.w, state.m)
            return PhaseState(state.w + h / self.slowness * w_rate, state.m + h / self.slowness * m_rate)

    assert list(INTEGRATORS)[-1] == "of-a-test"
    system = RISHD.from_optimizer(Bowl(), alpha=0.5, eta=0.1)
    own = simulate(system, np.ones(2), integrator="of-a-test", steps=4)
    np.testing.assert_array_equal(own.w, simulate(system, np.ones(2), integrator="explicit-euler", steps=4).w)
    slow = simulate(system, np.ones(2), integrator=integrator("of-a-test", slowness=2.0), steps=4)
    assert not np.allclose(slow.w[-1], own.w[-1])
    with pytest.raises(ValueError, match=r"integrator = 'of-a-test' is registered twice"):
        INTEGRATORS.register()(OfATest)


def test_built_in_integrators_come_in_the_declared_order():
    assert list(INTEGRATORS)[:5] == ["explicit-euler", "semi-implicit-euler", "position-first-euler", "heun", "rk4"]
    assert list(INTEGRATORS)[-4:] == ["rk45", "dop853", "radau", "lsoda"]
