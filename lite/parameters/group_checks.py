"""Checks of a parameter group's settings and parameters, made early and with plain errors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lite.parameters.decay import check_decay
from lite.parameters.matrix_view import check_layout
from lite.parameters.tensor_settings import TENSOR_SETTINGS
from riemannian_ode.checks import is_number, require_choice, shown

# Keys that our and torch's schedulers store in groups; OneCycleLR, CyclicLR and SWALR add the last ones.
_OUR_SCHEDULE = {"initial_lr": 0.0, "peak_chi": 1.0, "peak_beta_flat": -1.0}  # with their lower bounds
_SCHEDULE_KEYS = (*_OUR_SCHEDULE, "is_scheduled", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
_TORCH_KEYS = ("params", "param_names", "differentiable")  # the last key comes with copying or unpickling an optimizer
LARGEST_COUNT = 2**53  # beyond this, not every integer has a float64


def check_group(group: Mapping[str, Any], *, rule: str, known: Collection[str], tags: Collection[Any] = ()) -> None:
    """Refuse settings that are unknown or out of range, and parameters that the group's rule cannot take.

    Args:
        group: A group of an optimizer, with its defaults filled in.
        rule: The optimizer's matrix rule.
        known: Settings that groups may have.
        tags: Further keys that the group may have; they are ignored.

    Raises:
        ValueError: naming argument, value and remedy.
    """
    allowed = {*known, *tags, "steps", *_TORCH_KEYS, *_SCHEDULE_KEYS}
    unknown = sorted(str(name) for name in group if name not in allowed)
    if unknown:
        raise ValueError(f"a group has unknown settings {unknown}; known are {sorted(known)}.")
    rules = tuple(dict.fromkeys((rule, "adamw")))
    require_choice("rule", group["rule"], rules)
    for name in known:
        if isinstance(group.get(name), Tensor) and name not in TENSOR_SETTINGS:
            raise ValueError(f"{name} is a tensor; only {', '.join(TENSOR_SETTINGS)} may be, {name} is a plain number.")
    require_range(group, "lr", 0.0, math.inf, "it is the learning rate")
    require_range(group, "weight_decay", 0.0, math.inf, "it shrinks the weights by lr·weight_decay a step")
    require_range(group, "chi", 0.0, math.inf, "it scales flat directions; χ = 1 is the base, 'auto' adapts")
    require_range(group, "chi_sharp", 0.0, math.inf, "it scales sharp directions; 1 except in ablations")
    require_range(group, "sharp_fraction", 0.0, 1.0, "it is the fraction of directions that count as sharp")
    for name in ("beta_sharp", "beta_flat"):
        require_range(group, name, -math.inf, math.inf, "it is a Hessian damping")
        if group[name] <= -1.0:
            raise ValueError(
                f"{name} = {group[name]!r} must be above −1: under a steady gradient the update is (1 + β) times "
                "the base one, so at or below −1 it stops or climbs; published are −0.25 (sharp) and 1 (flat)."
            )
    if group["beta_flat"] < group["beta_sharp"]:
        raise ValueError(
            f"beta_flat = {group['beta_flat']!r} is below beta_sharp = {group['beta_sharp']!r}: LITE damps flat "
            "directions at least as much as sharp ones, whose stable learning rate falls as β grows."
        )
    require_betas(group, "adamw_betas")
    require_range(group, "eps", 0.0, math.inf, "it is AdamW's denominator floor")
    if group["eps"] == 0:
        raise ValueError("eps = 0 divides by zero where a gradient has always been zero; 1e-8 is published.")
    require_flag(group, "stochastic_rounding")
    require_flag(group, "adapts_chi")
    if group["adapts_chi"] and group["norm"] == "constant":
        raise ValueError("chi = 'auto' follows steps that are not normalised; take norm='free', or give χ as a number.")
    if "is_scheduled" in group:
        require_flag(group, "is_scheduled")
    check_decay(group, is_matrix=group["rule"] != "adamw")
    for name, lower in _OUR_SCHEDULE.items():
        if name in group:
            require_range(group, name, lower, math.inf, "a schedule left it here")
    _check_parameters(group)


def _check_parameters(group: Mapping[str, Any]) -> None:
    for name, p in zip(parameter_names(group), group["params"], strict=True):
        if p.is_complex():
            raise ValueError(f"parameter {name} is complex; optimize its real view (torch.view_as_real).")
        if group["rule"] != "adamw":
            view = {key: group[key] for key in ("layout", "blocks", "block_axis")}
            check_layout(p.shape, **view, name=name)


def require_range(group: Mapping[str, Any], name: str, lower: float, upper: float, remedy: str) -> None:
    """Refuse a hyperparameter outside [lower, upper].

    Raises:
        ValueError: naming argument, value and remedy.
    """
    try:
        value = float(group[name]) if is_setting_number(group[name]) else None
    except OverflowError:
        value = math.inf
    except (TypeError, ValueError, RuntimeError):  # the last exception is for a tensor of several numbers
        value = None
    if value is None:
        raise ValueError(f"{name} = {shown(group[name])} must be a number: {remedy}.")
    if not (math.isfinite(value) and lower <= value <= upper):
        span = f"at least {lower:g}" if math.isinf(upper) else f"between {lower:g} and {upper:g}"
        raise ValueError(f"{name} = {shown(group[name])} must be finite and {span}: {remedy}.")


def is_setting_number(value: Any) -> bool:
    """Whether a value may stand for a number; booleans are excluded, and strings, which ``float`` would parse."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dtype != torch.bool and not (value.is_complex() or value.is_meta)
    return is_number(value) or (isinstance(value, Real) and not isinstance(value, bool))


def require_whole(group: Mapping[str, Any], name: str, lower: int, wanted: str) -> None:
    """Refuse a hyperparameter that is not a whole number of at least ``lower``.

    Args:
        group: A parameter group.
        name: Name of the hyperparameter.
        lower: Smallest value.
        wanted: What it must be, for the message.

    Raises:
        ValueError: naming argument, value and remedy.
    """
    value = group[name]
    if type(value) is not int or not lower <= value <= LARGEST_COUNT:
        raise ValueError(f"{name} = {shown(value)} must be {wanted}.")


def require_flag(settings: Mapping[str, Any], name: str) -> None:
    """Refuse a switch that is neither True nor False; other values would silently count as one of them.

    Raises:
        ValueError: naming argument, value and remedy.
    """
    if not isinstance(settings[name], bool):
        raise ValueError(f"{name} = {shown(settings[name])} must be True or False.")


def require_betas(group: Mapping[str, Any], name: str) -> None:
    """Refuse EMA coefficients that are not two numbers in [0, 1).

    Raises:
        ValueError: naming argument and value.
    """
    betas = group[name]
    is_pair = isinstance(betas, (tuple, list)) and len(betas) == 2
    if not is_pair or not all(is_setting_number(beta) and bool(0.0 <= beta < 1.0) for beta in betas):
        raise ValueError(f"{name} = {shown(betas)} must be two numbers in [0, 1).")


def parameter_names(group: Mapping[str, Any]) -> list[Any]:
    """Names of a group's parameters, or their numbers if they have no names."""
    return list(group.get("param_names", range(len(group["params"]))))


def sparse_message(name: Any) -> str:
    """The error message for a sparse gradient."""
    return f"the gradient of {name} is sparse; dense ones are needed (nn.Embedding(sparse=False))."


def short_text(text: str) -> str:
    """A text shortened to fit in a message."""
    return text if len(text) <= 120 else text[:117] + "..."
