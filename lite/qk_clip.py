r"""QK-clip (MuonClip): keep attention logits below a threshold by scaling query and key weights.

.. math::
    S_i = \max\, \langle q_i, k_{j(i)}\rangle\,s, \qquad \gamma_i = \min(1, \tau/S_i), \qquad
    W_{k_j} \leftarrow c_j W_{k_j}, \quad W_{q_i} \leftarrow (\gamma_i/c_{j(i)})\,W_{q_i}, \qquad
    c_j = \min_{i:\,j(i)=j} \sqrt{\gamma_i}

for query heads i and the key head j(i) that they share, where s is the scale of the logits and the maximum is over all
pairs of positions that the mask allows. Every logit of head i then shrinks by γᵢ. With one query head per key head both
factors are √γ, as published.

Source: Kimi Team, *Kimi K2*, arXiv:2507.20534, section 2.1; the factors for shared key heads are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from lite.parameters.projections import Projection, projections
from riemannian_ode.checks import require_positive

_LARGEST_CHUNK = 2**24  # logits computed at a time
_LATENT = ("kv_b_proj", "kv_a_proj_with_mqa")  # layer names of DeepSeek's latent attention in transformers
_NORMS = ("q_norm", "k_norm", "qk_norm", "q_layernorm", "k_layernorm", "query_layernorm", "key_layernorm")


class QKClip:
    """Scale query and key weights after each step, head by head, so that no attention logit stays above a threshold.

    Logits are those of ``torch.nn.functional.scaled_dot_product_attention``, so queries and keys include rotary
    embedding. Watching costs one extra product of queries and keys.

    .. code-block:: python

        clip = QKClip(model, threshold=100.0)
        for batch in batches:
            with clip.watching():
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            clip.step()

    Args:
        model: A model whose attention :mod:`lite.parameters.projections` knows: Llama and similar models, GPT-2,
            GPT-NeoX, Phi-3, Falcon, Bloom, timm; including grouped and multi-query attention.
        threshold: τ, above 0; 100 in the source.
        process_group: Ranks that share the weights and see different data; they use the largest logits of all ranks. By
            default all ranks, if ``torch.distributed`` is initialised.

    Raises:
        ValueError: if the model has no attention that can be clipped. Not supported: unknown classes, latent attention,
            normalised queries or keys (scaling their weights has no effect), parametrized or frozen weights,
            ``nn.MultiheadAttention``.

    Source: arXiv:2507.20534, section 2.1.
    """

    def __init__(self, model: nn.Module, *, threshold: float = 100.0, process_group: Any = None) -> None:
        require_positive("threshold", threshold)
        self.threshold = threshold
        self.process_group = process_group
        self._modules = dict[str, nn.Module]()
        self._heads = dict[str, _Heads]()
        for name, module in model.named_modules():
            if any(hasattr(module, layer) for layer in _LATENT):
                raise ValueError(f"{name} is latent attention, whose heads share weights; QK-clip cannot scale it.")
            if (heads := _heads(module)) is not None:
                _check(name, module)
                self._modules[name], self._heads[name] = module, heads
        if not self._heads:
            raise ValueError(
                "the model has no attention whose query and key weights are known; QK-clip knows modules with q_proj, "
                "k_proj, v_proj, o_proj and head_dim, and those of lite.parameters.projections."
            )
        self._maxima: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the logits of forward passes inside the block; several passes before a step count together.

        Raises:
            RuntimeError: in a forward pass, if the heads of attention and weights do not match.
        """
        inside: list[str] = []

        def enter(name: str) -> Callable[..., None]:
            return lambda *_: inside.append(name)

        def leave(*_: object) -> None:
            inside.pop()

        with ExitStack() as hooks:
            for name, module in self._modules.items():
                hooks.enter_context(module.register_forward_pre_hook(enter(name)))
                hooks.enter_context(module.register_forward_hook(leave, always_call=True))
            hooks.enter_context(_Watch(lambda *args, **kwargs: self._see(inside, *args, **kwargs)))
            yield

    @property
    def maxima(self) -> dict[str, Tensor]:
        """Largest logit of each query head on this rank since the last step, by module name."""
        return dict(self._maxima)

    @torch.no_grad()
    def step(self) -> None:
        """Scale the weights of heads whose logits exceeded the threshold, without a device sync.

        Call it after the optimizer's step, on all ranks.

        Raises:
            RuntimeError: if an attention module was not seen since the last step.
        """
        unseen = [name for name in self._heads if name not in self._maxima]
        if unseen:
            raise RuntimeError(
                f"QK-clip saw no scaled_dot_product_attention in {', '.join(unseen)}; run the forward pass inside "
                "clip.watching(), not compiled, and load a transformers model with attn_implementation='sdpa'."
            )
        device = next(iter(self._maxima.values())).device
        largest = torch.cat([self._maxima[name].to(device) for name in self._heads])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.process_group)
        exceeds = (largest > self.threshold) & largest.isfinite()  # the optimizer reports non-finite numbers
        factors = torch.where(exceeds, self.threshold / largest, 1.0)
        parts = torch.split(factors, [heads.queries for heads in self._heads.values()])
        for name, gamma in zip(self._heads, parts, strict=True):
            _scale(self._heads[name], self._modules[name], gamma)
        self._maxima.clear()

    def _see(
        self,
        inside: Sequence[str],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> None:
        """Record one call of ``scaled_dot_product_attention`` with these arguments."""
        if not inside:  # attention of an unknown module
            return
        name = inside[-1]
        heads = self._heads[name].queries
        if query.shape[-3] != heads:
            raise RuntimeError(f"attention of {name} has {query.shape[-3]} query heads, but its weights have {heads}.")
        seen = largest_logits(query, key, attn_mask, is_causal=is_causal, **options)
        before = self._maxima.get(name)
        self._maxima[name] = seen if before is None else torch.maximum(before, seen.to(before.device))


class _Heads(NamedTuple):
    """Heads of an attention module.

    Args:
        queries: Number of query heads.
        keys: Number of key heads.
        rows: For each weight of :func:`_clipped`, the index of each row's factor among those of the query heads, the
            key heads, and a 1.
    """

    queries: int
    keys: int
    rows: tuple[Tensor, ...]


def _clipped(module: nn.Module) -> list[Projection]:
    """Weights of an attention module that have query or key rows."""
    return [each for each in projections(module) if any(part.role in ("query", "key") for part in each.parts)]


def _heads(module: nn.Module) -> _Heads | None:
    """Query and key heads of an attention module, in the order of the attention call; ``None`` for other modules."""
    owners: list[list[tuple[str, int]]] = []
    counts = {"query": 0, "key": 0}
    for each in _clipped(module):
        owners.append([])
        for part in each.parts:
            first = counts.get(part.role, 0)
            owners[-1] += [(part.role, first + i // part.size) for i in range(part.heads * part.size)]
            counts[part.role] = first + part.heads
    queries, keys = counts["query"], counts["key"]
    if not queries or not keys:
        return None
    start = {"query": 0, "key": queries}
    rows = [[start[role] + i if role in start else queries + keys for role, i in each] for each in owners]
    devices = [each.weight.device for each in _clipped(module)]
    return _Heads(
        queries, keys, tuple(torch.tensor(each, device=device) for each, device in zip(rows, devices, strict=True))
    )


def _check(name: str, module: nn.Module) -> None:
    """Refuse attention whose logits cannot be watched or scaled."""
    if isinstance(module, nn.MultiheadAttention):
        raise ValueError(
            f"{name} is nn.MultiheadAttention, whose logits cannot be watched; use an attention module that calls "
            "scaled_dot_product_attention."
        )
    normalised = [norm for norm in _NORMS if not isinstance(getattr(module, norm, None), (nn.Identity, type(None)))]
    if normalised:
        raise ValueError(
            f"{name} normalises queries or keys ({normalised[0]}), so scaling their weights has no effect; train this "
            "model without QK-clip."
        )
    if any(is_parametrized(child) for child in module.children()):
        raise ValueError(f"{name} has parametrized weights, which QK-clip cannot scale; remove the parametrization.")
    if not all(each.weight.requires_grad for each in _clipped(module)):
        raise ValueError(f"{name} has frozen query or key weights; unfreeze them, or leave QK-clip out.")


class _Watch(TorchFunctionMode):
    def __init__(self, see: Callable[..., object]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            self._see(*args, **kwargs)
        return func(*args, **kwargs)


@torch.no_grad()
def largest_logits(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Largest logit of each query head, over the batch and all pairs of positions that the mask allows.

    Args:
        query: Shape ``(*batch, heads, length, d)``.
        key: Shape ``(*batch, key_heads, length, d)``; query heads share key heads in order.
        attn_mask: As for ``scaled_dot_product_attention``. Values added by a float mask are not counted.
        is_causal: As for ``scaled_dot_product_attention``.
        scale: s; by default 1/√d.
        enable_gqa: Whether there are fewer key heads.

    Returns:
        Shape ``(heads,)``, at least float32; −∞ if no pair is allowed.
    """
    length, others = query.shape[-2], key.shape[-2]
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    if attn_mask is not None:
        allowed = attn_mask if attn_mask.dtype == torch.bool else attn_mask > torch.finfo(attn_mask.dtype).min / 2
    elif is_causal:
        allowed = torch.ones(length, others, dtype=torch.bool, device=query.device).tril()
    else:
        allowed = torch.ones(1, 1, dtype=torch.bool, device=query.device)
    rows = max(1, _LARGEST_CHUNK // max(1, query[..., 0, 0].numel() * others))
    largest: list[Tensor] = []
    for start in range(0, length, rows):
        part = query[..., start : start + rows, :]
        logits = (part @ key.mT).to(torch.promote_types(part.dtype, torch.float32))
        mask = allowed[..., start : start + rows, :] if allowed.shape[-2] == length else allowed
        logits = torch.where(mask, logits * (query.shape[-1] ** -0.5 if scale is None else scale), -torch.inf)
        largest.append(logits.movedim(-3, 0).flatten(1).amax(dim=1))
    return torch.stack(largest).amax(dim=0)


def _scale(heads: _Heads, module: nn.Module, gamma: Tensor) -> None:
    """Scale the rows of query and key heads of one attention module."""
    shared = heads.queries // heads.keys
    of_keys = gamma.reshape(-1, shared).amin(dim=1).sqrt()
    of_queries = gamma / of_keys.repeat_interleave(shared)
    factors = torch.cat([of_queries, of_keys, gamma.new_ones(1)])
    for each, rows in zip(_clipped(module), heads.rows, strict=True):
        factor = factors.to(each.weight.device)[rows.to(each.weight.device)]
        _multiply(each.weight, factor.unsqueeze(-1) if each.axis == -2 else factor)
        if each.bias is not None:
            _multiply(each.bias, factor)


def _multiply(parameter: Tensor, factor: Tensor) -> None:
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is not None:
        from torch.distributed.tensor import DTensor, Replicate

        factor = DTensor.from_local(factor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    parameter.mul_(factor)
