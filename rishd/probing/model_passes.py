"""Batches of any model and loss in a common form."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from rishd.probing.loss_graphs import Pass
from rishd.probing.parameter_choice import ProbeError

# (input, target), or a model's arguments by name. An input may also be such a mapping.
Batch: TypeAlias = tuple[Any, Any] | Mapping[str, Any]
# (output, target) ↦ mean loss; for mappings (model, batch) ↦ mean loss.
Loss: TypeAlias = Callable[[Any, Any], Tensor]

_IGNORED = -100  # label to ignore, as in torch and transformers
_AGREEMENT = 1e-3  # relative difference between the model's loss and ours for half-precision outputs


def wide_model(model: nn.Module) -> nn.Module:
    """The model, or with a warning a float32 copy if parameters have half precision.

    Raises:
        ProbeError: for a sharded model.
    """
    if any(isinstance(p, DTensor) for p in model.parameters()):
        raise ProbeError("the model is sharded (DTensors); probe a copy on one device, loaded from a checkpoint.")
    narrow = {p.dtype for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)}
    if not narrow:
        return model
    name = str(next(iter(narrow))).removeprefix("torch.")
    warnings.warn(f"the model has {name} parameters; a float32 copy of it is probed.", stacklevel=3)
    return copy.deepcopy(model).float()


def checked_batches(batches: Sequence[Batch], loss: Loss | None) -> list[Batch]:
    """Check that batches have one form and fit the loss.

    Raises:
        ProbeError: naming the mismatch.
    """
    listed = list(batches)
    if not listed:
        raise ProbeError("batches is empty; give at least one.")
    kinds = {_is_pair(batch) for batch in listed}
    for number, batch in enumerate(listed):
        if not _is_pair(batch) and not isinstance(batch, Mapping):
            raise ProbeError(
                f"batch {number} is of type {type(batch).__name__}; give pairs (input, target), or mappings of the "
                "model's arguments."
            )
    if len(kinds) > 1:
        raise ProbeError("batches mixes pairs and mappings; give one of them.")
    if loss is None and kinds == {True}:
        raise ProbeError("loss = None is for models that compute their own loss; give a function of (output, target).")
    if loss is None and any("labels" not in batch for batch in listed):
        raise ProbeError("a batch has no 'labels', which a loss of the model's own needs; add them, or give loss.")
    reduction = getattr(loss, "reduction", "mean")
    if reduction != "mean":
        raise ProbeError(f"loss has reduction = {reduction!r}; curvature is that of a mean, set reduction='mean'.")
    return listed


def has_outputs(batches: Sequence[Batch], loss: Loss | None) -> bool:
    """Whether the loss is a function of a known output, as Gauss–Newton and Fisher need."""
    return loss is None or _is_pair(batches[0])


def model_passes(model: nn.Module, loss: Loss | None, batches: Sequence[Batch]) -> Iterator[Pass]:
    """Forward passes of all batches.

    Args:
        model: The model.
        loss: See :func:`rishd.probing.curvature.probe_model`.
        batches: Result of :func:`checked_batches`.

    Raises:
        ProbeError: for a loss that is not one number, or a model's own loss that differs from the mean cross-entropy of
            the next tokens.
    """
    device = next(model.parameters()).device
    for number, given in enumerate(batches):
        batch = _on_device(given, device)
        if loss is None:
            one = _next_tokens(model, batch, is_first=number == 0)
        elif _is_pair(batch):
            inputs, target = batch
            output = _output(model(**inputs) if isinstance(inputs, Mapping) else model(inputs))
            one = _of_output(output, partial(_swapped, loss, target))
        else:
            one = Pass(loss(model, batch), _examples(batch))
        if not isinstance(one.loss, Tensor) or one.loss.ndim:
            shape = tuple(one.loss.shape) if isinstance(one.loss, Tensor) else type(one.loss).__name__
            raise ProbeError(f"the loss of batch {number} is {shape}; it must be one number, the mean over examples.")
        yield one


def _next_tokens(model: nn.Module, batch: Mapping[str, Any], *, is_first: bool) -> Pass:
    """Pass of a causal language model with one example per token."""
    takes_cache = hasattr(getattr(model, "config", None), "use_cache")
    arguments = {**batch, "use_cache": False} if takes_cache else dict(batch)
    labels = arguments.pop("labels")
    targets = labels[..., 1:]
    counts = targets != _IGNORED
    logits = _output(model(**arguments))[..., :-1, :][counts]
    one = _of_output(logits, lambda x: functional.cross_entropy(x, targets[counts]))
    if is_first:
        with torch.no_grad():
            own = float(model(**arguments, labels=labels).loss)
        ours = float(one.loss.detach())
        if abs(own - ours) > _AGREEMENT * abs(ours):
            raise ProbeError(
                f"the model's loss is {own:.6g}, the mean cross-entropy of its next tokens {ours:.6g}: it is not that "
                "loss alone. Give loss=lambda model, batch: model(**batch).loss, for the Hessian only, or pairs "
                "(input, target) with a loss of (output, target)."
            )
    return one


def _swapped(loss: Loss, target: Any, output: Tensor) -> Tensor:
    return loss(output, target)


def _of_output(output: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Pass:
    return Pass(loss_of(output), len(output), output, loss_of)


def _output(returned: Any) -> Tensor:
    """The tensor that a loss takes; in transformers' outputs it is called logits."""
    output: Tensor = getattr(returned, "logits", returned)
    return output


def _is_pair(batch: Batch) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def _examples(batch: Mapping[str, Any]) -> int:
    return next((len(x) for x in batch.values() if isinstance(x, Tensor) and x.ndim), 1)


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _on_device(x, device) for key, x in value.items()}
    return tuple(_on_device(x, device) for x in value) if isinstance(value, (tuple, list)) else value
