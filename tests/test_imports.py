"""What importing costs: `import lite` must bring torch and nothing heavier."""

import subprocess
import sys


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys, torch; before = set(sys.modules); {statement}; print('\\n'.join(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.split()}


def test_import_lite_loads_nothing_heavy():
    loaded = _loaded_after("from lite import MuonLITE, LITESchedule, param_groups")
    assert "lite" in loaded
    assert not loaded & {"scipy", "sympy", "matplotlib", "transformers", "array_api_compat", "rich"}


def test_flow_needs_no_library():
    code = "import sys, riemannian_ode.flow; print('numpy' in sys.modules, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_help_does_not_load_torch():
    code = "import sys\nfrom rishd.cli import app\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
