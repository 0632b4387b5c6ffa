"""Run configurations: files, overrides, and the saved form."""

import json
from pathlib import Path

import pytest

from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.config_files import ConfigError, dump_yaml, load_config, make_config, override

YAML = """
optimizer: {name: soap-lite, lr: 1e-3, settings: {chi: 4, betas: [0.9, 0.95]}}
training: {tokens: 1e4, batch_size: 2}
data: {sequence_length: 64}
"""
TOML = """
[optimizer]
name = "soap-lite"
lr = 1e-3
settings = {chi = 4, betas = [0.9, 0.95]}
[training]
tokens = 10000
batch_size = 2
[data]
sequence_length = 64
"""


@pytest.fixture(params=["yaml", "toml"])
def file(request, tmp_path):
    path = tmp_path / f"run.{request.param}"
    path.write_text(YAML if request.param == "yaml" else TOML)
    return path


def test_files_and_overrides(file):
    config = load_config(file, ["optimizer.settings.chi=2", "seed=3", "schedule.name=wsd", "optimizer.lr=2e-3"])
    assert config.optimizer.settings == {"chi": 2, "betas": [0.9, 0.95]}
    assert (config.optimizer.lr, config.seed) == (2e-3, 3)
    assert config.steps == 79  # 10 000 tokens in steps of 128, rounded up
    assert config.warmup_steps == 7
    assert config.min_lr_ratio == 0.0
    assert config.model == PretrainConfig().model


def test_yaml_and_json_bring_a_configuration_back(file, tmp_path):
    config = load_config(file)
    (tmp_path / "back.yaml").write_text(dump_yaml(config.to_mapping()))
    assert load_config(tmp_path / "back.yaml") == config
    assert make_config(json.loads(json.dumps(config.to_mapping()))) == config
    assert override(config, {"seed": 1}) != config


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("optimizer: [", [], "malformed"),
        ("- a\n- b", [], "must hold sections"),
        ("optimizer: 3", [], "optimizer = 3: input should be a dictionary"),
        ("optimiser: {lr: 1}", [], "optimiser is not a known setting"),
        ("seed: 1.5\ntraining: {steps: many}", [], "training.steps = 'many'.*seed = 1.5"),
        ("seed: 1", ["seed"], "not of the form section.key=value"),
        ("seed: 1", ["seed=["], "not YAML"),
        ("seed: 1", ["seed.x=2"], "no section"),
    ],
)
def test_bad_files_are_refused_with_their_name(tmp_path, text, overrides, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "run.yaml", overrides)


def test_settings_that_hold_only_together():
    """Neither is valid alone with the default batch of 8 or the default 200 steps."""
    config = load_config(
        None,
        ["training.micro_batch_size=16", "schedule.warmup_steps=300"],
        changes={"training.batch_size": 64, "training.steps": 2000},
    )
    assert (config.training.micro_batch_size, config.warmup_steps) == (16, 300)


CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = sorted(path for path in CONFIGS.glob("*.yaml") if "variants:" not in path.read_text())


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_configurations_that_come_with_the_project(path):
    config = load_config(path)
    assert config.steps > config.warmup_steps > 0
    if path.stem.startswith("published"):  # arXiv:2602.22681: sequences of 1024 tokens, a million tokens a step or two
        assert config.tokens_per_step == (2 if path.stem.endswith("_1b") else 1) * 2**20  # both of a billion
        assert config.training.precision == "bfloat16"


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(ValueError, match=r"ending of .*run\.ini"):
        load_config(tmp_path / "run.ini")
