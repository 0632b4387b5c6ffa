"""The command line as users meet it."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rishd.claims import QUICK_INSTANCES
from rishd.commands.application import app
from tests.launches import finished


def rishd(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "rishd", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
        check=False,
    )


def test_validate_prints_a_table_and_writes_figures(tmp_path):
    result = rishd(
        "validate", "--claim", "C6", "--claim", "C5", "--instances", "20", "--jobs", "1", "--figures", str(tmp_path)
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.index("modes of a quadratic") < result.stdout.index("discrete stability")
    assert result.stdout.count("proved") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["C5.png", "C6.png"]


def test_validate_writes_json_for_machines():
    run = CliRunner().invoke(app, ["validate", "--claim", "C9b", "--quick", "--format", "json"])
    assert run.exit_code == 0, run.output
    (row,) = json.loads(run.stdout)
    assert (row["claim"], row["verdict"], row["expected"]) == ("C9b", "proved", "proved")
    assert row["instances"] == QUICK_INSTANCES
    attacked = [part for part in row["evidence"] if "adversary" in part]
    assert {"tightness", "evaluations", "parameters"} == set(attacked[0]["adversary"])


def _broken(rng, instances):
    raise ZeroDivisionError("nothing to [divide]")


def test_errors_and_unexpected_verdicts_are_shown_and_the_others_go_on(monkeypatch):
    from rishd.claims import CLAIMS, Claim, Measurement

    monkeypatch.setitem(CLAIMS, "C1", Claim("C1", "broken", _broken))
    only_measured = Claim("C2", "measured", lambda rng, n: [Measurement("x", rng.random(n))], expected="refuted")
    monkeypatch.setitem(CLAIMS, "C2", only_measured)
    chosen = [word for key in ("C1", "C2", "C6") for word in ("--claim", key)]
    run = CliRunner().invoke(app, ["validate", *chosen, "--instances", "5", "--seed", "7", "--jobs", "1"])
    assert run.exit_code == 1
    text = " ".join(run.output.split())
    assert "C1 is error, expected proved: ZeroDivisionError: nothing to [divide] (seed 7)" in text
    assert "C2 is measured, expected refuted" in text
    assert text.count("proved") == 2  # C6 in the table, and the verdict expected of C1


def test_interrupt_keeps_the_claims_that_are_done(monkeypatch):
    from rishd.claims import CLAIMS, Claim

    def interrupted(rng, instances):
        raise KeyboardInterrupt

    monkeypatch.setitem(CLAIMS, "C8b", Claim("C8b", "interrupted", interrupted))
    chosen = [word for key in ("C6", "C8b", "C10") for word in ("--claim", key)]
    run = CliRunner().invoke(app, ["validate", *chosen, "--instances", "5", "--jobs", "1"])
    assert run.exit_code == 130
    assert "C6" in run.output
    assert "C10" not in run.output
    assert "interrupted after 1 of 3 claims" in run.output


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["C8"], ("C8", "C8b")),
        (["C8b"], ("C8b",)),
        (["C16a", "C1"], ("C1", "C16a")),
        (["C11"], ("C11a", "C11b", "C11c", "C11d")),
        (["C99", "C6"], ("C6", "C99")),
        (["C.", "("], ("C.", "(")),
    ],
)
def test_a_number_is_a_claim_with_all_of_its_parts(names, keys):
    from rishd.claims import CLAIMS, claim_keys

    assert claim_keys(names, CLAIMS) == keys


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "--claim", "C99"], "error: claim = 'C99' is unknown. Choose one of: C1, C10"),
        (["validate", "--figures", "{tmp}/file"], "error: --figures: {tmp}/file takes no files"),
        (["study", "schemes", "--out", "{tmp}/file"], "error: --out: {tmp}/file takes no files"),
        (["report", "--from", "{tmp}/none.json"], "error: {tmp}/none.json: No such file or directory"),
        (["pretrain", "--out", "{tmp}/x", "--data", "{tmp}/missing"], "missing does not exist; give text or jsonl"),
        (["pretrain", "--out", "{tmp}/x", "--optimizer", "sgd"], "optimizer.name = 'sgd' is unknown"),
        (["pretrain", "--out", "{tmp}", "--data", "{tmp}"], "holds no text"),
    ],
)
def test_bad_input_is_one_plain_line(arguments, message, tmp_path):
    if "{tmp}/file" in arguments:
        (tmp_path / "file").touch()
    result = rishd(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.returncode == 2
    assert message.format(tmp=tmp_path) in result.stderr
    assert result.stderr.count("\n") <= 2  # one line, perhaps after earlier output
    assert "Traceback" not in result.stderr


def test_missing_extra_says_how_to_install_it(monkeypatch):
    import rishd.pretraining

    monkeypatch.setattr(rishd.pretraining, "_NEEDED", ("accelerate", "no_such_library"))
    with pytest.raises(rishd.MissingExtraError, match=r"needs no_such_library: pip install 'rishd\[train\]'"):
        rishd.pretraining.require_extra()


def test_demo_writes_a_self_contained_report(tmp_path, monkeypatch, as_validation):
    from rishd.claims import validate
    from rishd.demo import first_picture, prepare, run_demo
    from rishd.pretraining.run_folder import RunFolderError
    from rishd.report import figures

    def demo(folder):
        prepare(folder, steps=2)
        picture, path = first_picture(folder)
        assert path.read_bytes().startswith(b"\x89PNG")
        return run_demo(folder, claims, picture, steps=2, progress=lambda *_: None, say=lambda _: None)

    monkeypatch.setenv("RISHD_CACHE", str(tmp_path / "cache"))
    drawn = []
    for name in ("valley_figure", "energy_figure", "stability_figure", "loss_figure"):
        right = getattr(figures, name)
        monkeypatch.setattr(
            f"rishd.{'report.sections' if name == 'valley_figure' else 'demo'}.{name}",
            lambda data, right=right, name=name: drawn.append(name) or right(data),
        )
    claims = as_validation(list(validate(["C5", "C6"], instances=20)))
    report, interrupted = demo(tmp_path / "demo")
    assert not interrupted
    page = report.read_text()
    assert len(drawn) == 4
    assert page.count("data:image/png;base64,") == 4
    assert page.count("<figure><figcaption>") == len(claims.results)  # each claim has its own figure
    assert "http" not in page.replace("http-equiv", "")
    for expected in ("modes of a quadratic", "proved", "Final validation loss", "muon-lite"):
        assert expected in page
    demo(tmp_path / "demo")  # an earlier demo is replaced
    runs = tmp_path / "runs"  # a folder with the user's runs, named like the demo's
    (runs / "muon").mkdir(parents=True)
    (runs / "muon" / "precious.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="holds no demo"):
        demo(runs)
    assert (runs / "muon" / "precious.txt").exists()


def test_version_and_exit_codes_are_told():
    from importlib.metadata import version

    run = CliRunner().invoke(app, ["--version"])
    assert (run.exit_code, run.stdout) == (0, f"rishd {version('rishd')}\n")
    run = CliRunner().invoke(app, ["--help"])
    assert "130 interrupted" in run.stdout
    for arguments in (["nonsense"], ["validate", "--cliam", "C8"], ["validate", "--format", "xml"], []):
        assert CliRunner().invoke(app, arguments).exit_code == 2


def test_tables_in_a_pipe_are_written_whole():
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "rishd.cli", "correspondence"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "RMSprop with momentum" in result.stdout  # in one line


@pytest.mark.parametrize("name", ["typer", "torch", "transformers"])
def test_ctrl_c_while_libraries_load_is_no_traceback(tmp_path, name):
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test run in the background ignores it
        "def interrupt(event, arguments):\n"
        f"    if event == 'import' and arguments[0] == {name!r}:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(interrupt)\n"
        f"sys.argv = ['rishd', 'pretrain', '--out', {str(tmp_path / 'run')!r}]\n"
        "from rishd.cli import main\n"
        "main()\n"
    )
    finished([sys.executable, "-c", code], code=130, stderr="" if name == "transformers" else "interrupted\n")
