"""The integrator study: work against precision, energy drift, and largest stable steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from riemannian_ode import INTEGRATORS, OneStepIntegrator, energy_identity_residual, integrator, simulate
from riemannian_ode.checks import require_choice
from riemannian_ode.integrators.adaptive import DOP853
from rishd.studies.integrator_problems import CountedLandscape, Problem, problems, stopped_text
from rishd.studies.optimizer_steps import OptimizerSteps, optimizer_steps
from rishd.studies.stable_steps import CURVATURES, StableStep, stable_step

_STEP_COUNTS = (8, 16, 32, 64, 128, 256)
_IMPLICIT_STEP_COUNTS = (8, 16, 32, 64)  # each step needs a Newton solve
_DIGITS = (3, 5, 7, 9, 11)  # values of an adaptive scheme's relative tolerance
_IMPLICIT_DIGITS = (3, 5, 7, 9)
_BETAS = (0.0, 0.5, 2.0)  # curvatures for the stable steps
SIX_DIGITS = 1e-6  # relative error of the position
_QUICK = 3  # number of settings per scheme, and of curvatures, in a quick study
QUICK_TEXT = (
    f"--quick left out: the state-dependent metric, all but the {_QUICK} coarsest settings of each scheme, and all but "
    f"{_QUICK} curvatures of the stable steps."
)


@dataclass(frozen=True)
class Run:
    """One simulation of the study.

    Args:
        problem: Name of the problem.
        scheme: Name of the integrator.
        h: Step size, or output spacing of an adaptive scheme.
        gradients: Gradient evaluations of the ensemble.
        seconds: Wall-clock time.
        error: Largest final position error relative to the largest position, against DOP853 at 1e−13.
        drift: Largest residual of the energy identity along the run; NaN if not measured.
        status: Status of the trajectory, or why the scheme does not apply.
    """

    problem: str
    scheme: str
    h: float
    gradients: int
    seconds: float
    error: float
    drift: float
    status: str


@dataclass(frozen=True)
class IntegratorStudy:
    """Results of the study.

    Args:
        runs: Work and precision, one row per problem, scheme and step size.
        stable_steps: One row per scheme, curvature and damping.
        optimizer_steps: Steps of h = 1, one row per problem and scheme.
    """

    runs: tuple[Run, ...]
    stable_steps: tuple[StableStep, ...]
    optimizer_steps: tuple[OptimizerSteps, ...]

    @property
    def answer(self) -> str:
        """Which integrator reaches six digits with the fewest gradients."""
        cheapest: dict[str, Run] = {}
        for run in self.runs:
            best = cheapest.get(run.problem)
            if run.error <= SIX_DIGITS and (best is None or run.gradients < best.gradients):
                cheapest[run.problem] = run
        if not cheapest:
            return "No integrator reaches six digits at the settings tried."
        parts = (f"{run.scheme} on {problem} ({run.gradients} gradients)" for problem, run in cheapest.items())
        return f"Cheapest to six digits: {', '.join(parts)}."

    @property
    def stopped(self) -> list[str]:
        """Schemes that reached the limit of work, and where."""
        rows: list[Run | OptimizerSteps] = [*self.runs, *self.optimizer_steps]
        stopped = [row for row in rows if row.status.startswith("work limit")]
        return list(dict.fromkeys(f"{row.scheme} on {row.problem}" for row in stopped))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; non-finite numbers become ``None``."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(entry) for key, entry in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(entry) for entry in value]
            return None if isinstance(value, float) and not np.isfinite(value) else value

        return {key: plain(rows) for key, rows in asdict(self).items()}


def integrator_study(
    schemes: Sequence[str] | None = None,
    *,
    seed: int = 0,
    quick: bool = False,
    progress: Callable[[str, int, int], None],
) -> IntegratorStudy:
    """Run the study; a scheme that needs too many gradients is stopped, which its rows show.

    Args:
        schemes: Names of integrators; all by default.
        seed: Seed of the random starts.
        quick: Whether to run a part of it, see :data:`QUICK_TEXT`.
        progress: Called with (what, done, total).

    Raises:
        ValueError: for an unknown integrator, listing the known ones.
    """
    names = list(INTEGRATORS) if not schemes else list(schemes)
    for name in names:
        require_choice("integrator", name, INTEGRATORS)
    all_problems = [problem for problem in problems().values() if not quick or problem.metric.variation == "constant"]
    total, runs = len(all_problems) * len(names), []
    for i, problem in enumerate(all_problems):
        w0 = problem.starts(seed)
        exact = simulate(
            problem.system(problem.landscape),
            w0,
            h=problem.span,
            steps=1,
            integrator=DOP853(rtol=1e-13, atol=1e-14),
            progress=False,
        ).w[-1]
        for j, name in enumerate(names):
            runs += list(_runs(problem, name, w0, exact, most=_QUICK if quick else None))
            progress("work and precision", i * len(names) + j + 1, total)
    one_step = [name for name in names if issubclass(INTEGRATORS[name], OneStepIntegrator)]
    steps: list[OptimizerSteps] = []
    for i, problem in enumerate(all_problems):
        rows = optimizer_steps(problem, one_step, problem.starts(seed))
        for j, row in enumerate(rows):
            steps.append(row)
            progress("steps of h = 1", i * len(one_step) + j + 1, len(all_problems) * len(one_step))
    limits = []
    curvatures = CURVATURES[:: -(-len(CURVATURES) // _QUICK)] if quick else CURVATURES
    for j, name in enumerate(one_step):
        limits += [stable_step(name, kappa, beta) for beta in _BETAS for kappa in curvatures]
        progress("largest stable steps", j + 1, len(one_step))
    return IntegratorStudy(tuple(runs), tuple(limits), tuple(steps))


def _runs(problem: Problem, name: str, w0: np.ndarray, exact: np.ndarray, *, most: int | None = None) -> Iterator[Run]:
    """Runs at increasingly fine settings, up to a given number or until a run reaches the work limit."""
    adaptive = INTEGRATORS[name].adaptive
    implicit = INTEGRATORS[name].implicit
    counts, digits = (_IMPLICIT_STEP_COUNTS, _IMPLICIT_DIGITS) if implicit else (_STEP_COUNTS, _DIGITS)
    settings = [(1, 10.0**-digit) for digit in digits] if adaptive else [(n, 0.0) for n in counts]
    for steps, tolerance in settings[:most]:
        scheme = integrator(name, rtol=tolerance, atol=0.1 * tolerance) if adaptive else integrator(name)
        counted = CountedLandscape(problem.landscape)
        h = problem.span / steps
        start = time.perf_counter()
        try:
            flow = simulate(
                problem.system(counted),
                w0,
                h=h,
                steps=steps,
                integrator=scheme,
                check_functions=False,  # only the scheme's calls are counted
                progress=False,
            )
        except ValueError as refusal:  # the scheme itself says where it does not apply
            yield Run(problem.name, name, h, 0, 0.0, float("nan"), float("nan"), f"not applicable: {refusal}")
            return
        seconds, gradients = time.perf_counter() - start, counted.gradients
        error, drift = float("nan"), float("nan")
        if flow.ok:
            error = float(np.abs(flow.w[-1] - exact).max() / np.abs(exact).max())
            if len(flow.times) >= 64:  # otherwise the quadrature's error would dominate
                drift = float(energy_identity_residual(problem.system(problem.landscape), flow).residual.max())
        stopped = flow.status == "step-limit"
        yield Run(
            problem.name,
            name,
            h,
            gradients,
            seconds,
            error,
            drift,
            stopped_text(counted.limit) if stopped else flow.status,
        )
        if stopped:
            return
