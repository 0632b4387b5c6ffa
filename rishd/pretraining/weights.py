"""A model's weights under its own names in a checkpoint, and strict reading of models in transformers' format.

transformers renames, splits and merges tensors when it saves and loads (mixtures of experts, GPT-NeoX), and its Trainer
loads tensors with known names and skips the rest. So a checkpoint contains the model's own ``state_dict``, each shared
tensor once, and loads completely or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

WEIGHTS = "weights.safetensors"
_SHOWN = 3  # most names in a message


def save_weights(model: torch.nn.Module, file: Path, *, is_first_rank: bool) -> None:
    """Write a model's tensors under its own names; every rank of a sharded model calls it.

    Args:
        model: The model, on one rank or sharded.
        file: File to write.
        is_first_rank: Whether this rank writes.
    """
    whole: dict[str, Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for name in dict.fromkeys(_stored_names(state).values()):
        value = state[name].detach()
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if is_first_rank:
            whole[name] = full.cpu().contiguous()
    if is_first_rank:
        save_file(whole, file)


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Fill a model with the weights of a checkpoint; every rank of a sharded model calls it.

    Args:
        model: The model, on one rank or sharded.
        folder: The checkpoint, with :data:`WEIGHTS` or in the earlier transformers format.

    Raises:
        ValueError: naming tensors that are missing, unexpected or of the wrong shape or dtype.
    """
    if (folder / WEIGHTS).exists():
        _fill(model, load_file(folder / WEIGHTS))
    else:
        # All runs have float32 or bfloat16 weights; float32 represents both exactly.
        _fill(model, _from_transformers(folder, dtype=torch.float32).state_dict(), any_dtype=True)


def read_model(folder: Path, **settings: Any) -> PreTrainedModel:
    """A trained model in float32.

    Args:
        folder: A checkpoint, or a model in transformers' format.
        settings: Further arguments of transformers' ``from_config`` and ``from_pretrained``.

    Raises:
        ValueError: naming tensors that are missing, unexpected or of the wrong shape.
    """
    if not (folder / WEIGHTS).exists():
        return _from_transformers(folder, dtype=torch.float32, **settings)
    made = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        made, dtype=torch.float32, trust_remote_code=False, **settings
    )
    _fill(model, load_file(folder / WEIGHTS), any_dtype=True)
    model.eval()  # type: ignore[no-untyped-call]  # as from_pretrained leaves it
    return model


def _from_transformers(folder: Path, **settings: Any) -> PreTrainedModel:
    # Its annotations do not mention that it also returns its findings.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, trust_remote_code=False, **settings
    )
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    mismatched = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"]]
    _refuse(info["missing_keys"], info["unexpected_keys"], mismatched)
    return model


def _fill(model: torch.nn.Module, saved: Mapping[str, Tensor], *, any_dtype: bool = False) -> None:
    state = model.state_dict(keep_vars=True)
    names = _stored_names(state)
    stored = set(names.values())
    wrong = [
        name
        for name in stored & saved.keys()
        if saved[name].shape != state[name].shape or (saved[name].dtype != state[name].dtype and not any_dtype)
    ]
    # The transformers state_dict of older checkpoints has shared tensors under each of their names.
    _refuse(stored - saved.keys(), saved.keys() - names.keys(), wrong)
    whole: dict[str, Any] = {name: saved[names[name]] for name in state}
    if any(isinstance(value, DTensor) for value in state.values()):
        set_model_state_dict(model, whole, options=StateDictOptions(full_state_dict=True, strict=True))
    else:
        model.load_state_dict(whole, strict=True)


def _stored_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Map each tensor name to the first name of the same tensor, since a file contains shared tensors once."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in state.items()}


def _refuse(missing: Iterable[str], unexpected: Iterable[str], wrong: Iterable[str]) -> None:
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape or type": wrong}
    found = [f"{what}: {_listed(sorted(names))}" for what, names in kinds.items() if names]
    if found:
        raise ValueError(f"its weights are not those of this model ({'; '.join(found)})")


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
