"""The parameters of an optimizer on the ranks: who holds, who owns, and what they agree on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
from lite.finiteness import NonFiniteError
from lite.group_checks import parameter_names, sparse_message
from lite.matrix_rule import MatrixRule
from lite.parameter_entries import count_gradients, group_views, matrix_state, steps_so_far
from lite.tensor_batches import matrix_numbers

if TYPE_CHECKING:
    from lite.optimizer import LITEOptimizer


class Ranks:
    """Divides the work of an optimizer among ranks, and makes its steps there.

    Args:
        optimizer: The optimizer, with its groups.
        process_group: See :class:`lite.distributed.layout.Layouts`.

    Raises:
        ValueError: for a layout that is not supported, ranks that build different optimizers, or a rule that says two
            things of where its state lies.
    """

    def __init__(self, optimizer: LITEOptimizer, process_group: ProcessGroup | None) -> None:
        _check_places(optimizer, optimizer.defaults)
        self._optimizer = optimizer
        self._layouts, self._division = Layouts(process_group), Division()
        self.members: dict[Tensor, Member] = {}
        self._agreements: list[Agreement] = []
        self._warned: set[str] = set()
        self._active: list[Member] = []
        self._checked = StateShapes(optimizer)
        self._error: NonFiniteError | None = None
        self.extend()

    def extend(self) -> None:
        """Take in parameters that were added to the optimizer's groups; a collective."""
        self.settle()  # of what the step before was agreed on without them
        new: list[dict[str, Any]] = []
        jobs: list[Job] = []
        for number, group in enumerate(self._optimizer.param_groups):
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
                    cost = sum(x.shape[:-2].numel() * self._optimizer.matrix_cost(group, *x.shape[-2:]) for x in views)
                    jobs.append(Job(layout, cost, p.shape[0] if group["layout"] == "experts" else None))
                    new[-1] |= {"numbers": numbers[index]}
        divided = iter(self._division.divide(jobs))
        for member in new:
            made = Task(**member, units=next(divided)) if "numbers" in member else Member(**member)
            self.members[made.p] = made
        self._agree()

    def loads(self) -> dict[Team, list[float]]:
        """Cost of the matrices of every worker of every team."""
        return {team: self._division.loads(team) for team in {m.layout.team for m in self.members.values()}}

    def init_state(self) -> None:
        """Create the state of all parameters that has none."""
        for member in self.members.values():
            self._init(member)

    def held(self, p: Tensor) -> set[str]:
        """Keys of the state of a parameter that this rank has a part of."""
        member = self.members[p]
        group = self._optimizer.param_groups[member.group]
        if not isinstance(member, Task):
            return set(ADAMW_KEYS)
        names = set(matrix_state(self._optimizer, group, torch.empty(member.shape, device="meta")))
        if member.own is not None:
            return names
        return names & set(self._optimizer.sharded_state) if member.layout.team.shards.size > 1 else set()

    def found_together(self, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a function returns; if it raises on one rank, every rank raises. A collective."""
        result: dict[str, Any] = {}
        error: Exception | None = None
        try:
            result = find()
        except Exception as found:
            error = found
        raise_together(self._agreements[0].team, error)
        return result

    def fitted_state(self, p: Tensor, saved: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of a saved state, see :func:`lite.distributed.state.fitted_state`."""
        member = self.members[p]
        return fitted_state(self._optimizer, self._optimizer.param_groups[member.group], member, saved)

    def note_loaded(self) -> None:
        """Take in that state was loaded, on this rank or on others, into groups as they are now."""
        for member in self.members.values():
            if isinstance(member, Task) and (
                member in self._checked or steps_so_far(self._optimizer.param_groups[member.group])[member.index]
            ):
                self._checked.note(member)
        self._error = None  # of a step that is undone

    def step(self, steps_made: int) -> None:
        """One step with the gradients that there are; outcomes of the step before are taken in.

        Args:
            steps_made: Steps before this one.
        """
        self.settle()
        for member in self.members.values():
            _refuse_gradient(member)
        self._active = [
            member
            for member in self.members.values()
            if member.p.grad is not None or (member.p.requires_grad and member.layout.team.size > 1)
        ]
        for member in self._active:
            self._init(member)
        self._checked.check(self._active)
        if self._active:
            Step(self._optimizer, self._active, self._agreements, steps_made).run()

    def check(self) -> None:
        """Raise, on all ranks, if a gradient of the last step was not finite on one of them.

        Raises:
            NonFiniteError: naming step, ranks and parameters.
        """
        self.settle()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def settle(self) -> None:
        """Take in the outcome of the last step: count gradients, keep an error for the next step, warn."""
        moved: dict[Member, bool] = {}
        skipped = False
        for agreement in self._agreements:  # the first one speaks for all ranks, the others for their own parameters
            outcome = agreement.settle()
            if outcome is None:
                continue
            moved.update(zip(agreement.members, outcome.moved, strict=True))
            skipped |= outcome.error is not None
            if self._optimizer.on_nonfinite == "raise":
                self._error = outcome.error or self._error
            for text in outcome.warnings:
                warnings.warn(text, stacklevel=4)
        had = {member.p for member in self._active if moved.get(member) and not skipped}
        self._active = []
        for group in self._optimizer.param_groups:
            if group["rule"] != "adamw" and had:
                count_gradients(group, [p in had for p in group["params"]])

    def _init(self, member: Member) -> None:
        if member.p not in self._optimizer.state:
            group = self._optimizer.param_groups[member.group]
            self._optimizer.state[member.p] = initial_state(self._optimizer, group, member)
        if isinstance(member, Task) and member not in self._checked:
            self._checked.note(member)

    def _agree(self) -> None:
        members, teams = list(self.members.values()), self._layouts.teams
        for team in teams:
            shared = [member for member in members if member.layout.team is team]
            check_same_construction(team, [self._description(member) for member in shared])
        main = max(teams, key=lambda team: team.size, default=Team(Axis(), Axis(), None, (0,)))
        if any(not set(team.ranks) <= set(main.ranks) for team in teams):
            world = Axis(dist.get_world_size(), dist.get_rank(), dist.group.WORLD)
            main = Team(Axis(), world, world.group, tuple(range(world.size)))
        watches = self._optimizer.on_nonfinite != "ignore"
        self._agreements = [Agreement(main, members, watches=watches, warned=self._warned)]
        for team in teams:
            if team is not main:
                shared = [member for member in members if member.layout.team is team]
                self._agreements.append(Agreement(team, shared, watches=False, warned=self._warned))

    def _description(self, member: Member) -> str:
        group = self._optimizer.param_groups[member.group]
        view = "" if group["rule"] == "adamw" else f", layout {group['layout']}, blocks {group['blocks']}"
        cut = "" if member.layout.dim is None else f", cut along dimension {member.layout.dim}"
        return (
            f"{member.name} of shape {tuple(member.p.shape)} and {member.p.dtype} in group {member.group} "
            f"(rule {group['rule']}{view}{cut})"
        )


def _check_places(rule: MatrixRule, defaults: dict[str, Any]) -> None:
    names = ("travelling_state", "sharded_state", "elementwise_state")
    keys = [rule.travelling_state, rule.sharded_state, rule.elementwise_state(defaults)]
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
