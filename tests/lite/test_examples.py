"""The example scripts, at a tiny size."""

import sys

import pytest
import torch

from examples import plain_loop
from tests.launches import finished


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_plain_loop_learns_and_resumes_bit_for_bit(tmp_path):
    whole, losses = plain_loop.train(tmp_path / "whole", steps=60)
    assert losses[-1] < 0.9 * losses[0]
    plain_loop.train(tmp_path / "parts", steps=60, save_every=10, stop_after=33)
    resumed, rest = plain_loop.train(tmp_path / "parts", steps=60, save_every=10)
    assert rest == losses[30:]  # from the checkpoint of step 30 on
    assert same_weights(whole, resumed)
    assert plain_loop.train(tmp_path / "parts", steps=60)[1] == []


def test_plain_loop_runs_as_a_script(tmp_path):
    result = finished([sys.executable, "examples/plain_loop.py", "--folder", tmp_path, "--steps", "3"])
    assert result.stdout.startswith("loss 3.") and "in 3 steps" in result.stdout


@pytest.mark.filterwarnings("ignore")
def test_trainer_learns_and_resumes_bit_for_bit(tmp_path):
    from examples.trainer import make_trainer

    whole = make_trainer(tmp_path / "whole", steps=24, save_steps=12, width=16)
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    groups = whole.optimizer.param_groups
    assert groups[0]["chi"] == 1.0 and groups[0]["beta_flat"] == 1.0  # where the schedule ends
    resumed = make_trainer(tmp_path / "whole", steps=24, save_steps=12, width=16)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-12"))
    assert same_weights(whole.model, resumed.model)
    assert [g["chi"] for g in resumed.optimizer.param_groups] == [g["chi"] for g in groups]
