"""Mutation testing of the formulas: ``make mutation``, see docs/mutation.md.

mutmut writes the mutants. Its runner collects the tests again for each mutant, which takes seconds here. This one
collects them once and forks for each mutant, which then costs as much as the first test that fails.
"""

import argparse
import ast
import contextlib
import fnmatch
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings
from mutmut.configuration import config
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import get_mutant_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT if ROOT.name == "mutants" else ROOT / "mutants"
RESULTS = FOLDER / "results.json"
TASK = FOLDER / "task.json"
LONGEST_TEST, LONGEST_MUTANT = 1.0, 10.0  # seconds of tests without a mutant; what takes longer is left out
OURS = {*map(str, config().source_paths), "tests"}
MEMORY = 8 << 30  # bytes of a mutant's process

# The tests of a module, the first pattern that fits; quick ones, because a survivor costs all that call its function.
CORE = [
    "discretizations/test_memory_flows.py", "discretizations/test_update_rule.py",
    "discretizations/test_correspondence.py", "riemannian_ode/test_flow.py", "riemannian_ode/test_stages.py",
    "riemannian_ode/test_rates.py",
]  # fmt: skip
CLOSED_FORMS = [f"discretizations/test_{name}.py" for name in ("noise", "stability", "certificate")]
GEOMETRIES = [
    "discretizations/test_preconditioners.py", "discretizations/test_masks.py", "discretizations/test_sharp_masks.py",
    "discretizations/test_tracked_subspace.py", "discretizations/test_polar.py",
    "discretizations/test_normalized_polar_factor.py",
    "discretizations/test_eigenbasis_moment.py",
    "lite/test_soap.py", "lite/test_algorithm.py", "lite/test_matrix_view.py", "lite/test_properties.py",
]  # fmt: skip
INTEGRATORS = [
    f"riemannian_ode/test_{name}.py"
    for name in (
        "orders", "structure", "stiff", "newton", "one_step", "integrators", "tolerances", "limits",
        "varying_coefficients", "member_failures", "noise",
    )
] + [
    f"riemannian_ode/test_derivatives.py::test_{name}"
    for name in (
        "lost_members_leave_the_others_derivatives_as_they_are_alone", "second_order_coefficients",
        "large_and_stiff_implicit_steps", "states_off_the_grid",
    )
] + [
    "discretizations/test_memory_flows.py::test_schemes_have_their_order_from_a_memory_that_has_seen_gradients"
]  # fmt: skip
TESTS = {
    "riemannian_ode/integrators/*": INTEGRATORS,
    "riemannian_ode/dynamics.py": [
        *INTEGRATORS,
        "riemannian_ode/test_dynamics.py",
        "riemannian_ode/test_split.py",
        "riemannian_ode/test_flow.py",
    ],
    "riemannian_ode/memory.py": [*CORE, "riemannian_ode/test_memory.py"],
    "riemannian_ode/memory_arrays.py": [*CORE, "riemannian_ode/test_memory.py"],
    "riemannian_ode/stages.py": [*CORE, "lite/test_declaration.py"],
    "riemannian_ode/*": CORE,
    "discretizations/update_rule.py": CORE,
    "discretizations/preconditioners/*": CORE + GEOMETRIES,
    "discretizations/matrices/*": GEOMETRIES,
    "discretizations/*": CLOSED_FORMS,
    "lite/*": [*CORE, *GEOMETRIES, "lite/test_declaration.py"],
}


class _WithoutMessages(ast.NodeTransformer):
    def visit_Raise(self, node):
        return ast.Raise(node.exc.func) if isinstance(node.exc, ast.Call) else node


@dataclass
class Mutants:
    """The mutants of one module.

    Args:
        path: The module.
        code: All its mutants, behind mutmut's switches.
        bodies: Of each mutant, by name, a hash.
        texts: Number of those left out because they change nothing but the arguments of a ``raise``.
        lines: Of each function, by name.
    """

    path: Path
    code: str = ""
    bodies: dict[str, str] = field(default_factory=dict)
    texts: int = 0
    lines: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self):
        mutated = mutate_file_contents(str(self.path), self.path.read_text())
        self.code, bodies = mutated.code, {}
        for node in ast.walk(ast.parse(mutated.code)):
            if isinstance(node, ast.FunctionDef):
                first, *rest = (line.strip() for line in ast.unparse(node).splitlines() if not line.startswith("@"))
                self.lines[node.name] = [first.partition("(")[2], *rest]
                bare = _WithoutMessages().visit(node)
                bodies[node.name] = ast.unparse(
                    ast.Module([ast.Expr(ast.Lambda(bare.args, ast.Name("x"))), *bare.body], [])
                )
        for name in mutated.mutant_names:
            if bodies[name] == bodies[_original(name)]:
                self.texts += 1
            else:
                full_name = get_mutant_name(self.path, name).replace("__init__.", "")
                self.bodies[full_name] = hashlib.sha256((bodies[name]).encode()).hexdigest()[:16]

    def shown(self, name):
        """Lines of a mutant that differ from the original."""
        short = name.rpartition(".")[2]
        old, new = self.lines[_original(short)], self.lines[short]
        removed, added = [x for x in old if x not in new], [x for x in new if x not in old]
        return "\n".join([*(f"  - {x}" for x in removed), *(f"  + {x}" for x in added)])


def _function(name):
    return name.rpartition("__mutmut_")[0]


def _original(name):
    return f"{_function(name)}__mutmut_orig"


class ForkingRunner:
    """A pytest plugin that runs the collected tests once, and then those of each mutant's function with the mutant.

    Args:
        bodies: Of each mutant to test, see :class:`Mutants`.
        results: What is known already: name ↦ (body, status).
        processes: How many mutants are tested at a time.
    """

    def __init__(self, bodies, results, processes):
        self.bodies, self.results, self.processes = bodies, results, processes
        self.kills, self.running = Counter(), {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self):
        """Examples that fail are not made smaller: that would take most of the time."""
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutation", settings.get_profile("fixed"), phases=phases, report_multiple_bugs=False)
        settings.load_profile("mutation")

    def pytest_runtestloop(self, session):
        gc.collect()
        gc.freeze()
        tests = self.baseline(session.items)
        for number, name in enumerate(self.bodies):
            while len(self.running) >= self.processes:
                self.wait()
            self.start(name, tests.get(_function(name), []))
            if number % 20 == 19:
                self.save()
                print(f"{number + 1} of {len(self.bodies)} mutants", file=sys.__stderr__, flush=True)
        while self.running:
            self.wait()
        self.save()
        return True

    def baseline(self, items):
        """The quick tests of each function, their place among the cases of one test, and their seconds."""

        def run():
            set_mutant_under_test("stats")
            found = []
            for index, item in enumerate(items):
                state()._stats.clear()
                start = time.process_time()
                if failed := _failure([item]):
                    found.append((index, failed, []))
                else:
                    found.append((index, time.process_time() - start, list(state()._stats)))
            return found, [name for name in sys.modules if name.partition(".")[0] not in OURS]

        found, libraries = _Forked(run).result()
        for name in libraries:  # that tests load on their way: every mutant's process would load them again
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        if failed := [seconds for _, seconds, _ in found if isinstance(seconds, str)]:
            print(f"Left out, because they fail behind mutmut's switches: {failed}", file=sys.__stderr__, flush=True)
        tests, family = defaultdict(list), Counter()
        passed = [each for each in found if not isinstance(each[1], str)]
        for index, seconds, functions in sorted(passed, key=itemgetter(1)):
            item = items[index]
            rank = family[item.function] = family[item.function] + 1
            for name in functions if seconds <= LONGEST_TEST else []:
                tests[name].append((rank, seconds, item))
        return tests

    def start(self, name, tests):
        chosen, total = [], 0.0
        for _, seconds, item in sorted(tests, key=lambda test: (-self.kills[test[2].nodeid], test[0] * test[1])):
            total += seconds
            if total <= LONGEST_MUTANT:
                chosen.append(item)
        if not chosen:
            self.results[name] = self.bodies[name], "no tests"
            return

        def run():
            set_mutant_under_test(name)
            return _failure(chosen)

        process = _Forked(run, seconds=5.0 + 4.0 * min(total, LONGEST_MUTANT))
        self.running[process.pid] = name, process

    def wait(self):
        """For one mutant. One that ends its process is killed, too: by its limits, or by an exit."""
        pid, status = os.wait()
        name, process = self.running.pop(pid)
        failed = process.read()
        how = "timeout" if os.WIFSIGNALED(status) else "survived" if failed == "" else "killed"
        self.results[name] = self.bodies[name], how
        self.kills[failed] += bool(failed)

    def save(self):
        RESULTS.write_text(json.dumps(self.results))


def _failure(tests):
    """Id of the first test that fails, or an empty string."""
    for item in tests:
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
            return item.nodeid
    return ""


class _Forked:
    """A function in a process of its own, so that caches which it fills are gone afterwards."""

    def __init__(self, function, *, seconds=None):
        self.pipe, pipe = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if seconds is not None:
                    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
                    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
                with os.fdopen(pipe, "w") as file:
                    json.dump(function(), file)
            finally:
                os._exit(0)
        os.close(pipe)

    def read(self):
        """What it returned; ``None`` if it did not."""
        with os.fdopen(self.pipe) as file:
            text = file.read()
        return json.loads(text) if text else None

    def result(self):
        result = self.read()
        os.waitpid(self.pid, 0)
        return result


def _prepare(modules):
    """Copies of packages and tests, with the modules replaced by their mutants."""
    FOLDER.mkdir(exist_ok=True)
    for package in [*map(str, config().source_paths), "tests"]:
        shutil.rmtree(FOLDER / package, ignore_errors=True)
        shutil.copytree(ROOT / package, FOLDER / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", FOLDER)
    for module in modules:
        (FOLDER / module.path).write_text(module.code)


def _tests_of(path):
    return next(tests for pattern, tests in TESTS.items() if fnmatch.fnmatch(str(path), pattern))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=["*"], help="such as riemannian_ode/integrators/*.py")
    parser.add_argument("--sample", type=int, metavar="N", help="at most N mutants of each module, the same every time")
    parser.add_argument("--survivors", action="store_true", help="test only those that survived")
    parser.add_argument(
        "--tests", nargs="+", metavar="FILE", help="only these tests, such as riemannian_ode/test_flow.py"
    )
    parser.add_argument("--report", action="store_true", help="report what is known, test nothing")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()

    paths = [p for p in sorted(walk_mutatable_files()) if any(fnmatch.fnmatch(str(p), m) for m in options.modules)]
    modules = [m for m in map(Mutants, paths) if m.bodies]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}

    def status(module, name):
        body, found = results.get(name, ("", None))
        return found if body == module.bodies[name] else None

    bodies, tests = {}, []
    for module in modules:
        order = random.Random(str(module.path)).sample(sorted(module.bodies), len(module.bodies))
        wanted = ("survived", "no tests") if options.survivors else (None,)
        names = [name for name in order[: options.sample] if status(module, name) in wanted]
        bodies |= {name: module.bodies[name] for name in sorted(names)}
        tests += [test for test in options.tests or _tests_of(module.path) if names and test not in tests]
    if bodies and not options.report:
        _prepare(modules)
        TASK.write_text(json.dumps({"bodies": bodies, "tests": tests, "processes": options.processes}))
        environment = os.environ | {"PYTHONPATH": str(FOLDER), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "tests.mutation", "--run"], cwd=FOLDER, env=environment, check=True)
        results = json.loads(RESULTS.read_text())

    print("| module | mutants | left out | tested | killed | |\n|---|---|---|---|---|---|")
    survivors = []
    for module in modules:
        known = {name: how for name in module.bodies if (how := status(module, name)) is not None}
        killed = sum(how in ("killed", "timeout") for how in known.values())
        share = f"{killed / len(known):.1%}" if known else ""
        print(f"| {module.path} | {len(module.bodies)} | {module.texts} | {len(known)} | {killed} | {share} |")
        survivors += [(module, name, how) for name, how in known.items() if how not in ("killed", "timeout")]
    for module, name, how in survivors:
        print(f"\n{how}: {name}\n{module.shown(name)}")


def _run():
    task, results = json.loads(TASK.read_text()), json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    arguments = [
        "-q",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *(f"tests/{test}" for test in task["tests"]),
    ]
    sys.exit(pytest.main(arguments, plugins=[ForkingRunner(task["bodies"], results, task["processes"])]))


if __name__ == "__main__":
    if sys.argv[1:] == ["--run"]:
        _run()
    else:
        main()
