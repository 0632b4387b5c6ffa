"""Requirements of some tests on the machine, and the tests that are skipped without them.

============================== ============================================ =====================================
needs                          skipped without it                           tested everywhere instead
============================== ============================================ =====================================
a C++ compiler                 ``riemannian_ode/test_compiled.py`` (most),  plain steps: all other tests of
                               ``test_circular.py``; docs pages with        ``riemannian_ode``; the error that names
                               ``compile=``; Inductor in                    the compiler; ``lite/test_compile.py``
                               ``lite/test_compile.py``                     with other backends
a C++ compiler                 ``lite/test_fused_muon.py``, except its      the formulas one by one: its test of
                               test of the formulas                         them, and all of ``lite`` in float32
AVX-512 bfloat16 and a C++     ``discretizations/test_gram_products.py``,   the library's products, by the same tests
compiler                       ``test_polar.py``: cases "program"           with "library"
fused multiply-add (any ARM,   ``riemannian_ode/test_circular.py``, one of  the library's sine and cosine:
x86-64 since 2013)             ``test_compiled.py``                         ``test_compiled.py``
oneDNN in torch                ``discretizations/test_products.py``,        torch's products, by the same tests with
                               the cases "oneDNN"; one of                   "torch"
                               ``lite/test_soap.py``
gram-newton-schulz (``make     ``discretizations/                           which matrices it gets: the other tests of
test`` installs it)            test_package_newton_schulz.py``, two tests   that file
Chromium                       ``rishd/test_report_in_browser.py``          the report's file: ``test_report.py``
Chromium and its driver        ``rishd/test_explore_in_browser.py``         what the pages compute and say:
                                                                            ``test_exploring.py``
============================== ============================================ =====================================

On processors with matrix units (AMX) the library multiplies in bfloat16, because it is faster there; the programs are
still tested there, as they run on any processor with AVX-512 bfloat16. "program" and "library" are the fixture
``bfloat16_products`` of ``conftest.py``.
"""

import platform
import shutil
from pathlib import Path

import pytest

from riemannian_ode.compiled.compiler import BuildError, shared_library


def _compiles() -> bool:
    try:
        shared_library('extern "C" int answer() { return 42; }', [()])
    except BuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not _compiles(), reason="needs a C++ compiler")

_CPU = Path("/proc/cpuinfo")
HAS_FUSED = platform.machine() in ("aarch64", "arm64") or (_CPU.exists() and " fma " in _CPU.read_text())
needs_fused_products = pytest.mark.skipif(not HAS_FUSED, reason="needs fused multiply-add")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")
CHROMEDRIVER = shutil.which("chromedriver")
needs_chromedriver = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None,
    reason="needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)",
)
