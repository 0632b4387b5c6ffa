import pytest
from matplotlib.figure import Figure

from rishd.claims import validate
from rishd.claims.validation import Validation
from tests.rishd.runs import write_text


@pytest.fixture(scope="session")
def instances():
    return 24  # enough to run every part; `rishd validate` uses 1200


@pytest.fixture(scope="session")
def results(instances):
    """Every claim once, by key: for the tests of the claims and of the report."""
    return {result.key: result for result in validate(instances=instances)}


@pytest.fixture(scope="session")
def draw_figure():
    def draw():
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1])
        return figure

    return draw


@pytest.fixture(scope="session")
def as_validation():
    """Results as one validation."""

    def collect(found):
        validation = Validation.begin(tuple(result.key for result in found), seed=0, instances=24)
        for result in found:
            validation = validation.with_result(result)
        return validation

    return collect


@pytest.fixture(scope="session")
def report_file(results, as_validation, draw_figure, tmp_path_factory):
    """A report of every claim with a study, a section and the correspondence."""
    from rishd.report.page import Report, Section, write_report
    from rishd.report.study_records import read_studies, write_study
    from rishd.report.tables import correspondence_rows
    from rishd.study import StudyResult

    folder = tmp_path_factory.mktemp("report")
    study = StudyResult(
        {"x": 1},
        [{"rule": "LITE", "height": "1e-3"}],
        {"damping": draw_figure},
        "Yes, in [flat] directions.",
        "It helps.",
    )
    write_study(folder / "studies" / "damping", "damping", study, quick=True, seed=3)
    content = Report(
        "RISHD report",
        as_validation(results.values()),
        sections=[Section("A section", ["A paragraph."], draw_figure(), "Its caption.")],
        studies=read_studies(folder / "studies"),
        correspondence=correspondence_rows(),
        facts={"a fact": 1},
    )
    write_report(folder / "report.html", content)
    return folder / "report.html"


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RISHD_CACHE", str(tmp_path_factory.mktemp("session_cache")))
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache for this module only."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("RISHD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def text(tmp_path_factory, cache):
    return write_text(tmp_path_factory.mktemp("text"))
