"""Grouping by module type on real architectures: every parameter in one group, every matrix entry in one view."""

import io
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    JetMoeConfig,
    JetMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from lite import SOAPLITE, MuonLITE, param_groups
from lite.parameters.grouping import print_groups
from lite.parameters.matrix_view import check_layout, matrix_views

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ONE_KV = {**SMALL, "num_key_value_heads": 1}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
MOE = {"num_experts": 4, "moe_intermediate_size": 12, "num_experts_per_tok": 2}

MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**ONE_KV)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, add_cross_attention=True)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**ONE_KV, pad_token_id=0)),
    "qwen2-moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**ONE_KV, **MOE, shared_expert_intermediate_size=20, decoder_sparse_step=1)
    ),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**ONE_KV, **MOE, head_dim=8)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**ONE_KV, num_local_experts=4)),
    "gpt-oss": lambda: GptOssForCausalLM(GptOssConfig(**ONE_KV, num_local_experts=4, head_dim=8)),
    "jet-moe": lambda: JetMoeForCausalLM(
        JetMoeConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_local_experts=4,
            kv_channels=8,
        )
    ),
    "vit": lambda: ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=8,
            patch_size=4,
        )
    ),
    "resnet": lambda: ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "convolutional": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 3, groups=4)
    ),
    "attention": lambda: nn.TransformerDecoderLayer(8, 2, 12),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]()


def kinds(model, **options):
    return {name: group["kind"] for group in param_groups(model, **options) for name, _ in group["params"]}


def settings_of(model, ending, **options):
    """Settings, without parameters, of the group that holds the only parameter whose name ends so."""
    groups = param_groups(model, **options)
    found = [group for group in groups for name, _ in group["params"] if name.endswith(ending)]
    assert len(found) == 1
    return {key: value for key, value in found[0].items() if key != "params"}


def views(p, group):
    keys = {key: group[key] for key in ("layout", "blocks", "block_axis") if key in group}
    check_layout(p.shape, **keys)
    return matrix_views(p.detach(), **keys)


def single(view):
    """Matrices of a view: itself, or each expert's."""
    return view.unbind() if view.ndim == 3 else [view]


def test_every_parameter_is_in_exactly_one_group(model):
    groups = param_groups(model)
    ids = [id(p) for group in groups for _, p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("split_heads", [False, True])
def test_writing_every_view_writes_every_entry_once(model, split_heads):
    before = [p.detach().clone() for p in model.parameters()]
    for group in param_groups(model, split_heads=split_heads):
        for _, p in group["params"]:
            for view in [p.detach()] if group["rule"] == "adamw" else views(p, group):
                assert group["rule"] == "adamw" or (view.ndim in (2, 3) and min(view.shape[-2:]) > 1)
                view.add_(1.0)
    for old, p in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), old + 1.0, rtol=0, atol=0)


def test_groups_are_plain_data(model):
    """Except for the parameters, so that a checkpoint loads with weights_only=True."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in param_groups(model)]
    file = io.BytesIO()
    torch.save(groups, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == groups


@pytest.mark.parametrize("cls", [MuonLITE, SOAPLITE])
def test_groups_can_be_trained_and_their_state_loaded(model, cls):
    optimizer = cls(param_groups(model, matrix_rule=cls.rule), 0.01)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):  # SOAP's first gradient only sets the bases
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.isfinite().all() for p in model.parameters())
    other = cls(param_groups(model, matrix_rule=cls.rule), 0.01)
    other.load_state_dict(optimizer.state_dict())
    for p in model.parameters():
        assert all(torch.equal(value, other.state[p][key]) for key, value in optimizer.state[p].items())


@pytest.mark.parametrize("name", ["phi3", "mixtral", "convolutional"])
@pytest.mark.parametrize("cls", [MuonLITE, SOAPLITE])
def test_matrices_inside_parameters_move_as_if_they_were_parameters(name, cls):
    """Fused projections, stacks of experts and kernels: cut or not, each matrix makes its own step."""
    model = MODELS[name]()
    groups = param_groups(model, matrix_rule=cls.rule)
    apart = []
    for group in groups:
        if group["rule"] != "adamw":
            plain = {key: value for key, value in group.items() if key not in ("layout", "blocks", "block_axis")}
            parts = [matrix for _, p in group["params"] for view in views(p, group) for matrix in single(view)]
            apart.append({**plain, "params": [nn.Parameter(x.clone()) for x in parts]})
    together = cls([group for group in groups if group["rule"] != "adamw"], 0.01)
    alone = cls(apart, 0.01)
    for _ in range(2):
        for group, separate in zip(together.param_groups, alone.param_groups, strict=True):
            matrices = iter(separate["params"])
            for p in group["params"]:
                p.grad = torch.randn_like(p)
                for view in views(p.grad, group):
                    for g in single(view):
                        next(matrices).grad = g.clone()
        together.step(), alone.step()
    for group, separate in zip(together.param_groups, alone.param_groups, strict=True):
        matrices = iter(separate["params"])
        for p in group["params"]:
            for view in views(p, group):
                for w in single(view):
                    torch.testing.assert_close(w, next(matrices).detach(), rtol=1e-5, atol=1e-6)


def test_llama_is_grouped_as_published():
    groups = {group["kind"]: group for group in param_groups(MODELS["llama"]())}
    assert {kind: (group["rule"], len(group["params"])) for kind, group in groups.items()} == {
        "matrix": ("muon", 14),
        "embedding": ("adamw", 1),
        "head": ("adamw", 1),
        "norm": ("adamw", 5),
    }
    assert set(groups["matrix"]) == {"params", "kind", "rule"}  # the rest is the optimizer's own
    assert groups["embedding"]["chi"] == groups["norm"]["chi"] == 4.0
    assert groups["embedding"]["sharp_fraction"] == groups["norm"]["sharp_fraction"] == 0.1
    assert groups["head"]["sharp_fraction"] == groups["head"]["chi"] == 1.0


def test_tied_weights_count_as_the_head():
    assert kinds(MODELS["tied"]())["model.embed_tokens.weight"] == "head"


@pytest.mark.parametrize("name", ["qwen2-moe", "qwen3-moe", "mixtral"])
def test_experts_are_matrices_each_and_routers_run_plain_muon(name):
    model = MODELS[name]()
    width = model.model.layers[0].mlp.experts.down_proj.shape[-1]
    fused = {"kind": "experts", "rule": "muon", "layout": "experts", "blocks": (width, width), "block_axis": -2}
    assert settings_of(model, "0.mlp.experts.gate_up_proj") == fused
    assert settings_of(model, "0.mlp.experts.down_proj") == {"kind": "experts", "rule": "muon", "layout": "experts"}
    router = settings_of(model, "0.mlp.gate.weight")
    assert router == {"kind": "router", "rule": "muon", "chi": 1.0, "sharp_fraction": 0.0}
    assert "blocks" not in settings_of(model, "0.mlp.experts.gate_up_proj", split_fused=False)
    assert Counter(kinds(model).values())["experts"] == 4


def test_gate_of_one_row_runs_adamw():
    settings = settings_of(MODELS["qwen2-moe"](), "0.mlp.shared_expert_gate.weight")
    assert settings == {"kind": "other", "rule": "adamw", "chi": 1.0, "sharp_fraction": 1.0}


def test_other_expert_layouts():
    """GPT-OSS interleaves gate and up, and has a bias of every expert; JetMoE's routers are linear layers."""
    model = MODELS["gpt-oss"]()
    assert "blocks" not in settings_of(model, "0.mlp.experts.gate_up_proj")
    assert settings_of(model, "0.mlp.experts.gate_up_proj_bias")["kind"] == "other"
    assert settings_of(model, "0.mlp.router.weight")["kind"] == "router"
    assert kinds(MODELS["jet-moe"]())["model.layers.0.mlp.router.layer.weight"] == "router"
    assert kinds(MODELS["jet-moe"]())["model.layers.0.mlp.input_linear.weight"] == "experts"


def test_fused_projections_are_split_where_the_class_tells():
    gpt2, phi3, attention = MODELS["gpt2"](), MODELS["phi3"](), MODELS["attention"]()
    assert settings_of(gpt2, "h.0.attn.c_attn.weight")["blocks"] == (16, 16, 16)
    assert settings_of(gpt2, "h.0.attn.c_attn.weight")["block_axis"] == -1
    assert settings_of(gpt2, "h.0.crossattention.c_attn.weight")["blocks"] == (16, 16)
    assert settings_of(gpt2, "h.0.crossattention.q_attn.weight") == {"kind": "matrix", "rule": "muon"}
    assert settings_of(phi3, "0.self_attn.qkv_proj.weight")["blocks"] == (16, 8, 8)
    assert settings_of(phi3, "0.mlp.gate_up_proj.weight")["blocks"] == (24, 24)
    assert settings_of(attention, "self_attn.in_proj_weight")["blocks"] == (8, 8, 8)
    assert settings_of(attention, "self_attn.in_proj_weight", split_fused=False) == {"kind": "matrix", "rule": "muon"}


def test_every_head_is_a_matrix_on_request():
    llama, mistral, gpt2 = MODELS["llama"](), MODELS["mistral"](), MODELS["gpt2"]()
    attention, neox = MODELS["attention"](), MODELS["gpt-neox"]()
    for model, ending, blocks, axis in (
        (llama, "0.self_attn.q_proj.weight", (8, 8), -2),
        (llama, "0.self_attn.o_proj.weight", (8, 8), -1),
        (mistral, "0.self_attn.k_proj.weight", None, -2),  # one head
        (gpt2, "h.0.attn.c_attn.weight", (8,) * 6, -1),
        (gpt2, "h.0.attn.c_proj.weight", (8, 8), -2),
        (attention, "self_attn.in_proj_weight", (4,) * 6, -2),
        (neox, "0.attention.query_key_value.weight", (8,) * 6, -2),
        (MODELS["phi3"](), "0.self_attn.qkv_proj.weight", (8,) * 4, -2),
        (MODELS["phi3"](), "0.mlp.gate_up_proj.weight", (24, 24), -2),
    ):
        group = settings_of(model, ending, split_heads=True)
        assert (group.get("blocks"), group.get("block_axis", -2)) == (blocks, axis), ending
    assert "blocks" not in settings_of(neox, "0.attention.query_key_value.weight")  # interleaved: whole
    assert "blocks" not in settings_of(llama, "0.self_attn.q_proj.weight")


def test_per_head_steps_do_not_depend_on_the_order_of_heads():
    """Permuting the heads of GPT-NeoX's interleaved weight permutes the step; the whole weight's step, too."""

    def stepped(order):
        torch.manual_seed(0)
        w = torch.randn(2, 3, 8, 16)
        g = torch.randn(2, 3, 8, 16)
        p = nn.Parameter(w[order].reshape(48, 16))
        p.grad = g[order].reshape(48, 16)
        group = {"params": [p], "rule": "muon", "blocks": (8,) * 6, "block_axis": -2}
        MuonLITE([group], lr=0.1, chi=2.0).step()
        return p.detach().reshape(2, 3, 8, 16)[order]

    torch.testing.assert_close(stepped([1, 0]), stepped([0, 1]))


@pytest.mark.parametrize("dora", [False, True])
def test_factors_of_adapters_run_plain_muon_and_frozen_weights_nothing(dora):
    targets = ["q_proj", "down_proj"] + ([] if dora else ["embed_tokens"])
    model = get_peft_model(MODELS["llama"](), LoraConfig(r=4, target_modules=targets, use_dora=dora))
    groups = {group["kind"]: group for group in param_groups(model)}
    assert set(groups) == ({"adapter", "other"} if dora else {"adapter"})
    names = {name for name, _ in groups["adapter"]["params"]}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad and p.ndim == 2}
    assert len(names) == 8 if dora else 10
    assert (groups["adapter"]["chi"], groups["adapter"]["sharp_fraction"]) == (1.0, 0.0)
    if dora:
        assert all("magnitude" in name for name, _ in groups["other"]["params"])
    one_row = get_peft_model(MODELS["llama"](), LoraConfig(r=1, target_modules=["q_proj"]))
    assert {group["kind"] for group in param_groups(one_row)} == {"other"}


def test_timm_attention_has_query_key_and_value():
    """A class with timm's name and forward; the library itself is not a dependency."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.head_dim = 2, 4
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    Attention.__module__ = "timm.layers.attention"
    model = nn.Sequential(Attention())
    assert settings_of(model, "qkv.weight")["blocks"] == (8, 8, 8)
    assert settings_of(model, "qkv.weight", split_heads=True)["blocks"] == (4,) * 6
    assert settings_of(model, "0.proj.weight", split_heads=True)["block_axis"] == -1


def test_gpt2_blocks_are_query_key_and_value():
    model = MODELS["gpt2"]()
    attention = model.transformer.h[0].attn
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    expected = (attention.c_attn(x) - attention.c_attn.bias).split(attention.split_size, dim=-1)
    parts = matrix_views(attention.c_attn.weight, blocks=(16, 16, 16), block_axis=-1)
    for part, y in zip(parts, expected, strict=True):
        torch.testing.assert_close(x @ part, y)


def test_convolutions_are_flattened_and_their_groups_split():
    groups = {name: group for group in param_groups(MODELS["convolutional"]()) for name, _ in group["params"]}
    assert {name: group["kind"] for name, group in groups.items() if name.endswith("weight")} == {
        "0.weight": "conv",
        "1.weight": "norm",
        "2.weight": "conv",
        "3.weight": "other",  # depthwise: every group has one row
    }
    assert "blocks" not in groups["0.weight"]
    assert groups["2.weight"]["blocks"] == (2, 2)
    whole = param_groups(MODELS["convolutional"](), split_fused=False)
    assert (2, 2) in [group.get("blocks") for group in whole]


def test_classifiers_and_position_tables_of_vision_models():
    vit = MODELS["vit"]()
    assert kinds(vit)["vit.embeddings.position_embeddings"] == "other"
    assert kinds(vit)["vit.embeddings.patch_embeddings.projection.weight"] == "conv"
    assert kinds(vit)["classifier.weight"] == "matrix"
    assert kinds(vit, head=vit.classifier)["classifier.weight"] == "head"


def test_unknown_matrices_run_plain_muon_and_the_rest_adamw():
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.scale = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4))
            self.table = nn.Parameter(torch.ones(2, 3, 4))

    groups = {group["kind"]: group for group in param_groups(nn.Sequential(Unknown(), nn.Linear(3, 3)))}
    assert groups["plain-matrix"]["rule"] == "muon"
    assert groups["plain-matrix"]["sharp_fraction"] == 0.0
    assert [name for name, _ in groups["other"]["params"]] == ["0.scale", "0.table", "1.bias"]
    assert groups["other"]["chi"] == 1.0


def test_names_do_not_decide():
    """A hidden layer called "lm_head_norm_embed" is a matrix; the head is the module given as such."""
    model = nn.ModuleDict({"lm_head_norm_embed": nn.Linear(4, 4, bias=False), "x": nn.Linear(4, 9, bias=False)})
    assert set(kinds(model).values()) == {"matrix"}
    assert kinds(model, head=model["x"])["x.weight"] == "head"


def test_a_head_that_is_none_is_refused():
    model = nn.ModuleDict({"x": nn.Linear(4, 4), "head": nn.Sequential(nn.Dropout(), nn.Linear(4, 9))})
    assert kinds(model, head=model["head"][1])["head.1.weight"] == "head"
    for head in (model["head"], nn.Linear(4, 9)):
        with pytest.raises(ValueError, match="whose weight is not a parameter of the model"):
            param_groups(model, head=head)


def test_the_head_is_found_inside_wrappers():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    assert kinds(Wrapper(MODELS["llama"]()))["module.lm_head.weight"] == "head"


def test_chi_and_settings_for_all_or_some_kinds():
    model = MODELS["llama"]()
    assert {group["chi"] for group in param_groups(model, chi=1.5)} == {1.5}
    some = {group["kind"]: group.get("chi") for group in param_groups(model, chi={"matrix": 3.0, "norm": 2.0})}
    assert some == {"matrix": 3.0, "embedding": 4.0, "head": 1.0, "norm": 2.0}
    decays = {
        group["kind"]: group.get("weight_decay")
        for group in param_groups(model, settings={"norm": {"weight_decay": 0.0, "chi": 1.0}})
    }
    assert decays == {"matrix": None, "embedding": None, "head": None, "norm": 0.0}
    assert {group["rule"] for group in param_groups(model, matrix_rule="soap")} == {"soap", "adamw"}


def test_kinds_are_overridden_by_type_module_and_name():
    model = MODELS["qwen2-moe"]()
    layer = model.model.layers[0]
    by = kinds(
        model,
        kinds={
            nn.Linear: "plain-matrix",
            type(layer.mlp.gate): "other",
            layer.self_attn: "matrix",
            "model.layers.0.self_attn.q_proj.weight": "embedding",
            "model.embed_tokens.weight": "matrix",
        },
    )
    assert by["model.layers.1.self_attn.q_proj.weight"] == "plain-matrix"
    assert by["model.layers.1.mlp.gate.weight"] == "other"
    # nn.Linear is inside of self_attn, and the innermost one decides; a name goes before both.
    assert by["model.layers.0.self_attn.k_proj.weight"] == "plain-matrix"
    assert by["model.layers.0.self_attn.q_proj.weight"] == "embedding"
    assert by["model.embed_tokens.weight"] == "matrix"
    assert by["model.layers.0.self_attn.k_proj.bias"] == "other"  # a vector keeps its kind

    # A module overrides its type, and keeps the layout of the type.
    experts = layer.mlp.experts
    options = {"kinds": {type(experts): "other", experts: "plain-matrix"}}
    assert settings_of(model, "0.mlp.experts.down_proj", **options)["layout"] == "experts"
    assert settings_of(model, "1.mlp.experts.down_proj", **options)["rule"] == "adamw"


def test_an_unknown_stack_can_be_declared():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.kernel = nn.Parameter(torch.ones(3, 4, 5)), nn.Parameter(torch.ones(4, 2, 3, 3))

    model = Stack()
    assert settings_of(model, "weight", kinds={"weight": "experts"})["layout"] == "experts"
    assert settings_of(model, "kernel", kinds={Stack: "conv"})["layout"] == "conv"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chi": {"attention": 2.0}}, "chi names kind 'attention', which is unknown"),
        ({"settings": {"bias": {}}}, "settings names kind 'bias'"),
        ({"kinds": {nn.Linear: "hidden"}}, "kinds names kind 'hidden'"),
        ({"kinds": {nn.LSTM: "matrix"}}, "kinds names 'LSTM', which is not a parameter"),
        ({"kinds": {"0.wieght": "matrix"}}, "kinds names '0.wieght', which is not a parameter"),
        ({"kinds": {"0.bias": "matrix"}}, r"parameter 0\.bias has shape \(4,\), so it cannot be of kind 'matrix'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        param_groups(nn.Sequential(nn.Linear(4, 4)), **options)


def test_parameters_without_shape_are_refused():
    with pytest.raises(ValueError, match="weight of LazyLinear has no shape yet"):
        param_groups(nn.Sequential(nn.LazyLinear(4)))


def test_the_table_counts_everything(capsys):
    model = MODELS["gpt2"]()
    groups = param_groups(model, show=True)
    printed = capsys.readouterr().out
    assert "columns 3×16" in printed
    total = sum(p.numel() for p in model.parameters())
    assert f"{len(list(model.parameters()))} │" in printed
    assert f"{total:,}" in printed
    print_groups([{"params": [torch.zeros(3, 5)]}, *groups[:1]])
    assert "15" in capsys.readouterr().out
