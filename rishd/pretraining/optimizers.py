"""The configured optimizer and its schedules."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LRScheduler

from lite import SOAP, SOAPLITE, LITEOptimizer, LITESchedule, Muon, MuonLITE, learning_rate_factor, param_groups
from rishd.pretraining.config import OptimizerConfig, PretrainConfig

_ADAMW_BETAS = (0.9, 0.95)  # the usual choice for language models (Brown et al., arXiv:2005.14165, appendix B)
_CLASSES: Mapping[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "muon": Muon,
    "muon-lite": MuonLITE,
    "soap": SOAP,
    "soap-lite": SOAPLITE,
}


def build_optimizer(
    config: OptimizerConfig, model: nn.Module, *, process_group: ProcessGroup | None = None
) -> torch.optim.Optimizer:
    """The configured optimizer over all trainable parameters.

    LITE's optimizers (and their bases) get :func:`lite.param_groups`, any other class the named parameters in one
    group.

    Args:
        config: Name, learning rate, decay and settings.
        model: The model.
        process_group: Ranks that have the same model (DDP), among which LITE's optimizers divide their work.

    Raises:
        ValueError: for a class that cannot be found or is no torch optimizer, a setting that it does not take, or a
            value that it refuses.
    """
    cls = optimizer_class(config.name)
    settings: dict[str, Any] = {"lr": config.lr}
    if config.weight_decay is not None:
        settings["weight_decay"] = config.weight_decay
    if cls is torch.optim.AdamW:
        settings["betas"] = _ADAMW_BETAS
    settings |= {key: tuple(value) if isinstance(value, list) else value for key, value in config.settings.items()}
    _check_settings(cls, config.name, settings)
    if issubclass(cls, LITEOptimizer):
        params: Any = param_groups(model, matrix_rule=cls.rule, settings=config.groups)  # type: ignore[arg-type]
        if process_group is not None and "process_group" in _taken(cls):
            settings["process_group"] = process_group
    elif config.groups:
        raise ValueError(
            f"optimizer.groups is for LITE's optimizers; {config.name} has one group. Leave it out, or take one of "
            "muon, muon-lite, soap, soap-lite."
        )
    else:
        params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return cls(params, **settings)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class behind ``adamw``, …, or ``module:Class``.

    Raises:
        ValueError: for a module or class that cannot be found, or a class that is no torch optimizer.
    """
    if name in _CLASSES:
        return _CLASSES[name]
    module_name, _, class_name = name.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, ValueError) as problem:
        raise ValueError(f"optimizer.name = {name!r}: module {module_name!r} cannot be imported ({problem}).") from None
    except AttributeError:
        raise ValueError(f"optimizer.name = {name!r}: module {module_name!r} has no {class_name!r}.") from None
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ValueError(f"optimizer.name = {name!r} is no class of torch.optim.Optimizer.")
    return cls


def _taken(cls: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """Arguments of a class by name."""
    known: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:  # a class that passes **settings on takes what its parent takes
        here = inspect.signature(owner).parameters
        known = {**here, **known}
        if not any(p.kind is p.VAR_KEYWORD for p in here.values()):
            break
    return known


def _check_settings(cls: type[torch.optim.Optimizer], name: str, settings: Mapping[str, Any]) -> None:
    known = _taken(cls)
    unknown = [key for key in settings if key not in known]
    if unknown:
        taken = [key for key, p in known.items() if p.kind is not p.VAR_KEYWORD and key != "params"]
        remedy = "; set optimizer.weight_decay: null" if "weight_decay" in unknown else ""
        raise ValueError(f"optimizer {name} takes no {', '.join(unknown)}; it takes {', '.join(taken)}{remedy}.")


def build_scheduler(config: PretrainConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The published learning-rate schedule, chained with LITE's schedule of χ and β_flat where there is one."""
    span: dict[str, Any] = {
        "schedule": config.schedule.name,
        "warmup_steps": config.warmup_steps,
        "total_steps": config.steps,
        "min_ratio": config.min_lr_ratio,
    }
    schedulers: list[LRScheduler] = [LambdaLR(optimizer, lambda k: learning_rate_factor(k, **span))]
    if config.schedule.lite and isinstance(optimizer, LITEOptimizer):
        schedulers.append(LITESchedule(optimizer, **span))
    return ChainedScheduler(schedulers)
