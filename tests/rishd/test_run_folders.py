"""Run folders: one process at a time, claimed atomically, and damaged files refused by name with a remedy."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from typer.testing import CliRunner

from lite import MuonLITE
from rishd.commands.application import app
from rishd.comparing.record import collect
from rishd.json_lines import JsonLinesError
from rishd.pretraining.checkpoint_folders import RunCheckpointError
from rishd.pretraining.checksums import SUMS, digests, files_of, write_sums
from rishd.pretraining.optimizer_state import _PlainPlanner, _PlainReader, load_optimizer
from rishd.pretraining.results import ResultsError, read_metrics, read_summary
from rishd.pretraining.run_folder import RunFolderError, check_run_folder, claim_run_folder, hold
from rishd.pretraining.weights import WEIGHTS, read_model
from rishd.probing.trained_model import ProbeError, load_checkpoint
from tests.launches import ROOT
from tests.rishd.runs import back_to, contents, run, short

TINY = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 2}


@pytest.fixture(scope="module")
def complete(text, tmp_path_factory):
    """A run of four steps with the checkpoints of steps 1 to 4, and its output."""
    folder = tmp_path_factory.mktemp("complete") / "run"
    config = short(text, {"model.settings": TINY, "checkpoints": {"every": 1, "keep": 9}})
    run(config, folder)
    return config, folder, contents(folder)


@pytest.fixture
def killed(complete, tmp_path):
    """A copy of that run in its state after step 3."""
    config, folder, whole = complete
    copy = shutil.copytree(folder, tmp_path / "run")
    back_to(3, copy)
    return config, copy, whole


def deleted(path):
    path.unlink()


def emptied(path):
    path.write_bytes(b"")


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


DAMAGES = [deleted, emptied, truncated, flipped]
FILES = ["config.json", "metrics.jsonl", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
FILES += [SUMS, WEIGHTS]


def test_the_files_of_a_checkpoint_are_those_below(complete):
    _, folder, _ = complete
    assert sorted([*files_of(folder / "checkpoint-3"), SUMS]) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_refused_and_the_older_one_resumes(killed, name):
    config, folder, whole = killed
    path = folder / "checkpoint-3" / name
    content = path.read_bytes()
    for damage in DAMAGES:
        path.write_bytes(content)
        damage(path)
        with pytest.raises(RunCheckpointError) as caught:
            run(config, folder, resume=True)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        assert f"remove {path.parent}, then --resume continues from checkpoint-2" in message
    assert read_summary(folder) is None  # nothing has been touched
    shutil.rmtree(path.parent)
    _, said = run(config, folder, resume=True)
    assert any("continuing from checkpoint-2" in line for line in said)
    assert contents(folder) == whole


def test_damaged_metrics_are_refused_and_the_checkpoint_has_a_copy(killed):
    config, folder, whole = killed
    path = folder / "metrics.jsonl"
    content = path.read_bytes()
    for damage in DAMAGES:
        path.write_bytes(content)
        damage(path)
        with pytest.raises(ResultsError) as caught:
            run(config, folder, resume=True)
        found = re.search(r"copy (\S+) to its place", str(caught.value))
        assert str(path) in str(caught.value)
    shutil.copyfile(found[1], path)
    run(config, folder, resume=True)
    assert contents(folder) == whole


@pytest.mark.parametrize("row", ["[]", "3", "{}", '{"step": "3"}', '{"step": 3, "loss": "low"}', "{", '"\\ud800"'])
def test_rows_that_are_no_metrics_are_named(tmp_path, row):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n' + row + '\n{"step": 3, "loss": 1.0}\n')
    with pytest.raises(JsonLinesError, match=r"metrics\.jsonl, line 2: "):
        read_metrics(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"status": "complete"}', "\ufffd"])
def test_damaged_summaries_are_named(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(ResultsError, match=r"summary\.json .*remove it, then --resume"):
        read_summary(tmp_path)


def without_checksums(checkpoint):
    """Rewrite a checkpoint as earlier versions wrote it."""
    read_model(checkpoint).save_pretrained(checkpoint)
    for name in (WEIGHTS, SUMS, "metrics.jsonl"):
        (checkpoint / name).unlink()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[("trainer_state.json", text) for text in (b"", b"[]", b"{}", b'{"global_step": 3, "new": 1}', b"3")],
        ("trainer_state.json", b'{"global_step": 3, "log_history": 3}'),
        ("trainer_state.json", b'{"global_step": 3, "total_flos": "many"}'),
        *[("rng_state.pth", content) for content in (None, b"", b"PK", pickle.dumps([1]))],
        *[("scheduler.pt", content) for content in (None, b"", pickle.dumps([1]))],
        *[("optimizer.pt", content) for content in (None, b"", pickle.dumps({}))],
        *[("model.safetensors", content) for content in (b"", b"\x08" + bytes(15))],
    ],
)
def test_damaged_files_of_older_checkpoints_are_named(killed, name, content):
    """They have no checksums: the error is that of reading, in one line."""
    config, folder, _ = killed
    checkpoint = folder / "checkpoint-3"
    without_checksums(checkpoint)
    if content is None:
        (checkpoint / name).unlink()
    else:
        (checkpoint / name).write_bytes(content)
    with pytest.raises(
        RunCheckpointError, match=rf"checkpoint-3/{re.escape(name)} cannot be loaded .*remove "
    ) as caught:
        run(config, folder, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in FILES if name != SUMS])
def test_files_without_a_checksum_are_refused_by_name(killed, name):
    config, folder, _ = killed
    unlist(folder / "checkpoint-3", name)
    with pytest.raises(RunCheckpointError, match=rf"checkpoint-3/{re.escape(name)} is not listed in .*{SUMS}.*remove "):
        run(config, folder, resume=True)


@pytest.mark.parametrize("name", ["rng_state_1.pth", "optimizer/.metadata", "optimizer/__0_0.distcp"])
def test_files_of_several_ranks_without_a_checksum_are_refused_by_name(killed, name):
    config, folder, _ = killed
    (folder / "checkpoint-3" / "optimizer").mkdir()
    (folder / "checkpoint-3" / name).write_bytes(b"planted")
    with pytest.raises(RunCheckpointError, match=rf"checkpoint-3/{re.escape(name)} is not listed in "):
        run(config, folder, resume=True)


def test_weights_beside_a_model_of_an_older_version_need_checksums(killed):
    config, folder, _ = killed
    checkpoint = folder / "checkpoint-3"
    read_model(checkpoint).save_pretrained(checkpoint)
    (checkpoint / SUMS).unlink()
    with pytest.raises(RunCheckpointError, match=f"{SUMS} is missing"):
        run(config, folder, resume=True)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "adapter_config.json"])
def test_a_complete_model_with_a_file_without_a_checksum_is_refused_by_name(complete, tmp_path, name):
    config, folder, _ = complete
    copy = shutil.copytree(folder, tmp_path / "run")
    if (copy / "model" / name).exists():
        unlist(copy / "model", name)
    else:
        (copy / "model" / name).write_text("{}")
    message = rf"model/{re.escape(name)} is not listed in "
    with pytest.raises(RunCheckpointError, match=message):
        run(config, copy, resume=True)
    with pytest.raises(ProbeError, match=message):
        load_checkpoint(copy)


def unlist(folder, name):
    """Remove a file from the list of checksums."""
    lines = (folder / SUMS).read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.endswith(f"  {name}\n")]
    assert len(kept) == len(lines) - 1
    (folder / SUMS).write_text("".join(kept))


def test_files_that_no_run_reads_do_no_harm(killed):
    config, folder, whole = killed
    (folder / "checkpoint-3" / "scaler.pt").write_bytes(b"no scaler")
    run(config, folder, resume=True)
    assert contents(folder) == whole


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("wrap", [lambda trap: trap, lambda trap: {"state": {}, "param_groups": [trap]}])
@pytest.mark.parametrize("save", [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap))])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", WEIGHTS, "pytorch_model.bin"])
def test_no_code_of_a_checkpoint_runs(killed, tmp_path, name, save, wrap):
    config, folder, _ = killed
    checkpoint = folder / "checkpoint-3"
    if name == "pytorch_model.bin":
        without_checksums(checkpoint)
        (checkpoint / "model.safetensors").unlink()
    save(wrap(Trap(tmp_path / "ran")), checkpoint / name)
    write_sums(checkpoint, digests(checkpoint, files_of(checkpoint)))  # whoever plants code writes checksums as well
    with pytest.raises(RunCheckpointError, match="checkpoint-3"):
        run(config, folder, resume=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_no_code_of_a_sharded_optimizer_runs(tmp_path):
    state = {"weight": torch.ones(3), "lr": 0.5, "name": "adamw"}
    dcp.save(state, checkpoint_id=tmp_path / "saved", no_dist=True)
    target = {"weight": torch.zeros(3), "lr": 0.0, "name": ""}
    dcp.load(target, storage_reader=_PlainReader(tmp_path / "saved"), planner=_PlainPlanner(), no_dist=True)
    assert torch.equal(target.pop("weight"), state.pop("weight"))
    assert target == state
    (tmp_path / "saved" / ".metadata").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(pickle.UnpicklingError, match=r"mkdir may not be in \.metadata"):
        _PlainReader(tmp_path / "saved").read_metadata()
    dcp.save({"lr": Trap(tmp_path / "ran")}, checkpoint_id=tmp_path / "planted", no_dist=True)
    with pytest.raises(CheckpointException, match="mkdir"):
        dcp.load({"lr": 0.5}, storage_reader=_PlainReader(tmp_path / "planted"), planner=_PlainPlanner(), no_dist=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["first_moment", "m"])
def test_sharded_state_of_version_0_1_0_is_refused_with_the_reason(tmp_path, key):
    """State from one process loads (tests/lite/test_old_checkpoints.py)."""
    model = torch.nn.Linear(3, 3, bias=False)
    saved = {"optimizer": {"state": {"weight": {key: torch.zeros(3, 3)}}}}
    dcp.save(saved, checkpoint_id=tmp_path / "optimizer", no_dist=True)
    with pytest.raises(ValueError, match=r"several ranks wrote it with version 0\.1\.0"):
        load_optimizer(MuonLITE([model.weight]), model, tmp_path, device=torch.device("cpu"))


def test_a_run_killed_at_any_write_before_its_first_step_can_start_again(complete, tmp_path):
    """The claim dies at its first, second, … operation on files until it comes through."""
    config, _, _ = complete
    for operation in range(1, 99):
        folder = tmp_path / str(operation)
        child = os.fork()
        if not child:
            try:
                die_at(operation, folder)
                with hold(folder):
                    claim_run_folder(folder, config, "hash", {})
                    os._exit(0)
            finally:
                os._exit(2)
        came_through = os.waitpid(child, 0)[1] == 0
        with hold(folder):
            has_record = (folder / "run.json").exists()
            assert check_run_folder(folder, config, "hash", resume=has_record) is None
        if came_through:
            break
    assert has_record
    assert operation > 4


def die_at(operation, folder):
    """End this process, as kill -9 does, before its n-th operation on files of a folder."""
    left = operation

    def count(event, arguments):
        nonlocal left
        if event in ("open", "os.mkdir", "os.rename") and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os._exit(1)

    sys.addaudithook(count)


HOLDER = """
import sys, time
from pathlib import Path
from rishd.pretraining.run_folder import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_folder_is_one_process_s_and_free_when_that_is_killed(killed):
    config, folder, whole = killed
    command = [sys.executable, "-c", HOLDER, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        year = time.strftime("%Y")
        for options in ({"resume": True}, {"resume": "auto"}, {}):
            with pytest.raises(
                RunFolderError, match=rf"in use by process {process.pid} on \S+ since {year}-.*wait"
            ) as caught:
                run(config, folder, **options)
            assert "\n" not in str(caught.value)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
        os.kill(process.pid, signal.SIGKILL)
    run(config, folder, resume=True)
    assert contents(folder) == whole
    assert not (folder / "run.lock").exists()


def test_a_lock_is_taken_once_however_the_holders_come_and_go(tmp_path):
    folder = tmp_path / "run"
    for _ in range(3):
        with hold(folder):
            with pytest.raises(RunFolderError, match="in use"), hold(folder):
                pass
            assert folder.exists()
        assert not folder.exists()  # it was empty


def test_without_its_config_file_a_run_resumes_from_its_record(killed):
    _, folder, whole = killed
    settings = (folder / "config.yaml").read_text()
    (folder / "config.yaml").unlink()
    found = CliRunner().invoke(app, ["pretrain", "--out", str(folder), "--resume"])
    assert found.exit_code == 0, found.output
    assert (folder / "config.yaml").read_text() == settings
    assert contents(folder) == whole


@pytest.mark.parametrize(
    ("name", "damage"),
    # Without its checksums a model is one of an older version.
    [(name, damage) for name in ("model.safetensors", "config.json") for damage in (deleted, emptied, flipped)]
    + [(SUMS, emptied), (SUMS, flipped)],
)
def test_a_complete_run_with_a_damaged_model_is_refused_and_the_model_is_saved_again(complete, tmp_path, name, damage):
    config, folder, whole = complete
    copy = shutil.copytree(folder, tmp_path / "run")
    damage(copy / "model" / name)
    with pytest.raises(RunCheckpointError, match=rf"model/.*remove {copy}/summary\.json, then --resume"):
        run(config, copy, resume=True)
    if name == "config.json":  # once is enough
        (copy / "summary.json").unlink()
        run(config, copy, resume=True)
        assert contents(copy) == whole


def test_a_complete_run_without_its_metrics_is_refused(complete, tmp_path):
    config, folder, _ = complete
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "metrics.jsonl").unlink()
    with pytest.raises(ResultsError, match="to its place, then --resume"):
        run(config, copy, resume=True)


def test_a_kill_while_the_model_is_saved_leaves_a_run_that_resumes(killed):
    config, folder, whole = killed
    (folder / ".model.partial").mkdir()
    (folder / ".model.partial" / "config.json").write_text("{")
    run(config, folder, resume=True)
    assert contents(folder) == whole


@pytest.mark.parametrize("content", ["[" * 100_000, '{"corpus_hash": 3, "config": {}}', "[]", "3"])
def test_damaged_records_are_named(killed, content):
    config, folder, _ = killed
    (folder / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"run\.json is not readable"):
        run(config, folder, resume=True)


@pytest.mark.parametrize("number", [9, 0, -1, "1", 1.5, True, None, [1]])
def test_records_of_an_unknown_format_are_refused(complete, tmp_path, number):
    config, folder, _ = complete
    copy = shutil.copytree(folder, tmp_path / "run")
    message = r"{} has format .*; this version of rishd reads format 1 only"
    for name in ("run.json", "summary.json"):
        path = copy / name
        good = path.read_text()
        path.write_text(json.dumps({**json.loads(good), "format": number}))
        with pytest.raises((RunFolderError, ResultsError), match=message.format(name)):
            run(config, copy, resume=True)
        with pytest.raises(ResultsError, match=message.format(name)):
            collect("key", "label", copy)
        path.write_text(good)


def test_processes_that_come_and_go_at_once_take_turns(tmp_path):
    """The folder of the lock is removed while others create it."""
    folder, taken = tmp_path / "run", []

    def come_and_go():
        for _ in range(200):
            try:
                with hold(folder):
                    taken.append(1)
            except RunFolderError as refused:
                assert "is in use by" in str(refused)

    with ThreadPoolExecutor(3) as pool:
        for outcome in [pool.submit(come_and_go) for _ in range(3)]:
            outcome.result()
    assert taken
