"""QK-clip: every logit of a head that exceeds the threshold shrinks by the same factor, whatever the head layout."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lite import QKClip
from lite.qk_clip import largest_logits

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
FALCON = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bias": True}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "llama, grouped": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)),
    "qwen2, one key head": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=1)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SMALL, num_key_value_heads=2, pad_token_id=0)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=50,
            hidden_size=32,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
        )
    ),
    "falcon": lambda: FalconForCausalLM(FalconConfig(**FALCON, multi_query=False)),
    "falcon, one key head": lambda: FalconForCausalLM(FalconConfig(**FALCON, multi_query=True)),
    "falcon, grouped": lambda: FalconForCausalLM(FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2)),
}
TOKENS = torch.arange(24).reshape(2, 12)


def made(name):
    """A model in float64 with large attention weights and biases."""
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def maxima(model, clip):
    with torch.no_grad(), clip.watching():
        model(TOKENS)
    return clip.maxima


@pytest.mark.parametrize("name", MODELS)
def test_the_first_layer_s_logits_shrink_to_the_threshold_head_by_head(name):
    """The first layer's input does not depend on attention weights, so its maxima are known after the step."""
    model = made(name)
    clip = QKClip(model, threshold=1.0)
    first = next(iter(clip.maxima or maxima(model, clip)))
    before = clip.maxima[first]
    clip.threshold = float(before.sort().values[1:3].mean())  # some heads above, some below
    assert 0 < int((before > clip.threshold).sum()) < len(before)
    values = {key: value.clone() for key, value in model.state_dict().items()}
    clip.step()
    after = maxima(model, clip)[first]
    expected = before.clamp(max=clip.threshold)
    torch.testing.assert_close(after[before > 0], expected[before > 0], rtol=1e-9, atol=1e-12)
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, values[key])]
    assert changed and all("attn" in key or "attention" in key for key in changed)


@pytest.mark.parametrize("name", MODELS)
def test_below_the_threshold_nothing_changes(name):
    model = made(name)
    values = copy.deepcopy(model.state_dict())
    clip = QKClip(model, threshold=1e6)
    maxima(model, clip)
    clip.step()
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


def test_one_key_head_a_query_head_gives_the_published_factors():
    model = made("llama")
    attention = model.model.layers[0].self_attn
    query, key = attention.q_proj.weight.detach().clone(), attention.k_proj.weight.detach().clone()
    clip = QKClip(model, threshold=0.5)
    largest = maxima(model, clip)["model.layers.0.self_attn"].clone()
    clip.step()
    root = (0.5 / largest.clamp(min=0.5)).sqrt().repeat_interleave(8).unsqueeze(1)
    torch.testing.assert_close(attention.q_proj.weight.detach(), root * query)
    torch.testing.assert_close(attention.k_proj.weight.detach(), root * key)


def test_maxima_are_those_of_the_attention_probabilities():
    """Against the logits that eager attention of transformers computes, seen through its probabilities."""
    model = made("llama, grouped")
    clip = QKClip(model)
    seen = maxima(model, clip)["model.layers.0.self_attn"]
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    attention = eager.model.layers[0].self_attn
    x = eager.model.layers[0].input_layernorm(eager.model.embed_tokens(TOKENS))
    cos, sin = eager.model.rotary_emb(x, torch.arange(12)[None])
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (attention.q_proj, attention.k_proj))
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    logits = q @ k.repeat_interleave(2, dim=1).mT * 8**-0.5
    expected = logits.masked_fill(~torch.ones(12, 12, dtype=torch.bool).tril(), -torch.inf).amax((0, 2, 3))
    torch.testing.assert_close(seen, expected)


def test_maxima_with_masks_and_in_chunks(monkeypatch):
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 5, 8)
    mask = torch.rand(2, 1, 6, 5) > 0.5
    logits = q @ k.repeat_interleave(2, dim=1).mT / 8**0.5
    expected = logits.masked_fill(~mask, -torch.inf).amax((0, 2, 3))
    added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    for chunk in (2**24, 2 * 4 * 5 * 2):
        monkeypatch.setattr("lite.qk_clip._LARGEST_CHUNK", chunk)
        torch.testing.assert_close(largest_logits(q, k, mask, enable_gqa=True), expected)
        torch.testing.assert_close(largest_logits(q, k, added, enable_gqa=True), expected)
        causal = logits.masked_fill(~torch.ones(6, 5, dtype=torch.bool).tril(), -torch.inf).amax((0, 2, 3))
        torch.testing.assert_close(largest_logits(q, k, is_causal=True, enable_gqa=True), causal)
        torch.testing.assert_close(
            largest_logits(q, k, scale=2.0, enable_gqa=True), logits.amax((0, 2, 3)) * 2 * 8**0.5
        )


def test_a_logit_that_is_not_finite_scales_nothing():
    model = made("llama")
    clip = QKClip(model, threshold=0.5)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(torch.nan)
    values = copy.deepcopy(model.state_dict())
    maxima(model, clip)
    clip.step()
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items() if "embed" not in key)


def test_passes_between_steps_count_together_and_steps_start_anew():
    model = made("llama")
    clip = QKClip(model)
    with torch.no_grad(), clip.watching():
        model(TOKENS[:1])
    first = clip.maxima
    with torch.no_grad(), clip.watching():
        model(TOKENS[1:])
    both = clip.maxima
    assert all(torch.all(both[name] >= first[name]) for name in first)
    clip.step()
    assert clip.maxima == {}
    whole = maxima(model, clip)
    assert all(torch.allclose(whole[name], both[name]) for name in both)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(3, 3), "no attention whose query and key weights are known"),
        (lambda: nn.TransformerEncoderLayer(8, 2, 12), "nn.MultiheadAttention"),
        (
            lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8)),
            "normalises queries or keys",
        ),
        (lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**SMALL, n_routed_experts=4)), "latent attention"),
        (lambda: MODELS["llama"]().requires_grad_(False), "frozen query or key weights"),
    ],
)
def test_attention_that_cannot_be_clipped_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        QKClip(make())


def test_bad_thresholds_and_unseen_attention_are_refused():
    model = made("llama")
    with pytest.raises(ValueError, match="threshold"):
        QKClip(model, threshold=-1.0)
    with pytest.raises(RuntimeError, match="saw no scaled_dot_product_attention in model"):
        QKClip(model).step()
    with pytest.raises(ValueError, match="parametrized"):
        nn.utils.parametrizations.spectral_norm(model.model.layers[0].self_attn.q_proj)
        QKClip(model)
    gemma = Gemma2ForCausalLM(Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8))  # soft-capped: no sdpa
    clip = QKClip(gemma)
    maxima(gemma, clip)
    with pytest.raises(RuntimeError, match="attn_implementation='sdpa'"):
        clip.step()


def test_attention_outside_known_modules_is_left_alone():
    model = made("llama")
    clip = QKClip(model)
    q = torch.randn(1, 3, 4, 8)
    with clip.watching():
        scaled_dot_product_attention(q, q, q)
    assert clip.maxima == {}
