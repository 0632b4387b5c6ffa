"""The executor for several ranks, which divides parameters among them and runs the steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from lite.adamw import ADAMW_KEYS
from lite.distributed.agreement import Agreement, check_same_construction, raise_together
from lite.distributed.division import Division, OwnedParameter, PlacedParameter, WorkItem
from lite.distributed.parameter_shardings import Shardings
from lite.distributed.sharding import RankMesh
from lite.distributed.stages import Stages
from lite.distributed.state import StateShapes, fitted_state, initial_state
from lite.distributed.step import Step
from lite.execution.executor import Workload
from lite.execution.finiteness import NonFiniteError, OnNonfinite
from lite.parameters.group_checks import parameter_names, sparse_message
from lite.parameters.parameter_entries import count_gradients, group_views, matrix_numbers, steps_so_far


class DistributedExecutor:
    """The :class:`lite.execution.executor.Executor` on several ranks; most methods are collectives.

    Args:
        work: The optimizer's, with its first groups.
        process_group: See :class:`lite.distributed.parameter_shardings.Shardings`.
        agreement_group: Ranks that all make a step or none, though some hold other parameters.

    Raises:
        ValueError: for a sharding that is not supported, ranks that build different optimizers, or a rule that says two
            things of where its state lies.
    """

    is_divided = True

    def __init__(
        self, work: Workload, process_group: ProcessGroup | None, agreement_group: ProcessGroup | None = None
    ) -> None:
        _check_places(work)
        self._agreeing = None if agreement_group is None else RankMesh.of_group(agreement_group)
        if self._agreeing is not None:
            _check_policy(self._agreeing, work.on_nonfinite)
        self.steps_made = 0
        self._shardings, self._division = Shardings(process_group), Division()
        self.parameters: dict[Tensor, PlacedParameter] = {}
        self._agreements: list[Agreement] = []
        self._warned: set[str] = set()
        self._active: list[PlacedParameter] = []
        self._checked, self._stages = StateShapes(), Stages()
        self._error: NonFiniteError | None = None
        self.add_parameters(work)

    def add_parameters(self, work: Workload) -> None:
        self.settle(work)  # the previous step was agreed on without them
        new: list[dict[str, Any]] = []
        items: list[WorkItem] = []
        for number, group in enumerate(work.groups):
            names, is_matrix = parameter_names(group), group["rule"] != "adamw"
            shapes = [torch.empty(p.shape, device="meta") for p in group["params"]]
            every = [group_views(group, x) if is_matrix else [] for x in shapes]
            numbers = matrix_numbers(names, every)
            for index, (name, p, views) in enumerate(zip(names, group["params"], every, strict=True)):
                if p in self.parameters:
                    continue
                label = name if isinstance(name, str) else f"{name} of group {number}"
                sharding = self._shardings.of(p, name=label)
                new.append({"p": p, "group": number, "index": index, "name": label, "sharding": sharding})
                if is_matrix:
                    cost = sum(x.shape[:-2].numel() * work.declaration.matrix_cost(group, *x.shape[-2:]) for x in views)
                    items.append(WorkItem(sharding, cost, group["layout"] == "experts"))
                    new[-1] |= {"numbers": numbers[index], "is_stack": items[-1].is_stack}
        divided = iter(self._division.divide(items))
        for parameter in new:
            made = (
                OwnedParameter(**parameter, owners=next(divided))
                if "numbers" in parameter
                else PlacedParameter(**parameter)
            )
            self.parameters[made.p] = made
        self._agree(work)

    def compile(self, **options: Any) -> None:
        self._stages.compile(options)

    def init_state(self, work: Workload) -> None:
        for parameter in self.parameters.values():
            self._init(work, parameter)

    def held(self, work: Workload, p: Tensor) -> set[str]:
        parameter = self.parameters[p]
        group = work.groups[parameter.group]
        if not isinstance(parameter, OwnedParameter):
            return set(ADAMW_KEYS)
        names = set(work.declaration.parameter_state(group, torch.empty(parameter.shape, device="meta")))
        if parameter.own is not None:
            return names
        return names & set(work.declaration.sharded_state) if parameter.sharding.is_cut else set()

    def found_together(self, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        error: Exception | None = None
        try:
            result = find()
        except Exception as found:
            error = found
        raise_together(self._agreements[0].mesh, error)
        return result

    def load_state(self, work: Workload, saved: Mapping[Tensor, dict[str, Any]]) -> None:
        for p, state in saved.items():
            parameter = self.parameters[p]
            work.state[p] = fitted_state(work.declaration, work.groups[parameter.group], parameter, state)
        for parameter in self.parameters.values():  # also those of other ranks
            if isinstance(parameter, OwnedParameter) and (
                parameter in self._checked or steps_so_far(work.groups[parameter.group])[parameter.index]
            ):
                self._checked.note(work, parameter)
        self._error = None  # of a step that is undone

    def step(self, work: Workload) -> None:
        self.settle(work)
        for parameter in self.parameters.values():
            _refuse_gradient(parameter)
        self._active = [
            parameter
            for parameter in self.parameters.values()
            if parameter.p.grad is not None or (parameter.p.requires_grad and parameter.sharding.mesh.size > 1)
        ]
        for parameter in self._active:
            self._init(work, parameter)
        self._checked.check(work, self._active)
        if self._active or self._agreeing is not None:
            Step(work, self._active, self._agreements, self.steps_made, self._stages).run()
        self.steps_made += 1

    def check(self, work: Workload, *, wait: bool) -> None:
        self.settle(work)  # always waits, so that all ranks raise at the same place
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def settle(self, work: Workload) -> None:
        moved: dict[PlacedParameter, bool] = {}
        skipped = False
        for agreement in self._agreements:  # the first one speaks for all ranks, the others for their own parameters
            outcome = agreement.settle()
            if outcome is None:
                continue
            moved.update(zip(agreement.parameters, outcome.moved, strict=True))
            skipped |= outcome.error is not None
            if work.on_nonfinite == "raise":
                self._error = outcome.error or self._error
            for text in outcome.warnings:
                warnings.warn(text, stacklevel=4)
        had = {parameter.p for parameter in self._active if moved.get(parameter) and not skipped}
        self._active = []
        for group in work.groups:
            if group["rule"] != "adamw" and had:
                count_gradients(group, [p in had for p in group["params"]])

    def _init(self, work: Workload, parameter: PlacedParameter) -> None:
        if parameter.p not in work.state:
            group = work.groups[parameter.group]
            work.state[parameter.p] = initial_state(work.declaration, group, parameter)
        if isinstance(parameter, OwnedParameter) and parameter not in self._checked:
            self._checked.note(work, parameter)

    def _agree(self, work: Workload) -> None:
        parameters, meshes = list(self.parameters.values()), self._shardings.meshes
        for mesh in meshes:
            shared = [parameter for parameter in parameters if parameter.sharding.mesh is mesh]
            check_same_construction(
                mesh, [_description(work.groups[parameter.group], parameter) for parameter in shared]
            )
        main = max(meshes, key=lambda mesh: mesh.size, default=RankMesh())
        if self._agreeing is not None:
            _check_agreeing(self._agreeing, meshes)
        elif any(not set(mesh.global_ranks) <= set(main.global_ranks) for mesh in meshes):
            assert dist.group.WORLD is not None, "there are meshes of several ranks"
            main = RankMesh.of_group(dist.group.WORLD)
        watchers = None if work.on_nonfinite == "ignore" else self._agreeing or main
        self._agreements = [Agreement(main, parameters, watchers=watchers, warned=self._warned)]
        for mesh in meshes:
            if mesh is not main:
                shared = [parameter for parameter in parameters if parameter.sharding.mesh is mesh]
                self._agreements.append(Agreement(mesh, shared, watchers=None, warned=self._warned))


def _description(group: dict[str, Any], parameter: PlacedParameter) -> str:
    view = "" if group["rule"] == "adamw" else f", layout {group['layout']}, blocks {group['blocks']}"
    cut = "".join(f", {placement}" for placement in parameter.sharding.placements)
    return (
        f"{parameter.name} of shape {tuple(parameter.p.shape)} and {parameter.p.dtype} in group {parameter.group} "
        f"(rule {group['rule']}{view}{cut})"
    )


def _check_policy(agreeing: RankMesh, policy: OnNonfinite) -> None:
    policies: list[Any] = [None] * agreeing.size
    dist.all_gather_object(policies, policy, group=agreeing.group)
    if set(policies) not in ({"raise"}, {"skip"}):
        raise ValueError(
            f"on_nonfinite is {policies} on ranks {list(agreeing.global_ranks)} of agreement_group; give all of them "
            "'raise', or all of them 'skip'."
        )


def _check_agreeing(agreeing: RankMesh, meshes: list[RankMesh]) -> None:
    for mesh in meshes:
        if not set(mesh.global_ranks) <= set(agreeing.global_ranks):
            raise ValueError(
                f"agreement_group has ranks {list(agreeing.global_ranks)}, but ranks {list(mesh.global_ranks)} hold "
                "parameters together; give a group with all ranks of all stages."
            )


def _check_places(work: Workload) -> None:
    names, declared = ("travelling_state", "sharded_state", "elementwise_state"), work.declaration
    for group in work.groups:
        if group["rule"] == "adamw":
            continue
        keys = [declared.travelling_state, declared.sharded_state, declared.elementwise_state(group)]
        for i in range(2):
            if not set(keys[i]) <= set(keys[i + 1]):
                raise ValueError(
                    f"{names[i]} {keys[i]} of rule {declared.rule!r} must be among its {names[i + 1]} {keys[i + 1]}; "
                    "name it there, too."
                )


def _refuse_gradient(parameter: PlacedParameter) -> None:
    g = parameter.p.grad
    if g is None:
        return
    if g.is_sparse:
        raise ValueError(sparse_message(parameter.name))
    places, own = (getattr(x, "placements", "a plain tensor") for x in (g, parameter.p))
    if places != own:
        raise ValueError(
            f"the gradient of {parameter.name} lies on ranks as {places}, the parameter as {own}; redistribute it."
        )
