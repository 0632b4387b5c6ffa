"""Parameter groups of a model, by module type: each parameter's rule, χ and sharp fraction."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from lite.parameters.module_kinds import KINDS, MATRIX_KINDS, Kind, Placement, placements
from lite.parameters.parametrized import stored_weights

# χ of the published LLaMA runs: embeddings 4, norms 4, output head 1; matrices use the optimizer's value.
PUBLISHED_CHI: dict[Kind, float] = {
    "adapter": 1.0,
    "router": 1.0,
    "plain-matrix": 1.0,
    "embedding": 4.0,
    "head": 1.0,
    "norm": 4.0,
    "other": 1.0,
}
# r of the same runs: 0.1 everywhere except in the head (all sharp). Routers, adapters and matrices of unknown kind run
# the plain matrix rule, which r ≤ 1e−6 selects in the published code; biases run plain AdamW (r = 1, no flat part).
PUBLISHED_SHARP_FRACTION: dict[Kind, float] = {
    "adapter": 0.0,
    "router": 0.0,
    "plain-matrix": 0.0,
    "embedding": 0.1,
    "head": 1.0,
    "norm": 0.1,
    "other": 1.0,
}
_V = TypeVar("_V")


def param_groups(
    model: nn.Module,
    *,
    head: nn.Module | None = None,
    chi: float | Mapping[Kind, float] | None = None,
    sharp_fraction: Mapping[Kind, float] | None = None,
    settings: Mapping[Kind, Mapping[str, Any]] | None = None,
    kinds: Mapping[type[nn.Module] | nn.Module | str, Kind] | None = None,
    split_fused: bool = True,
    split_heads: bool = False,
    matrix_rule: str = "muon",
    other_rule: str = "adamw",
    show: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups of a model for the LITE optimizers, every trainable parameter in exactly one.

    ====================  ==========  ==========================================================================
    kind                  rule        which parameters
    ====================  ==========  ==========================================================================
    ``matrix``            matrix      weights of ``nn.Linear``, ``nn.MultiheadAttention``, transformers' ``Conv1D``
    ``conv``              matrix      kernels of convolutions, flattened to out × rest; each group of a grouped one
    ``experts``           matrix      3-D stacks of a module with ``num_experts`` of them: every expert a matrix
    ``adapter``           matrix      factors of LoRA and DoRA (peft): no LITE
    ``router``            matrix      weights that score experts: no LITE
    ``plain-matrix``      matrix      matrices of any other module: no LITE
    ``embedding``         adamw       weights of ``nn.Embedding`` and ``nn.EmbeddingBag``
    ``head``              adamw       weight of the output head, tied or not
    ``norm``              adamw       weights and biases of normalisation layers
    ``other``             adamw       everything else: biases, gates of one row or column, tensors of more dimensions
                                      in modules of unknown type; without weight decay, tables and coefficients of
                                      :mod:`lite.parameters.named_parameters`: no LITE
    ====================  ==========  ==========================================================================

    A matrix with a single row or column goes to AdamW, because its polar factor is just the row over its norm, with no
    directions to balance. Fused projections are cut into their parts if the module's class determines the layout:
    ``nn.MultiheadAttention``, timm's ``qkv``, transformers' GPT-2, Phi-3 and multi-query Falcon attention, gated MLPs
    of Phi-3 and GLM, and the gate and up projections of expert stacks. GPT-NeoX, Bloom and Falcon interleave their
    heads; such weights stay whole unless ``split_heads=True`` makes every head's query, key and value a matrix.

    Args:
        model: Any module.
        head: Output head; by default the result of ``get_output_embeddings()`` of the model or a module in it
            (transformers). A classifier's last layer is a ``matrix`` unless it is given here.
        chi: χ for every kind (a number) or for some kinds (a mapping); other kinds get the published values.
        sharp_fraction: r for some kinds; other kinds get the published values (matrices use the optimizer's value).
        settings: Any settings of groups by kind, e.g. ``{"norm": {"weight_decay": 0.0}}``; they take precedence.
        kinds: Kinds by module type, module or full parameter name, which override those above. A type or module applies
            to every parameter in it, the innermost one wins, and a name takes precedence over both.
        split_fused: Whether fused projections are cut into their parts.
        split_heads: Whether every head of an attention projection is a separate matrix (columns in the output
            projection). It applies to the fused projections above and to all attention with ``q_proj``, ``k_proj``,
            ``v_proj``, an output projection and ``head_dim`` (Llama, Qwen, Gemma, …).
        matrix_rule: Rule of matrices: ``"muon"`` for MuonLITE, ``"soap"`` for SOAPLITE, or the
            :attr:`~lite.LITEOptimizer.rule` of another optimizer.
        other_rule: Rule of all other parameters: ``"adamw"``, or that of an optimizer that accepts any shape.
        show: Whether to print the groups as a table, with a star at kinds decided by shape alone.

    Returns:
        Nonempty groups in the order of the table; parameters come with their names. Groups of matrices have
        ``layout``, ``blocks`` and ``block_axis`` (:mod:`lite.parameters.matrix_view`) where these differ from the
        optimizers' defaults ``"matrix"``, ``None`` and −2.

    Raises:
        ValueError: if the model has no trainable parameter, a kind is unknown, the head's weight is not in the model,
            or an override does not fit.

    Source: settings of arXiv:2602.22681 (LLaMA); the grouping by type is ours.
    """
    for kind in (kinds or {}).values():
        _known_kind("kinds", kind)
    if isinstance(chi, Mapping):
        chis: dict[Kind, float] = {**PUBLISHED_CHI, **_by_kind("chi", chi)}
    else:
        chis = PUBLISHED_CHI if chi is None else dict.fromkeys(KINDS, chi)
    fractions = {**PUBLISHED_SHARP_FRACTION, **_by_kind("sharp_fraction", sharp_fraction or {})}
    others = _by_kind("settings", settings or {})

    _check_head(model, head)
    placed = placements(
        model,
        head=head if head is not None else _output_head(model),
        overrides=kinds or {},
        split_fused=split_fused,
        split_heads=split_heads,
    )
    members: dict[Placement, list[tuple[str, Tensor]]] = {}
    by_shape: defaultdict[Kind, list[str]] = defaultdict(list)
    for name, p in model.named_parameters():  # each shared parameter appears once
        if p.requires_grad:
            placement = placed[p]
            if not placement.is_known:
                by_shape[placement.kind].append(name)
            members.setdefault(placement._replace(is_known=True), []).append((name, p))
    if not members:
        raise ValueError("the model has no trainable parameter; unfreeze some (requires_grad_(True)).")

    groups = []
    for placement in sorted(members, key=lambda placement: KINDS.index(placement.kind)):
        kind = placement.kind
        group: dict[str, Any] = {"params": members[placement], "kind": kind}
        group["rule"] = matrix_rule if kind in MATRIX_KINDS else other_rule
        if kind in chis:
            group["chi"] = chis[kind]
        if kind in fractions:
            group["sharp_fraction"] = fractions[kind]
        if not placement.has_decay:
            group["weight_decay"] = 0.0
        groups.append(group | _view_settings(placement) | dict(others.get(kind, {})))
    if show:
        print_groups(groups, by_shape=by_shape)
    return groups


def print_groups(groups: Iterable[Mapping[str, Any]], *, by_shape: Mapping[Kind, Iterable[str]] | None = None) -> None:
    """Print parameter groups as a table: kind, layout, rule, χ, r, weight decay, number of tensors and of parameters.

    Args:
        groups: Result of :func:`param_groups`, or an optimizer's ``param_groups``. A dash is the optimizer's default.
        by_shape: Kind ↦ names of parameters whose kind was decided by shape alone. The table marks them with a star and
            lists them below.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("group", "layout", "rule", "χ", "r", "decay", title="Parameter groups")
    for column in ("tensors", "parameters"):
        table.add_column(column, justify="right")
    tensors = entries = 0
    names = {name for each in (by_shape or {}).values() for name in each}
    for group in groups:
        params = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
        size = sum(p.numel() for p in params)
        setting = [str(group.get(key, "—")) for key in ("rule", "chi", "sharp_fraction", "weight_decay")]
        star = "*" if any(isinstance(p, tuple) and p[0] in names for p in group["params"]) else ""
        table.add_row(
            str(group.get("kind", "—")) + star, _layout_text(group), *setting, f"{len(params):,}", f"{size:,}"
        )
        tensors, entries = tensors + len(params), entries + size
    table.add_section()
    table.add_row("total", "", "", "", "", "", f"{tensors:,}", f"{entries:,}")
    console = Console()
    console.print(table)
    if names:
        console.print("* by shape alone, since the module's type is not known (kinds= overrides):", soft_wrap=True)
    for kind, each in (by_shape or {}).items():
        for pattern, count in Counter(re.sub(r"\b\d+\b", "*", name) for name in each).items():
            console.print(f"  {kind}: {pattern}{f' ({count})' if count > 1 else ''}", markup=False, soft_wrap=True)


def _layout_text(group: Mapping[str, Any]) -> str:
    if group.get("rule") == "adamw":
        return ""
    layout, blocks = str(group.get("layout", "matrix")), group.get("blocks")
    if not blocks:
        return layout
    axis = "rows" if group.get("block_axis", -2) == -2 else "columns"
    sizes = f"{len(blocks)}×{blocks[0]}" if len(set(blocks)) == 1 else "+".join(map(str, blocks))
    return f"{layout}, {axis} {sizes}"


def _view_settings(placement: Placement) -> dict[str, Any]:
    settings: dict[str, Any] = {} if placement.layout == "matrix" else {"layout": placement.layout}
    if placement.blocks is not None:
        # For a rule that accepts any shape, "matrix" is not the default.
        settings |= {"layout": placement.layout, "blocks": placement.blocks, "block_axis": placement.block_axis}
    return settings


def _check_head(model: nn.Module, head: nn.Module | None) -> None:
    if head is not None and not {*stored_weights(head)} & {*model.parameters()}:
        raise ValueError(
            f"head is a {type(head).__name__} whose weight is not a parameter of the "
            "model; give the layer that has it, "
            "e.g. model.classifier[-1], or name the parameter in kinds."
        )


def _output_head(model: nn.Module) -> nn.Module | None:
    for module in model.modules():  # wrappers such as DistributedDataParallel contain the model
        find = getattr(module, "get_output_embeddings", None)
        head = find() if callable(find) else None
        if isinstance(head, nn.Module):
            return head
    return None


def _by_kind(argument: str, values: Mapping[Kind, _V]) -> Mapping[Kind, _V]:
    for kind in values:
        _known_kind(argument, kind)
    return values


def _known_kind(argument: str, kind: Kind) -> None:
    if kind not in KINDS:
        raise ValueError(f"{argument} names kind {kind!r}, which is unknown. Choose among: {', '.join(KINDS)}.")
