"""A resumed run equals the uninterrupted one for every family of models, and its saved model is the trained one."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rishd.pretraining.checkpoint_folders import RunCheckpointError
from rishd.pretraining.checksums import SUMS
from rishd.pretraining.presets import PRESETS
from rishd.pretraining.weights import WEIGHTS, read_model
from rishd.probing.trained_model import ProbeError, load_checkpoint
from tests.launches import torchrun
from tests.rishd.runs import back_to, contents, run, short, small_model

MOE = [name for name in PRESETS if name.startswith("moe")]
# Families whose tensors transformers renames, splits or merges when it saves and loads.
RENAMED = ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "gpt_neox", "granitemoe", "ernie4_5_moe", "jamba"]
KNOWN = [
    *RENAMED,
    "llama",
    "gpt2",
    "gemma2",
    "qwen2_moe",
    "phi3",
    "olmo2",
    "bloom",
    "opt",
    "mamba",
    "gpt_oss",
    "minimax",
]
KNOWN += ["qwen3_next", "phimoe", "deepseek_v2", "glm4_moe", "hunyuan_v1_moe", "falcon_mamba", "stablelm"]
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
SMALL |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}


def settings(model, folder):
    if model in PRESETS:
        return {"model": {"preset": model, "settings": SMALL}}
    return small_model(model, folder)


def check_resuming(config, folder, *, barrier=lambda: None, is_first_rank=True):
    """Run, go back to step 2, resume, and compare every file; then compare the saved model with the trained one."""
    run(config, folder)
    barrier()
    if is_first_rank:
        whole = contents(folder)
        back_to(2, folder)
    barrier()
    _, said = run(config, folder, resume=True)
    barrier()
    if is_first_rank:
        assert any("continuing from checkpoint-2" in line for line in said)
        resumed = contents(folder)
        assert whole.keys() == resumed.keys()
        assert [name for name in whole if whole[name] != resumed[name]] == []
        check_saved_model(folder)


def check_saved_model(folder):
    trained = read_model(folder / "checkpoint-4", attn_implementation="eager").eval()
    saved = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager", dtype="float32").eval()
    a, b = trained.state_dict(), saved.state_dict()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    tokens = torch.arange(1, 33).reshape(2, 16)
    with torch.no_grad():
        # Rounding in kernels may depend on the alignment of tensors.
        torch.testing.assert_close(
            trained(tokens, use_cache=False).logits, saved(tokens, use_cache=False).logits, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("model", [*MOE, *RENAMED])
def test_models_with_renamed_tensors_resume_bit_for_bit(model, text, tmp_path):
    check_resuming(short(text, settings(model, tmp_path)), tmp_path / "run")


def test_the_saved_configuration_is_the_trained_models(complete):
    """With the tokenizer's padding token, loading would zero that token's embedding in some families."""
    _, folder = complete
    for name in ("checkpoint-4", "model"):
        assert json.loads((folder / name / "config.json").read_text())["pad_token_id"] is None
    assert (folder / "model" / "tokenizer.json").exists()


@pytest.mark.families
@pytest.mark.parametrize("family", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_family_resumes_bit_for_bit(family, text, tmp_path):
    """Every causal language model of transformers that small sizes can describe."""
    try:
        changes = small_model(family, tmp_path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(read_config(changes))
        if model.num_parameters() > 3_000_000:
            pytest.skip("it has sizes of its own")
        model = AutoModelForCausalLM.from_config(read_config(changes))
        model(torch.arange(16)[None], labels=torch.arange(16)[None], use_cache=False).loss.backward()
    except Exception as problem:
        if family in KNOWN:
            raise
        pytest.skip(f"it cannot be built or trained with small sizes: {problem!r}"[:200])
    changes["model"]["attention"] = "eager"
    check_resuming(short(text, changes), tmp_path / "run")


def read_config(changes):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(changes["model"]["config"], pad_token_id=None)  # as rishd pretrain builds it


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_sharded_models_resume_bit_for_bit(text, tmp_path):
    torchrun(2, "-m", "tests.rishd.test_resuming", text, tmp_path, "moe-tiny", "gpt_neox", "deepseek_v3")


@pytest.fixture(scope="module")
def complete(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    config = short(text, settings("mixtral", folder))
    run(config, folder / "run")
    return config, folder / "run"


def as_before(checkpoint):
    """Rewrite a checkpoint as earlier versions wrote it: in transformers' format, without checksums."""
    read_model(checkpoint).save_pretrained(checkpoint)
    for name in (WEIGHTS, SUMS, "metrics.jsonl"):
        (checkpoint / name).unlink()


def test_checkpoints_in_transformers_format_resume_as_well(complete, tmp_path):
    config, made = complete
    folder = shutil.copytree(made, tmp_path / "run")
    whole = contents(folder)
    back_to(2, folder)
    as_before(folder / "checkpoint-2")
    saved = load_file(folder / "checkpoint-2" / "model.safetensors")
    assert any(".experts.0." in name for name in saved)  # split: loading them by name would find nothing
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    run(config, folder, resume=True)
    assert contents(folder) == whole
    del saved["model.layers.1.self_attn.q_proj.weight"]
    save_file(saved, damaged / "checkpoint-2" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunCheckpointError, match=r"model\.safetensors .*missing: model\.layers\.1\.self_attn\.q_proj"):
        run(config, damaged, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("model.norm.weight"), "missing: model.norm.weight"),
        (lambda saved: saved.update({"model.norm.scale": torch.ones(2)}), "unexpected: model.norm.scale"),
        (lambda saved: saved.update({"model.norm.weight": torch.ones(2)}), "another shape or type: model.norm.weight"),
        (
            lambda saved: saved.update({"model.norm.weight": saved["model.norm.weight"].half()}),
            "another shape or type: model.norm.weight",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_name(complete, tmp_path, change, message):
    config, made = complete
    folder = shutil.copytree(made, tmp_path / "run")
    back_to(2, folder)
    saved = load_file(folder / "checkpoint-2" / WEIGHTS)
    change(saved)
    save_file(saved, folder / "checkpoint-2" / WEIGHTS)
    reseal(folder / "checkpoint-2")
    with pytest.raises(RunCheckpointError) as caught:
        run(config, folder, resume=True)
    assert message in str(caught.value)
    if "half" not in str(change.__code__.co_names):
        with pytest.raises(ProbeError) as caught:
            load_checkpoint(folder / "checkpoint-2")
        assert message in str(caught.value)


def test_the_probe_reads_checkpoints_and_models_alike(complete):
    _, folder = complete
    states = [load_checkpoint(folder / name).model.state_dict() for name in ("checkpoint-4", "model")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def reseal(checkpoint):
    """Update the checksums of changed files."""
    from rishd.pretraining.checksums import digests, files_of, write_sums

    write_sums(checkpoint, digests(checkpoint, files_of(checkpoint)))


def as_rank(text, folder, models):
    """The part of one rank in the test of sharded models."""
    import torch.distributed as dist

    from rishd.pretraining.ranks import disconnect, leave

    for model in models:
        config = short(text, {**settings(model, folder), "training.sharding": "fsdp2"})
        is_first_rank = os.environ["RANK"] == "0"
        check_resuming(config, folder / model, barrier=dist.barrier, is_first_rank=is_first_rank)
    disconnect()
    leave()


if __name__ == "__main__":
    as_rank(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
