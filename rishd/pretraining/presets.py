"""Published model sizes and their small relatives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """Width, feed-forward width, layers and heads of a Llama."""

    hidden: int
    ffn: int
    layers: int
    heads: int


# Sizes of the published runs (arXiv:2602.22681, settings); vocabulary 32000 gives the names. 1M has a million
# parameters outside embedding and head: small enough for many runs on a CPU.
PRESETS: dict[str, ModelSize] = {
    "1M": ModelSize(128, 352, 5, 4),
    "9M": ModelSize(128, 352, 4, 4),
    "60M": ModelSize(512, 1376, 8, 8),
    "130M": ModelSize(768, 2048, 12, 12),
    "250M": ModelSize(768, 2560, 24, 16),
    "350M": ModelSize(1024, 2736, 24, 16),
    "500M": ModelSize(1280, 3456, 22, 20),
    "1B": ModelSize(2048, 5461, 24, 32),
}
