"""Placement of optimizer state on ranks, and cutting of saved state to fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lite.adamw import initial_adamw_state
from lite.declaration import Declaration
from lite.distributed.division import OwnedParameter, PlacedParameter
from lite.distributed.sharding import local_part
from lite.execution.executor import Workload
from lite.parameters.parameter_entries import TensorEntry, parameter_entries


def initial_state(declaration: Declaration, group: dict[str, Any], parameter: PlacedParameter) -> dict[str, Tensor]:
    """This rank's part of a parameter's state before the first step.

    AdamW's moments and the rule's ``sharded_state`` are sharded like the parameter. Other state of a matrix is a plain
    tensor on its owner and absent elsewhere; other state of a stack of experts is a DTensor, cut along the experts.

    Args:
        declaration: The optimizer's declaration of its matrices.
        group: Group of the parameter.
        parameter: The parameter.
    """
    with torch.no_grad():
        if not isinstance(parameter, OwnedParameter):
            return initial_adamw_state(group, parameter.p)
        state: dict[str, Tensor] = {}
        if parameter.sharding.is_cut and declaration.sharded_state:
            like = torch.empty(parameter.shape, dtype=parameter.p.dtype, device="meta")
            for name, value in declaration.parameter_state(group, like).items():
                if name in declaration.sharded_state:
                    state[name] = torch.zeros_like(parameter.p, dtype=value.dtype)
        if parameter.own is None:
            return state
        values = declaration.parameter_state(group, local_part(parameter.p).new_empty(parameter.own.box.shape))
        return state | {name: _on_owners(parameter, value) for name, value in values.items() if name not in state}


def fitted_state(
    declaration: Declaration, group: dict[str, Any], parameter: PlacedParameter, saved: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Copy of this rank's part of a saved state, each tensor in its saved dtype.

    A collective among the ranks of saved DTensors that are placed differently here, including ranks that get no part.

    Args:
        declaration: The optimizer's declaration of its matrices.
        group: Group of the parameter.
        parameter: The parameter.
        saved: Its state, whole or placed as by :func:`initial_state` (on these ranks or others).
    """
    layout = initial_state(declaration, group, parameter)
    fitted = {name: _fitted(value, layout.get(name)) for name, value in saved.items()}
    return {name: value for name, value in fitted.items() if value is not None}


class StateShapes:
    """Shapes of the state of all matrices, including those that other ranks own.

    They let every rank refuse a setting that does not fit the state; otherwise only the owner would refuse, and the
    other ranks would wait for it. The shapes follow the settings at the time when state was made or loaded.
    """

    def __init__(self) -> None:
        self._entries: dict[Any, list[TensorEntry]] = {}  # one for each kind of parameter, on the meta device
        self._kinds: dict[OwnedParameter, Any] = {}

    def __contains__(self, parameter: OwnedParameter) -> bool:
        return parameter in self._kinds

    def note(self, work: Workload, parameter: OwnedParameter) -> None:
        """Record that the state of a matrix was made or loaded under its group's current settings."""
        group = work.groups[parameter.group]
        like = torch.empty(parameter.shape, dtype=parameter.p.dtype, device="meta")
        state = work.declaration.parameter_state(group, like)
        kind = (
            parameter.group,
            parameter.shape,
            parameter.p.dtype,
            tuple((name, x.shape) for name, x in state.items()),
        )
        self._kinds[parameter] = kind
        if kind not in self._entries:
            self._entries[kind] = parameter_entries(
                work.declaration.elementwise_state(group), group, like, {}, state, step=0, numbers=parameter.numbers
            )

    def check(self, work: Workload, parameters: Iterable[PlacedParameter]) -> None:
        """Refuse settings of groups that do not fit the state of these parameters.

        Raises:
            ValueError: on every rank.
        """
        kinds = {
            self._kinds[parameter]: parameter.group for parameter in parameters if isinstance(parameter, OwnedParameter)
        }
        for kind, group in kinds.items():
            work.declaration.check_matrices(work.groups[group], self._entries[kind])


def _on_owners(parameter: OwnedParameter, value: Tensor) -> Tensor:
    """State of a range of experts as part of that of all; any other state is returned unchanged."""
    if not parameter.is_stack or parameter.sharding.mesh.size == 1:
        return value
    device_mesh = parameter.sharding.by_experts.device_mesh(value.device.type)
    shape = torch.Size((parameter.shape[0], *value.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    placements = [Shard(0)] * device_mesh.ndim
    return DTensor.from_local(value.contiguous(), device_mesh, placements, run_check=False, shape=shape, stride=stride)


def _fitted(saved: Tensor, like: Tensor | None) -> Tensor | None:
    if not isinstance(like, DTensor):
        whole = saved.full_tensor() if isinstance(saved, DTensor) else saved
        return None if like is None else whole.to(like.device, copy=True)
    device_mesh, placements = like.device_mesh, like.placements
    if isinstance(saved, DTensor) and saved.device_mesh == device_mesh and saved.placements == placements:
        return saved.to(like.device, copy=True)
    whole = saved.full_tensor() if isinstance(saved, DTensor) else saved
    return distribute_tensor(whole.to(like.device, copy=True), device_mesh, placements, src_data_rank=None)
