"""Optimizer state on ranks: where each part of it lies, and how a saved one is cut to fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lite.adamw import initial_adamw_state
from lite.distributed.division import Member, Task
from lite.distributed.layout import local_part
from lite.execution.executor import Workload
from lite.matrix_rule import MatrixRule
from lite.parameters.parameter_entries import TensorEntry, parameter_entries


def initial_state(rule: MatrixRule, group: dict[str, Any], member: Member) -> dict[str, Tensor]:
    """State of a parameter before its first step: what lies on this rank.

    AdamW's moments and the rule's ``sharded_state`` lie as a parameter's shards do. Other state of a matrix is a plain
    tensor on its owner and nothing elsewhere; that of a stack of experts is a DTensor, cut along the experts.

    Args:
        rule: The rule of matrices.
        group: Group of the parameter.
        member: The parameter.
    """
    with torch.no_grad():
        if not isinstance(member, Task):
            return initial_adamw_state(group, member.p)
        state: dict[str, Tensor] = {}
        if member.layout.team.shards.size > 1 and rule.sharded_state:
            like = torch.empty(member.shape, dtype=member.p.dtype, device="meta")
            for name, value in rule.parameter_state(group, like).items():
                if name in rule.sharded_state:
                    state[name] = torch.zeros_like(member.p, dtype=value.dtype)
        if member.own is None:
            return state
        values = rule.parameter_state(group, local_part(member.p).new_empty(member.unit_shape(member.own)))
        return state | {name: _on_workers(member, value) for name, value in values.items() if name not in state}


def fitted_state(
    rule: MatrixRule, group: dict[str, Any], member: Member, saved: dict[str, Tensor]
) -> dict[str, Tensor]:
    """This rank's part of a saved state, copied, each tensor in the dtype that it was saved in.

    A collective of the ranks of saved DTensors that lie otherwise here, also on a rank that gets nothing of them.

    Args:
        rule: The rule of matrices.
        group: Group of the parameter.
        member: The parameter.
        saved: Its state, whole or as :func:`initial_state` lays it out (on these ranks or others).
    """
    layout = initial_state(rule, group, member)
    fitted = {name: _fitted(value, layout.get(name)) for name, value in saved.items()}
    return {name: value for name, value in fitted.items() if value is not None}


class StateShapes:
    """Shapes of the state of all matrices, also of those that other ranks own.

    With them every rank refuses a setting that the state does not allow; otherwise only the owner would, and the other
    ranks would wait for it. They are those of the settings at the time when state was made or loaded.
    """

    def __init__(self) -> None:
        self._entries: dict[Any, list[TensorEntry]] = {}  # one for each kind of parameter, on the meta device
        self._kinds: dict[Task, Any] = {}

    def __contains__(self, task: Task) -> bool:
        return task in self._kinds

    def note(self, work: Workload, task: Task) -> None:
        """Take in that the state of a matrix was made or loaded under the settings that its group has now."""
        group = work.groups[task.group]
        like = torch.empty(task.shape, dtype=task.p.dtype, device="meta")
        state = work.rule.parameter_state(group, like)
        kind = (task.group, task.shape, task.p.dtype, tuple((name, x.shape) for name, x in state.items()))
        self._kinds[task] = kind
        if kind not in self._entries:
            self._entries[kind] = parameter_entries(
                work.rule.elementwise_state(group), group, like, {}, state, step=0, numbers=task.numbers
            )

    def check(self, work: Workload, members: Iterable[Member]) -> None:
        """Refuse settings of groups that the state of these parameters does not allow.

        Raises:
            ValueError: on every rank.
        """
        kinds = {self._kinds[member]: member.group for member in members if isinstance(member, Task)}
        for kind, group in kinds.items():
            work.rule.check_matrices(work.groups[group], self._entries[kind])


def _on_workers(task: Task, value: Tensor) -> Tensor:
    """State of a range of experts as part of that of all; any other state as it is."""
    team = task.layout.team
    if task.own is None or task.own.experts is None or team.size == 1:
        return value
    mesh = team.worker_mesh(value.device.type)
    shape = torch.Size((task.shape[0], *value.shape[1:]))
    return _dtensor(value, mesh, [Shard(0)] * mesh.ndim, shape)


def _fitted(saved: Tensor, like: Tensor | None) -> Tensor | None:
    if not isinstance(like, DTensor):
        whole = saved.full_tensor() if isinstance(saved, DTensor) else saved
        return None if like is None else whole.to(like.device, copy=True)
    mesh, placements = like.device_mesh, like.placements
    if isinstance(saved, DTensor) and saved.device_mesh == mesh and saved.placements == placements:
        local = saved.to_local()
    else:
        local = saved.full_tensor() if isinstance(saved, DTensor) else saved
        sizes, starts = compute_local_shape_and_global_offset(like.shape, mesh, placements)
        for dim, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            local = local.narrow(dim, min(start, local.size(dim)), size)
    return _dtensor(local.to(like.to_local().device, copy=True), mesh, placements, like.shape)


def _dtensor(local: Tensor, mesh: Any, placements: Any, shape: torch.Size) -> Tensor:
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local.contiguous(), mesh, placements, run_check=False, shape=shape, stride=stride)
