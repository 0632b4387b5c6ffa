"""Positions of query, key, value, gate and up projections in the weights of known modules.

A weight is described along its output axis (its input axis for the output projection of attention) by its parts in
order, each with its heads. From this follow the blocks of a parameter group (:mod:`lite.parameters.module_kinds`) and
the rows that QK-clip scales (:mod:`lite.qk_clip`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

from lite.parameters.matrix_view import Layout
from lite.parameters.parametrized import stored_weight

Role: TypeAlias = Literal["query", "key", "value", "output", "gate", "up"]

# Before transformers 5.1 an experts module does not say that gate and up are concatenated.
_GATE_THEN_UP = ("MixtralExperts", "Qwen2MoeExperts", "Qwen3MoeExperts")
_GATED_MLPS = ("Phi3MLP", "GlmMLP", "Glm4MLP")
# Classes of timm whose ``qkv`` has three parts of ``num_heads`` heads; its other attention classes interleave them.
_TIMM_MODULES = ("timm.layers.attention", "timm.models.vision_transformer", "timm.models.swin_transformer")
_TIMM_CLASSES = ("Attention", "WindowAttention")


class Part(NamedTuple):
    """Neighbouring rows (or columns) of a weight with one role.

    Args:
        role: What the rows compute.
        heads: Number of heads; 1 if there are none.
        size: Rows of one head.
    """

    role: Role
    heads: int
    size: int


class Projection(NamedTuple):
    """A weight, and its parts in order.

    Args:
        weight: Parameter.
        parts: Parts along ``axis``; their sizes add up to its length.
        axis: Axis −2 or −1 of the weight.
        bias: Bias along the same axis, if there is one.
        layout: Matrix view of the weight, see :mod:`lite.parameters.matrix_view`.
    """

    weight: Tensor
    parts: tuple[Part, ...]
    axis: int = -2
    bias: Tensor | None = None
    layout: Layout = "matrix"

    def blocks(self, *, by_head: bool = False) -> tuple[int, ...] | None:
        """Sizes of the matrices in the weight; ``None`` if the weight is a single matrix.

        Parts of one role that are not adjacent, as with interleaved heads, cannot form a matrix without a copy. Such a
        weight is cut by head or not at all.

        Args:
            by_head: Whether every head is a separate matrix.
        """
        if by_head:
            sizes = tuple(part.size for part in self.parts for _ in range(part.heads))
        elif len({part.role for part in self.parts}) == len(self.parts):
            sizes = tuple(part.heads * part.size for part in self.parts)
        else:
            return None
        return sizes if len(sizes) > 1 and min(*sizes, *self.weight.shape[-2:]) > 1 else None


def projections(module: Any) -> Iterator[Projection]:
    """Projections that a module owns or, for attention, that its linear layers own.

    Args:
        module: Any module; an unknown type gives nothing.
    """
    for each in _candidates(module):
        length = sum(part.heads * part.size for part in each.parts)
        if each.weight.ndim == (3 if each.layout == "experts" else 2) and each.weight.shape[each.axis] == length:
            yield each


def _candidates(module: Any) -> Iterator[Projection]:
    if isinstance(module, nn.MultiheadAttention):
        weight = stored_weight(module, "in_proj_weight")
        if weight is not None:
            yield Projection(weight, _three(module.num_heads, module.head_dim), bias=module.in_proj_bias)
        yield from _of_linear(module.out_proj, (Part("output", module.num_heads, module.head_dim),), axis=-1)
    elif is_transformers(module, "GPT2Attention"):
        yield from _gpt2(module)
    elif is_transformers(module, "Phi3Attention"):
        size, key_heads = module.head_dim, module.num_key_value_heads
        heads = module.o_proj.in_features // size
        parts = (Part("query", heads, size), Part("key", key_heads, size), Part("value", key_heads, size))
        yield from _of_linear(module.qkv_proj, parts)
        yield from _of_linear(module.o_proj, (Part("output", heads, size),), axis=-1)
    elif is_transformers(module, "GPTNeoXAttention"):
        yield from _query_key_value(module, module.dense.in_features // module.head_size, module.head_size)
    elif is_transformers(module, "BloomAttention"):
        yield from _query_key_value(module, module.num_heads, module.head_dim)
    elif is_transformers(module, "FalconAttention"):
        yield from _falcon(module)
    elif _is_timm(module):
        yield from _of_linear(module.qkv, _three(module.num_heads, module.head_dim))
        yield from _of_linear(module.proj, (Part("output", module.num_heads, module.head_dim),), axis=-1)
    elif is_transformers(module, *_GATED_MLPS):
        half = module.gate_up_proj.out_features // 2
        yield from _of_linear(module.gate_up_proj, (Part("gate", 1, half), Part("up", 1, half)))
    elif isinstance(getattr(module, "num_experts", None), int) and getattr(module, "has_gate", True):
        yield from _experts(module)
    else:
        yield from _separate(module)


def _three(heads: int, size: int) -> tuple[Part, ...]:
    return Part("query", heads, size), Part("key", heads, size), Part("value", heads, size)


def _of_linear(linear: Any, parts: tuple[Part, ...], *, axis: int = -2) -> Iterator[Projection]:
    weight = stored_weight(linear, "weight")
    if weight is not None:
        yield Projection(weight, parts, axis, linear.bias if parts[0].role != "output" else None)


def _gpt2(module: Any) -> Iterator[Projection]:
    """GPT-2's Conv1D of shape (in, out): query, key and value, or key and value of cross-attention."""
    heads, size = module.num_heads, module.head_dim
    parts = _three(heads, size)
    weight = stored_weight(module.c_attn, "weight")
    if weight is not None:
        yield from _of_linear(module.c_attn, parts[-(weight.shape[1] // module.split_size) :], axis=-1)
    if hasattr(module, "q_attn"):
        yield from _of_linear(module.q_attn, parts[:1], axis=-1)
    yield from _of_linear(module.c_proj, (Part("output", heads, size),), axis=-2)


def _query_key_value(module: Any, heads: int, size: int) -> Iterator[Projection]:
    """Heads one after the other, each with its query, key and value."""
    yield from _of_linear(module.query_key_value, _three(1, size) * heads)
    yield from _of_linear(module.dense, (Part("output", heads, size),), axis=-1)


def _falcon(module: Any) -> Iterator[Projection]:
    heads, size = module.num_heads, module.head_dim
    if module.new_decoder_architecture:
        each = heads // module.num_kv_heads
        parts = (Part("query", each, size), Part("key", 1, size), Part("value", 1, size)) * module.num_kv_heads
    elif module.multi_query:
        parts = (Part("query", heads, size), Part("key", 1, size), Part("value", 1, size))
    else:
        parts = _three(1, size) * heads
    yield from _of_linear(module.query_key_value, parts)
    yield from _of_linear(module.dense, (Part("output", heads, size),), axis=-1)


def _experts(module: Any) -> Iterator[Projection]:
    weight = stored_weight(module, "gate_up_proj")
    if weight is not None and getattr(module, "is_concatenated", is_transformers(module, *_GATE_THEN_UP)):
        axis = -1 if getattr(module, "is_transposed", False) else -2
        half = weight.shape[axis] // 2
        yield Projection(weight, (Part("gate", 1, half), Part("up", 1, half)), axis, layout="experts")


def _separate(module: Any) -> Iterator[Projection]:
    """Attention like Llama's: linear layers ``q_proj``, ``k_proj``, ``v_proj`` and an output projection.

    Latent attention (other layers) and gated attention (twice as many query rows) give nothing.
    """
    size = getattr(module, "head_dim", None)
    output = getattr(module, "o_proj", None) or getattr(module, "out_proj", None)
    layers = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    if not isinstance(size, int) or not all(isinstance(layer, nn.Linear) for layer in [*layers, output]):
        return
    query, key, value = (layer.out_features for layer in layers)  # type: ignore[union-attr]
    if query != output.in_features or key != value or query % key or key % size:  # type: ignore[union-attr]
        return
    roles: tuple[Role, ...] = ("query", "key", "value")
    for layer, role, rows in zip(layers, roles, (query, key, value), strict=True):
        yield from _of_linear(layer, (Part(role, rows // size, size),))
    yield from _of_linear(output, (Part("output", query // size, size),), axis=-1)


def _is_timm(module: nn.Module) -> bool:
    known = any(c.__module__ in _TIMM_MODULES and c.__name__ in _TIMM_CLASSES for c in type(module).__mro__)
    return known and isinstance(getattr(module, "qkv", None), nn.Linear)


def is_transformers(module: nn.Module, *names: str) -> bool:
    """Whether a module's class, or a base of it, is one of transformers' with these names.

    Args:
        module: Any module.
        names: Names of classes.
    """
    return any(c.__name__ in names and c.__module__.partition(".")[0] == "transformers" for c in type(module).__mro__)
