"""The integrator study on its two quick problems."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import rishd.studies.integrators as study_module
from discretizations.stability import stable_limit
from rishd.commands.application import app
from rishd.report.integrator_figures import optimizer_step_figure, stable_step_figure, work_precision_figure
from rishd.report.terminal import integrator_table, optimizer_step_table
from rishd.studies.integrator_problems import CountedLandscape
from rishd.studies.integrators import integrator_study, problems


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        quick = {name: p for name, p in problems().items() if name != "state-dependent metric"}
        patch.setattr(study_module, "problems", lambda: quick)
        patch.setattr(study_module, "CURVATURES", (0.3, 1.0, 10.0))
        names = ["semi-implicit-euler", "rk4", "exponential-euler", "dop853", "implicit-midpoint"]
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


def test_the_energy_identity_drifts_less_at_smaller_steps(study):
    for scheme in ("semi-implicit-euler", "rk4"):
        drifts = [run.drift for run in _runs(study, "curved valley", scheme) if np.isfinite(run.drift)]
        assert len(drifts) >= 2
        assert drifts[-1] < 0.6 * drifts[-2]


def test_gradients_are_counted(study):
    for run in _runs(study, "curved valley", "rk4"):
        assert run.gradients == 4 * round(8.0 / run.h)


def test_exponential_scheme_is_exact_on_the_quadratic(study):
    assert max(run.error for run in _runs(study, "quadratic 1e6", "exponential-euler")) < 1e-12


def _steps(study, problem, scheme):
    (row,) = [row for row in study.optimizer_steps if row.problem == problem and row.scheme == scheme]
    return row


def test_steps_of_the_optimizers_scheme_descend_up_to_the_closed_limit(study):
    """κ = ηλ with λ = 1 at most: every learning rate below C6's limit descends, every one above diverges."""
    row = _steps(study, "quadratic 1e6", "semi-implicit-euler")
    limit = stable_limit(0.5, 0.2)
    for eta, outcome in zip(row.learning_rates, row.outcomes, strict=True):
        assert outcome == ("descends" if eta < limit else "diverges")
    assert row.largest_descending == max(eta for eta in row.learning_rates if eta < limit)
    assert not row.descends_everywhere
    assert row.gradients == 1.0
    assert _steps(study, "quadratic 1e6", "rk4").gradients == 4.0


def test_exact_schemes_stay_on_the_flow_at_any_learning_rate(study):
    row = _steps(study, "quadratic 1e6", "exponential-euler")
    assert row.descends_everywhere
    assert max(row.distances) < 1e-6
    flow = _steps(study, "quadratic 1e6", "the flow")
    np.testing.assert_allclose(row.losses, flow.losses, rtol=1e-5)
    assert max(flow.distances) == 0.0


def test_a_failed_solver_is_told_from_divergence(study):
    outcomes = _steps(study, "curved valley", "implicit-midpoint").outcomes
    assert set(outcomes) <= {"descends", "solver failed"}
    assert outcomes[0] == "descends"
    assert "diverges" in _steps(study, "curved valley", "rk4").outcomes


def test_study_is_json_and_draws(study):
    text = json.dumps(study.as_dict(), allow_nan=False)
    assert len(json.loads(text)["runs"]) == len(study.runs)
    assert len(work_precision_figure(study).axes) == 4
    assert len(stable_step_figure(study).axes) == 3
    assert len(optimizer_step_figure(study).axes) == 5  # four panels and the colours' scale
    assert integrator_table(study).row_count == 10
    assert optimizer_step_table(study).row_count == 2 * 5  # four one-step schemes and the flow


@pytest.mark.parametrize("name", ["rk4", "implicit-midpoint", "dop853", "radau", "lsoda", "ensemble-rk45"])
def test_schemes_that_need_too_much_work_are_stopped_and_named(name, monkeypatch):
    """Every kind of scheme ends at the limit, in work against precision and in steps of h = 1."""
    few = {"quadratic 1e6": problems()["quadratic 1e6"]}
    monkeypatch.setattr(study_module, "problems", lambda: few)
    monkeypatch.setattr(study_module, "CURVATURES", (1.0,))
    monkeypatch.setattr(CountedLandscape.__init__, "__kwdefaults__", {"limit": 20})
    study = integrator_study([name], progress=lambda *_: None)
    assert study.runs[-1].status == "work limit: stopped after 20 gradient evaluations"
    assert study.runs[-1].gradients == 20
    assert study.stopped == [f"{name} on quadratic 1e6"]
    assert [row.status[:10] for row in study.optimizer_steps if row.scheme == name] in ([], ["work limit"])
    assert integrator_table(study).row_count == 1
    assert work_precision_figure(study).axes
    assert optimizer_step_figure(study).axes
    assert optimizer_step_table(study).row_count == len(study.optimizer_steps)


def test_a_quick_study_leaves_out_what_it_says():
    study = integrator_study(["semi-implicit-euler", "dop853"], quick=True, progress=lambda *_: None)
    assert {run.problem for run in study.runs} == {"quadratic 1e6", "curved valley"}
    assert len(study.runs) == 2 * 2 * 3
    assert len({row.kappa for row in study.stable_steps}) == 3
    assert not study.stopped
    assert "state-dependent metric" in study_module.QUICK_TEXT
    assert "3 coarsest settings" in study_module.QUICK_TEXT


def test_unknown_schemes_are_refused():
    with pytest.raises(ValueError, match="integrator = 'rk5' is unknown"):
        integrator_study(["rk5"], progress=lambda *_: None)


@pytest.mark.parametrize("output", ["table", "json"])
def test_the_command_prints_tables_or_json_and_writes_its_figures(output, monkeypatch, tmp_path):
    quick = {"quadratic 1e6": problems()["quadratic 1e6"]}
    monkeypatch.setattr(study_module, "problems", lambda: quick)
    monkeypatch.setattr(study_module, "CURVATURES", (1.0,))
    names = ["semi-implicit-euler", "rk4"]
    run = CliRunner(env={"COLUMNS": "160"}).invoke(
        app, ["integrators", *names, "--out", str(tmp_path), "--format", output]
    )
    assert run.exit_code == 0, run.output
    figures = ["optimizer_steps.png", "stable_steps.png", "work_precision.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == figures
    if output == "table":
        assert "quadratic 1e6" in run.stdout
        assert "semi-implicit-euler" in run.stdout
        return
    data = json.loads(run.stdout)
    assert {row["scheme"] for row in data["runs"]} == set(names)
    assert {"h", "gradients", "seconds", "error", "drift"} <= set(data["runs"][0])
    assert {row["beta"] for row in data["stable_steps"]} == {0.0, 0.5, 2.0}
    assert data["optimizer_steps"]
