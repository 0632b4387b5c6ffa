"""Small texts and small runs for the tests of pre-training."""

from rishd.pretraining.config_files import make_config, override
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
    """The result of a run and what it said."""
    said = []
    result = train(config, folder, say=said.append, **options)
    return result, said


def weights(folder):
    """Parameters that a run saved."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
