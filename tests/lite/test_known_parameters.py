"""Kinds of parametrized weights and of tables that are matrices in shape only; guesses by shape are marked."""

import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import MambaConfig, MambaForCausalLM, SwinConfig, SwinForImageClassification

from lite import SOAPLITE, MuonLITE, param_groups


def placed(model, **options):
    """Name ↦ its group."""
    return {name: group for group in param_groups(model, **options) for name, _ in group["params"]}


def older(name):
    """A function of torch.nn.utils that torch calls deprecated."""

    def wrap(module, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(nn.utils, name)(module, **options)

    return wrap


PARAMETRIZED = {
    "weight_norm": (parametrizations.weight_norm, "parametrizations.{}.original1"),
    "spectral_norm": (parametrizations.spectral_norm, "parametrizations.{}.original"),
    "orthogonal": (parametrizations.orthogonal, "parametrizations.{}.original"),
    "older weight_norm": (older("weight_norm"), "{}_v"),
    "older spectral_norm": (older("spectral_norm"), "{}_orig"),
    "pruned": (lambda module, name="weight": prune.identity(module, name), "{}_orig"),
}
LAYERS = {
    "linear": (lambda: nn.Linear(6, 8), "matrix"),
    "conv": (lambda: nn.Conv2d(6, 8, 3), "conv"),
    "grouped": (lambda: nn.Conv1d(6, 8, 3, groups=2), "conv"),
    "embedding": (lambda: nn.Embedding(6, 8), "embedding"),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("how", PARAMETRIZED)
def test_a_parametrized_weight_has_the_kind_of_the_weight(how, layer):
    make, kind = LAYERS[layer]
    wrap, stored = PARAMETRIZED[how]
    plain, model = make(), wrap(make())
    found, expected = placed(model), placed(plain)["weight"]
    group = found[stored.format("weight")]
    settings = [{key: value for key, value in each.items() if key != "params"} for each in (group, expected)]
    assert group["kind"] == kind and settings[0] == settings[1]
    others = {name: each["kind"] for name, each in found.items() if each is not group and "bias" not in name}
    assert set(others.values()) <= {"other"}  # lengths of weight_norm


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_attention_is_cut_into_query_key_and_value(how):
    wrap, stored = PARAMETRIZED[how]
    model = wrap(nn.MultiheadAttention(8, 2), name="in_proj_weight")
    assert placed(model)[stored.format("in_proj_weight")]["blocks"] == (8, 8, 8)


@pytest.mark.parametrize("how", [name for name in PARAMETRIZED if name != "orthogonal"])
def test_a_parametrized_head_and_a_parametrized_router(how):
    wrap, stored = PARAMETRIZED[how]
    model = nn.Sequential(nn.Linear(6, 8), wrap(nn.Linear(8, 5)))
    assert placed(model, head=model[1])[f"1.{stored.format('weight')}"]["kind"] == "head"
    model.num_experts = 5
    assert placed(model)[f"1.{stored.format('weight')}"]["kind"] == "router"


@pytest.mark.parametrize("rule", [MuonLITE, SOAPLITE])
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_models_train(how, rule):
    torch.manual_seed(0)
    model = nn.Sequential(PARAMETRIZED[how][0](nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 1))
    optimizer = rule(param_groups(model, matrix_rule=rule.rule), 0.02)
    x = torch.randn(16, 6)
    losses = []
    for _ in range(15):
        loss = (model(x) - x[:, :1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def owner_of(*names, shape=(6, 4)):
    module = nn.Module()
    for name in names:
        module.register_parameter(name, nn.Parameter(torch.randn(shape)))
    return module


@pytest.mark.parametrize(
    "name",
    [
        "A_log",
        "A_imag",
        "time_decay",
        "relative_position_bias_table",
        "attention_biases",
        "rel_pos_h",
        "height_rel",
        "pos_bias_u",
        "r_w_bias",
        "positional_embedding",
        "pos_embed",
    ],
)
def test_tables_of_common_libraries_run_plain_adamw_without_decay(name):
    """In stand-ins for modules of timm, mamba_ssm, open_clip and others, which are not installed."""
    group = placed(owner_of(name))[name]
    assert (group["kind"], group["rule"], group["weight_decay"]) == ("other", "adamw", 0.0)
    assert placed(owner_of(name), kinds={name: "matrix"})[name]["kind"] == "matrix"
    assert placed(owner_of(name), settings={"other": {"weight_decay": 0.1}})[name]["weight_decay"] == 0.1


def test_short_names_count_beside_what_they_belong_to():
    assert placed(owner_of("A_log", "D", "dt_bias"))["D"]["weight_decay"] == 0.0
    assert placed(owner_of("D"))["D"]["kind"] == "plain-matrix"


def test_mamba_of_transformers():
    config = MambaConfig(vocab_size=40, hidden_size=8, state_size=4, num_hidden_layers=2, time_step_rank=2)
    found = placed(MambaForCausalLM(config))
    mixer = "backbone.layers.0.mixer"
    for name in ("A_log", "D"):
        assert found[f"{mixer}.{name}"]["rule"] == "adamw" and found[f"{mixer}.{name}"]["weight_decay"] == 0.0
    for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        assert found[f"{mixer}.{name}.weight"]["kind"] == "matrix"
    assert found["backbone.layers.0.norm.weight"]["kind"] == "norm"
    assert "plain-matrix" not in {group["kind"] for group in found.values()}


def test_swin_of_transformers():
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
    found = placed(SwinForImageClassification(config))
    tables = [group for name, group in found.items() if name.endswith("relative_position_bias_table")]
    assert tables and all(group["rule"] == "adamw" and group["weight_decay"] == 0.0 for group in tables)
    assert "plain-matrix" not in {group["kind"] for group in found.values()}


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixing, self.scale = nn.Parameter(torch.eye(4)), nn.Parameter(torch.ones(4))


def test_what_was_decided_by_shape_is_marked(capsys):
    model = nn.ModuleDict({"layers": nn.ModuleList([Own(), Own()]), "known": nn.Linear(4, 4)})
    plain = param_groups(model)
    shown = param_groups(model, show=True)
    text = capsys.readouterr().out
    assert [{k: v for k, v in a.items() if k != "params"} for a in plain] == [
        {k: v for k, v in a.items() if k != "params"} for a in shown
    ]
    assert (
        re.search(r"plain-matrix\*", text) and re.search(r"other\*", text) and "matrix*" not in text.split("plain-")[0]
    )
    assert "plain-matrix: layers.*.mixing (2)" in text and "other: layers.*.scale (2)" in text
    assert "known" not in text.replace("is not known", "")
    param_groups(model, kinds={Own: "matrix"}, show=True)
    text = capsys.readouterr().out
    assert "layers.*.mixing" not in text and "layers.*.scale (2)" in text
    param_groups(model["known"], show=True)
    assert "*" not in capsys.readouterr().out
