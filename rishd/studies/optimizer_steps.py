"""Schemes as optimizers: steps of h = 1 over a range of learning rates, compared with the flow at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from riemannian_ode import simulate
from riemannian_ode.integrators import StepLimitError
from riemannian_ode.integrators.adaptive import DOP853
from rishd.studies.integrator_problems import CountedLandscape, Problem

LEARNING_RATES = tuple(float(eta) for eta in np.geomspace(0.03, 9.5, 11))
STEPS = 20
FLOW = "the flow"  # the row of the flow that the schemes approximate


Outcome: TypeAlias = Literal["descends", "diverges", "solver failed"]


@dataclass(frozen=True)
class OptimizerSteps:
    """A scheme after 20 steps of h = 1, with one entry per learning rate.

    Args:
        problem: Name of the problem.
        scheme: Name of the integrator, or :data:`FLOW`: DOP853 at a relative tolerance of 1e−7.
        gradients: Gradient evaluations (of the ensemble) per step, mean over all runs; NaN for the flow.
        learning_rates: Values of η.
        outcomes: Whether the mean loss ends below its initial value.
        losses: Mean final f over the starts; infinite if a member is lost or the scheme's solver failed.
        distances: Largest final ‖w − w_flow‖/‖w_0‖ over the starts.
        status: ``"finished"``, or why the scheme does not apply or was stopped (the other entries are then empty).
    """

    problem: str
    scheme: str
    gradients: float
    learning_rates: tuple[float, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    losses: tuple[float, ...] = ()
    distances: tuple[float, ...] = ()
    status: str = "finished"

    @property
    def largest_descending(self) -> float:
        """Largest η up to which all learning rates descend; 0 if the smallest does not."""
        first_bad = next((i for i, outcome in enumerate(self.outcomes) if outcome != "descends"), len(self.outcomes))
        return self.learning_rates[first_bad - 1] if first_bad else 0.0

    @property
    def descends_everywhere(self) -> bool:
        """Whether every learning rate descends."""
        return all(outcome == "descends" for outcome in self.outcomes)


def optimizer_steps(problem: Problem, schemes: Sequence[str], w0: np.ndarray) -> Iterator[OptimizerSteps]:
    """Run the flow, then each scheme.

    Args:
        problem: The flow; its learning rate is replaced.
        schemes: Names of one-step integrators.
        w0: Starts, shape ``(members, p)``.
    """
    rates = np.array(LEARNING_RATES)
    eta, starts = np.repeat(rates[:, None], len(w0), axis=1), np.tile(w0, (len(rates), 1, 1))
    flow = simulate(
        problem.system(problem.landscape, eta),
        starts,
        h=STEPS,
        steps=1,
        integrator=DOP853(rtol=1e-7, atol=1e-9),
        progress=False,
    ).checked()
    yield _row(problem, FLOW, starts, _Ends(flow.w[-1], np.zeros(len(rates), bool), float("nan")), flow.w[-1])
    for name in schemes:
        try:
            ends = _run(problem, name, starts, eta)
        except ValueError as refusal:  # the scheme itself says where it does not apply
            yield OptimizerSteps(problem.name, name, 0.0, status=f"not applicable: {refusal}")
            continue
        except StepLimitError as stopped:
            yield OptimizerSteps(problem.name, name, 0.0, status=str(stopped))
            continue
        yield _row(problem, name, starts, ends, flow.w[-1])


class _Ends(NamedTuple):
    """Final positions (NaN for lost members), rates for which the solver failed, and gradient evaluations per step."""

    w: np.ndarray
    failed: np.ndarray
    gradients: float


def _run(problem: Problem, name: str, starts: np.ndarray, eta: np.ndarray) -> _Ends:
    """Run all learning rates at once."""
    counted = CountedLandscape(problem.landscape)
    system = problem.system(counted, eta)
    run = simulate(
        system,
        starts,
        h=1.0,
        steps=STEPS,
        save_every=STEPS,
        integrator=name,
        check_functions=False,  # only the scheme's calls are counted
        progress=False,
    )
    if run.status == "step-limit":
        raise StepLimitError(run.message)
    w = np.where(np.isnan(run.failed_at)[..., None], run.w[-1], np.nan)
    return _Ends(w, (run.causes == "integrator-failed").any(-1), counted.gradients / STEPS)


def _row(problem: Problem, name: str, starts: np.ndarray, ends: _Ends, flow: np.ndarray) -> OptimizerSteps:
    start_loss = float(problem.landscape.value(starts[0]).mean())
    with np.errstate(over="ignore", invalid="ignore"):
        losses = np.nan_to_num(problem.landscape.value(ends.w).mean(-1), nan=np.inf)
        distances = (np.linalg.norm(ends.w - flow, axis=-1) / np.linalg.norm(starts, axis=-1)).max(-1)
    outcomes: list[Outcome] = [
        "solver failed" if failed else "descends" if loss < start_loss else "diverges"
        for loss, failed in zip(losses.tolist(), ends.failed.tolist(), strict=True)
    ]
    return OptimizerSteps(
        problem=problem.name,
        scheme=name,
        gradients=ends.gradients,
        learning_rates=LEARNING_RATES,
        outcomes=tuple(outcomes),
        losses=tuple(losses.tolist()),
        distances=tuple(np.nan_to_num(distances, nan=np.inf).tolist()),
    )
