"""The public names of the packages: one list in each ``__init__.pyi``, every name documented."""

import ast
import inspect
import pkgutil
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.launches import finished

ROOT = Path(__file__).parents[1]
PACKAGES = ("riemannian_ode", "toy_landscapes", "discretizations", "lite", "rishd")


def names_of(package):
    return import_module(package).__all__


def documented(package):
    """Names that autodoc shows on the package's page: module ↦ names, ``None`` for all of them."""
    page = (ROOT / "docs" / "api" / f"{package}.md").read_text(encoding="utf-8")
    shown = {}
    for module, options in re.findall(r"^\.\. automodule:: (\S+)\n((?:   :.*\n)*)", page, re.MULTILINE):
        members = re.search(r":members:(.*)", options)
        if ":no-members:" not in options:
            shown[module] = members[1].replace(",", " ").split() or None if members else None
    single = set(re.findall(r"^\.\. (?:data|autofunction|autoclass):: (\S+)", page, re.MULTILINE))
    return shown, single


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_and_is_documented(package):
    shown, single = documented(package)
    module = import_module(package)
    assert len(module.__all__) == len(set(module.__all__)) >= 10 and dir(module) == sorted(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        assert inspect.getdoc(thing), f"{package}.{name} has no docstring"
        home = getattr(thing, "__module__", None)
        listed = shown.get(home, ())
        on_page = listed is None or name in listed or {f"{package}.{name}", f"{home}.{name}"} & single
        assert on_page, f"docs/api/{package}.md does not show {home}.{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_stub_is_the_list(package):
    tree = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
    listed = [alias.asname for node in tree.body for alias in node.names]
    assert listed == names_of(package), "a line of the stub is not `from home import X as X`"
    assert all(node.module.startswith(package) for node in tree.body)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_submodule_hides_a_public_name(package):
    submodules = {module.name for module in pkgutil.iter_modules(import_module(package).__path__)}
    assert not submodules & set(names_of(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_no_library(package):
    code = f"import sys, {package}; print('numpy' in sys.modules, 'torch' in sys.modules)"
    assert finished([sys.executable, "-c", code]).stdout.split() == ["False", "False"]


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_refused_as_by_any_module(package):
    with pytest.raises(AttributeError, match=rf"module '{package}' has no attribute 'unheard_of'"):
        getattr(import_module(package), "unheard_" + "of")
