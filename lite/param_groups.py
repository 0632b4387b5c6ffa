"""From a model to parameter groups, by module type: which rule, χ and sharp fraction each parameter gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

Kind: TypeAlias = Literal["matrix", "embedding", "head", "norm", "plain-matrix", "other"]
KINDS: tuple[Kind, ...] = ("matrix", "embedding", "head", "norm", "plain-matrix", "other")

# χ of the published LLaMA runs: embeddings 4, norms 4, output head 1; matrices take the optimizer's own.
PUBLISHED_CHI: dict[Kind, float] = {"embedding": 4.0, "norm": 4.0, "head": 1.0, "plain-matrix": 1.0, "other": 1.0}
# r of the same runs: 0.1 everywhere but in the head (all sharp); matrices of no known kind run plain Muon.
PUBLISHED_SHARP_FRACTION: dict[Kind, float] = {
    "embedding": 0.1,
    "norm": 0.1,
    "head": 1.0,
    "plain-matrix": 0.0,
    "other": 1.0,
}

_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
    nn.LocalResponseNorm,
)


def param_groups(
    model: nn.Module,
    *,
    head: nn.Module | None = None,
    chi: float | Mapping[Kind, float] | None = None,
    sharp_fraction: Mapping[Kind, float] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups of a model for :class:`lite.MuonLITE`, every trainable parameter in exactly one.

    ====================  ========  ============================================================
    kind                  rule      which parameters
    ====================  ========  ============================================================
    ``matrix``            muon      weights of ``nn.Linear``
    ``embedding``         adamw     weights of ``nn.Embedding`` and ``nn.EmbeddingBag``
    ``head``              adamw     weight of the output head, tied or not
    ``norm``              adamw     weights and biases of normalisation layers
    ``plain-matrix``      muon      matrices of any other module: no LITE
    ``other``             adamw     everything else (biases, convolutions): no LITE
    ====================  ========  ============================================================

    Args:
        model: Any module.
        head: Output head; by default ``model.get_output_embeddings()`` where the model has it (transformers).
        chi: χ for every kind (a number) or for some kinds (a mapping); else the published values.
        sharp_fraction: r for some kinds; else the published values (matrices take the optimizer's own).

    Returns:
        Groups for the optimizer, in the order of the table, empty kinds left out; parameters come with their names.

    Raises:
        ValueError: if the model has no trainable parameter, or a kind is unknown.

    Source: settings of arXiv:2602.22681 (LLaMA); the grouping by type is ours.
    """
    if isinstance(chi, Mapping):
        chis: dict[Kind, float] = {**PUBLISHED_CHI, **_known_kinds("chi", chi)}
    else:
        chis = PUBLISHED_CHI if chi is None else dict.fromkeys(KINDS, chi)
    fractions: dict[Kind, float] = {**PUBLISHED_SHARP_FRACTION, **_known_kinds("sharp_fraction", sharp_fraction or {})}
    members: dict[Kind, list[tuple[str, Tensor]]] = {kind: [] for kind in KINDS}
    kinds = _kinds(model, head if head is not None else _output_head(model))
    for name, p in model.named_parameters():  # each shared parameter comes once
        if p.requires_grad:
            members[kinds[p]].append((name, p))
    groups = []
    for kind in KINDS:
        if members[kind]:
            group: dict[str, Any] = {"params": members[kind], "kind": kind}
            group["rule"] = "muon" if kind in ("matrix", "plain-matrix") else "adamw"
            if kind in chis:
                group["chi"] = chis[kind]
            if kind in fractions:
                group["sharp_fraction"] = fractions[kind]
            groups.append(group)
    if not groups:
        raise ValueError("the model has no trainable parameter; unfreeze some (requires_grad_(True)).")
    return groups


def _kinds(model: nn.Module, head: nn.Module | None) -> dict[Tensor, Kind]:
    kinds: dict[Tensor, Kind] = {}
    for module in model.modules():
        for local, p in module.named_parameters(recurse=False):
            kind = _kind(module, local, p)
            # A parameter that modules share counts as what the more specific of them says: embedding before matrix.
            if p not in kinds or kind == "embedding":
                kinds[p] = kind
    if head is not None:
        weight = getattr(head, "weight", None)
        if isinstance(weight, Tensor):
            kinds[weight] = "head"
    return kinds


def _kind(module: nn.Module, local: str, p: Tensor) -> Kind:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    # transformers' norms are classes of their own (LlamaRMSNorm, …), told by the class, never by parameter names.
    if isinstance(module, _NORMS) or type(module).__name__.endswith("Norm"):
        return "norm"
    if isinstance(module, nn.Linear) and local == "weight":
        return "matrix"
    return "plain-matrix" if p.ndim == 2 else "other"


def _output_head(model: nn.Module) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if isinstance(head, nn.Module) else None


def _known_kinds(argument: str, values: Mapping[Kind, float]) -> Mapping[Kind, float]:
    for kind in values:
        if kind not in KINDS:
            raise ValueError(f"{argument} names kind {kind!r}, which is unknown. Choose among: {', '.join(KINDS)}.")
    return values
