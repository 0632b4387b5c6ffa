"""The cost of imports: `import lite` must load torch and nothing heavier."""

import sys

from tests.launches import finished


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys, torch; before = set(sys.modules); {statement}; print('\\n'.join(set(sys.modules) - before))"
    result = finished([sys.executable, "-c", code])
    return {name.split(".")[0] for name in result.stdout.split()}


def test_import_lite_loads_nothing_heavy():
    """Beyond torch, nothing but this project's own modules, so that it takes tens of milliseconds."""
    loaded = _loaded_after("from lite import SOAPLITE, LITESchedule, MuonLITE, param_groups")
    assert loaded == {"lite", "discretizations", "riemannian_ode"}


def test_import_lite_takes_a_small_part_of_torchs_own_time():
    """By the interpreter's own timing of each module in one process, so that a busy machine slows both."""
    code = "import torch; from lite import MuonLITE, SOAPLITE, param_groups"
    shares = []
    while not shares or (min(shares) >= 0.15 and len(shares) < 5):
        lines = finished([sys.executable, "-X", "importtime", "-c", code]).stderr.splitlines()
        _, *cells = [line.removeprefix("import time:").split("|") for line in lines if "import time:" in line]
        end = [cell[2].strip() for cell in cells].index("torch") + 1  # a module comes after what it imports
        torchs, ours = ([int(cell[0]) for cell in part] for part in (cells[:end], cells[end:]))
        assert len(ours) >= 20  # the project's own modules are among them
        shares.append(sum(ours) / sum(torchs))
    assert min(shares) < 0.15  # measured: 0.05


def test_flow_needs_no_library():
    code = "import sys, riemannian_ode.flow; print('numpy' in sys.modules, 'torch' in sys.modules)"
    result = finished([sys.executable, "-c", code])
    assert result.stdout.split() == ["False", "False"]


def test_numpy_landscapes_do_not_load_torch():
    code = (
        "import sys, numpy, toy_landscapes as t\n"
        "landscapes = [t.ConfinedQuadratic(t.Quadratic([1.0, -1.0])), t.RiverValley([5.0], amplitudes=0.3),"
        " t.StraightValley(t.Quadratic([0.5]), [4.0]), t.ProductValley(), t.KroneckerQuadratic([[2.0]], [[1.0]]),"
        " t.MatrixFactorization([[1.0]], rank=1), t.BigramModel.two_kinds(certain=1, uncertain=1, vocabulary=2),"
        " t.TwoLayerNetwork.teacher_student(inputs=1, width=1, outputs=1, samples=3, seed=0)]\n"
        "for f in landscapes:\n"
        "    w = numpy.ones(f.dimension)\n"
        "    f.value(w), f.gradient(w), f.hessian(w)\n"
        "noisy = t.StochasticGradient(f, t.MiniBatches(2), generator=numpy.random.default_rng(0))\n"
        "print(noisy.gradient(w).shape, 'torch' in sys.modules)"
    )
    result = finished([sys.executable, "-c", code])
    assert result.stdout.split() == ["(2,)", "False"]


def test_help_does_not_load_torch():
    code = (
        "import sys\nfrom rishd.commands.application import app\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    result = finished([sys.executable, "-c", code])
    assert result.stdout.split() == ["False", "False"]
