"""The loop over the steps of one simulation: saves, events, checkpoints, lost members, interrupts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from riemannian_ode.arrays import like
from riemannian_ode.dynamics import RISHD
from riemannian_ode.errors import InvalidSystemError
from riemannian_ode.events import Event, EventWatch
from riemannian_ode.fingerprint import fingerprint
from riemannian_ode.integrators import (
    Integrator,
    IntegratorError,
    MemberStates,
    OneStepIntegrator,
    PhaseState,
    StepLimitError,
)
from riemannian_ode.integrators.base import states_with_jumps
from riemannian_ode.lost_members import LostMembers
from riemannian_ode.noise import GradientNoise
from riemannian_ode.recording import Recorder
from riemannian_ode.save_grid import SaveGrid
from riemannian_ode.simulation_checkpoint import Position, check_place, read_checkpoint, write_checkpoint
from riemannian_ode.smoothness import describe_jump
from riemannian_ode.system_check import SystemCheck
from riemannian_ode.trajectory import EventRecord, Status, Trajectory, unpacked

if TYPE_CHECKING:
    from riemannian_ode.compiled import CompiledSteps


class Run:
    """A simulation with checked arguments.

    Args:
        system: The dynamics, for the arrays of ``start``.
        scheme: The integrator.
        grid: Its steps and saves.
        start: State at the start.
        recorder: Holds the start.
        events: Events to watch for.
        file: Checkpoint file; if it exists, the run continues from it.
        compiled: The scheme's compiled steps; ``None`` runs it uncompiled.
        noise: Noise in the gradient.

    Raises:
        CheckpointError: if the file belongs to another run, or its location is not writable.
    """

    def __init__(
        self,
        *,
        system: RISHD,
        scheme: Integrator,
        grid: SaveGrid,
        start: PhaseState,
        recorder: Recorder,
        events: Sequence[Event],
        file: Path | None,
        compiled: CompiledSteps | None,
        noise: GradientNoise | None = None,
    ) -> None:
        self.system, self.scheme, self.grid = system, scheme, grid
        self.recorder, self.file, self.compiled, self.noise = recorder, file, compiled, noise
        self.watch, self.check = EventWatch(events, system, scheme), SystemCheck(system)
        self.ensemble = tuple(start.w.shape[:-1])
        self.lost = LostMembers(self.ensemble)
        self.position = Position(0, start, 0)
        self.events: list[EventRecord] = []
        self.members: MemberStates | None = None
        self.explained: set[str] = set()
        if file is None:
            return
        check_place(file)
        self.identity = fingerprint(system, start, scheme, grid=grid, recorder=recorder, events=events, noise=noise)
        if file.exists():
            self.position, self.events = read_checkpoint(
                file, run=self.identity, reference=start.w, recorder=recorder, lost=self.lost
            )

    def go(self, advance: Callable[[int], None]) -> Trajectory:
        """Run to the end, or until something stops the run."""
        status: Status
        try:
            status, message = self._loop(advance)
        except StepLimitError as error:
            status, message = "step-limit", self._cause(str(error))
        except IntegratorError as error:
            status, message = "integrator-failed", self._cause(str(error))
        except InvalidSystemError as error:
            status, message = "invalid-system", str(error)
        except KeyboardInterrupt:
            status, message = "interrupted", ""
        step, state = self.position.step, self.position.state
        now = self.grid.time(step)
        if status == "interrupted":
            message = f"interrupted at t = {now:.6g} after {step} of {self.grid.steps} steps"
        if status != "event":
            # Drop what an interrupted step left behind: records end at the current step.
            self.events = self.events[: self.position.events]
            self.recorder.rewind(now)
        if status in ("finished", "interrupted", "step-limit"):
            self._write_checkpoint()
        if status != "event":
            self.recorder.end(now, state)
        status, message = self.lost.verdict(status, message)
        times, w, m, observed_times, observed = self.recorder.stacked()
        failed_at, causes, events = self.lost.failed_at, self.lost.causes, tuple(self.events)
        made = Trajectory(times, w, m, status, message, failed_at, causes, observed_times, observed, events)
        return made if self.system.memory is None else unpacked(made, self.system.memory)

    def _loop(self, advance: Callable[[int], None]) -> tuple[Status, str]:
        grid = self.grid
        for k, state in self._states():
            step, before, _ = self.position
            now = grid.time(k)
            self.check.coefficients(now)
            found = self.watch.search(grid.time(step), before, state, grid.h)
            ending = self.watch.ending([*self.events, *found], self.ensemble) if found else None
            if ending is not None:
                self._write_checkpoint()  # position of the previous step: a longer run finds the event again
            inside = self._inside(step, before, ending) if grid.save_at.inside(step) else ()
            is_saved = grid.is_saved(k)
            if is_saved:
                self.check.geometry(k, now, state, last=k == grid.steps)
            self._explain_losses()
            lost = self.lost.lost_all(state, now, None if self.members is None else self.members.losses)
            # Records first, position last: after Ctrl-C in between, go() drops the records.
            self.events += found
            for t, partial in inside:
                self.recorder.save(t, partial)
            if ending is not None:
                return "event", self._end_at(ending, now, state)
            if is_saved:
                self.recorder.save(now, state)
            self.position = Position(k, state, len(self.events))
            if lost:
                return "non-finite", ""
            if grid.is_written(k):
                self._write_checkpoint()
            advance(k)
        return "finished", ""

    def _cause(self, message: str, member: tuple[int, ...] = ()) -> str:
        """The scheme's message, or a description of a jump ahead, for which the scheme's remedy would mislead."""
        step, state, _ = self.position
        try:
            # The solution of an implicit step may lie beyond one explicit step.
            jump = describe_jump(self.system, self.grid.time(step), state, 3.0 * self.grid.h, member)
        except Exception:  # user functions may not be defined where the run never came
            return message
        return f"{message.partition('; ')[0]}; {jump}" if jump else message

    def _explain_losses(self) -> None:
        """Look for the cause of the first loss of each kind while the state before it is still available."""
        if self.members is None:
            return
        losses = self.members.losses
        for cause in losses.messages.keys() - self.explained:
            self.explained.add(cause)
            member = tuple(int(i) for i in np.argwhere(losses.causes == cause)[0])
            losses.messages[cause] = self._cause(losses.messages[cause], member)

    def _states(self) -> Iterator[tuple[int, PhaseState]]:
        """Pairs (steps done, state): after every step, or, if compiled, after the steps that are kept."""
        grid, (first, state, _) = self.grid, self.position
        if self.compiled is not None:
            from riemannian_ode.compiled import compiled_states

            return compiled_states(self.compiled, state, t0=grid.t0, first=first, stops=self._next_stop)
        times: dict[str, Any] = {"t0": grid.t0, "h": grid.h, "steps": grid.steps, "first": first}
        memory = self.system.memory
        if memory is not None and memory.changes_between_steps and "optimizer" not in self.scheme.structure:
            return enumerate(states_with_jumps(self.scheme, self.system, state, **times), first + 1)
        if self.noise is not None and isinstance(self.scheme, OneStepIntegrator):
            return enumerate(self.scheme.noisy_states(self.system, state, self.noise, **times), first + 1)
        states = self.scheme.states(self.system, state, **times)
        self.members = states if isinstance(states, MemberStates) else None
        return enumerate(states, first + 1)

    def _next_stop(self, k: int) -> int:
        """The next step after k to keep, or the last step with coefficients in range if that comes first.

        Raises:
            InvalidSystemError: if the next step's coefficients are out of range.
        """
        stop = self.grid.next_stop(k)
        for j in range(k + 1, stop + 1) if self.check.varying else ():
            try:
                self.check.coefficients(self.grid.time(j))
            except InvalidSystemError:
                if j == k + 1:
                    raise
                return j - 1
        return stop

    def _inside(self, step: int, before: PhaseState, ending: EventRecord | None) -> list[tuple[float, PhaseState]]:
        """The requested states inside a step, up to a single trajectory's end."""
        t, until = self.grid.time(step), math.inf if ending is None or self.ensemble else ending.time
        wanted = [time for time in self.grid.save_at.inside(step) if time < until]
        return [(time, self.scheme.partial_step(self.system, t, before, time - t)) for time in wanted]

    def _end_at(self, event: EventRecord, now: float, state: PhaseState) -> str:
        """Save the end of a run; for an ensemble, whose events have different times, save the end of the step."""
        if self.ensemble:
            self.recorder.save(now, state)
        else:
            self.recorder.save(event.time, PhaseState(like(event.w, state.w), like(event.m, state.w)))
        return f"{event.name} at t = {event.time:.12g}"

    def _write_checkpoint(self) -> None:
        """Write a checkpoint; if that fails, e.g. on a full disk, the run continues without it."""
        if self.file is None:
            return
        try:
            write_checkpoint(
                self.file,
                run=self.identity,
                position=self.position,
                recorder=self.recorder,
                lost=self.lost,
                events=self.events,
            )
        except OSError as problem:
            text = f"checkpoint {self.file} was not written ({problem}); the run continues without it."
            warnings.warn(text, stacklevel=2)
