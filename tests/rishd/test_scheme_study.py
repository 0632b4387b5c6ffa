"""The schemes study, and the registry of studies."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import rishd.study
from discretizations.curvature_schemes import CURVATURE_SCHEMES
from discretizations.schemes import ONE_GRADIENT_SCHEMES
from rishd.commands.application import app
from rishd.report.tables import correspondence_table
from rishd.studies.scheme_figures import scheme_figure
from rishd.studies.schemes import OPTIMIZER, scheme_study
from rishd.study import StudyResult, run_study


@pytest.fixture(scope="module")
def study():
    return scheme_study(quick=True)


def _valley(study, scheme):
    return {row.beta: row for row in study.valley if row.scheme == scheme}


def test_measured_limits_are_the_closed_forms(study):
    assert len(study.rows) >= 30
    for row in study.rows:
        assert row.measured == pytest.approx(row.closed_form, rel=1e-6)


def test_closed_form_predicts_the_learning_rate_at_which_a_nonquadratic_valley_diverges(study):
    for name in ONE_GRADIENT_SCHEMES:
        for row in _valley(study, name).values():
            assert row.measured == pytest.approx(row.predicted, rel=0.08)


def test_schemes_differ_on_the_valley_as_their_closed_forms_do(study):
    for beta in (0.0, study.nesterov):
        own = _valley(study, OPTIMIZER)[beta]
        assert _valley(study, "position-first-euler")[beta].measured == own.measured
        for name in ("implicit-damping", "exponential-damping", "leapfrog", "explicit-euler"):
            row = _valley(study, name)[beta]
            assert row.measured / own.measured == pytest.approx(row.predicted / own.predicted, rel=0.06)


def test_unlimited_schemes_are_limited_by_a_curvature_that_is_only_diagonal(study):
    for name in set(CURVATURE_SCHEMES) - {"implicit-euler"}:
        assert np.isinf(study.limit(name, study.nesterov))
        assert _valley(study, name)[study.nesterov].measured < 10 * _valley(study, OPTIMIZER)[study.nesterov].predicted


def test_the_conclusion_is_what_the_data_say(study):
    limits = {name: study.limit(name, 0.0) for name in ONE_GRADIENT_SCHEMES}
    assert max(limits, key=limits.get) == "implicit-damping"
    assert min(limits, key=limits.get) == "explicit-euler"
    late = {name: study.limit(name, study.nesterov) for name in ONE_GRADIENT_SCHEMES}
    assert max(late, key=late.get) == "explicit-euler"
    contraction = {name: study.rates[name][0].max() for name in ONE_GRADIENT_SCHEMES}
    assert max(contraction, key=contraction.get) == "semi-implicit-euler"
    assert contraction["semi-implicit-euler"] == pytest.approx(-np.log(1 - study.alpha) / 2)
    assert contraction["implicit-damping"] == pytest.approx(np.log(1 + study.alpha) / 2)
    assert study.slow_rate_spread == pytest.approx(study.alpha / 2 / np.tanh(study.alpha / 2) - 1, rel=1e-6)
    for number in ("4.2 against 3.8", "0.1 of explicit", "is 2.8 times", "0.0527", "0.0477", "11%", "to 0.08%"):
        assert number in study.conclusion


def test_study_is_json_and_draws(study):
    data = json.loads(json.dumps(study.as_dict(), allow_nan=False))
    assert len(data["valley"]) == len(study.table()) == 20
    assert len(scheme_figure(study).axes) == 4


def test_unknown_studies_are_refused():
    with pytest.raises(ValueError, match=r"study = 'scheme' is unknown. Choose one of: .*Did you mean 'schemes'"):
        run_study("scheme")


@pytest.fixture
def tiny(monkeypatch):
    def tiny_study(quick, seed):
        """A study for tests.

        Not this line.
        """
        from matplotlib.figure import Figure

        return StudyResult({"quick": quick, "seed": seed}, [{"a": "[1]"}], {"plot": Figure}, "[b]Yes.", "One is one.")

    monkeypatch.setattr(rishd.study, "STUDIES", {"tiny": tiny_study})


def test_command_writes_figures_and_data(tiny, tmp_path):
    folder = tmp_path / "out"
    result = CliRunner().invoke(app, ["study", "tiny", "--quick", "--seed", "3", "--out", str(folder)])
    assert result.exit_code == 0
    assert "[1]" in result.stdout
    assert "[b]Yes." in result.stdout
    assert "One is one." in result.stdout
    record = json.loads((folder / "tiny.json").read_text())
    assert {"torch", "numpy"} <= record.pop("made_with").keys()
    assert record.pop("when").endswith("UTC")
    assert record == {
        "study": "tiny",
        "title": "A study for tests.",
        "quick": True,
        "seed": 3,
        "answer": "[b]Yes.",
        "conclusion": "One is one.",
        "table": [{"a": "[1]"}],
        "figures": ["plot.png"],
        "data": {"quick": True, "seed": 3},
    }
    assert (folder / "plot.png").stat().st_size > 0


def test_command_prints_json_and_lists_studies(tiny, tmp_path):
    result = CliRunner().invoke(app, ["study", "tiny", "--format", "json", "--out", str(tmp_path)])
    assert json.loads(result.stdout)["data"] == {"quick": False, "seed": 0}
    listing = CliRunner().invoke(app, ["study"])
    assert "tiny" in listing.stdout
    assert "A study for tests." in listing.stdout
    assert "Not this line" not in listing.stdout


def test_the_guides_table_is_the_registrys():
    page = Path(__file__).parents[2] / "docs" / "guides" / "correspondence.md"
    assert correspondence_table() in page.read_text(encoding="utf-8"), "run python docs/tables.py"


def test_correspondence_command():
    rows = json.loads(CliRunner().invoke(app, ["correspondence", "--format", "json"]).stdout)
    muon = next(row for row in rows if row["optimizer"] == "Muon")
    assert (muon["α"], muon["β"], muon["c"], muon["R"]) == ("1 − μ", "1/μ", "μ·(1 − μ)", "dropped")
    assert "every row: semi-implicit-euler" in CliRunner().invoke(app, ["correspondence"]).stdout
