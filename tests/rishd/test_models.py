"""Models of a run: presets, files, counts against torch's, and models that do not fit."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rishd.pretraining import cost as cost_module
from rishd.pretraining.config_files import ConfigError, make_config, override
from rishd.pretraining.cost import (
    DoesNotFitError,
    active_parameters,
    duration,
    measured_cost,
    parameter_count,
    static_cost,
    training_flops_per_token,
)
from rishd.pretraining.models import build_model, model_config
from rishd.pretraining.optimizers import build_optimizer
from rishd.pretraining.presets import PRESETS
from rishd.pretraining.tokenizer import load_tokenizer
from tests.rishd.runs import run, tiny, weights
from tests.rishd.test_corpus import corpus_of


def made_of(config, vocab_size=None, tokenizer=None):
    return model_config(
        config.model,
        tokenizer=tokenizer,
        vocab_size=vocab_size or config.data.vocab_size,
        sequence_length=config.data.sequence_length,
    )


# Published sizes with a vocabulary of 32000, in millions: embedding and head, then the size in the name.
PARAMETERS = {"9M": 9.0, "60M": 58.1, "130M": 134.1, "250M": 247.4, "350M": 368.0, "500M": 518.1, "1B": 1339.1}
PARAMETERS["moe-1B"] = 1040.5


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_parameters_of_their_names(preset):
    config = make_config({"model": {"preset": preset}})
    with torch.device("meta"):
        model = build_model(config, made_of(config))
    if preset in PARAMETERS:
        assert parameter_count(model) / 1e6 == pytest.approx(PARAMETERS[preset], abs=0.06)
    assert parameter_count(model) == sum(p.numel() for p in model.parameters())
    tables = 2 * 32000 * model.config.hidden_size
    assert parameter_count(model, embeddings=False) == parameter_count(model) - tables


def test_million_preset_has_a_million_outside_the_tables():
    config = make_config({"model": {"preset": "1M"}})
    assert static_cost(config, made_of(config)).non_embedding_parameters == pytest.approx(1e6, rel=0.01)


@pytest.mark.parametrize("preset", ["9M", "moe-tiny"])
def test_flops_are_what_torch_counts(preset):
    config = override(make_config({}), {"model.preset": preset, "data.vocab_size": 512, "model.attention": "eager"})
    made = made_of(config)
    made._experts_implementation = "eager"  # torch does not count grouped products
    model = build_model(config, made)
    tokens = torch.randint(512, (2, 64))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    counted = counter.get_total_flops() / tokens.numel()
    assert training_flops_per_token(model, 64) == pytest.approx(counted, rel=0.03)


def test_a_token_meets_the_chosen_experts_only():
    config = override(make_config({}), {"model.preset": "moe-tiny", "data.vocab_size": 512})
    model = build_model(config, made_of(config))
    experts = sum(p.numel() for n, p in model.named_parameters() if "experts." in n and "shared" not in n)
    assert experts > 0.5 * parameter_count(model, embeddings=False)
    embedding = 512 * 128
    assert active_parameters(model) == parameter_count(model) - embedding - experts * 6 // 8


@pytest.mark.parametrize("name", ["adamw", "muon", "muon-lite", "soap", "soap-lite", "torch.optim:SGD"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_of_weights_and_state_is_what_a_step_allocates(name, precision):
    config = override(
        make_config({}), {"optimizer.name": name, "data.vocab_size": 512, "training.precision": precision}
    )
    known = static_cost(config, made_of(config))
    model = build_model(config, made_of(config))
    optimizer = build_optimizer(config.optimizer, model)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert known.weight_bytes == known.gradient_bytes == sum(p.nbytes for p in model.parameters())
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert known.optimizer_bytes == sum(v.nbytes for v in state)
    assert (known.optimizer_flops > 0) == (name not in ("adamw", "torch.optim:SGD"))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, precision)}
    assert {b.dtype for b in model.buffers()} == {torch.float32}  # of positions


def test_the_estimate_is_measured_and_told(text, tmp_path):
    config = tiny(
        text,
        {
            "optimizer.name": "adamw",
            "training": {"steps": 12, "batch_size": 8},
            "data.sequence_length": 128,
            "evaluation.tokens": 128,
            "checkpoints.every": 12,
            "logging.every": 12,
        },
    )
    model = build_model(config, made_of(config))
    measured = measured_cost(config, model, most=8)
    assert all(p.grad is None for p in model.parameters())
    result, said = run(config, tmp_path / "run")
    passes = result.summary.seconds - result.summary.optimizer_seconds
    assert measured.seconds > 0 and passes > 0  # no bound on their ratio: the machine may be busy
    (told,) = [line for line in said if "needs about" in line]
    assert "weights 3.4 MiB" in told and "GFLOP/s" in told
    # Activations: attention and MLP in float32 keep some tens of numbers per token, width and layer.
    per_token = measured.activation_bytes / 128 / 4
    assert 4 * 128 * 10 + 320 < per_token < 4 * 128 * 100 + 10 * 320


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (130, "2.17 min"), (9000, "2.5 h"), (1e6, "11.6 days")])
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("gigabytes", [3, 10])
def test_a_preset_that_does_not_fit_is_refused_before_anything_is_allocated(text, tmp_path, monkeypatch, gigabytes):
    monkeypatch.setattr(cost_module, "available_memory", lambda device: gigabytes * 2**30)
    monkeypatch.setattr("rishd.pretraining.prepare.build_model", lambda *_: pytest.fail("allocated"))
    with pytest.raises(DoesNotFitError, match=r"needs [\d.]+ GiB .*optimizer state.* and cpu has .* smaller model"):
        run(tiny(text, {"model.preset": "1B"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_activations_that_do_not_fit_are_refused(text, tmp_path, monkeypatch):
    config = tiny(text, {"training.batch_size": 512})
    static = static_cost(config, made_of(config))
    monkeypatch.setattr(cost_module, "available_memory", lambda device: static.bytes + 2**20)
    with pytest.raises(DoesNotFitError, match=r"activations .*micro_batch_size"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_gradient_checkpointing_keeps_less_and_computes_the_same(text, tmp_path):
    settings = {"data.sequence_length": 64, "optimizer.name": "adamw"}
    kept, saved = (
        run(tiny(text, {**settings, "training.gradient_checkpointing": on}), tmp_path / str(on)) for on in (False, True)
    )
    losses = [[loss for _, loss in result.series("loss")] for result, _ in (kept, saved)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    activations = [
        float(line.split("activations ")[1].split()[0]) for _, said in (kept, saved) for line in said if "needs" in line
    ]
    assert activations[1] < 0.6 * activations[0]


@pytest.mark.parametrize("preset", ["1M", "moe-tiny"])
def test_presets_train_and_load_as_transformers_models(text, tmp_path, preset):
    result, _ = run(tiny(text, {"model.preset": preset}), tmp_path / "run")
    assert result.final_validation_loss < 6.2
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    inputs = tokenizer("river 3 flows", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    longer = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert longer.shape[1] > inputs["input_ids"].shape[1]


def write_config(folder, **settings):
    from transformers import GPT2Config

    GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=400, **settings).save_pretrained(folder)
    return folder


def test_a_configuration_file_of_transformers(text, tmp_path):
    folder = write_config(tmp_path / "gpt2")
    config = tiny(text, {"model.config": str(folder), "optimizer.name": "muon-lite"})
    result, said = run(config, tmp_path / "run")
    assert any(line.startswith("gpt2, 1 layers of width 32, vocabulary 400") for line in said)
    assert weights(tmp_path / "run")["transformer.wte.weight"].shape == (400, 32)
    assert result.summary.steps == 6
    two = override(config, {"model.settings": {"n_layer": 2}})
    assert made_of(two).num_hidden_layers == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.config": "{tmp}/missing"}, "cannot be read"),
        ({"model.config": "{tmp}/odd.json"}, "not a configuration of transformers"),
        ({"model.config": "{tmp}/vit.json"}, "no causal language model of type 'vit'"),
        ({"model.config": "{tmp}/gpt2", "data.vocab_size": 500}, "the tokenizer has 500 tokens, .* vocabulary of 400"),
        ({"model.config": "{tmp}/gpt2", "data.sequence_length": 128}, "max_position_embeddings = 64"),
        (
            {"model.settings": {"num_hidden_layer": 3}},
            "num_hidden_layer, which a llama configuration",
        ),
        ({"model.settings": {"num_attention_heads": 3}}, "preset 9M"),
        ({"model.attention": "fast"}, "model.attention = 'fast'"),
    ],
)
def test_models_that_cannot_be_are_refused(text, tmp_path, changes, message):
    write_config(tmp_path / "gpt2")
    (tmp_path / "odd.json").write_text('{"hidden_size": 3}')
    (tmp_path / "vit.json").write_text(json.dumps({"model_type": "vit"}))
    changes = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(ConfigError, match=message):
        run(tiny(text, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_beyond_the_vocabulary_is_refused(text, tmp_path):
    config = tiny(text, {"model.config": str(write_config(tmp_path / "gpt2"))})
    tokenizer = load_tokenizer(override(config, {"data.vocab_size": 450}).data, corpus_of(text), lambda *_: None)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match="the tokenizer has 450 tokens"):
        run(override(config, {"data.tokenizer": str(tmp_path / "tokenizer")}), tmp_path / "run")
    fits = override(config, {"data.tokenizer": str(tmp_path / "tokenizer"), "model.settings.vocab_size": 450})
    result, _ = run(fits, tmp_path / "run")
    assert result.summary.steps == 6
