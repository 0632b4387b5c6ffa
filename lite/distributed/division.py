"""Who works on which matrix: balanced by cost, the same on every rank without a word between them."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lite.distributed.layout import Layout, Team


class Unit(NamedTuple):
    """What one worker does of a parameter: all of it, or a range of its experts.

    Args:
        worker: Number of the owner in the parameter's team.
        experts: First expert and the one after the last; ``None`` for a parameter that is no stack.
    """

    worker: int
    experts: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Member:
    """A parameter of the optimizer; of AdamW if it is no :class:`Task`.

    Args:
        p: The parameter.
        group: Number of its parameter group.
        index: Its place in the group.
        name: Its name, for messages.
        layout: How it lies on ranks.
    """

    p: Tensor
    group: int
    index: int
    name: str
    layout: Layout


@dataclass(frozen=True, eq=False, kw_only=True)
class Task(Member):
    """A parameter of the rule of matrices, and how its work is divided.

    Args:
        numbers: Running numbers of the matrices of every view.
        units: Parts of the work, in the order of experts.
    """

    numbers: list[range]
    units: list[Unit]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return tuple(self.p.shape)

    @property
    def own(self) -> Unit | None:
        """This rank's part."""
        return next((unit for unit in self.units if unit.worker == self.layout.team.worker), None)

    def piece(self, unit: Unit, shard: int) -> tuple[int, int]:
        """Where the part of a unit lies in a shard: start and length along the experts; all of it for others."""
        length = self.layout.shard_shape(self.shape, shard)[0]
        if unit.experts is None:
            return 0, length
        first = self.layout.bounds(self.shape[0], shard)[0] if self.layout.dim == 0 else 0
        start, stop = (min(max(expert - first, 0), length) for expert in unit.experts)
        return start, stop - start

    def piece_shape(self, unit: Unit, shard: int) -> tuple[int, ...]:
        """Shape of the part of a unit in a shard."""
        return (self.piece(unit, shard)[1], *self.layout.shard_shape(self.shape, shard)[1:])

    def unit_shape(self, unit: Unit) -> tuple[int, ...]:
        """Shape of all of a unit."""
        return self.shape if unit.experts is None else (unit.experts[1] - unit.experts[0], *self.shape[1:])

    @property
    def travels(self) -> bool:
        """Whether a part of a unit lies on another shard than its owner's."""
        return any(
            self.piece_shape(unit, self.layout.team.place(unit.worker)[0]) != self.unit_shape(unit)
            for unit in self.units
        )


class Job(NamedTuple):
    """A parameter whose work is to be divided.

    Args:
        layout: How it lies on ranks.
        cost: Cost of all its matrices.
        experts: How many experts it has; ``None`` for one that is no stack.
    """

    layout: Layout
    cost: float
    experts: int | None


class Division:
    """Divides jobs among the workers of their teams; later jobs go on from the loads of earlier ones.

    A stack of experts goes to all workers in equal ranges, so that its state is a DTensor; where experts lie whole on
    shards they stay there. Other parameters go, most costly first, to the worker with the least to do (at most 4/3 of
    the shortest possible time; R. L. Graham, SIAM J. Appl. Math. 17, 1969).
    """

    def __init__(self) -> None:
        self._loads: dict[Team, list[float]] = {}

    def divide(self, jobs: list[Job]) -> list[list[Unit]]:
        """Units of every job."""
        units: list[list[Unit]] = [[] for _ in jobs]
        single: defaultdict[Team, list[int]] = defaultdict(list)
        for i, job in enumerate(jobs):
            if job.experts is None:
                single[job.layout.team].append(i)
            else:
                units[i] = self._ranges(job, job.experts)
        for team, members in single.items():
            for i, worker in self._longest_first(team, members, jobs).items():
                units[i] = [Unit(worker)]
        return units

    def loads(self, team: Team) -> list[float]:
        """Cost of what each worker has."""
        return self._loads.setdefault(team, [0.0] * team.size)

    def _ranges(self, job: Job, experts: int) -> list[Unit]:
        team, units = job.layout.team, []
        for shard in range(team.shards.size):
            first, stop = Layout(team, 0).bounds(experts, shard)
            part = -(-(stop - first) // team.replicas.size)
            for replica in range(team.replicas.size):
                start = min(first + replica * part, stop)
                end = min(start + part, stop)
                worker = team.worker_at(shard, replica)
                self.loads(team)[worker] += job.cost * (end - start) / max(1, experts)
                units.append(Unit(worker, (start, end)))
        return units

    def _longest_first(self, team: Team, members: list[int], jobs: list[Job]) -> dict[int, int]:
        loads, owners = self.loads(team), {}
        queue = [(load, worker) for worker, load in enumerate(loads)]
        heapq.heapify(queue)
        for i in sorted(members, key=lambda i: -jobs[i].cost):
            load, owners[i] = heapq.heappop(queue)
            loads[owners[i]] = load + jobs[i].cost
            heapq.heappush(queue, (loads[owners[i]], owners[i]))
        return owners
