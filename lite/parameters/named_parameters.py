"""Parameters of common libraries that are tables or coefficients, recognised by attribute name.

They are looked up, added or exponentiated, never multiplied with an input like a matrix. A polar factor is meaningless
for them, so they run plain AdamW. They have no weight decay: zero is not neutral for the logarithm of a decay rate, and
the training code of Mamba and Swin omits it.

================================  ====================================================================
attribute                         where
================================  ====================================================================
``A_log``, ``D``, ``dt_bias``     state-space layers: Mamba, Mamba-2, Jamba, Falcon Mamba, Zamba (``D`` and ``dt_bias``
                                  beside ``A_log`` only)
``log_A_real``, ``A_imag``, …     S4D and its relatives
``time_decay``, ``time_first``…   RWKV
``relative_position_bias_table``  Swin, BEiT and MaxViT of timm, torchvision and transformers
``rel_pos_h``, ``rel_pos_w``, …   SAM, ViTDet, MViT; bottleneck attention of timm
``attention_biases``              LeViT, EfficientFormer, TinyViT
``pos_bias_u``, ``r_w_bias``, …   Conformer, Transformer-XL, XLNet
``pos_embed``, …                  tables of positions that are plain parameters: timm, torchvision, CLIP, transformers
================================  ====================================================================
"""

from __future__ import annotations

from torch import nn

_STATE_SPACE = "A_log"
_BESIDE_STATE_SPACE = frozenset({"D", "dt_bias"})  # too short to identify on their own
_NAMES = frozenset(
    {
        _STATE_SPACE,
        # S4D, S5
        "log_A_real",
        "A_real",
        "A_imag",
        "log_dt",
        # RWKV
        "time_decay",
        "time_first",
        "time_faaaa",
        "time_mix_key",
        "time_mix_value",
        "time_mix_receptance",
        # bias of attention scores by relative position
        "relative_position_bias_table",
        "relative_position_bias",
        "attention_biases",
        "rel_pos_h",
        "rel_pos_w",
        "rel_pos_t",
        "height_rel",
        "width_rel",
        "pos_bias_u",
        "pos_bias_v",
        "r_w_bias",
        "r_r_bias",
        "r_s_bias",
        # tables of positions, tokens or levels
        "absolute_pos_embed",
        "pos_embed",
        "pos_embedding",
        "pos_embed_window",
        "position_embedding",
        "position_embeddings",
        "position_enc",
        "positional_embedding",
        "level_embed",
    }
)


def is_table(module: nn.Module, name: str) -> bool:
    """Whether a parameter of a module is in this file's table.

    Args:
        module: Owner of the parameter.
        name: Its attribute.
    """
    if name in _BESIDE_STATE_SPACE:
        return _STATE_SPACE in module._parameters
    return name in _NAMES
