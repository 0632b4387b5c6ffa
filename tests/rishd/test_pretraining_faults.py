"""Real-life faults: kill -9, a full disk, a damaged checkpoint; and two ranks against one."""

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rishd.pretraining.checkpoint_folders import RunCheckpointError, whole_checkpoints
from rishd.pretraining.config_files import dump_yaml, override
from rishd.pretraining.results import METRICS, read_metrics, read_summary, series
from rishd.pretraining.trainer import PretrainTrainer
from tests.launches import ROOT, accelerate_launch, finished, torchrun
from tests.rishd.runs import run, tiny

SMALL = {"model.settings": {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}}

EPS = torch.finfo(torch.float32).eps


def losses(folder):
    rows = read_metrics(folder)
    return series(rows, "loss"), series(rows, "validation_loss")


def pretrain(folder, *options):
    """Arguments of ``rishd pretrain`` for the configuration next to a folder."""
    return ["-m", "rishd.cli", "pretrain", f"{folder}.yaml", "--out", str(folder), *options]


# A thread of the run itself kills it: another process might only be scheduled after the end.
KILLED = """
import os, pathlib, signal, sys, threading, time
from rishd.cli import main

def kill(rows, least):
    while not rows.exists() or len(rows.read_bytes().splitlines()) < least:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, args=(pathlib.Path(sys.argv[1]), int(sys.argv[2])), daemon=True).start()
sys.argv[1:3] = []
main()
"""


def test_a_run_killed_at_any_moment_resumes_to_the_same_losses(text, tmp_path):
    config = tiny(text, {**SMALL, "training.steps": 60, "evaluation.every": 7, "checkpoints": {"every": 3, "keep": 2}})
    whole, _ = run(config, tmp_path / "whole")
    part = tmp_path / "part"
    (tmp_path / "part.yaml").write_text(dump_yaml(config.to_mapping()))
    for least in (5, 30):  # killed twice, at any place, once that many rows exist
        options = ("--resume",) if part.exists() else ()
        words = [str(part / METRICS), str(least), *pretrain(part, *options)[2:]]
        finished([sys.executable, "-c", KILLED, *words], code=-signal.SIGKILL)
        assert read_summary(part) is None
    resumed, _ = run(config, part, resume=True)
    assert losses(part) == losses(tmp_path / "whole")
    assert resumed.summary.final_validation_loss == whole.summary.final_validation_loss
    assert not list(part.glob(".*"))  # no partly written file remains


def test_a_full_disk_keeps_the_last_good_checkpoint(text, tmp_path, monkeypatch):
    right = PretrainTrainer._save_rng_state

    def full(self, folder):
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device")
        right(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "_save_rng_state", full)
        with pytest.raises(RunCheckpointError, match=r"step 4 could not be written .*No space.* last .*checkpoint-2"):
            run(tiny(text, SMALL), tmp_path / "run")
    assert [path.name for path in whole_checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert not list((tmp_path / "run").glob(".*"))
    assert read_summary(tmp_path / "run").status == "interrupted"
    run(tiny(text, SMALL), tmp_path / "run", resume=True)
    run(tiny(text, SMALL), tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    ("sharding", "optimizer"),
    [
        pytest.param("none", "soap-lite", marks=pytest.mark.layouts),
        ("fsdp2", "muon-lite"),
    ],
)
def test_two_ranks_make_the_steps_of_one_and_resume_on_any_number(text, tmp_path, sharding, optimizer):
    """On as many ranks bit for bit; on another number with sums of gradients in another order."""
    changes = {**SMALL, "training": {"steps": 6, "batch_size": 4, "micro_batch_size": 1}, "optimizer.name": optimizer}
    changes |= {"logging.every": 2, "logging.updates_every": 2}
    changes["evaluation.tokens"] = 32 if sharding == "none" else 16  # of two ranks, or of one: the other has nothing
    if optimizer == "muon-lite":
        changes["optimizer.settings"] = {"ns_dtype": "float32"}
    run(tiny(text, changes), tmp_path / "one")
    of_losses, of_updates = rounding(tiny(text, changes), tmp_path / "one")
    config = tiny(text, {**changes, "training.sharding": sharding})
    folders = tmp_path / "two", tmp_path / "other"
    for folder in folders:
        folder.with_suffix(".yaml").write_text(dump_yaml(config.to_mapping()))
    two, other = folders
    launch = accelerate_launch if sharding == "none" else torchrun  # accelerate has its own FSDP2
    launch(2, *pretrain(two))
    before = losses(two)
    assert distance(before, losses(tmp_path / "one")) <= of_losses
    one = updates(tmp_path / "one") if sharding == "none" else updates(tmp_path / "one", "rms")
    assert distance(updates(two), one) <= of_updates
    for name in ("checkpoint-6", "model"):  # as if killed after step 4
        shutil.rmtree(two / name)
    (two / "summary.json").unlink()
    shutil.copytree(two, other)
    torchrun(2, *pretrain(two, "--resume"))
    assert losses(two) == before
    if sharding == "none":
        run(override(config, {"training.micro_batch_size": 2}), other, resume=True)
    else:
        torchrun(1, *pretrain(other, "--resume"))
    assert distance(losses(other), before) <= of_losses


def updates(folder, kind=""):
    """Sizes and sharp shares of updates, over all ranks; there are no shares of sharded parameters."""
    rows = read_metrics(folder)
    names = {key for row in rows for key in row if key.startswith(("update_rms", "sharp_share")) and kind in key}
    assert names
    return [series(rows, name) for name in sorted(names)]


def rounding(config, folder, runs=3):
    """How far rounding moves losses and updates of a run: ten times the effect of the last bits of its gradients.

    A constant would be that of one processor: how much an optimizer amplifies rounding depends on the gradients.
    """
    found = [(0.0, 0.0)]
    for seed in range(runs):
        generator = torch.Generator().manual_seed(seed)

        def disturb(optimizer, *_, generator=generator):
            for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
                p.grad.mul_(1 + EPS * torch.randn(p.grad.shape, generator=generator))

        other = folder.with_name(f"{folder.name}-{seed}")
        hook = register_optimizer_step_pre_hook(disturb)
        try:
            run(config, other)
        finally:
            hook.remove()
        found.append((distance(losses(other), losses(folder)), distance(updates(other), updates(folder))))
    of_losses, of_updates = map(max, zip(*found, strict=True))
    assert of_losses < 1e-4 and of_updates < 1e-2  # else nothing is compared
    return 10 * of_losses + 8 * EPS, 10 * of_updates + 8 * EPS  # a loss is a sum of rounded ones


def distance(found, expected):
    """Largest relative difference of the same steps' numbers."""
    assert [[step for step, _ in one] for one in found] == [[step for step, _ in one] for one in expected]
    pairs = zip(itertools.chain(*found), itertools.chain(*expected), strict=True)
    return max(abs(x - y) / max(abs(y), 1e-12) for (_, x), (_, y) in pairs)


RANK = """
import os, signal
from rishd.cli import main
from rishd.pretraining.trainer import PretrainTrainer

right = PretrainTrainer.training_step

def dying(self, *arguments, **options):
    if self.state.global_step == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return right(self, *arguments, **options)

PretrainTrainer.training_step = dying
main()
"""


def test_a_dead_rank_is_one_line_of_the_others(text, tmp_path):
    """Without torchrun, which would end the others before they can print anything."""
    (tmp_path / "run.yaml").write_text(dump_yaml(tiny(text, SMALL).to_mapping()))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *pretrain(tmp_path / "run")[2:]],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, -signal.SIGKILL]
    assert "Traceback" not in told[0]
    assert re.search(r"^error: rank 0 has lost another rank.*The last good checkpoint is .*checkpoint-2", told[0], re.M)
