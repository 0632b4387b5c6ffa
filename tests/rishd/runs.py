"""Small texts and small runs for the tests of pre-training."""

import shutil

from riemannian_ode.atomic import write_json
from rishd.pretraining.config_files import make_config, override
from rishd.pretraining.results import read_metrics
from rishd.pretraining.run import train


def write_text(folder, files=200):
    """A folder of text files that all differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        lines = "\n".join(f"river {i} flows past valley {j} with height {i * j}" for j in range(40))
        (folder / f"{i:03}.txt").write_text(lines)
    return folder


def tiny(text, changes=None):
    """A run of seconds: six steps of two short sequences."""
    base = make_config(
        {
            "data": {"paths": [str(text)], "vocab_size": 320, "sequence_length": 16},
            "training": {"steps": 6, "batch_size": 2},
            "schedule": {"warmup_steps": 1},
            "evaluation": {"every": 3, "tokens": 32},
            "checkpoints": {"every": 2},
            "logging": {"trackers": []},
        }
    )
    return override(base, changes or {})


def run(config, folder, **options):
    """The result of a run and its output."""
    said = []
    result = train(config, folder, say=said.append, **options)
    return result, said


def weights(folder):
    """A run's saved parameters."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()


# Sizes of a small model under the names of all families; a family uses those that its configuration has.
_SIZES = {
    **{"vocab_size": 320, "hidden_size": 32, "n_embd": 32, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    **{"intermediate_size": 64, "ffn_dim": 64, "num_hidden_layers": 2, "n_layer": 2, "first_k_dense_replace": 1},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "n_head": 4, "head_dim": 8, "rotary_dim": 8},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
    **{"moe_intermediate_size": 16, "n_shared_experts": 1, "shared_expert_intermediate_size": 16, "topk_group": 1},
}


def small_model(family, folder):
    """Settings of a run that trains a small model of a family of transformers."""
    from transformers import AutoConfig

    known = AutoConfig.for_model(family)
    sizes = {name: value for name, value in _SIZES.items() if hasattr(known, name)}
    file = folder / f"{family}.json"
    write_json(file, {"model_type": family, **sizes})  # complete at any moment: ranks write it, too
    return {"model": {"config": str(file)}}


def short(text, changes):
    """Four steps with checkpoints at the second and the fourth."""
    steps = {"training.steps": 4, "evaluation.every": 2, "optimizer.name": "adamw", "data.validation_share": 0.1}
    return tiny(text, {**steps, **changes})


def back_to(step, folder):
    """Turn a complete run into one that was killed after a step."""
    shutil.rmtree(folder / "model")
    (folder / "summary.json").unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)


# Files of a run with times or paths, and their checksums.
_OTHER = {"trainer_state.json", "metrics.jsonl", "training_args.bin", "SHA256SUMS", ".metadata"}


def contents(folder):
    """The output of a run, without times: weights, optimizer, schedule, random numbers, losses, the final model."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    files = [
        path
        for place in (last, folder / "model")
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name not in _OTHER
    ]
    rows = read_metrics(folder)
    losses = [(row["step"], row.get("loss"), row.get("validation_loss")) for row in rows]
    return {"losses": losses, **{str(path.relative_to(folder)): path.read_bytes() for path in files}}
