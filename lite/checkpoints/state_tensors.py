"""Checks of a checkpoint's state tensors: shape, kind, and plausible numbers."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lite.execution.finiteness import largest_magnitudes
from riemannian_ode.checks import shown

_WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_REAL_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # float8 has no arithmetic


class StateValue(NamedTuple):
    """A state tensor of a checkpoint.

    Args:
        name: Name of its parameter, for messages.
        key: Key of the state.
        value: The tensor.
        is_mass: Whether it is the mass of an average, which lies in [0, 1].
    """

    name: str
    key: str
    value: Tensor
    is_mass: bool


def is_mass(key: Any) -> bool:
    """Whether a key of the state, such as ``"v_mass"`` or ``"v_mass/1"``, belongs to the mass of an average."""
    return str(key).split("/", maxsplit=1)[0].endswith("mass")


def is_spare(key: Any, spare: Collection[str]) -> bool:
    """Whether a key of the state, such as ``"subspace/2"``, is one of the spare ones."""
    return str(key).split("/", maxsplit=1)[0] in spare


def loadable_tensor(name: str, p: Tensor, key: str, value: Any, like: Tensor | None, *, may_be_wider: bool) -> Tensor:
    """A saved value as a tensor; plain numbers count as 0-dimensional tensors, as in torch.

    Args:
        name: Name of the parameter.
        p: The parameter.
        key: Key of the state.
        value: Saved value.
        like: Expected tensor, on the meta device; ``None`` for state that is not needed here.
        may_be_wider: Whether it may have more columns than needed.

    Raises:
        ValueError: if it is not a dense real tensor of the expected shape.
    """
    here = None if like is None else tuple(like.shape)
    if like is not None and here == () and isinstance(value, Real) and not isinstance(value, bool):
        return _tensor_of_number(name, key, value, like.dtype)
    is_count = isinstance(value, Tensor) and not value.ndim and value.dtype in _WHOLE_NUMBERS
    if problem := _problem(value, p, whole_numbers=like is not None and here == () and is_count):
        wanted = "a dense tensor" if here is None else f"a dense tensor of shape {here}"
        raise ValueError(
            f"parameter {name} has {key} = {problem} in the checkpoint, where {wanted} of real numbers is expected; "
            "the checkpoint is damaged or of another optimizer."
        )
    if is_count and like is not None:
        return torch.as_tensor(value, dtype=like.dtype)
    shape = tuple(value.shape)
    wider = may_be_wider and here is not None and shape[:-1] == here[:-1] and len(shape) >= 2 and shape[-1] > here[-1]
    if here is not None and shape != here and not wider:
        raise ValueError(
            f"parameter {name} has shape {tuple(p.shape)}, but its saved {key} has {shape}; the checkpoint is of "
            "another model."
        )
    result: Tensor = value
    return result


@torch.no_grad()
def check_values(values: Sequence[StateValue]) -> None:
    """Refuse non-finite numbers and masses outside [0, 1]. One device sync; traced tensors are skipped.

    Args:
        values: All state tensors; of DTensors, this rank's part is checked.

    Raises:
        ValueError: naming the first parameter and key.
    """
    if torch.compiler.is_compiling():
        return
    known = [(each, local) for each in values if (local := _own_values(each.value)) is not None and local.numel()]
    if not known:
        return
    magnitudes = largest_magnitudes([local.reshape(-1) for _, local in known])
    flags = [magnitude.isfinite() for magnitude in magnitudes]
    for i, (each, x) in enumerate(known):
        if each.is_mass:
            flags[i] = flags[i] & (x >= 0).all() & (x <= 1).all()
    device = next((flag.device for flag in flags if flag.device.type != "cpu"), flags[0].device)
    good = torch.stack([flag.to(device) for flag in flags]).tolist()
    for (each, local), is_good in zip(known, good, strict=True):
        if not is_good:
            raise ValueError(_bad_value(each, local))


def _bad_value(bad: StateValue, local: Tensor) -> str:
    if bad.is_mass:
        wanted, remedy = "a number between 0 and 1 is expected", "the checkpoint is damaged"
    else:
        wanted = "finite numbers are expected"
        remedy = "the checkpoint is damaged, or was saved after training had diverged: load an older one"
    what = shown(local.item()) if local.numel() == 1 else "a tensor with numbers that are NaN or infinite"
    return f"parameter {bad.name} has {bad.key} = {what} in the checkpoint, where {wanted}; {remedy}."


def _tensor_of_number(name: str, key: str, value: Real, dtype: torch.dtype) -> Tensor:
    try:
        return torch.tensor(float(value), dtype=dtype)
    except (OverflowError, RuntimeError):  # raised by float, and by torch for a narrower dtype
        raise ValueError(
            f"parameter {name} has {key} = {shown(value)} in the checkpoint, which is too large for {dtype}; the "
            "checkpoint is damaged."
        ) from None


def _problem(value: Any, p: Tensor, *, whole_numbers: bool) -> str:
    """Description of a saved value that is not a dense real tensor; empty if it is one."""
    if not isinstance(value, Tensor):
        return shown(value)
    if value.layout != torch.strided:
        return f"a tensor of layout {value.layout}"
    if value.is_quantized or (value.dtype not in _REAL_NUMBERS and not whole_numbers):
        return f"a tensor of {value.dtype}"
    if value.is_meta and not p.is_meta:
        return "a tensor without numbers (on the meta device)"
    return ""


def _own_values(value: Tensor) -> Tensor | None:
    """The local part of a tensor; ``None`` for traced and other tensors without values."""
    module = sys.modules.get("torch.distributed.tensor")  # slow to import, and loaded if there are DTensors
    local = value.to_local() if module is not None and isinstance(value, module.DTensor) else value
    return local.detach() if type(local) in (Tensor, nn.Parameter) and not local.is_meta else None
