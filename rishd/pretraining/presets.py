"""Presets of models (published sizes and small variants, as transformers configurations) and of optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _llama(hidden: int, ffn: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": False,
    }


def _qwen2_moe(hidden: int, layers: int, heads: int, *, experts: int, width: int, chosen: int, shared: int) -> Any:
    return {
        "model_type": "qwen2_moe",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_experts": experts,
        "moe_intermediate_size": width,
        "num_experts_per_tok": chosen,
        "shared_expert_intermediate_size": shared,
        "output_router_logits": True,  # adds the load-balancing loss to training
        "router_aux_loss_coef": 0.01,
        "tie_word_embeddings": False,
    }


# Sizes of the published runs (arXiv:2602.22681, settings); with a vocabulary of 32000 each has about as many parameters
# as its name says. 1M has one million parameters outside embedding and head, and moe-tiny two million: small enough for
# many runs on a CPU.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "1M": _llama(128, 352, 5, 4),
    "9M": _llama(128, 352, 4, 4),
    "60M": _llama(512, 1376, 8, 8),
    "130M": _llama(768, 2048, 12, 12),
    "250M": _llama(768, 2560, 24, 16),
    "350M": _llama(1024, 2736, 24, 16),
    "500M": _llama(1280, 3456, 22, 20),
    "1B": _llama(2048, 5461, 24, 32),
    "moe-tiny": _qwen2_moe(128, 4, 4, experts=8, width=128, chosen=2, shared=256),
    "moe-1B": _qwen2_moe(768, 15, 12, experts=32, width=768, chosen=4, shared=3072),
}

OPTIMIZERS: Mapping[str, str] = {  # name ↦ module:Class
    "adamw": "torch.optim:AdamW",
    "muon": "lite:Muon",
    "muon-lite": "lite:MuonLITE",
    "soap": "lite:SOAP",
    "soap-lite": "lite:SOAPLITE",
    "adamw-lite": "lite:AdamWLITE",
    "lion": "lite:Lion",
    "lion-lite": "lite:LionLITE",
    "normuon": "lite:NorMuon",
    "normuon-lite": "lite:NorMuonLITE",
    "shampoo": "lite:Shampoo",
    "shampoo-lite": "lite:ShampooLITE",
}
