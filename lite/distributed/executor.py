"""The executor on several ranks: it divides the work on parameters among them, and makes steps there."""

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
from lite.distributed.division import Division, Job, Member, Task
from lite.distributed.layout import Axis, Layouts, Team
from lite.distributed.state import StateShapes, fitted_state, initial_state
from lite.distributed.step import Step
from lite.execution.executor import Workload
from lite.execution.finiteness import NonFiniteError
from lite.parameters.group_checks import parameter_names, sparse_message
from lite.parameters.parameter_entries import count_gradients, group_views, matrix_numbers, steps_so_far


class DistributedExecutor:
    """The :class:`lite.execution.executor.Executor` on several ranks; most methods are collectives.

    Args:
        work: The optimizer's, with its first groups.
        process_group: See :class:`lite.distributed.layout.Layouts`.

    Raises:
        ValueError: for a layout that is not supported, ranks that build different optimizers, or a rule that says two
            things of where its state lies.
    """

    is_divided = True

    def __init__(self, work: Workload, process_group: ProcessGroup | None) -> None:
        _check_places(work)
        self.steps_made = 0
        self._layouts, self._division = Layouts(process_group), Division()
        self.members: dict[Tensor, Member] = {}
        self._agreements: list[Agreement] = []
        self._warned: set[str] = set()
        self._active: list[Member] = []
        self._checked = StateShapes()
        self._error: NonFiniteError | None = None
        self.add_parameters(work)

    def add_parameters(self, work: Workload) -> None:
        self.settle(work)  # of what the step before was agreed on without them
        new: list[dict[str, Any]] = []
        jobs: list[Job] = []
        for number, group in enumerate(work.groups):
            names, is_matrix = parameter_names(group), group["rule"] != "adamw"
            shapes = [torch.empty(p.shape, device="meta") for p in group["params"]]
            every = [group_views(group, x) if is_matrix else [] for x in shapes]
            numbers = matrix_numbers(names, every)
            for index, (name, p, views) in enumerate(zip(names, group["params"], every, strict=True)):
                if p in self.members:
                    continue
                label = name if isinstance(name, str) else f"{name} of group {number}"
                layout = self._layouts.of(p, name=label, group=group)
                new.append({"p": p, "group": number, "index": index, "name": label, "layout": layout})
                if is_matrix:
                    cost = sum(x.shape[:-2].numel() * work.rule.matrix_cost(group, *x.shape[-2:]) for x in views)
                    jobs.append(Job(layout, cost, p.shape[0] if group["layout"] == "experts" else None))
                    new[-1] |= {"numbers": numbers[index]}
        divided = iter(self._division.divide(jobs))
        for member in new:
            made = Task(**member, units=next(divided)) if "numbers" in member else Member(**member)
            self.members[made.p] = made
        self._agree(work)

    def compile(self, **options: Any) -> None:
        raise ValueError("an optimizer on several ranks cannot be compiled; compile the model alone.")

    def init_state(self, work: Workload) -> None:
        for member in self.members.values():
            self._init(work, member)

    def held(self, work: Workload, p: Tensor) -> set[str]:
        member = self.members[p]
        group = work.groups[member.group]
        if not isinstance(member, Task):
            return set(ADAMW_KEYS)
        names = set(work.rule.parameter_state(group, torch.empty(member.shape, device="meta")))
        if member.own is not None:
            return names
        return names & set(work.rule.sharded_state) if member.layout.team.shards.size > 1 else set()

    def found_together(self, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        error: Exception | None = None
        try:
            result = find()
        except Exception as found:
            error = found
        raise_together(self._agreements[0].team, error)
        return result

    def load_state(self, work: Workload, saved: Mapping[Tensor, dict[str, Any]]) -> None:
        for p, state in saved.items():
            member = self.members[p]
            work.state[p] = fitted_state(work.rule, work.groups[member.group], member, state)
        for member in self.members.values():  # also those of other ranks
            if isinstance(member, Task) and (
                member in self._checked or steps_so_far(work.groups[member.group])[member.index]
            ):
                self._checked.note(work, member)
        self._error = None  # of a step that is undone

    def step(self, work: Workload) -> None:
        self.settle(work)
        for member in self.members.values():
            _refuse_gradient(member)
        self._active = [
            member
            for member in self.members.values()
            if member.p.grad is not None or (member.p.requires_grad and member.layout.team.size > 1)
        ]
        for member in self._active:
            self._init(work, member)
        self._checked.check(work, self._active)
        if self._active:
            Step(work, self._active, self._agreements, self.steps_made).run()
        self.steps_made += 1

    def check(self, work: Workload, *, wait: bool) -> None:
        self.settle(work)  # always waits, so that all ranks raise at the same place
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def settle(self, work: Workload) -> None:
        moved: dict[Member, bool] = {}
        skipped = False
        for agreement in self._agreements:  # the first one speaks for all ranks, the others for their own parameters
            outcome = agreement.settle()
            if outcome is None:
                continue
            moved.update(zip(agreement.members, outcome.moved, strict=True))
            skipped |= outcome.error is not None
            if work.on_nonfinite == "raise":
                self._error = outcome.error or self._error
            for text in outcome.warnings:
                warnings.warn(text, stacklevel=4)
        had = {member.p for member in self._active if moved.get(member) and not skipped}
        self._active = []
        for group in work.groups:
            if group["rule"] != "adamw" and had:
                count_gradients(group, [p in had for p in group["params"]])

    def _init(self, work: Workload, member: Member) -> None:
        if member.p not in work.state:
            group = work.groups[member.group]
            work.state[member.p] = initial_state(work.rule, group, member)
        if isinstance(member, Task) and member not in self._checked:
            self._checked.note(work, member)

    def _agree(self, work: Workload) -> None:
        members, teams = list(self.members.values()), self._layouts.teams
        for team in teams:
            shared = [member for member in members if member.layout.team is team]
            check_same_construction(team, [_description(work.groups[member.group], member) for member in shared])
        main = max(teams, key=lambda team: team.size, default=Team(Axis(), Axis(), None, (0,)))
        if any(not set(team.ranks) <= set(main.ranks) for team in teams):
            world = Axis(dist.get_world_size(), dist.get_rank(), dist.group.WORLD)
            main = Team(Axis(), world, world.group, tuple(range(world.size)))
        watches = work.on_nonfinite != "ignore"
        self._agreements = [Agreement(main, members, watches=watches, warned=self._warned)]
        for team in teams:
            if team is not main:
                shared = [member for member in members if member.layout.team is team]
                self._agreements.append(Agreement(team, shared, watches=False, warned=self._warned))


def _description(group: dict[str, Any], member: Member) -> str:
    view = "" if group["rule"] == "adamw" else f", layout {group['layout']}, blocks {group['blocks']}"
    cut = "" if member.layout.dim is None else f", cut along dimension {member.layout.dim}"
    return (
        f"{member.name} of shape {tuple(member.p.shape)} and {member.p.dtype} in group {member.group} "
        f"(rule {group['rule']}{view}{cut})"
    )


def _check_places(work: Workload) -> None:
    names, rule = ("travelling_state", "sharded_state", "elementwise_state"), work.rule
    for group in work.groups:
        if group["rule"] == "adamw":
            continue
        keys = [rule.travelling_state, rule.sharded_state, rule.elementwise_state(group)]
        for i in range(2):
            if not set(keys[i]) <= set(keys[i + 1]):
                raise ValueError(
                    f"{names[i]} {keys[i]} of rule {rule.rule!r} must be among its {names[i + 1]} {keys[i + 1]}; "
                    "name it there, too."
                )


def _refuse_gradient(member: Member) -> None:
    g = member.p.grad
    if g is None:
        return
    if g.is_sparse:
        raise ValueError(sparse_message(member.name))
    places, own = (getattr(x, "placements", "a plain tensor") for x in (g, member.p))
    if places != own:
        raise ValueError(
            f"the gradient of {member.name} lies on ranks as {places}, the parameter as {own}; redistribute it."
        )
