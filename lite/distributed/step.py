"""One step of an optimizer on all ranks that hold its parameters."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from discretizations.matrices.sharp_masks import CoordinateThresholds, adapt_coordinate_thresholds, passing_fractions
from lite.declaration import rounds_stochastically
from lite.distributed.adamw_parts import AdamWPart, adamw_positions, adamw_take_in
from lite.distributed.agreement import Agreement
from lite.distributed.division import OwnedParameter, PlacedParameter
from lite.distributed.exchange import MessageSpec, all_gather
from lite.distributed.megabatch import Megabatch, NewState
from lite.distributed.sharding import RankMesh, Sharding, local_part
from lite.distributed.stages import Stages
from lite.execution.executor import Workload
from lite.execution.finiteness import finite_per_tensor
from lite.execution.rounding import rounded_stochastically
from lite.parameters.parameter_entries import steps_so_far

# Most numbers of one rank's shards in a megabatch; larger buffers would matter next to parameters and gradients.
LARGEST_MEGABATCH = 2**27


class Step:
    """One step on several ranks; :meth:`run` executes it.

    Nothing is written before all ranks' gradients are known to be present and finite. Ranks with shards agree on that
    first. If each rank holds everything (DDP), owners start at once and their flags travel with the replies, so there
    is a single collective.

    Args:
        work: The optimizer's workload; all state exists.
        active: Parameters that take part, the same on all ranks.
        agreements: The agreement of all ranks, then those of meshes among them.
        steps_made: Steps before this one.
        stages: Run what is worked on between exchanges.
    """

    def __init__(
        self,
        work: Workload,
        active: Sequence[PlacedParameter],
        agreements: list[Agreement],
        steps_made: int,
        stages: Stages,
    ) -> None:
        self._work, self._agreements, self._steps_made, self._stages = work, agreements, steps_made, stages
        self._gradients = {parameter.p: _gradient(parameter.p) for parameter in active}
        self._device = local_part(agreements[0].parameters[0].p).device
        self._matrices = [parameter for parameter in active if isinstance(parameter, OwnedParameter)]
        self._parts = self._taken_in(
            [each for each in active if not isinstance(each, OwnedParameter) and each.p.numel()]
        )
        self._present = {parameter for parameter in active if parameter.p.grad is not None}
        self._flags = self._own_flags()
        self._usable: Tensor | None = None  # at first on this rank, after the agreement on all ranks
        if work.on_nonfinite != "ignore":
            self._usable = ~self._flags[: len(agreements[0].parameters)].any().bool()
        self._changes: dict[PlacedParameter, Tensor] = {}  # whether each parameter changes, after the agreement
        self._waiting: list[Callable[[], None]] = []
        self._generators: dict[tuple[RankMesh, tuple[int, ...]], torch.Generator] = {}

    def run(self) -> None:
        """Make the step."""
        by_mesh: defaultdict[RankMesh, list[OwnedParameter]] = defaultdict(list)
        for parameter in self._matrices:
            by_mesh[parameter.sharding.mesh].append(parameter)
        first = self._agreements[0]
        if first.is_of_replicas and len(self._agreements) == 1:
            self._step_replicas(first, self._megabatches(by_mesh.pop(first.mesh, [])))
        else:
            self._agree()
        counts = self._step_adamw()
        for parameters in by_mesh.values():
            self._step_shards(self._megabatches(parameters))
        for parts, vector, work in counts:
            work.wait()
            for part, count in zip(parts, vector.unbind(), strict=True):
                self._adapt(part, CoordinateThresholds(*(count / part.parameter.p.numel()).to(part.v.dtype).unbind()))

    def _own_flags(self) -> Tensor:
        main, nothing = self._agreements[0], torch.empty(0, device=self._device)
        present = [parameter in self._present for parameter in main.parameters]
        if self._work.on_nonfinite == "ignore":
            return main.flags(None, present, self._device)
        seen = [
            self._gradients[parameter.p] if there else nothing
            for parameter, there in zip(main.parameters, present, strict=True)
        ]
        finite = finite_per_tensor(
            seen,
            entries=max(each.p.numel() for each in main.parameters),  # of whole tensors, the same on all ranks
            squares=self._work.narrowest_squares(),
        )
        return main.flags(finite.to(self._device), present, self._device)

    def _agree(self) -> None:
        records = []
        for i, agreement in enumerate(self._agreements):
            parts = [part for part in self._parts if part.is_cut and part.parameter.sharding.mesh is agreement.mesh]
            present = [parameter in self._present for parameter in agreement.parameters]
            flags = agreement.flags(None, present, self._device) if i else self._flags
            record, totals = agreement.reduced(flags, [part.total() for part in parts])
            for part, total in zip(parts, totals, strict=True):
                part.mean = (total / part.parameter.p.numel()).to(part.v.dtype)
            records.append(record)
        self._decide(records)

    def _decide(self, records: list[Tensor]) -> None:
        verdicts = [
            each.verdict(record, self._steps_made) for each, record in zip(self._agreements, records, strict=True)
        ]
        self._usable = verdicts[0].usable
        for agreement, verdict in zip(self._agreements, verdicts, strict=True):
            changes = verdict.moved if self._usable is None else verdict.moved & self._usable
            self._changes.update(zip(agreement.parameters, changes.unbind(), strict=True))
        for write in self._waiting:
            write()
        self._waiting.clear()

    def _once_agreed(self, write: Callable[[], None]) -> None:
        if self._changes:
            write()
        else:
            self._waiting.append(write)

    def _megabatches(self, parameters: list[OwnedParameter]) -> list[Megabatch]:
        alike: defaultdict[tuple[Any, ...], list[OwnedParameter]] = defaultdict(list)
        for parameter in parameters:
            alike[
                parameter.group, parameter.shape, parameter.sharding.is_cut, parameter.p.dtype, parameter.p.device
            ].append(parameter)
        chunks: defaultdict[tuple[Any, ...], list[OwnedParameter]] = defaultdict(list)
        for key, each in alike.items():
            share = sum(parameter.p.numel() / parameter.sharding.shards for parameter in each)
            count = math.ceil(share / LARGEST_MEGABATCH)
            turns: Counter[int] = Counter()
            for parameter in each:  # each owner's parameters are spread, so that every chunk keeps all owners busy
                owner = parameter.owners[0].rank
                chunks[(*key, turns[owner] % max(1, count))].append(parameter)
                turns[owner] += 1
        made = []
        for key, each in chunks.items():
            group, state = self._work.groups[each[0].group], self._work.state
            made.append(Megabatch(self._work.declaration, group, each, state, steps_so_far(group), self._stages, key))
        return made

    def _step_shards(self, megabatches: list[Megabatch]) -> None:
        """Take megabatches through the step, the numbers of one travelling while the next is worked on."""
        for i, megabatch in enumerate(megabatches):
            if i == 0:
                self._send(megabatch)
            if i + 1 < len(megabatches):
                self._send(megabatches[i + 1])
            self._compute(megabatch)
            megabatch.reply()
            if i:
                self._move(megabatches[i - 1])
        if megabatches:
            self._move(megabatches[-1])

    def _step_replicas(self, agreement: Agreement, megabatches: list[Megabatch]) -> None:
        """Take whole matrices through the step; one gathering brings all ranks' replies and flags."""
        mesh = agreement.mesh
        for megabatch in megabatches:
            self._send(megabatch)
            self._compute(megabatch)
        own = [self._flags, *(x for megabatch in megabatches for x in megabatch.replies()[mesh.rank])]
        flags = MessageSpec(tuple(self._flags.shape), self._flags.dtype)
        received = [[flags] for _ in range(mesh.size)]
        for megabatch in megabatches:
            for i, specs in enumerate(megabatch.expected()):
                received[i] += specs
        arrived = all_gather([(x, x.dtype) for x in own], received, mesh, self._device).wait()
        self._decide([agreement.record([each[0] for each in arrived])])
        replies = [iter(each[1:]) for each in arrived]
        for megabatch in megabatches:
            self._move(megabatch, replies)

    def _largest_batch(self, w: Tensor) -> int:
        return self._work.largest_batch(w, on_cpu=self._work.declaration.largest_cpu_batch)

    def _send(self, megabatch: Megabatch) -> None:
        for parameter, target, value in megabatch.send(self._gradients, self._usable):
            self._once_agreed(partial(self._write, parameter, target, value))

    def _compute(self, megabatch: Megabatch) -> None:
        for new in megabatch.compute(self._largest_batch):
            self._once_agreed(partial(self._write_state, new))

    def _move(self, megabatch: Megabatch, arrived: Sequence[Iterable[Tensor]] = ()) -> None:
        for parameter, target, value in megabatch.move(arrived):
            if target is None:
                self._write_parameter(parameter, value)
            else:
                self._write(parameter, target, value)

    def _step_adamw(self) -> list[tuple[list[AdamWPart], Tensor, Any]]:
        """Move AdamW's parameters; returns sums over ranks for the next step's masks that are still in progress."""
        cut: defaultdict[RankMesh, list[AdamWPart]] = defaultdict(list)
        by_group: defaultdict[int, list[AdamWPart]] = defaultdict(list)
        for part in self._parts:
            by_group[part.parameter.group].append(part)
        for number, parts in by_group.items():
            settings = self._stages.settings(self._work.groups[number], self._device)
            before = [(local_part(part.parameter.p), part.taken, part.mean) for part in parts]
            moved = self._stages.run(adamw_positions, number, self._work.declaration, settings, before)
            for part, new in zip(parts, moved, strict=True):
                self._write_parameter(part.parameter, new)
        for part in self._parts:
            for key, value in part.after.items():
                self._write(part.parameter, part.before[key], value)
            if part.is_cut:
                cut[part.parameter.sharding.mesh].append(part)
            elif part.has_mask:
                self._adapt(part, passing_fractions(part.v, part.thresholds))
        counts = []
        for mesh, parts in cut.items():
            vector = torch.stack([part.counts() for part in parts])
            counts.append((parts, vector, dist.all_reduce(vector, group=mesh.group, async_op=True)))
        return counts

    def _taken_in(self, parameters: list[PlacedParameter]) -> list[AdamWPart]:
        by_group: defaultdict[int, list[PlacedParameter]] = defaultdict(list)
        for parameter in parameters:
            by_group[parameter.group].append(parameter)
        declaration, made = self._work.declaration, list[AdamWPart]()
        for number, members in by_group.items():
            group = self._work.groups[number]
            settings, rule = self._stages.settings(group, self._device), declaration.adamw_rule(group)
            states = [{key: local_part(x) for key, x in self._work.state[each.p].items()} for each in members]
            parts = [(state, self._gradients[each.p]) for each, state in zip(members, states, strict=True)]
            taken = self._stages.run(adamw_take_in, number, declaration, settings, parts)
            for parameter, state, part in zip(members, states, taken, strict=True):
                made.append(AdamWPart(parameter, rule, state, part))
        return made

    def _adapt(self, part: AdamWPart, passing: CoordinateThresholds) -> None:
        after = adapt_coordinate_thresholds(part.thresholds, passing, sharp_fraction=part.sharp_fraction)
        for old, new in zip(part.thresholds, after, strict=True):
            self._write(part.parameter, old, new)

    def _write_state(self, new: NewState) -> None:
        changes = [
            self._changes[parameter].expand(1 if entry.stack is None else entry.stack)
            for parameter, entry in zip(new.parameters, new.batch.entries, strict=True)
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

    def _write(self, parameter: PlacedParameter, target: Tensor, value: Tensor) -> None:
        target.copy_(torch.where(self._changes[parameter], value, target))

    def _write_parameter(self, parameter: PlacedParameter, value: Tensor) -> None:
        w = local_part(parameter.p)
        if rounds_stochastically(self._work.groups[parameter.group], w):
            value = torch.where(self._changes[parameter], value, w)
            value = rounded_stochastically(value, self._generator(parameter.sharding, w.device))
        self._write(parameter, w, value)

    def _generator(self, sharding: Sharding, device: torch.device) -> torch.Generator:
        """Random numbers that are the same wherever ranks hold the same numbers."""
        key = sharding.mesh, sharding.cut_axes
        if key not in self._generators:
            self._generators[key] = torch.Generator(device)
            self._generators[key].manual_seed(self._steps_made * sharding.shards + sharding.shard)
        return self._generators[key]


def _gradient(p: Tensor) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(local_part(p))
    g = local_part(p.grad)
    return g.contiguous() if g.ndim > 2 else g  # a convolution's gradient may have another memory format
