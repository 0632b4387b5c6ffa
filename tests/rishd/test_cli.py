"""The command line as users meet it."""

import os
import subprocess
import sys

import pytest


def rishd(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "rishd.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
        check=False,
    )


def test_validate_prints_a_table():
    result = rishd("validate", "C5", "C6", "--instances", "20")
    assert result.returncode == 0
    assert "modes of a quadratic" in result.stdout
    assert result.stdout.count("proved") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "C4"], "error: claim = 'C4' is unknown. Choose one of: C1, C12"),
        (["pretrain", "--out", "{tmp}/x", "--data", "{tmp}/missing"], "missing does not exist; give text or jsonl"),
        (["pretrain", "--out", "{tmp}/x", "--optimizer", "sgd"], "error: optimizer = 'sgd' is unknown"),
        (["pretrain", "--out", "{tmp}", "--data", "{tmp}"], "holds no text"),
    ],
)
def test_bad_input_is_one_plain_line(arguments, message, tmp_path):
    result = rishd(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_extra_says_how_to_install_it(monkeypatch):
    import rishd.pretraining

    monkeypatch.setattr(rishd.pretraining, "_NEEDED", ("accelerate", "no_such_library"))
    with pytest.raises(
        rishd.pretraining.MissingExtraError, match=r"needs no_such_library: pip install 'rishd\[train\]'"
    ):
        rishd.pretraining.require_extra()


def test_demo_writes_a_self_contained_report(tmp_path, monkeypatch):
    from rishd.claims import validate
    from rishd.demo import run_demo
    from rishd.pretraining.config import RunFolderError
    from rishd.report import figures

    monkeypatch.setenv("RISHD_CACHE", str(tmp_path / "cache"))
    drawn = []
    for name in ("valley_figure", "energy_figure", "stability_figure", "loss_figure"):
        right = getattr(figures, name)
        monkeypatch.setattr(
            f"rishd.demo.{name}", lambda data, right=right, name=name: drawn.append(name) or right(data)
        )
    claims = list(validate(["C5", "C6"], instances=20))
    report, interrupted = run_demo(tmp_path / "demo", claims, steps=2, progress=lambda *_: None, say=lambda _: None)
    assert not interrupted
    page = report.read_text()
    assert len(drawn) == 4
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.replace("http-equiv", "")
    for expected in ("modes of a quadratic", "proved", "Final validation loss", "muon-lite"):
        assert expected in page
    run_demo(
        tmp_path / "demo", claims, steps=2, progress=lambda *_: None, say=lambda _: None
    )  # an earlier demo is replaced
    runs = tmp_path / "runs"  # a folder of the user's own runs, named like the demo's
    (runs / "muon").mkdir(parents=True)
    (runs / "muon" / "precious.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="holds no demo"):
        run_demo(runs, claims, steps=2, progress=lambda *_: None, say=lambda _: None)
    assert (runs / "muon" / "precious.txt").exists()
