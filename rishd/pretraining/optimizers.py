"""The configured optimizer and its schedules."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LRScheduler

from lite import LITEOptimizer, LITESchedule, learning_rate_factor, param_groups
from riemannian_ode.checks import one_line, shown
from rishd.pretraining.config import OptimizerConfig, PretrainConfig
from rishd.pretraining.config_files import ConfigError
from rishd.pretraining.matrices_and_rest import MatricesAndRest
from rishd.pretraining.presets import OPTIMIZERS

_ADAMW_BETAS = (0.9, 0.95)  # usual for language models (Brown et al., arXiv:2005.14165, appendix B)
_ELSEWHERE = {  # arguments of the classes that a configuration sets elsewhere, or not at all
    "lr": "set optimizer.lr",
    "weight_decay": "set optimizer.weight_decay",
    "params": "they are the model's",
    "process_group": "it is that of the run's ranks",
}
_OWN_GROUP_KEYS = ("params", "param_names", "kind", "steps")  # keys set by lite.param_groups
_EXACT_TYPES = ConfigDict(arbitrary_types_allowed=True, strict=True)


def build_optimizer(
    config: OptimizerConfig, model: nn.Module, *, process_group: ProcessGroup | None = None
) -> torch.optim.Optimizer:
    """The configured optimizer over all trainable parameters.

    LITE's optimizers (and their bases) get :func:`lite.param_groups`, any other class the named parameters in one
    group.

    Args:
        config: Name, learning rate, decay and settings.
        model: The model.
        process_group: Ranks with the same model (DDP), among which LITE's optimizers divide their work.

    Raises:
        ConfigError: for a class that cannot be found or is not a torch optimizer, an unknown setting, or a value that
            it refuses.
    """
    cls, settings = _class_and_settings(config)
    if issubclass(cls, LITEOptimizer):
        if process_group is not None and "process_group" in _taken(cls):
            settings["process_group"] = process_group
    elif config.groups:
        raise ConfigError(
            f"optimizer.groups is for LITE's optimizers; {config.name} has one group. Leave it out, or take one of "
            "muon, muon-lite, soap, soap-lite."
        )
    if config.matrices_only and issubclass(cls, LITEOptimizer):
        raise ConfigError(
            f"optimizer.matrices_only has no meaning for {config.name}, whose groups do that; leave it out."
        )
    try:
        if config.matrices_only:
            return _matrices_and_rest(cls, config, settings, model)
        return cls(_groups(cls, config, model), **settings)
    except ConfigError:
        raise
    except Exception as problem:  # any class may raise anything
        raise _refusal(config, problem) from None


def _matrices_and_rest(
    cls: type[torch.optim.Optimizer], config: OptimizerConfig, settings: dict[str, Any], model: nn.Module
) -> MatricesAndRest:
    """The class for the parameters that LITE's optimizers treat as matrices, and AdamW for all others."""
    matrices: list[tuple[str, Tensor]] = []
    rest: list[tuple[str, Tensor]] = []
    for group in param_groups(model):
        (rest if group["rule"] == "adamw" else matrices).extend(group["params"])
    adamw = {"lr": config.lr, "weight_decay": config.weight_decay or 0.0, "betas": _ADAMW_BETAS}
    return MatricesAndRest(matrices, rest, lambda named: cls(named, **settings), adamw)


def try_optimizer(config: OptimizerConfig, device: torch.device) -> None:
    """Run two steps on a small matrix and a vector, since some classes check their settings only then.

    Args:
        config: Name, learning rate, decay and settings.
        device: Device of the run.

    Raises:
        ConfigError: if the optimizer fails.
    """
    layer = nn.Linear(4, 8, device="meta").to_empty(device=device)  # draws no random numbers
    optimizer = build_optimizer(replace(config, groups={}), layer)
    for _ in range(2):
        for p in layer.parameters():
            p.data.fill_(1.0)
            p.grad = torch.full_like(p, 1e-3)
        try:
            optimizer.step()
        except Exception as problem:  # any class may raise anything
            raise _refusal(config, problem) from None


def try_scheduler(config: PretrainConfig, model: nn.Module) -> None:
    """Create the schedules of a run, which may refuse settings of the optimizer.

    Args:
        config: The run.
        model: Its model, possibly fake.

    Raises:
        ConfigError: if they refuse a setting.
    """
    optimizer = build_optimizer(config.optimizer, model)
    try:
        build_scheduler(config, optimizer)
    except ValueError as problem:
        raise ConfigError(f"schedule.lite = true: {problem}") from None


def _class_and_settings(config: OptimizerConfig) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    cls = optimizer_class(config.name)
    for key in config.settings:
        if remedy := _ELSEWHERE.get(key):
            raise ConfigError(f"optimizer.settings has {key}; leave it out: {remedy}.")
    settings: dict[str, Any] = {"lr": config.lr}
    if config.weight_decay is not None:
        settings["weight_decay"] = config.weight_decay
    if cls is torch.optim.AdamW:
        settings["betas"] = _ADAMW_BETAS
    settings |= {key: tuple(value) if isinstance(value, list) else value for key, value in config.settings.items()}
    _check_settings(cls, config.name, settings)
    return cls, settings


def _groups(cls: type[torch.optim.Optimizer], config: OptimizerConfig, model: nn.Module) -> Any:
    if not issubclass(cls, LITEOptimizer):
        return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for kind, settings in config.groups.items():
        for key in _OWN_GROUP_KEYS:
            if key in settings:
                raise ConfigError(f"optimizer.groups.{one_line(kind, 40)} has {key}, which follows from the model.")
    try:
        rules = {"matrix_rule": cls.rule, "other_rule": cls.rule if cls.takes_any_shape else "adamw"}
        return param_groups(model, **rules, settings=config.groups)  # type: ignore[arg-type]
    except ValueError as problem:
        raise ConfigError(f"optimizer.groups: {one_line(problem, 240)}") from None


def _refusal(config: OptimizerConfig, problem: Exception) -> ConfigError:
    kind = "" if isinstance(problem, ValueError) else f"{type(problem).__name__}: "
    where = "settings or optimizer.groups" if config.groups else "settings"
    return ConfigError(f"{one_line(config.name, 60)} refuses optimizer.{where}: {kind}{one_line(problem, 160)}")


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class behind ``adamw``, …, or ``module:Class``.

    Raises:
        ConfigError: for a module or class that cannot be found, or a class that is not a torch optimizer.
    """
    module_name, _, class_name = OPTIMIZERS.get(name, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as problem:  # the module may raise anything when imported
        told = f"{type(problem).__name__}: {one_line(problem, 100)}"
        raise ConfigError(f"optimizer.name = {shown(name)}: the module cannot be imported ({told}).") from None
    cls = getattr(module, class_name, None)
    if cls is None:
        raise ConfigError(f"optimizer.name = {shown(name)}: the module has no {class_name[:60]!r}.")
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)) or inspect.isabstract(cls):
        raise ConfigError(f"optimizer.name = {shown(name)} is not a concrete subclass of torch.optim.Optimizer.")
    return cls


def _taken(cls: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """Arguments of a class by name."""
    known: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:  # a class that passes **settings on accepts its parent's arguments
        here = inspect.signature(owner).parameters
        known = {**here, **known}
        if not any(p.kind is p.VAR_KEYWORD for p in here.values()):
            break
    return known


def _check_settings(cls: type[torch.optim.Optimizer], name: str, settings: Mapping[str, Any]) -> None:
    known = [key for key, p in _taken(cls).items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    unknown = [key for key in settings if key not in known]
    if unknown:
        taken = [key for key in known if key not in _ELSEWHERE]
        remedy = "; set optimizer.weight_decay: null" if "weight_decay" in unknown else ""
        raise ConfigError(
            f"optimizer {one_line(name, 60)} takes no {one_line(', '.join(unknown), 60)}; its settings are "
            f"{one_line(', '.join(taken), 120)}{remedy}."
        )
    # torch treats amsgrad = "no" as true. LITE's classes check types themselves; other classes' annotations may be
    # wrong.
    hints = typing.get_type_hints(cls.__init__) if cls.__module__.startswith("torch.") else {}
    for key in settings.keys() & hints.keys():
        _check_type(name, key, settings[key], hints[key])


def _check_type(name: str, key: str, value: Any, hint: Any) -> None:
    try:
        TypeAdapter(hint, config=_EXACT_TYPES).validate_python(value)
    except ValidationError as problem:
        message = one_line(problem.errors(include_url=False)[0]["msg"], 100)
        raise ConfigError(
            f"optimizer.settings.{key} = {shown(value)} does not suit {one_line(name, 60)}: "
            f"{message[:1].lower()}{message[1:]}."
        ) from None


def build_scheduler(config: PretrainConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The published learning-rate schedule, chained with LITE's schedule of χ and β_flat if there is one."""
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
