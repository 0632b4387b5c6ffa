"""Records of finished work: read with any text, and refused in one line if they are damaged."""

import copy
import json
from pathlib import Path

import pytest

from rishd.claims import validate
from rishd.claims.validation import SavedResultsError, Validation
from rishd.comparing.plan import make_plan
from rishd.comparing.record import append_run, collect, read_runs
from rishd.comparing.schedule import due_runs
from rishd.comparing.statistics import compare
from rishd.json_lines import JsonLinesError
from rishd.pretraining.results import ResultsError, append_metrics, read_metrics, write_metrics
from rishd.report.study_records import StudyFolderError, read_studies, write_study
from rishd.report.terminal import claims_table, text_table
from rishd.study import StudyResult

LINE_BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # where str.splitlines cuts
JUNK = [
    None,
    True,
    -1,
    1.5,
    float("nan"),
    "x",
    [],
    {},
    [[]],
    [None],
    {"is": "array"},
    {"is": "Nothing"},
    {"is": "Bound"},
]
DEEP = "[" * 100_000


def one_line(caught, *names):
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 400, message
    for name in names:
        assert name in message


def plan_of(name="muon"):
    return make_plan(
        {"run": {"training": {"steps": 100}}, "baseline": name, "variants": {name: {"lr": [1e-3, 1e-2]}}, "seeds": [0]}
    )


def line_of(run, **changes):
    summary = {"status": "complete", "final_validation_loss": 3.0, "steps": 100, "tokens": 1000, "cpu_seconds": 1.0}
    line = {"key": run.key, "label": run.label, "summary": summary | {"non_embedding_parameters": 10}}
    line |= {"validation": [[50, 500, 4.0], [100, 1000, 3.0]], "config": run.config.to_mapping(), "first_loss": 8.0}
    return json.loads(json.dumps(line | changes))


@pytest.mark.parametrize("character", LINE_BREAKS, ids=lambda c: f"U+{ord(c):04X}")
def test_any_name_can_be_recorded_and_read(tmp_path, character):
    plan = plan_of(f"mu{character}on")
    for run in due_runs(plan, {}):
        append_run(tmp_path, line_of(run))
    runs = read_runs(tmp_path)
    assert [run.data["label"] for run in runs.values()] == [run.label for run in due_runs(plan, {})]
    assert due_runs(plan, runs) == []
    (tmp_path / "metrics.jsonl").write_bytes(json.dumps({"step": 1, character: 2}, ensure_ascii=False).encode() + b"\n")
    append_metrics(tmp_path, {"step": 2, "loss": 3.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert read_metrics(tmp_path)[0][character] == 2
    rows = read_metrics(tmp_path)
    write_metrics(tmp_path, rows[:1])
    assert read_metrics(tmp_path) == rows[:1]


def test_no_reader_of_lines_cuts_at_other_characters():
    """Files whose lines hold a user's text are split at newlines only."""
    for path in (Path(__file__).parents[2] / "rishd").rglob("*.py"):
        for line in path.read_text().splitlines():
            assert ".splitlines(" not in line or "cpuinfo" in line or "str(problem)" in line, path


def places(data, path=()):
    """Places in plain data where a value can be replaced."""
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield (*path, key)
        yield from places(data[key], (*path, key))


def damaged(data):
    """Copies with one value replaced by junk of another type, or removed."""
    for path in places(data):
        for junk in (*JUNK, "gone"):
            copied = copy.deepcopy(data)
            inner = copied
            for key in path[:-1]:
                inner = inner[key]
            if junk == "gone":
                del inner[path[-1]]
            else:
                inner[path[-1]] = junk
            yield copied


def test_damaged_lines_are_refused_or_can_be_used(tmp_path):
    plan = plan_of()
    whole = [line_of(run) for run in due_runs(plan, {})]
    path, refused = tmp_path / "runs.jsonl", 0
    whole[0]["config"] = {key: whole[0]["config"][key] for key in ("model", "data", "training", "seed")}
    for changed in damaged(whole[0]):
        path.write_text("".join(json.dumps(line) + "\n" for line in (whole[1], changed)))
        try:
            runs = read_runs(tmp_path)
        except JsonLinesError as problem:
            refused += 1
            assert str(problem).startswith(f"{path}, line 2: ")
            assert str(problem).isprintable()
            assert len(str(problem).removeprefix(str(path))) < 300
        else:
            compare(plan, runs).table()
    assert refused > 100


@pytest.mark.parametrize("line", [b"[]", b"3", b"{}", b'{"key": 1', b"\xff", DEEP.encode(), b"", b"null"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_that_are_no_records(tmp_path, line, last):
    good = json.dumps(line_of(due_runs(plan_of(), {})[0])).encode()
    (tmp_path / "runs.jsonl").write_bytes(line + b"\n" + (b"" if last else good + b"\n"))
    with pytest.raises(JsonLinesError) as caught:
        read_runs(tmp_path)
    one_line(caught, "runs.jsonl, line 1", "remove the line")
    if line == b"{}":
        return
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n" + (b"" if last else b'{"step": 1}\n'))
    with pytest.raises(JsonLinesError) as caught:
        read_metrics(tmp_path)
    one_line(caught, "metrics.jsonl, line 1")


@pytest.mark.parametrize("kept", [0, 1, 30, -2, -1])
def test_a_kill_costs_the_line_that_it_cut(tmp_path, kept):
    first, second = (line_of(run) for run in due_runs(plan_of(), {}))
    append_run(tmp_path, first)
    path = tmp_path / "runs.jsonl"
    before = path.read_bytes()
    append_run(tmp_path, second)
    added = path.read_bytes()[len(before) :]
    path.write_bytes(before + added[:kept])
    whole = kept == -1  # the newline alone is missing, as after some editors
    assert len(read_runs(tmp_path)) == 1 + whole
    append_run(tmp_path, second)
    assert path.read_bytes() == before + added * (1 + whole)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": {}}', DEEP])
def test_a_run_whose_record_is_damaged_is_not_collected(tmp_path, content):
    from dataclasses import fields

    from rishd.pretraining.results import Summary, write_summary

    values = {field.name: 1 for field in fields(Summary)} | {"status": "complete", "optimizer": "muon"}
    write_summary(tmp_path, Summary(**values))
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ResultsError) as caught:
        collect("key", "label", tmp_path)
    one_line(caught, "run.json", "remove")


def test_recorded_evidence_is_readable():
    for folder in (Path(__file__).parents[2] / "docs" / "results").iterdir():
        if (folder / "runs.jsonl").exists():
            assert len(read_runs(folder)) == len((folder / "runs.jsonl").read_bytes().split(b"\n")) - 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Results of two claims as plain data, with few numbers."""
    path = tmp_path_factory.mktemp("saved") / "results.json"
    validation = Validation.begin(("C5", "C9b"), seed=0, instances=2)
    for result in validate(["C5", "C9b"], seed=0, instances=2):
        validation = validation.with_result(result)
    validation.save(path)
    return json.loads(path.read_text())


def thinned(data):
    """The same with shortened lists, so that every kind of place occurs, but only a few times."""
    if isinstance(data, dict):
        return {key: thinned(value) for key, value in data.items()}
    return [thinned(value) for value in data[:2]] if isinstance(data, list) else data


def test_damaged_results_of_claims_are_refused_or_can_be_shown(saved, tmp_path):
    path, refused = tmp_path / "results.json", 0
    for changed in damaged(thinned(saved)):
        path.write_text(json.dumps(changed))
        try:
            validation = Validation.load(path)
        except SavedResultsError as problem:
            refused += 1
            assert str(problem).isprintable()
            assert str(path) in str(problem)
            assert len(str(problem)) < 400
            assert "rishd validate" in str(problem)
        else:
            claims_table(validation.results)
            [result.as_dict() for result in validation.results]
    assert refused > 300


@pytest.mark.parametrize("content", ["", "[", DEEP, "3", "null", "\x00"])
def test_files_that_are_no_results_of_claims(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SavedResultsError) as caught:
        Validation.load(tmp_path / "x.json")
    one_line(caught, "x.json")


def test_damaged_results_of_studies_are_refused_or_can_be_shown(tmp_path, draw_figure):
    study = StudyResult({"x": 1}, [{"a": "1"}], {"one": draw_figure}, "Yes.", "So it is.")
    write_study(tmp_path, "mask", study, quick=True, seed=5)
    path, refused = tmp_path / "mask.json", 0
    whole = json.loads(path.read_text())
    for changed in damaged({key: value for key, value in whole.items() if key != "data"}):
        path.write_text(json.dumps(changed))
        try:
            (record,) = read_studies(tmp_path)
        except StudyFolderError as problem:
            refused += 1
            assert str(problem).isprintable()
            assert str(path) in str(problem)
            assert "rishd study mask" in str(problem)
            assert len(str(problem)) < 400
        else:
            if record.table:
                text_table(record.table)
            assert all(record.images)
    assert refused > 50
    path.write_text(DEEP)
    with pytest.raises(StudyFolderError) as caught:
        read_studies(tmp_path)
    one_line(caught, "mask.json", "rishd study mask")
    path.write_text(json.dumps(whole))
    (tmp_path / "one.png").unlink()
    with pytest.raises(StudyFolderError) as caught:
        read_studies(tmp_path)
    one_line(caught, "one.png", "rishd study mask")
