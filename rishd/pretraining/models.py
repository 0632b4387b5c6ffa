"""Randomly initialised models from presets or transformers' configuration files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from riemannian_ode.checks import one_line, shown
from rishd.pretraining.config import ModelConfig, PretrainConfig
from rishd.pretraining.config_files import ConfigError
from rishd.pretraining.plain_data import require_plain
from rishd.pretraining.presets import PRESETS
from rishd.pretraining.tokenizer import vocabulary_size

# Entries of transformers' configurations that a run sets elsewhere, or that determine the model's class.
_NOT_SET = {"model_type", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path"}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_MOST_MODULES = 10_000  # most layers, or experts per layer: each may be a module, which takes a millisecond to build


def model_config(
    config: ModelConfig, *, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, sequence_length: int
) -> PreTrainedConfig:
    """transformers' configuration of the model.

    Args:
        config: Preset or file, and settings.
        tokenizer: Sets a preset's vocabulary size; ``None`` for a tokenizer yet to be trained, whose first token ends
            documents.
        vocab_size: Vocabulary size of that tokenizer.
        sequence_length: Longest sequence.

    Raises:
        ConfigError: for a file that does not describe a causal language model, an unknown setting, or a vocabulary or
            context that is too small.
    """
    end_of_text = 0 if tokenizer is None else int(tokenizer.eos_token_id)
    vocab_size = vocab_size if tokenizer is None else vocabulary_size(tokenizer)
    where = f"preset {config.preset}" if config.config is None else one_line(config.config, 80)
    settings = dict(PRESETS[config.preset]) if config.config is None else _read(Path(config.config))
    if config.config is None:
        settings |= {"vocab_size": vocab_size, "max_position_embeddings": max(1024, sequence_length)}
    settings |= {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": None, "use_cache": False}
    model_type = settings.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type)
        _check_settings(config.settings, known, where)
        settings |= config.settings
        _check_counts(settings, known, where)
        made = AutoConfig.for_model(model_type, **settings)
    except ConfigError:
        raise
    except Exception as problem:  # transformers runs its own validators
        raise ConfigError(f"{where} with model.settings: {one_line(problem, 200)}") from None
    if type(made) not in AutoModelForCausalLM._model_mapping:
        raise ConfigError(f"{where}: transformers has no causal language model of type {model_type!r}.")
    if made.vocab_size < vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size:,} tokens, {where} a vocabulary of {made.vocab_size:,}; take its own "
            "tokenizer, or set model.settings.vocab_size."
        )
    longest = getattr(made, "max_position_embeddings", None)
    if longest is not None and longest < sequence_length:
        raise ConfigError(
            f"data.sequence_length = {sequence_length} is beyond {where}'s max_position_embeddings = {longest}."
        )
    return made


def build_model(config: PretrainConfig, made: PreTrainedConfig) -> PreTrainedModel:
    """A randomly initialised model.

    Args:
        config: The run; with precision ``"bfloat16"`` the weights are drawn in float32 and rounded.
        made: Result of :func:`model_config`.

    Raises:
        ConfigError: if the model refuses the configuration, or attention would run code from the Hugging Face hub.
    """
    if "/" in config.model.attention:
        raise ConfigError(
            f"model.attention = {config.model.attention!r} is a kernel of the Hugging Face hub, whose code is not run; "
            "take sdpa, eager, flash_attention_2 or flex_attention."
        )
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            made, attn_implementation=config.model.attention, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as problem:  # transformers' models raise their own errors
        kind = "" if isinstance(problem, (ImportError, ValueError)) else f"{type(problem).__name__}: "
        settings = one_line(", ".join(config.model.settings) or "none", 80)
        raise ConfigError(
            f"the model cannot be built with model.settings ({settings}) and model.attention = "
            f"{shown(config.model.attention)}: {kind}{one_line(problem, 120)}"
        ) from None
    if config.training.precision == "bfloat16":
        for p in model.parameters():  # not the buffers: positions need float32
            p.data = p.data.bfloat16()
    return model


def describe(made: PreTrainedConfig) -> str:
    """One line about the architecture."""
    body = f"{made.num_hidden_layers} layers of width {made.hidden_size}"
    text = f"{made.model_type}, {body}, vocabulary {made.vocab_size:,}"
    experts, chosen = getattr(made, "num_experts", None), chosen_experts(made)
    return f"{text}, {chosen} of {experts} experts a token" if experts and chosen else text


def chosen_experts(made: PreTrainedConfig) -> int | None:
    """Experts per token and layer, by any of transformers' names for this setting; ``None`` without experts."""
    found = [getattr(made, name) for name in ("num_experts_per_tok", "moe_topk") if hasattr(made, name)]
    return int(found[0]) if found and found[0] else None


def quiet() -> None:
    """Silence transformers' own progress bars and remarks."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _check_settings(settings: Mapping[str, Any], known: PreTrainedConfig, where: str) -> None:
    """Refuse settings that are not entries of the model's configuration, such as methods or the model's class."""
    names = {*known.to_dict(), *known.attribute_map} - _NOT_SET
    unknown = [key for key in settings if key not in names]
    if unknown:
        raise ConfigError(
            f"model.settings has {one_line(', '.join(unknown), 80)}, which a {known.model_type} configuration "
            f"({where}) does not."
        )


def _check_counts(settings: Mapping[str, Any], known: PreTrainedConfig, where: str) -> None:
    """Refuse negative integers if the model's default is not negative, and sizes and layer counts below 1."""
    for key, value in settings.items():
        if not isinstance(value, int):
            continue  # transformers checks types
        name = known.attribute_map.get(key, key)
        sizes = (known.attribute_map.get(size, size) for size in _SIZES)
        default = getattr(known, name, None)
        low = 1 if name in sizes else 0 if isinstance(default, int) and default >= 0 else None
        counted = re.fullmatch(r"(num|n)_.*(layer|expert|block).*", name) is not None
        if (low is not None and value < low) or (counted and value > _MOST_MODULES):
            most = f" and at most {_MOST_MODULES}" if counted else ""
            raise ConfigError(f"model.settings.{key} = {shown(value)} must be at least {low or 0}{most} ({where}).")


def _read(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        require_plain(data)
        if not isinstance(data["model_type"], str):
            raise TypeError
    except OSError as problem:
        raise ConfigError(f"model.config = {str(path)!r} cannot be read ({problem.strerror}).") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(
            f"{file} is not a configuration of transformers: expected a JSON object "
            "with model_type, as save_pretrained "
            "writes it."
        ) from None
    for key in ("architectures", "transformers_version", "dtype", "torch_dtype"):
        data.pop(key, None)
    return dict(data)
