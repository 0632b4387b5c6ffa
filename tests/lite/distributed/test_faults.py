"""A rank that dies, and the example for several ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp

from tests.launches import ROOT, torchrun
from tests.lite.distributed.checks import digest, load, saved_state, state_of
from tests.lite.distributed.models import groups_of, model_for, muon


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_rank_that_dies_while_a_checkpoint_is_written(tmp_path):
    """The other one ends with errors, none of them timeouts; the previous checkpoint is complete."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = str(Path(__file__).with_name("dying.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, script, tmp_path, str(rank)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=1800)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, -9], "\n".join(said)
    kept, saving, stepping = (tmp_path / "survivor.txt").read_text().split("\n")[:3]
    assert saving.startswith("error")
    assert stepping.startswith("error")
    assert not (tmp_path / "cut" / ".metadata").exists()

    model = model_for()
    optimizer = muon(groups_of(model, "muon"))
    load(model, optimizer, tmp_path / "good", "plain")  # in one process
    assert digest(state_of(model, optimizer)) == kept
    with pytest.raises(dcp.CheckpointException, match="metadata"):
        dcp.load(saved_state(model, optimizer, "plain"), checkpoint_id=tmp_path / "cut")


def test_the_example_runs_and_goes_on_with_another_number_of_ranks(tmp_path):
    script = ROOT / "examples/several_ranks.py"
    shared = ["--folder", tmp_path, "--save-every", "2"]
    first = torchrun(2, script, "--parallel", "fsdp2", "--steps", "2", *shared)
    assert "in 2 steps" in first.stdout
    second = torchrun(3, script, "--parallel", "ddp", "--steps", "4", *shared)
    assert "in 2 steps" in second.stdout  # from step 2 on
