"""The integrator study on its two quick problems."""

import json

import numpy as np
import pytest

import rishd.studies.integrators as study_module
from rishd.report.integrator_figures import stable_step_figure, work_precision_figure
from rishd.studies.integrators import integrator_study, problems


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        quick = {name: p for name, p in problems().items() if name != "state-dependent metric"}
        patch.setattr(study_module, "problems", lambda: quick)
        names = ["semi-implicit-euler", "rk4", "exponential-euler", "dop853", "discrete-gradient"]
        return integrator_study(names, progress=lambda *_: None)


def _runs(study, problem, scheme):
    return [run for run in study.runs if run.problem == problem and run.scheme == scheme]


def test_measured_stable_steps_of_the_optimizers_scheme_are_the_closed_form(study):
    rows = [row for row in study.stable_steps if np.isfinite(row.closed_form)]
    assert len(rows) >= 6
    for row in rows:
        assert row.scheme == "semi-implicit-euler"
        assert row.measured == pytest.approx(row.closed_form, rel=1e-6)


def test_errors_fall_at_the_order_of_the_scheme(study):
    for scheme, order in (("semi-implicit-euler", 1), ("rk4", 4)):
        errors = [run.error for run in _runs(study, "curved valley", scheme)][-2:]
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_gradients_are_counted(study):
    for run in _runs(study, "curved valley", "rk4"):
        assert run.gradients == 4 * round(8.0 / run.h) + 1  # one more checks the start


def test_exponential_scheme_is_exact_on_the_quadratic(study):
    assert max(run.error for run in _runs(study, "quadratic 1e6", "exponential-euler")) < 1e-12


def test_study_is_json_and_draws(study):
    text = json.dumps(study.as_dict(), allow_nan=False)
    assert len(json.loads(text)["runs"]) == len(study.runs)
    assert len(work_precision_figure(study).axes) == 4
    assert len(stable_step_figure(study).axes) == 3


def test_unknown_schemes_are_refused():
    with pytest.raises(ValueError, match="integrator = 'rk5' is unknown"):
        integrator_study(["rk5"], progress=lambda *_: None)
