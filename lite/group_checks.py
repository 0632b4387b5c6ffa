"""What a parameter group may hold, refused early and plainly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lite.matrix_view import check_layout
from lite.tensor_settings import TENSOR_SETTINGS

_SCHEDULE_KEYS = ("initial_lr", "peak_chi", "peak_beta_flat")  # what schedulers leave in groups


def check_group(group: Mapping[str, Any], *, rule: str, known: Iterable[str]) -> None:
    """Refuse settings that are unknown or out of range, and parameters that the group's rule cannot take.

    Args:
        group: A group of an optimizer, with its defaults filled in.
        rule: The optimizer's rule of matrices.
        known: Settings that groups may have.

    Raises:
        ValueError: naming argument, value and remedy.
    """
    unknown = sorted(set(group) - set(known) - {"params", "param_names", "steps", *_SCHEDULE_KEYS})
    if unknown:
        raise ValueError(f"a group has unknown settings {unknown}; known are {sorted(known)}.")
    rules = (rule, "adamw")
    if group["rule"] not in rules:
        raise ValueError(f"rule = {group['rule']!r} is unknown here. Choose one of: {', '.join(rules)}.")
    for name, value in group.items():
        if isinstance(value, Tensor) and name not in (*TENSOR_SETTINGS, *_SCHEDULE_KEYS):
            raise ValueError(f"{name} is a tensor; only {', '.join(TENSOR_SETTINGS)} may be, {name} is a plain number.")
    require_range(group, "lr", 0.0, math.inf, "it is the learning rate")
    require_range(group, "weight_decay", 0.0, math.inf, "it shrinks the weights by lr·weight_decay a step")
    require_range(group, "chi", 1.0, math.inf, "LITE speeds flat directions up; χ = 1 is the base optimizer")
    require_range(group, "chi_sharp", 0.0, math.inf, "it scales sharp directions; 1 but in ablations")
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
        value = math.nan if isinstance(group[name], bool) else float(group[name])
    except (TypeError, ValueError, RuntimeError):  # the last one for a tensor of several numbers
        raise ValueError(f"{name} = {group[name]!r} must be a number: {remedy}.") from None
    if not (math.isfinite(value) and lower <= value <= upper):
        span = f"at least {lower:g}" if math.isinf(upper) else f"between {lower:g} and {upper:g}"
        raise ValueError(f"{name} = {group[name]!r} must be finite and {span}: {remedy}.")


def require_betas(group: Mapping[str, Any], name: str) -> None:
    """Refuse EMA coefficients that are not two numbers in [0, 1).

    Raises:
        ValueError: naming argument and value.
    """
    betas = group[name]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"{name} = {betas!r} must be two numbers in [0, 1).")


def parameter_names(group: Mapping[str, Any]) -> list[Any]:
    """Names of a group's parameters, or their numbers where they came without."""
    return list(group.get("param_names", range(len(group["params"]))))


def sparse_message(name: Any) -> str:
    """What is said of a sparse gradient."""
    return f"the gradient of {name} is sparse; dense ones are needed (nn.Embedding(sparse=False))."


def short_text(text: str) -> str:
    """A text cut to a length that fits in a message."""
    return text if len(text) <= 120 else text[:117] + "..."
