"""Grouping by module type on real architectures: every parameter in exactly one group."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from lite import MuonLITE, param_groups

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def kinds(model, **options):
    return {name: group["kind"] for group in param_groups(model, **options) for name, _ in group["params"]}


@pytest.fixture(params=["llama", "mistral", "tied", "gpt2", "convolutional"])
def model(request):
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**SMALL))
    if request.param == "tied":
        return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True))
    if request.param == "mistral":
        return MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=1))
    if request.param == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4))


def test_every_parameter_is_in_exactly_one_group_and_can_be_trained(model):
    groups = param_groups(model)
    ids = [id(p) for group in groups for _, p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    optimizer = MuonLITE(groups, 0.01)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_llama_is_grouped_as_published():
    groups = {group["kind"]: group for group in param_groups(LlamaForCausalLM(LlamaConfig(**SMALL)))}
    assert {kind: (group["rule"], len(group["params"])) for kind, group in groups.items()} == {
        "matrix": ("muon", 14),
        "embedding": ("adamw", 1),
        "head": ("adamw", 1),
        "norm": ("adamw", 5),
    }
    assert "chi" not in groups["matrix"]
    assert groups["embedding"]["chi"] == groups["norm"]["chi"] == 4.0
    assert groups["head"]["sharp_fraction"] == groups["head"]["chi"] == 1.0


def test_tied_weights_count_as_the_head():
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True))
    assert kinds(model)["model.embed_tokens.weight"] == "head"


def test_unknown_matrices_run_plain_muon_and_the_rest_adamw():
    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.scale = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4))

    groups = {group["kind"]: group for group in param_groups(nn.Sequential(Router(), nn.Linear(3, 3)))}
    assert groups["plain-matrix"]["rule"] == "muon"
    assert groups["plain-matrix"]["sharp_fraction"] == 0.0
    assert [name for name, _ in groups["other"]["params"]] == ["0.scale", "1.bias"]
    assert groups["other"]["chi"] == 1.0


def test_names_do_not_decide():
    """A hidden layer called "lm_head_norm_embed" is a matrix; the head is what is given as such."""
    model = nn.ModuleDict({"lm_head_norm_embed": nn.Linear(4, 4, bias=False), "x": nn.Linear(4, 9, bias=False)})
    assert set(kinds(model).values()) == {"matrix"}
    assert kinds(model, head=model["x"])["x.weight"] == "head"


def test_chi_for_all_or_some_kinds():
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    assert {group["chi"] for group in param_groups(model, chi=1.5)} == {1.5}
    some = {group["kind"]: group.get("chi") for group in param_groups(model, chi={"matrix": 3.0, "norm": 2.0})}
    assert some == {"matrix": 3.0, "embedding": 4.0, "head": 1.0, "norm": 2.0}
    with pytest.raises(ValueError, match="kind 'attention', which is unknown"):
        param_groups(model, chi={"attention": 2.0})
