"""The integrator study: work against precision, energy drift, and largest stable steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from discretizations.stability import stable_limit
from riemannian_ode import (
    INTEGRATORS,
    RISHD,
    ConstantMetric,
    Euclidean,
    Metric,
    StateDependentMetric,
    energy_identity_residual,
    integrator,
    simulate,
)
from riemannian_ode.errors import require_choice
from riemannian_ode.flow import Array
from riemannian_ode.integrators import DOP853, OneStepIntegrator, PhaseState
from toy_landscapes import Landscape, Quadratic, RiverValley

_MEMBERS = 4  # random starts of each problem
_STEP_COUNTS = (8, 16, 32, 64, 128, 256)
_IMPLICIT_STEP_COUNTS = (8, 16, 32, 64)  # each step costs a Newton solve
_ALPHA, _ETA, _BETA = 0.5, 0.3, 0.2


class CountedLandscape(Landscape):
    """A landscape that counts its gradient evaluations (one for a whole ensemble).

    Args:
        inner: The landscape.
    """

    def __init__(self, inner: Landscape) -> None:
        self.inner, self.gradients = inner, 0
        self.dimension, self.sharp_rank = inner.dimension, inner.sharp_rank

    def value(self, w: Array) -> Array:
        return self.inner.value(w)

    def gradient(self, w: Array) -> Array:
        self.gradients += 1
        return self.inner.gradient(w)

    def hessian(self, w: Array) -> Array:
        return self.inner.hessian(w)

    def hvp(self, w: Array, v: Array) -> Array:
        return self.inner.hvp(w, v)


@dataclass(frozen=True)
class Problem:
    """One flow of the study.

    Args:
        name: For tables.
        landscape: f.
        metric: F.
        beta: β; 0 for the state-dependent metric, so that every structured scheme applies.
        span: Units of time.
    """

    name: str
    landscape: Landscape
    metric: Metric
    beta: float
    span: float

    def system(self, landscape: Landscape) -> RISHD:
        """The flow, on a landscape that may count."""
        return RISHD.from_optimizer(landscape, self.metric, alpha=_ALPHA, eta=_ETA, beta=self.beta)


def problems() -> dict[str, Problem]:
    """Quadratic of condition number 10⁶, curved river valley, state-dependent metric."""
    import torch

    def curved(w: Any) -> Any:
        wave = torch.sin(w)
        return torch.diag(1.5 + 0.4 * torch.cos(w)) + 0.7 * torch.outer(wave, wave)

    valley = RiverValley([8.0], floor_curvatures=[0.05], floor_width=2.0, amplitudes=0.8, frequency=0.7)
    stiff = Quadratic.random(np.geomspace(1.0, 1e-6, 10), seed=0)
    rows = (
        Problem("quadratic 1e6", stiff, Euclidean(), _BETA, 20.0),
        Problem("curved valley", valley, ConstantMetric(np.diag([1.0, 2.0])), _BETA, 8.0),
        Problem("state-dependent metric", valley, StateDependentMetric(curved), 0.0, 6.0),
    )
    return {problem.name: problem for problem in rows}


@dataclass(frozen=True)
class Run:
    """One simulation of the study.

    Args:
        problem: Name.
        scheme: Name of the integrator.
        h: Step, or output spacing of an adaptive scheme.
        gradients: Gradient evaluations of the ensemble.
        seconds: Wall-clock time.
        error: Largest error of position at the end, over the largest position, against DOP853 at 1e−13.
        drift: Largest residual of the energy identity along the run; NaN where it is not measured.
        status: Of the trajectory, or why the scheme does not apply.
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
class StableStep:
    """Largest stable step of a scheme on one mode.

    Args:
        scheme: Name.
        kappa: Preconditioned curvature ηλa at h = 1.
        beta: β, theory's units.
        measured: Largest h with spectral radius ≤ 1, by bisection; infinite if none below the search's end.
        closed_form: Of claim C6 rescaled to h, for the optimizers' scheme; NaN for others, and beyond hα = 1.
    """

    scheme: str
    kappa: float
    beta: float
    measured: float
    closed_form: float


@dataclass(frozen=True)
class IntegratorStudy:
    """All of it.

    Args:
        runs: Work and precision, a row per problem, scheme and step.
        stable_steps: A row per scheme, curvature and damping.
    """

    runs: tuple[Run, ...]
    stable_steps: tuple[StableStep, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not finite becomes ``None``."""

        def plain(row: Any) -> dict[str, Any]:
            return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(row).items()}

        return {"runs": [plain(run) for run in self.runs], "stable_steps": [plain(row) for row in self.stable_steps]}


def integrator_study(
    schemes: Sequence[str] | None = None, *, seed: int = 0, progress: Callable[[str, int, int], None]
) -> IntegratorStudy:
    """Run the study.

    Args:
        schemes: Names of integrators; all by default.
        seed: Of the random starts.
        progress: Called with (what, done, total).

    Raises:
        ValueError: for an unknown integrator, listing those that exist.
    """
    names = list(INTEGRATORS) if not schemes else list(schemes)
    for name in names:
        require_choice("integrator", name, INTEGRATORS)
    all_problems = list(problems().values())
    total, runs = len(all_problems) * len(names), []
    for i, problem in enumerate(all_problems):
        w0 = np.random.default_rng(seed).normal(0.0, 1.5, (_MEMBERS, problem.landscape.dimension))
        exact = simulate(
            problem.system(problem.landscape),
            w0,
            h=problem.span,
            steps=1,
            integrator=DOP853(rtol=1e-13, atol=1e-14),
            progress=False,
        ).w[-1]
        for j, name in enumerate(names):
            runs += list(_runs(problem, name, w0, exact))
            progress("work and precision", i * len(names) + j + 1, total)
    one_step = [name for name in names if issubclass(INTEGRATORS[name], OneStepIntegrator)]
    rows = []
    for j, name in enumerate(one_step):
        rows += [_stable_step(name, kappa, beta) for beta in (0.0, 0.5, 2.0) for kappa in (0.01, 0.1, 1.0, 10.0)]
        progress("largest stable steps", j + 1, len(one_step))
    return IntegratorStudy(tuple(runs), tuple(rows))


def _runs(problem: Problem, name: str, w0: np.ndarray, exact: np.ndarray) -> Iterator[Run]:
    adaptive = INTEGRATORS[name].adaptive
    counts = _IMPLICIT_STEP_COUNTS if INTEGRATORS[name].implicit else _STEP_COUNTS
    settings = [(1, 10.0**-digits) for digits in range(3, 12, 2)] if adaptive else [(n, 0.0) for n in counts]
    for steps, tolerance in settings:
        build: Any = INTEGRATORS[name]
        scheme = build(rtol=tolerance, atol=0.1 * tolerance) if adaptive else build()
        counted = CountedLandscape(problem.landscape)
        h = problem.span / steps
        start = time.perf_counter()
        try:
            flow = simulate(problem.system(counted), w0, h=h, steps=steps, integrator=scheme, progress=False)
        except ValueError as refusal:  # the scheme says itself what it is not for
            yield Run(problem.name, name, h, 0, 0.0, float("nan"), float("nan"), f"not applicable: {refusal}")
            return
        seconds, gradients = time.perf_counter() - start, counted.gradients
        error, drift = float("nan"), float("nan")
        if flow.ok:
            error = float(np.abs(flow.w[-1] - exact).max() / np.abs(exact).max())
            if len(flow.times) >= 64:  # below that the quadrature's error would be measured, not the scheme's
                drift = float(energy_identity_residual(problem.system(problem.landscape), flow).residual.max())
        yield Run(problem.name, name, h, gradients, seconds, error, drift, flow.status)


def _stable_step(name: str, kappa: float, beta: float) -> StableStep:
    landscape = Quadratic([kappa])
    system = RISHD.from_optimizer(landscape, alpha=_ALPHA, eta=1.0, beta=beta)
    scheme: Any = integrator(name)
    basis = PhaseState(np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]]))

    def is_stable(h: float) -> bool:
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                new = scheme.step(system, 0.0, basis, h)
        except (ValueError, RuntimeError):
            return False
        matrix = np.concatenate([new.w, new.m], axis=1).T
        return bool(np.isfinite(matrix).all() and np.abs(np.linalg.eigvals(matrix)).max() <= 1.0 + 1e-10)

    ladder = np.geomspace(1e-2, 1e3, 101)
    stable = [is_stable(float(h)) for h in ladder]
    closed_form = _closed_form(kappa, beta) if name == "semi-implicit-euler" else float("nan")
    if all(stable):
        return StableStep(name, kappa, beta, float("inf"), closed_form)
    first_bad = stable.index(False)
    if first_bad == 0:
        return StableStep(name, kappa, beta, 0.0, closed_form)
    low, high = float(ladder[first_bad - 1]), float(ladder[first_bad])
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_stable(middle) else (low, middle)
    return StableStep(name, kappa, beta, low, closed_form)


def _closed_form(kappa: float, beta: float) -> float:
    """Claim C6 at step h; NaN where the limit lies beyond its hypothesis hα ≤ 1.

    m = h·m' turns step h into step 1 with α' = hα, β' = β/h, κ' = h²κ: the h where κ' reaches its limit.
    """
    low, high = 1e-6, 1.0 / _ALPHA

    def is_inside(h: float) -> bool:
        return bool(h**2 * kappa < stable_limit(h * _ALPHA, beta / h))

    if is_inside(high):
        return float("nan")
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_inside(middle) else (low, middle)
    return low
