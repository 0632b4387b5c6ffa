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
from lite.declaration import rounds_stochastically
from lite.distributed.adamw_parts import AdamWPart
from lite.distributed.agreement import Agreement
from lite.distributed.division import OwnedParameter, PlacedParameter
from lite.distributed.exchange import MessageSpec, all_gather
from lite.distributed.megabatch import Megabatch, NewState, Reply
from lite.distributed.sharding import RankMesh, local_part
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
    """

    def __init__(
        self, work: Workload, active: Sequence[PlacedParameter], agreements: list[Agreement], steps_made: int
    ) -> None:
        self._work, self._agreements, self._steps_made = work, agreements, steps_made
        self._gradients = {parameter.p: _gradient(parameter.p) for parameter in active}
        self._device = next(iter(self._gradients.values())).device
        self._matrices = [parameter for parameter in active if isinstance(parameter, OwnedParameter)]
        self._parts = [
            self._part(parameter)
            for parameter in active
            if not isinstance(parameter, OwnedParameter) and parameter.p.numel()
        ]
        self._present = {parameter for parameter in active if parameter.p.grad is not None}
        self._flags = self._own_flags()
        self._usable: Tensor | None = None  # at first on this rank, after the agreement on all ranks
        if work.on_nonfinite != "ignore":
            self._usable = ~self._flags[: len(agreements[0].parameters)].any().bool()
        self._changes: dict[PlacedParameter, Tensor] = {}  # whether each parameter changes, after the agreement
        self._waiting: list[Callable[[], None]] = []
        self._generators: dict[RankMesh, torch.Generator] = {}

    def run(self) -> None:
        """Execute the step."""
        mesh = self._agreements[0].mesh
        if len(self._agreements) == 1 and mesh.replicas.size == mesh.size > 1:
            self._step_matrices(with_flags=True)
            self._step_adamw()
            return
        self._agree()
        counts = self._step_adamw()
        self._step_matrices(with_flags=False)
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

    def _step_matrices(self, *, with_flags: bool) -> None:
        by_mesh: dict[RankMesh, list[OwnedParameter]] = {self._agreements[0].mesh: []} if with_flags else {}
        for parameter in self._matrices:
            by_mesh.setdefault(parameter.sharding.mesh, []).append(parameter)
        for mesh, parameters in by_mesh.items():
            megabatches = self._megabatches(parameters)
            replies = self._through(megabatches, move=mesh.replicas.size == 1)
            if mesh.replicas.size > 1:
                self._move(self._gather(mesh, megabatches, replies, with_flags=with_flags))

    def _megabatches(self, parameters: list[OwnedParameter]) -> list[Megabatch]:
        alike: defaultdict[tuple[Any, ...], list[OwnedParameter]] = defaultdict(list)
        for parameter in parameters:
            alike[
                parameter.group, parameter.shape, parameter.sharding.dim, parameter.p.dtype, parameter.p.device
            ].append(parameter)
        chunks: defaultdict[tuple[Any, ...], list[OwnedParameter]] = defaultdict(list)
        for key, each in alike.items():
            share = sum(parameter.p.numel() for parameter in each) / each[0].sharding.mesh.shards.size
            count = math.ceil(share / LARGEST_MEGABATCH)
            turns: Counter[int] = Counter()
            for parameter in each:  # each owner's parameters are spread, so that every chunk keeps all owners busy
                owner = parameter.owners[0].rank
                chunks[(*key, turns[owner] % max(1, count))].append(parameter)
                turns[owner] += 1
        made = []
        for each in chunks.values():
            group = self._work.groups[each[0].group]
            made.append(Megabatch(self._work.declaration, group, each, self._work.state, steps_so_far(group)))
        return made

    def _through(self, megabatches: list[Megabatch], *, move: bool) -> list[Reply]:
        """Run megabatches through the step; the data of one travels while the next is computed."""
        replies: list[Reply] = []
        if megabatches:
            self._send(megabatches[0])
        for i, megabatch in enumerate(megabatches):
            if i + 1 < len(megabatches):
                self._send(megabatches[i + 1])
            for new in megabatch.compute(self._largest_batch):
                self._once_agreed(partial(self._write_state, new))
            if i:
                replies += megabatches[i - 1].collect()
            if i + 1 == len(megabatches):
                replies += megabatch.collect()
            if move:
                self._move(replies)
                replies = []
        return replies

    def _largest_batch(self, w: Tensor) -> int:
        return self._work.largest_batch(w, on_cpu=self._work.declaration.largest_cpu_batch)

    def _send(self, megabatch: Megabatch) -> None:
        for parameter, target, value in megabatch.send(self._gradients, self._usable):
            self._once_agreed(partial(self._write, parameter, target, value))

    def _gather(
        self, mesh: RankMesh, megabatches: list[Megabatch], replies: list[Reply], *, with_flags: bool
    ) -> list[Reply]:
        """Replies from all replicas' owners for this rank's shards."""
        sent = [(reply.value, reply.value.dtype) for reply in replies]
        expected = [
            [each for megabatch in megabatches for each in megabatch.expected(i)] for i in range(mesh.replicas.size)
        ]
        received = [[spec for *_, spec in each] for each in expected]
        if with_flags:
            sent.insert(0, (self._flags, self._flags.dtype))
            received = [[MessageSpec(tuple(self._flags.shape), self._flags.dtype), *each] for each in received]
        arrived = all_gather(sent, received, mesh.replicas, self._device).wait()
        if with_flags:
            self._decide([self._agreements[0].record([each.pop(0) for each in arrived])])
        return [
            Reply(parameter, owner, name, value)
            for each, values in zip(expected, arrived, strict=True)
            for (parameter, owner, name, _), value in zip(each, values, strict=True)
        ]

    def _move(self, replies: list[Reply]) -> None:
        alike: defaultdict[tuple[OwnedParameter, str | None], list[Reply]] = defaultdict(list)
        for reply in replies:
            alike[reply.parameter, reply.name].append(reply)
        for (parameter, name), parts in alike.items():
            group, w = self._work.groups[parameter.group], local_part(parameter.p)
            parts.sort(key=lambda reply: reply.owner.experts or (0, 0))
            value = parts[0].value if len(parts) == 1 else torch.cat([part.value for part in parts])
            if name is not None:
                self._write(parameter, local_part(self._work.state[parameter.p][name]), value)
                continue
            if rounds_stochastically(group, w):
                w = w.float()
            new = self._work.declaration.shard_move(group, w, value.to(torch.promote_types(w.dtype, value.dtype)))
            self._write_parameter(parameter, new)

    def _step_adamw(self) -> list[tuple[list[AdamWPart], Tensor, Any]]:
        """Move AdamW's parameters; returns sums over ranks for the next step's masks that are still in progress."""
        cut: defaultdict[RankMesh, list[AdamWPart]] = defaultdict(list)
        for part in self._parts:
            group = self._work.groups[part.parameter.group]
            self._write_parameter(part.parameter, part.position(group["lr"]))
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

    def _part(self, parameter: PlacedParameter) -> AdamWPart:
        rule = self._work.declaration.adamw_rule(self._work.groups[parameter.group])
        return AdamWPart(parameter, rule, self._work.state[parameter.p], self._gradients[parameter.p])

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
            value = rounded_stochastically(value, self._generator(parameter.sharding.mesh, w.device))
        self._write(parameter, w, value)

    def _generator(self, mesh: RankMesh, device: torch.device) -> torch.Generator:
        """A generator with the same random numbers on ranks that hold the same data."""
        if mesh not in self._generators:
            self._generators[mesh] = torch.Generator(device)
            self._generators[mesh].manual_seed(self._steps_made * mesh.shards.size + mesh.shards.rank)
        return self._generators[mesh]


def _gradient(p: Tensor) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(local_part(p))
    g = local_part(p.grad)
    return g.contiguous() if g.ndim > 2 else g  # a convolution's gradient may have another memory format
