"""Every notebook of the docs runs, and what its text says of the output is true."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Name of a notebook ↦ its variables at the end. The number of torch's threads is put back."""
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    threads = torch.get_num_threads()

    def execute(name):
        cells = CELL.findall((FOLDER / f"{name}.md").read_text(encoding="utf-8"))
        assert 8 <= len(cells) <= 15
        variables = {"__name__": "__main__"}
        for number, cell in enumerate(cells, start=1):
            exec(compile(cell, f"{name}, cell {number}", "exec"), variables)
        assert not any(tmp_path.iterdir())  # nothing is written to a reader's folder
        return variables

    yield execute
    torch.set_num_threads(threads)


def test_every_notebook_is_on_the_first_page():
    index = (FOLDER.parent / "index.md").read_text(encoding="utf-8")
    names = [path.stem for path in FOLDER.glob("*.md")]
    assert len(names) == 3
    assert all(f"\nnotebooks/{name}\n" in index for name in names)


def test_first_flow(run):
    found = run("first_flow")
    energy = found["balance"].energy
    assert np.diff(energy).max() <= 0.0  # "never grows"
    assert found["balance"].residual < 1e-5
    assert all(flow.status == "finished" for flow in found["flows"].values())
    assert found["measured"] == pytest.approx(found["predicted"], rel=0.1)

    def crossings(flow):
        off_river = flow.w[:, 1] - found["valley"].river(flow.w[:, :1])[:, 1]
        return int((np.diff(np.sign(off_river[np.abs(off_river) > 0.02])) != 0).sum())

    assert crossings(found["flow"]) > 2  # "swinging"
    assert crossings(found["slow"]) == 0  # "creeps"


def test_flow_to_optimizer(run, capsys):
    found = run("flow_to_optimizer")
    assert found["flow_and_rule"] == found["rule_and_torch"] == 0.0  # "Both are 0.0"
    assert np.linalg.matrix_rank(found["at_one"].w[-1].reshape(found["shape"])) == 3
    coarse, middle, fine = found["errors"].values()
    assert 1.8 < coarse / middle < 2.7  # "halves as well"
    assert 1.8 < middle / fine < 2.7
    low, high = re.findall(r"of the limit \|w\| is (\S+) after", capsys.readouterr().out)
    assert float(low) < 1e-10
    assert float(high) > 1e10


def test_adamw_to_muonlite(run, capsys):
    found = run("adamw_to_muonlite")
    start = np.log(128.0)
    assert all(loss < 0.6 * start for losses in found["found"].values() for loss in losses.values())
    for name in ("Muon", "MuonLITE"):  # "Updates have AdamW's size": the same order of learning rates serves
        assert 0.25 <= found["best"][name] / found["best"]["AdamW"] <= 4.0
    chi = np.array(found["chi"])
    assert chi[0] == 1.0
    assert 1.8 < chi.max() <= 2.0  # "nearly to its peak"
    assert 60 < chi.argmax() < 105  # about half of the way; then it falls back
    assert chi[-1] < 1.01
    assert 0.0 < found["share"] < found["count"] / 128  # "χ makes it smaller"
    verdict = capsys.readouterr().out.splitlines()[-1]
    expected = "try it" if found["ratio"] >= 1 else "expect little" if found["ratio"] > 0.1 else "expect nothing"
    assert verdict.endswith(expected)
    assert found["probe"].noise.flat > 0.0
