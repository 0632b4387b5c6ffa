"""Settings of Muon and NorMuon groups: masks, Newton–Schulz, scales, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from discretizations.matrices.polar import PUBLISHED_FLOOR
from discretizations.preconditioners.masks import (
    ExactSubspace,
    GradedMask,
    RandomSubspace,
    SingularMask,
    ThresholdMask,
    TrackedSubspace,
)
from discretizations.preconditioners.normalized_polar_factor import NormalizedPolarFactor
from discretizations.preconditioners.polar_factor import TORCH_COEFFICIENTS, TORCH_FLOOR, PolarFactor
from lite.declaration import ANY_SHAPE, PLAIN_FRACTION, matrix_shape
from lite.parameters.group_checks import is_setting_number, require_flag, require_range, require_whole
from lite.parameters.parameter_entries import group_views
from lite.parameters.tensor_settings import acts
from riemannian_ode.checks import require_choice, shown

Mask: TypeAlias = Literal["subspace", "threshold", "exact", "graded", "graded-frobenius", "random", "random-redrawn"]
Damping: TypeAlias = Literal["outside", "inside"]
_DAMPINGS: tuple[Damping, ...] = ("outside", "inside")
NSDtype: TypeAlias = Literal["fastest", "parameter", "bfloat16", "float16", "float32"]
MASKS: dict[Mask, Callable[[float], SingularMask]] = {  # by the sharp fraction
    "subspace": lambda r: TrackedSubspace(sharp_fraction=r),
    "threshold": lambda r: ThresholdMask(sharp_fraction=r),
    "exact": lambda r: ExactSubspace(sharp_fraction=r),
    "graded": lambda _: GradedMask(),
    "graded-frobenius": lambda _: GradedMask(by="frobenius"),
    "random": lambda r: RandomSubspace(sharp_fraction=r),
    "random-redrawn": lambda r: RandomSubspace(sharp_fraction=r, is_redrawn=True),
}
_NS_DTYPES: dict[NSDtype, Any] = {
    "fastest": "fastest",
    "parameter": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
Iteration: TypeAlias = Literal["polar-express", "jordan", "cubic", "svd"]
Scale: TypeAlias = Literal["rms", "original", "spectral"]
_SCALES: tuple[Scale, ...] = ("rms", "original", "spectral")
_ITERATIONS: dict[str, Any] = {
    "polar-express": "polar-express",
    "jordan": TORCH_COEFFICIENTS,
    "cubic": (1.5, -0.5, 0.0),  # Newton–Schulz's own settings
    "svd": "svd",
}
_UPDATE_RMS = 0.2  # root mean square of the update's entries, typical of AdamW (arXiv:2502.16982, section 2.2)


def update_scale(shape: tuple[int, int], scale: Scale = "rms") -> float:
    """Factor of the direction of matrices m×n in addition to η, see :class:`MuonLITE`."""
    rows, columns = shape
    if scale == "rms":
        return _UPDATE_RMS * math.sqrt(max(shape))
    return math.sqrt(rows / columns if scale == "spectral" else max(1.0, rows / columns))


def inside_unit(theta: float) -> float:
    r"""Unit √((1 − θ)/(1 + θ)) of β before msign, with which β has the same effect as after msign.

    If noise dominates, M is an average of independent gradients with covariance Σ, so its covariance is Σ(1 − θ)/(1 +
    θ). To first order :math:`\mathrm{msign}(\tilde M + bG)` changes by b/σ(M̃) times a part of G, and msign(G) contains
    1/σ(G) times this part. With the factor β the two are equal for b = β·σ(M̃)/σ(G).

    Args:
        theta: θ of the momentum.
    """
    return math.sqrt((1.0 - theta) / (1.0 + theta))


def sharp_rank(sharp_fraction: float, w: Tensor) -> int:
    """k = round(r·min(m, n))."""
    return round(sharp_fraction * min(w.shape[-2:]))


def polar_factor(group: dict[str, Any], mask: SingularMask | None) -> PolarFactor:
    """F⁻¹ of a group, with or without a mask."""
    steps, own = group["ns_steps"], group["ns"] not in ("polar-express", "svd")
    settings: dict[str, Any] = {
        "iteration": (_ITERATIONS[group["ns"]] if isinstance(group["ns"], str) else group["ns"]) if steps else "svd",
        "steps": steps,
        "dtype": _NS_DTYPES[group["ns_dtype"]],
        # The last two are for comparison with published code.
        "narrows": type(mask) not in (ThresholdMask, ExactSubspace),
        "floor": TORCH_FLOOR if own else PUBLISHED_FLOOR if type(mask) is ThresholdMask else 0.0,
        "mask": mask,
    }
    if group["row_beta2"] is None:
        return PolarFactor(**settings)
    return NormalizedPolarFactor(**settings, beta2=group["row_beta2"])


def group_scale(group: dict[str, Any], shape: tuple[int, int]) -> float:
    """Factor of the direction of a group's matrices m×n in addition to lr."""
    scale = group["scale"]
    if isinstance(scale, str):
        return update_scale(shape, scale)  # type: ignore[arg-type]
    if isinstance(scale, dict):
        return float(scale.get(shape, 1.0))  # other shapes occur only where the scale does not matter
    return 1.0 if shape == ANY_SHAPE else float(scale(shape))  # as above


def matrix_shapes(group: dict[str, Any]) -> list[tuple[int, int]]:
    """Shapes of all matrices of a group."""
    if group["rule"] == "adamw":
        return []
    views = (view for p in group["params"] for view in group_views(group, p.new_empty(p.shape, device="meta")))
    return sorted({matrix_shape(view) for view in views})


def _check_iteration(ns: Any) -> None:
    if isinstance(ns, str):
        require_choice("ns", ns, _ITERATIONS)
        return
    steps = list(ns) if isinstance(ns, (tuple, list)) else []
    if not steps or not all(isinstance(each, (tuple, list)) and len(each) == 3 for each in steps):
        raise ValueError(
            f"ns = {shown(ns)} must be one of {', '.join(_ITERATIONS)}, or a list of coefficients (a, b, c)."
        )
    if not all(is_setting_number(x) and math.isfinite(x) for each in steps for x in each):
        raise ValueError(f"ns = {shown(ns)} holds a value that is not a finite number.")


def _check_scale(group: dict[str, Any]) -> None:
    scale = group["scale"]
    if isinstance(scale, str):
        require_choice("scale", scale, _SCALES)
    else:
        if not callable(scale) and not isinstance(scale, dict):
            raise ValueError(f"scale = {shown(scale)} must be one of {', '.join(_SCALES)}, or a function of (m, n).")
        for shape in matrix_shapes(group):
            if isinstance(scale, dict) and shape not in scale:
                raise ValueError(f"scale has no entry for matrices of shape {shape}; give the function itself.")
            value = scale[shape] if isinstance(scale, dict) else scale(shape)
            if not is_setting_number(value) or not (math.isfinite(value) and value > 0):
                raise ValueError(f"scale gives {shown(value)} for a matrix of shape {shape}; it must be positive.")


def _check_rows(group: dict[str, Any]) -> None:
    require_range(group, "row_beta2", 0.0, 1.0, "it is the weight of the past in the rows' second moment")
    if group["row_beta2"] == 1.0:
        raise ValueError("row_beta2 = 1 never takes in a row; 0.95 is usual.")
    if MASKS[group["mask"]](0.1).needs_polar:
        raise ValueError(
            f"mask = {group['mask']!r} needs a polar factor, which normalised rows are not; take mask='subspace'."
        )


def group_mask(group: dict[str, Any]) -> SingularMask | None:
    """The mask of a group; ``None`` if the group always runs plain Muon.

    The peaks of χ and β decide, since a schedule may pass through χ = 1 and β = 0; with a :class:`lite.SettingSchedule`
    there is always a mask.
    """
    names = {"chi": 1.0, "peak_chi": 1.0, "chi_sharp": 1.0, "beta_sharp": 0.0, "beta_flat": 0.0, "peak_beta_flat": 0.0}
    is_lite = group["adapts_chi"] or any(acts(group[name], neutral) for name, neutral in names.items() if name in group)
    if not (is_lite or group.get("is_scheduled", False)) or group["sharp_fraction"] <= PLAIN_FRACTION:
        return None
    return MASKS[group["mask"]](group["sharp_fraction"])


def check_muon_group(group: dict[str, Any]) -> None:
    """Refuse settings of Muon and NorMuon groups that are out of range or incompatible.

    Args:
        group: A parameter group.

    Raises:
        ValueError: naming argument, value and remedy.
    """
    momentum = group["momentum"]
    if not is_setting_number(momentum) or not 0.0 < momentum < 1.0:
        raise ValueError(f"momentum = {shown(momentum)} must lie strictly between 0 and 1; 0.95 is published.")
    require_choice("mask", group["mask"], MASKS)
    require_choice("ns_dtype", group["ns_dtype"], _NS_DTYPES)
    require_whole(group, "ns_steps", 0, "a whole number; 6 is published, 0 means SVD")
    require_flag(group, "float32_momentum")
    require_flag(group, "nesterov")
    require_choice("damping", group["damping"], _DAMPINGS)
    if group["damping"] == "inside" and MASKS[group["mask"]](0.1).needs_polar:
        raise ValueError(
            f"damping = 'inside' needs the mask before msign(M̃), on which mask = {group['mask']!r} depends; take "
            "mask='subspace'."
        )
    _check_iteration(group["ns"])
    _check_scale(group)
    if group["row_beta2"] is not None:
        _check_rows(group)
    if group["mask"] == "threshold" and group["chi_sharp"] != 1:
        raise ValueError(
            f"chi_sharp = {group['chi_sharp']!r} has no meaning for the published soft mask; take mask='subspace'."
        )
