"""Kinds and matrix views of parameters, determined by the type of the owning module.

transformers' classes are recognised without importing transformers: by the qualified names of a module's base classes,
or by an attribute that its experts and routers share (``num_experts``). Parameter names are never searched for words;
exact attribute names matter only in known classes and in :mod:`lite.parameters.named_parameters`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lite.parameters.matrix_view import Layout
from lite.parameters.named_parameters import is_table
from lite.parameters.parametrized import WEIGHT_PARTS, parametrizations, stored_weights
from lite.parameters.projections import is_transformers, projections

Kind: TypeAlias = Literal[
    "matrix", "conv", "experts", "adapter", "router", "plain-matrix", "embedding", "head", "norm", "other"
]
KINDS: tuple[Kind, ...] = (
    "matrix",
    "conv",
    "experts",
    "adapter",
    "router",
    "plain-matrix",
    "embedding",
    "head",
    "norm",
    "other",
)
MATRIX_KINDS: tuple[Kind, ...] = KINDS[:6]

_LINEAR = (nn.Linear, nn.MultiheadAttention)
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
# transformers' norms and routers (LlamaRMSNorm, Qwen2MoeTopKRouter, …) are recognised by their class names.
_NORM_CLASS = re.compile(r"Norm(Gated|PerHead|[123]d)?$")
_LORA_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_ROUTER_CLASS = re.compile(r"Router$")


class Placement(NamedTuple):
    """Kind of a parameter; for a matrix kind also layout and blocks, see :mod:`lite.parameters.matrix_view`.

    ``has_decay`` says whether its group has the optimizer's weight decay, and ``is_known`` whether module type, name or
    user decided the kind, as opposed to shape alone.
    """

    kind: Kind
    layout: Layout = "matrix"
    blocks: tuple[int, ...] | None = None
    block_axis: int = -2
    has_decay: bool = True
    is_known: bool = True


def placements(
    model: nn.Module,
    *,
    head: nn.Module | None,
    overrides: Mapping[type[nn.Module] | nn.Module | str, Kind],
    split_fused: bool = True,
    split_heads: bool = False,
) -> dict[Tensor, Placement]:
    """Placement of every parameter of a model.

    Args:
        model: Any module.
        head: Output head; its weight counts as the head even if it is used elsewhere.
        overrides: Kinds that replace those by type, see :func:`lite.param_groups`.
        split_fused: Whether fused projections are cut into their parts.
        split_heads: Whether attention projections are cut into their heads.

    Raises:
        ValueError: for a parameter without shape, or an override that matches nothing or does not fit.
    """
    placed: dict[Tensor, Placement] = {}
    cuts = {
        each.weight: Placement("experts" if each.layout == "experts" else "matrix", each.layout, blocks, each.axis)
        for module in model.modules()
        for each in projections(module)
        if (split_fused or split_heads) and (blocks := each.blocks(by_head=split_heads)) is not None
    }
    adapters = {p for module in model.modules() for p in _adapters(module)}
    routers = {linear for module in model.modules() for linear in _linear_routers(module)}
    made: dict[nn.Module, tuple[nn.Module, str]] = {
        each: (module, name) for module in model.modules() for name, each in parametrizations(module)
    }
    for module in model.modules():
        for local, p in module.named_parameters(recurse=False):
            if isinstance(p, UninitializedParameter):
                raise ValueError(
                    f"parameter {local} of {type(module).__name__} has no shape yet; run one forward pass."
                )
            owner, name = made.get(module) or (module, WEIGHT_PARTS.get(local, local))
            placement = cuts.get(p) or _placement(owner, name, p, is_router=owner in routers)
            if p in adapters:
                placement = _matrix("adapter", "matrix", p.shape) if p.ndim == 2 else Placement("other")
            # A shared parameter gets the more specific kind of its modules: embedding before matrix.
            if p not in placed or placement.kind == "embedding":
                placed[p] = placement
    if head is not None:
        placed.update((weight, Placement("head")) for weight in stored_weights(head))
    _override(placed, model, overrides)
    return placed


def _placement(module: nn.Module, local: str, p: Tensor, *, is_router: bool) -> Placement:
    placement = _vectors(module, local, p)
    if placement is not None:
        return placement
    if isinstance(module, nn.modules.conv._ConvNd) and local == "weight":
        return _convolution(p, module.groups)
    if p.ndim == 3 and p.shape[0] == getattr(module, "num_experts", None):
        return _matrix("experts", "experts", p.shape[1:])
    known: Kind | None = None
    if is_router or _has_class(module, _ROUTER_CLASS):
        known = "router"
    elif isinstance(module, _LINEAR) or is_transformers(module, "Conv1D"):
        known = "matrix"
    is_known = known is not None or isinstance(module, nn.modules.conv._ConvNd)
    if p.ndim != 2:
        return Placement("other", is_known=is_known)
    return _matrix(known or "plain-matrix", "matrix", p.shape)._replace(is_known=is_known)


def _vectors(module: nn.Module, local: str, p: Tensor) -> Placement | None:
    """Placement of modules that are known to hold no matrices, whatever their shapes."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Placement("embedding")
    if isinstance(module, _NORMS) or _has_class(module, _NORM_CLASS):
        return Placement("norm")
    if _is_expert_bias(module, p):
        return Placement("other")
    return Placement("other", has_decay=False) if is_table(module, local) else None


def _is_expert_bias(module: nn.Module, p: Tensor) -> bool:
    """Whether a 2-D parameter has one vector per expert, next to the experts' stacks of matrices."""
    owned = module.parameters(recurse=False)
    return p.ndim == 2 and p.shape[0] == getattr(module, "num_experts", None) and any(q.ndim == 3 for q in owned)


def _matrix(kind: Kind, layout: Layout, shape: tuple[int, ...]) -> Placement:
    # The polar factor of one row is the row over its norm; it has no matrix structure, so AdamW takes it.
    return Placement(kind, layout) if min(shape) > 1 else Placement("other")


def _convolution(p: Tensor, groups: int) -> Placement:
    """A kernel flattened to out × rest; each group of a grouped convolution is a separate matrix."""
    rows = p.shape[0] // groups
    if min(rows, p.shape[1:].numel()) <= 1:  # by shape: indexing a DTensor would communicate with other ranks
        return Placement("other")
    return Placement("conv", "conv", (rows,) * groups if groups > 1 else None)


def _adapters(module: nn.Module) -> Iterator[Tensor]:
    """Low-rank factors in one of peft's layers: LoRA, DoRA and similar adapters."""
    if any(c.__module__.partition(".")[0] == "peft" for c in type(module).__mro__):
        for name in _LORA_FACTORS:
            factors = getattr(module, name, None)
            if isinstance(factors, (nn.ModuleDict, nn.ParameterDict)):
                yield from factors.parameters()


def _linear_routers(module: nn.Module) -> Iterator[nn.Module]:
    """Linear layers that score experts: children of a module with ``num_experts`` that have as many outputs."""
    experts = getattr(module, "num_experts", None)
    if isinstance(experts, int):
        for child in module.children():
            if isinstance(child, nn.Linear) and child.out_features == experts:
                yield child


def _override(
    placed: dict[Tensor, Placement],
    model: nn.Module,
    overrides: Mapping[type[nn.Module] | nn.Module | str, Kind],
) -> None:
    wanted: dict[Tensor, Kind] = {}
    used = set()
    for module in model.modules():  # parents first, so that the innermost module decides
        keys: list[Any] = [*reversed(type(module).__mro__), module]
        for key in keys:
            if key in overrides:
                used.add(key)
                wanted |= dict.fromkeys(module.parameters(), overrides[key])
    for name, p in model.named_parameters(remove_duplicate=False):
        if name in overrides:
            used.add(name)
            wanted[p] = kind = overrides[name]
            if _as_kind(kind, p, placed[p]).kind != kind:
                raise ValueError(f"parameter {name} has shape {tuple(p.shape)}, so it cannot be of kind {kind!r}.")
    for key in overrides:
        if key not in used:
            known = key if isinstance(key, str) else getattr(key, "__name__", type(key).__name__)
            raise ValueError(f"kinds names {known!r}, which is not a parameter, module or module type of this model.")
    placed.update((p, _as_kind(kind, p, placed[p])) for p, kind in wanted.items())


def _as_kind(kind: Kind, p: Tensor, before: Placement) -> Placement:
    """The kind requested by the user; a module's vectors that cannot be matrices keep their own kind."""
    if kind not in MATRIX_KINDS:
        return Placement(kind)
    if before.kind in MATRIX_KINDS and (kind == before.kind or kind not in ("conv", "experts")):
        return before._replace(kind=kind, is_known=True)
    fits = {"conv": p.ndim >= 3, "experts": p.ndim == 3}.get(kind, p.ndim == 2)
    if not fits:
        return before
    return Placement(kind, "conv" if kind == "conv" else "experts" if kind == "experts" else "matrix")


def _has_class(module: nn.Module, pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(c.__name__) for c in type(module).__mro__)
