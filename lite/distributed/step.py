"""One step of an optimizer on all ranks that hold its parameters."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from discretizations.matrices.sharp_masks import CoordinateThresholds, adapt_coordinate_thresholds, passing_fractions
from lite.adamw import adamw_rule
from lite.distributed.adamw_parts import AdamWPart
from lite.distributed.agreement import Agreement
from lite.distributed.division import Member, Task
from lite.distributed.exchange import Parcel, all_gather
from lite.distributed.layout import Team, local_part
from lite.distributed.megabatch import Megabatch, NewState, Piece
from lite.execution.executor import Workload
from lite.execution.finiteness import finite_per_tensor
from lite.execution.rounding import rounded_stochastically
from lite.matrix_rule import rounds_stochastically
from lite.parameters.parameter_entries import steps_so_far

# Numbers of one rank's shards in one megabatch; above that, its buffers would count beside parameters and gradients.
LARGEST_MEGABATCH = 2**27


class Step:
    """One step; :meth:`run` makes it.

    Nothing is written before it is known that all ranks' gradients are finite and there. Where ranks hold shards, that
    is agreed on first. Where each holds everything (DDP), owners work at once and their flags travel with their
    replies, so that there is a single collective.

    Args:
        work: The optimizer's; all state exists.
        active: Parameters that take part, the same on all ranks.
        agreements: The one of all ranks, then those of teams among them.
        steps_made: Steps before this one.
    """

    def __init__(self, work: Workload, active: Sequence[Member], agreements: list[Agreement], steps_made: int) -> None:
        self._work, self._agreements, self._steps_made = work, agreements, steps_made
        self._gradients = {member.p: _gradient(member.p) for member in active}
        self._device = next(iter(self._gradients.values())).device
        self._tasks = [member for member in active if isinstance(member, Task)]
        self._parts = [self._part(member) for member in active if not isinstance(member, Task) and member.p.numel()]
        self._present = {member for member in active if member.p.grad is not None}
        self._flags = self._own_flags()
        self._usable: Tensor | None = None  # on this rank at first, on all of them once that is agreed
        if work.on_nonfinite != "ignore":
            self._usable = ~self._flags[: len(agreements[0].members)].any().bool()
        self._changes: dict[Member, Tensor] = {}  # whether each parameter changes, once that is agreed
        self._waiting: list[Callable[[], None]] = []
        self._generators: dict[Team, torch.Generator] = {}

    def run(self) -> None:
        """Make the step."""
        team = self._agreements[0].team
        if len(self._agreements) == 1 and team.replicas.size == team.size > 1:
            self._step_matrices(with_flags=True)
            self._step_adamw()
            return
        self._agree()
        counts = self._step_adamw()
        self._step_matrices(with_flags=False)
        for parts, vector, work in counts:
            work.wait()
            for part, count in zip(parts, vector.unbind(), strict=True):
                self._adapt(part, CoordinateThresholds(*(count / part.member.p.numel()).to(part.v.dtype).unbind()))

    def _own_flags(self) -> Tensor:
        main, nothing = self._agreements[0], torch.empty(0, device=self._device)
        present = [member in self._present for member in main.members]
        if self._work.on_nonfinite == "ignore":
            return main.flags(None, present, self._device)
        seen = [
            self._gradients[member.p] if there else nothing for member, there in zip(main.members, present, strict=True)
        ]
        finite = finite_per_tensor(
            seen,
            entries=max(member.p.numel() for member in main.members),  # of whole tensors, and the same on all ranks
            squares=self._work.narrowest_squares(),
        )
        return main.flags(finite.to(self._device), present, self._device)

    def _agree(self) -> None:
        records = []
        for i, agreement in enumerate(self._agreements):
            parts = [part for part in self._parts if part.is_cut and part.member.layout.team is agreement.team]
            present = [member in self._present for member in agreement.members]
            flags = agreement.flags(None, present, self._device) if i else self._flags
            record, totals = agreement.reduced(flags, [part.total() for part in parts])
            for part, total in zip(parts, totals, strict=True):
                part.mean = (total / part.member.p.numel()).to(part.v.dtype)
            records.append(record)
        self._decide(records)

    def _decide(self, records: list[Tensor]) -> None:
        verdicts = [
            each.verdict(record, self._steps_made) for each, record in zip(self._agreements, records, strict=True)
        ]
        self._usable = verdicts[0].usable
        for agreement, verdict in zip(self._agreements, verdicts, strict=True):
            changes = verdict.moved if self._usable is None else verdict.moved & self._usable
            self._changes.update(zip(agreement.members, changes.unbind(), strict=True))
        for write in self._waiting:
            write()
        self._waiting.clear()

    def _once_agreed(self, write: Callable[[], None]) -> None:
        if self._changes:
            write()
        else:
            self._waiting.append(write)

    def _step_matrices(self, *, with_flags: bool) -> None:
        by_team: dict[Team, list[Task]] = {self._agreements[0].team: []} if with_flags else {}
        for task in self._tasks:
            by_team.setdefault(task.layout.team, []).append(task)
        for team, tasks in by_team.items():
            megabatches = self._megabatches(tasks)
            pieces = self._through(megabatches, move=team.replicas.size == 1)
            if team.replicas.size > 1:
                self._move(self._gather(team, megabatches, pieces, with_flags=with_flags))

    def _megabatches(self, tasks: list[Task]) -> list[Megabatch]:
        alike: defaultdict[tuple[Any, ...], list[Task]] = defaultdict(list)
        for task in tasks:
            alike[task.group, task.shape, task.layout.dim, task.p.dtype, task.p.device].append(task)
        chunks: defaultdict[tuple[Any, ...], list[Task]] = defaultdict(list)
        for key, each in alike.items():
            share = sum(task.p.numel() for task in each) / each[0].layout.team.shards.size
            count = math.ceil(share / LARGEST_MEGABATCH)
            turns: Counter[int] = Counter()
            for task in each:  # each owner's tasks are spread, so that every chunk keeps all of them busy
                owner = task.units[0].worker
                chunks[(*key, turns[owner] % max(1, count))].append(task)
                turns[owner] += 1
        made = []
        for each in chunks.values():
            group = self._work.groups[each[0].group]
            made.append(Megabatch(self._work.rule, group, each, self._work.state, steps_so_far(group)))
        return made

    def _through(self, megabatches: list[Megabatch], *, move: bool) -> list[Piece]:
        """Take megabatches through the step, the numbers of one travelling while the next is worked on."""
        pieces: list[Piece] = []
        if megabatches:
            self._send(megabatches[0])
        for i, megabatch in enumerate(megabatches):
            if i + 1 < len(megabatches):
                self._send(megabatches[i + 1])
            for new in megabatch.compute(self._largest_batch):
                self._once_agreed(partial(self._write_state, new))
            if i:
                pieces += megabatches[i - 1].collect()
            if i + 1 == len(megabatches):
                pieces += megabatch.collect()
            if move:
                self._move(pieces)
                pieces = []
        return pieces

    def _largest_batch(self, w: Tensor) -> int:
        return self._work.largest_batch(w, on_cpu=self._work.rule.largest_cpu_batch)

    def _send(self, megabatch: Megabatch) -> None:
        for task, target, value in megabatch.send(self._gradients, self._usable):
            self._once_agreed(partial(self._write, task, target, value))

    def _gather(
        self, team: Team, megabatches: list[Megabatch], pieces: list[Piece], *, with_flags: bool
    ) -> list[Piece]:
        """Replies of all replicas' owners for this rank's shards."""
        sent = [(piece.value, piece.value.dtype) for piece in pieces]
        expected = [
            [each for megabatch in megabatches for each in megabatch.expected(i)] for i in range(team.replicas.size)
        ]
        received = [[parcel for *_, parcel in each] for each in expected]
        if with_flags:
            sent.insert(0, (self._flags, self._flags.dtype))
            received = [[Parcel(tuple(self._flags.shape), self._flags.dtype), *each] for each in received]
        arrived = all_gather(sent, received, team.replicas, self._device).wait()
        if with_flags:
            self._decide([self._agreements[0].record([each.pop(0) for each in arrived])])
        return [
            Piece(task, unit, name, value)
            for each, values in zip(expected, arrived, strict=True)
            for (task, unit, name, _), value in zip(each, values, strict=True)
        ]

    def _move(self, pieces: list[Piece]) -> None:
        alike: defaultdict[tuple[Task, str | None], list[Piece]] = defaultdict(list)
        for piece in pieces:
            alike[piece.task, piece.name].append(piece)
        for (task, name), parts in alike.items():
            group, w = self._work.groups[task.group], local_part(task.p)
            parts.sort(key=lambda piece: piece.unit.experts or (0, 0))
            reply = parts[0].value if len(parts) == 1 else torch.cat([part.value for part in parts])
            if name is not None:
                self._write(task, local_part(self._work.state[task.p][name]), reply)
                continue
            if rounds_stochastically(group, w):
                w = w.float()
            new = self._work.rule.shard_move(group, w, reply.to(torch.promote_types(w.dtype, reply.dtype)))
            self._write_parameter(task, new)

    def _step_adamw(self) -> list[tuple[list[AdamWPart], Tensor, Any]]:
        """Move AdamW's parameters; returns what is still being summed over ranks for the next step's masks."""
        cut: defaultdict[Team, list[AdamWPart]] = defaultdict(list)
        for part in self._parts:
            group = self._work.groups[part.member.group]
            self._write_parameter(part.member, part.position(group["lr"]))
            for key, value in part.after.items():
                self._write(part.member, part.before[key], value)
            if part.is_cut:
                cut[part.member.layout.team].append(part)
            elif part.has_mask:
                self._adapt(part, passing_fractions(part.v, part.thresholds))
        counts = []
        for team, parts in cut.items():
            vector = torch.stack([part.counts() for part in parts])
            counts.append((parts, vector, dist.all_reduce(vector, group=team.group, async_op=True)))
        return counts

    def _part(self, member: Member) -> AdamWPart:
        rule = adamw_rule(self._work.groups[member.group])
        return AdamWPart(member, rule, self._work.state[member.p], self._gradients[member.p])

    def _adapt(self, part: AdamWPart, passing: CoordinateThresholds) -> None:
        after = adapt_coordinate_thresholds(part.thresholds, passing, sharp_fraction=part.sharp_fraction)
        for old, new in zip(part.thresholds, after, strict=True):
            self._write(part.member, old, new)

    def _write_state(self, new: NewState) -> None:
        changes = [
            self._changes[task].expand(1 if entry.stack is None else entry.stack)
            for task, entry in zip(new.tasks, new.batch.entries, strict=True)
        ]
        changed = torch.cat(changes) if new.batch.has_axis else changes[0][0]
        before = new.batch.state
        new.batch.write_state(
            {
                key: torch.where(
                    changed.reshape(changed.shape + (1,) * (value.ndim - changed.ndim)), value, before[key]
                )
                for key, value in new.values.items()
            }
        )

    def _write(self, member: Member, target: Tensor, value: Tensor) -> None:
        target.copy_(torch.where(self._changes[member], value, target))

    def _write_parameter(self, member: Member, value: Tensor) -> None:
        w = local_part(member.p)
        if rounds_stochastically(self._work.groups[member.group], w):
            value = torch.where(self._changes[member], value, w)
            value = rounded_stochastically(value, self._generator(member.layout.team, w.device))
        self._write(member, w, value)

    def _generator(self, team: Team, device: torch.device) -> torch.Generator:
        """Random numbers that are the same wherever ranks hold the same numbers."""
        if team not in self._generators:
            self._generators[team] = torch.Generator(device)
            self._generators[team].manual_seed(self._steps_made * team.shards.size + team.shards.rank)
        return self._generators[team]


def _gradient(p: Tensor) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(local_part(p))
    g = local_part(p.grad)
    return g.contiguous() if g.ndim > 2 else g  # a convolution's gradient may come in another memory format
