"""Randomly initialised models, and what they cost."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.presets import PRESETS


def build_model(config: PretrainConfig) -> PreTrainedModel:
    """A randomly initialised Llama of the preset's size."""
    size = PRESETS[config.model.preset]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.data.vocab_size,
            hidden_size=size.hidden,
            intermediate_size=size.ffn,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=max(1024, config.data.sequence_length),
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )
    return model.to(torch.bfloat16) if config.training.precision == "bfloat16" else model  # type: ignore[arg-type]


def parameter_count(model: PreTrainedModel, *, embeddings: bool = True) -> int:
    """Trainable parameters, with or without embedding and output head."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables = {id(p) for module in (model.get_input_embeddings(), head) for p in _of(module)}
    return sum(p.numel() for p in model.parameters() if p.requires_grad and (embeddings or id(p) not in tables))


def training_flops_per_token(model: PreTrainedModel, sequence_length: int) -> float:
    r"""FLOPs of forward and backward per token: :math:`6N + 12\,L\,d\,T`.

    Args:
        model: A dense transformer.
        sequence_length: T.

    N counts every parameter but the embedding (a look-up), the head included; L layers of width d. Causal attention is
    counted in full, as usual.

    Source: Chowdhery et al., PaLM, arXiv:2204.02311, appendix B.
    """
    embedding = sum(p.numel() for p in _of(model.get_input_embeddings()))
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    used = parameter_count(model) - (0 if tied else embedding)
    layers, width = int(model.config.num_hidden_layers), int(model.config.hidden_size)
    return 6.0 * used + 12.0 * layers * width * sequence_length


def _of(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())
