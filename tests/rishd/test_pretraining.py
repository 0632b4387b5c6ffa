"""Pre-training runs: resuming bit for bit, folders, bad numbers, bad settings."""

import json
import shutil

import pytest
import torch
from transformers import TrainingArguments

from lite import NonFiniteError
from rishd.pretraining.checkpoint_folders import last_checkpoint
from rishd.pretraining.config_files import override
from rishd.pretraining.ranks import training_arguments
from rishd.pretraining.results import read_metrics, read_summary
from rishd.pretraining.run_folder import RunFolderError
from rishd.pretraining.text_files import CorpusError
from rishd.pretraining.trainer import PretrainTrainer
from tests.rishd.runs import run, tiny, weights
from tests.rishd.test_corpus import damage, write_c4


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "muon-lite", "soap", "soap-lite", "torch.optim:SGD"])
def test_resuming_continues_bit_for_bit(optimizer, text, tmp_path):
    config = tiny(text, {"optimizer.name": optimizer})
    whole, _ = run(config, tmp_path / "whole")
    assert not whole.interrupted
    assert whole.final_validation_loss < 6.5
    assert whole.summary == read_summary(tmp_path / "whole")
    assert (whole.summary.steps, whole.summary.tokens) == (6, 6 * 2 * 16)
    assert 0 < whole.summary.optimizer_seconds < whole.summary.seconds

    run(config, tmp_path / "part")
    for path in (tmp_path / "part").iterdir():  # as if killed after step 4, while writing the next checkpoint
        if path.name in ("checkpoint-6", "model"):
            shutil.rmtree(path)
    (tmp_path / "part" / "summary.json").unlink()
    (tmp_path / "part" / ".checkpoint-6.partial").mkdir()
    (tmp_path / "part" / ".checkpoint-6.partial" / "model.safetensors").write_bytes(b"half")
    assert last_checkpoint(tmp_path / "part").name == "checkpoint-4"
    resumed, said = run(config, tmp_path / "part", resume=True)
    assert any("continuing from checkpoint-4" in line for line in said)
    assert resumed.series("validation_loss") == whole.series("validation_loss")
    assert resumed.series("loss") == whole.series("loss")
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_same_seed_same_start_for_every_optimizer(text, tmp_path):
    first = [
        run(tiny(text, {"optimizer.name": name}), tmp_path / name)[0].series("loss")[0]
        for name in ("muon", "muon-lite")
    ]
    assert first[0] == first[1]


def test_folders_of_other_runs_are_refused(text, tmp_path):
    config = tiny(text, {"training.steps": 2, "evaluation.every": 2})
    run(config, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["seed"] == 0
    assert record["versions"]["torch"] == torch.__version__
    with pytest.raises(RunFolderError, match="give --resume to continue it"):
        run(config, tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"holds another run \(optimizer\.lr is 0\.003 there, 0\.1 here\)"):
        run(
            tiny(text, {"training.steps": 2, "evaluation.every": 2, "optimizer.lr": 0.1}), tmp_path / "run", resume=True
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="not empty and holds no run"):
        run(config, tmp_path / "full")


def test_nonfinite_gradient_names_step_and_parameter_and_keeps_the_checkpoint(text, tmp_path, monkeypatch):
    right = PretrainTrainer.compute_loss

    def poisoned(self, model, inputs, *args, **kwargs):
        loss = right(self, model, inputs, *args, **kwargs)
        if model.training and self.state.global_step == 3:
            weight = model.model.layers[2].mlp.up_proj.weight
            loss = loss + (weight * torch.tensor(float("inf"))).sum() * 0
        return loss

    monkeypatch.setattr(PretrainTrainer, "compute_loss", poisoned)
    with pytest.raises(NonFiniteError, match=r"at step 3 in model\.layers\.2\.mlp\.up_proj\.weight.*checkpoint-2"):
        run(tiny(text), tmp_path / "run")
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "loss" in row] == [1, 2, 3]
    assert read_summary(tmp_path / "run").status == "failed"


def test_lost_parameters_are_not_saved(text, tmp_path):
    config = override(
        tiny(text),
        {
            "optimizer": {"name": "muon", "lr": 1e38},
            "training.steps": 2,
            "schedule.warmup_steps": 0,
            "evaluation.every": 1,
            "checkpoints.every": 1,
        },
    )
    with pytest.raises(NonFiniteError, match=r"not finite|non-finite"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_unusable_folders_are_refused(text, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="is a file"):
        run(tiny(text), tmp_path / "file")
    with pytest.raises(RunFolderError, match="no run to resume"):
        run(tiny(text), tmp_path / "typo", resume=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{}")
    with pytest.raises(RunFolderError, match="not readable as a run's record"):
        run(tiny(text), tmp_path / "broken", resume=True)


def test_interrupt_leaves_metrics_and_says_how_to_continue(text, tmp_path, monkeypatch):
    right = PretrainTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return right(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "training_step", interrupted)
        result, said = run(tiny(text), tmp_path / "run")
    assert result.interrupted
    assert read_summary(tmp_path / "run").status == "interrupted"
    assert "--resume continues" in said[-1]
    assert result.series("validation_loss")
    resumed, _ = run(tiny(text), tmp_path / "run", resume=True)
    assert not resumed.interrupted


def test_complete_runs_are_read_and_not_repeated(text, tmp_path):
    config = tiny(text, {"training.steps": 2})
    first, _ = run(config, tmp_path / "run", resume="auto")
    again, said = run(config, tmp_path / "run", resume="auto")
    assert said[-1].endswith("is complete")
    assert (again.rows, again.summary) == (first.rows, first.summary)


def test_gradient_accumulation_makes_the_same_steps(text, tmp_path):
    config = tiny(text, {"optimizer.name": "adamw"})  # Newton–Schulz in bfloat16 would magnify rounding
    losses = [
        run(override(config, {"training.micro_batch_size": size}), tmp_path / str(size))[0].series("loss")
        for size in (1, 2)
    ]
    assert [step for step, _ in losses[0]] == [step for step, _ in losses[1]]
    assert [loss for _, loss in losses[0]] == pytest.approx([loss for _, loss in losses[1]], rel=1e-5)


def test_attention_logits_are_clipped_after_each_step(text, tmp_path):
    """With a threshold that every head exceeds, the query weights shrink; with a high one nothing changes."""
    norms = {}
    for threshold in (0.0, 1e-3, 1e3):
        folder = tmp_path / str(threshold)
        run(tiny(text, {"training.qk_clip": threshold, "training.steps": 2, "training.micro_batch_size": 1}), folder)
        norms[threshold] = {name: float(p.norm()) for name, p in weights(folder).items()}
    assert norms[1e3] == norms[0.0]
    queries = [name for name in norms[0.0] if "q_proj" in name]
    assert queries and all(norms[1e-3][name] < 0.9 * norms[0.0][name] for name in queries)


def test_a_process_uses_one_device(text, tmp_path, monkeypatch):
    """The Trainer would run a full pass on every visible device."""
    made = TrainingArguments.__post_init__

    def see_eight(arguments):
        made(arguments)
        arguments._n_gpu = 8

    monkeypatch.setattr(TrainingArguments, "__post_init__", see_eight)
    assert training_arguments(tiny(text), tmp_path).train_batch_size == 2


def test_text_left_out_before_is_missed_by_whoever_wants_all(tmp_path):
    shards = write_c4(tmp_path / "shards")
    damage(sorted(shards.iterdir())[1], "cut")
    config = tiny(shards, {"data.on_corrupt": "skip", "training.steps": 20, "data.validation_share": 0.1})
    _, said = run(config, tmp_path / "run")
    assert any(line.startswith("left out: ") and "00001-of-00003" in line for line in said)
    with pytest.raises(CorpusError, match=r"00001-of-00003.*data\.on_corrupt = skip"):
        run(override(config, {"data.on_corrupt": "error"}), tmp_path / "whole")


def test_the_balancing_loss_of_routers_does_not_grow_with_the_passes(text, tmp_path):
    """It is not linear in the tokens, so that a mean over passes is near that of the batch, not equal."""
    changes = {"model": {"preset": "moe-tiny"}, "optimizer.name": "adamw", "training": {"steps": 1, "batch_size": 8}}
    config = tiny(text, {**changes, "schedule.warmup_steps": 0, "evaluation.every": 1, "checkpoints.every": 1})
    losses = [
        run(override(config, {"training.micro_batch_size": size}), tmp_path / str(size))[0].series("loss")[0][1]
        for size in (8, 2, 1)
    ]
    assert losses == pytest.approx([losses[0]] * 3, abs=4e-3)  # the coefficient is 0.01, and the loss near 2


@pytest.mark.parametrize("precision", ["bfloat16-mixed", "bfloat16"])
def test_half_precision_stays_near_float32(text, tmp_path, precision):
    (half, _), (full, _) = (run(tiny(text, {"training.precision": p}), tmp_path / p) for p in (precision, "float32"))
    assert half.final_validation_loss == pytest.approx(full.final_validation_loss, rel=0.02)
    assert half.final_validation_loss != full.final_validation_loss
    expected = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert {p.dtype for p in weights(tmp_path / precision).values()} == {expected}


def test_sharding_by_accelerate_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"training\.sharding=fsdp2"):
        run(tiny(text), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.name": "sgd"}, "Choose one of: adamw, muon, muon-lite, soap, soap-lite, adamw-lite"),
        ({"optimizer.name": "no.such.module:Class"}, "cannot be imported"),
        ({"optimizer.name": "torch.optim:NoSuch"}, "has no 'NoSuch'"),
        ({"optimizer.name": "torch:Tensor"}, "not a concrete subclass of torch.optim.Optimizer"),
        ({"optimizer.settings": {"chy": 2.0}}, "muon-lite takes no chy; its settings are momentum"),
        ({"optimizer.name": "torch.optim:Rprop"}, "takes no weight_decay.*weight_decay: null"),
        ({"optimizer.name": "adamw", "optimizer.groups": {"norm": {"lr": 1.0}}}, "groups is for LITE's optimizers"),
        ({"optimizer.momentum": 0.9}, "optimizer.momentum is not a known setting"),
        ({"model.preset": "10M"}, "preset = '10M' is unknown"),
        ({"schedule.name": "step"}, "schedule.name = 'step'"),
        ({"optimizer.lr": float("nan")}, "lr = nan"),
        ({"optimizer.lr": "fast"}, "optimizer.lr = 'fast'"),
        ({"training.steps": 0}, "steps = 0"),
        ({"training.qk_clip": -1.0}, "training.qk_clip = -1.0"),
        ({"training.tokens": 100}, "give one of them"),
        ({"training.micro_batch_size": 3}, "must divide"),
        ({"schedule.warmup_steps": 6}, "below the 6 steps"),
        ({"schedule.min_ratio": 2}, "min_ratio"),
        ({"optimizer.weight_decay": -0.1}, "weight_decay"),
        ({"logging.every": 3}, "must divide checkpoints.every"),
        ({"seed": -1}, "seed"),
        ({"data.vocab_size": 100}, "at least 300"),
        ({"optimizer.settings": {"chi": -0.5}}, "chi = -0.5"),
        ({"optimizer.settings": {"chi": 0.5}}, "chi = 0.5 is below 1, where the published schedule"),
        ({"optimizer.settings": {"beta_sharp": -2.0}}, "above −1"),
        ({"data.sequence_length": 1}, "no next token"),
        ({"seed.deeper": 1}, "no section"),
    ],
)
def test_bad_settings_are_refused(text, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tiny(text, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # a corrected run can have the folder
