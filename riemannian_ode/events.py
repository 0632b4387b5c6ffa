"""Events of a simulation, such as a loss falling below a level, located inside steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq

from riemannian_ode.arrays import to_numpy
from riemannian_ode.checks import require_choice, require_method
from riemannian_ode.dynamics import RISHD
from riemannian_ode.errors import InvalidSystemError
from riemannian_ode.flow import Array
from riemannian_ode.integrators import Integrator, PhaseState
from riemannian_ode.interpolation import hermite
from riemannian_ode.trajectory import EventRecord

Direction = Literal["any", "falling", "rising"]
_LOOKS = 8  # sub-intervals of a step that are searched for a sign change
_PRECISION = 1e-12  # accuracy of an event's place in its step, relative to the step


@dataclass(frozen=True)
class Event:
    """A sign change to watch for.

    Args:
        name: Its name in the records.
        function: ``(t, w, m)`` ↦ values of shape ``(*ensemble,)``; the event is where they cross 0.
        direction: Which crossings count: values that fall through 0, rise through 0, or both.
        terminal: Whether a trajectory ends there (an ensemble ends when each of its members has had a terminal event).

    Raises:
        ValueError: if ``function`` is not callable or the direction is unknown.
    """

    name: str
    function: Callable[[float, Array, Array], Array]
    direction: Direction = "any"
    terminal: bool = False

    def __post_init__(self) -> None:
        require_method(f"event {self.name!r}", self.function, "(t, w, m) ↦ values of shape (*ensemble,)")
        require_choice("direction", self.direction, ("any", "falling", "rising"))

    def crossed(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Whether the values crossed 0 in the event's direction; starting at 0 is not a crossing."""
        falls, rises = (before > 0) & (after <= 0), (before < 0) & (after >= 0)
        return {"falling": falls, "rising": rises, "any": falls | rises}[self.direction]

    def check_values(self, values: np.ndarray, t: float, state: PhaseState) -> None:
        """Refuse NaN at a finite state, because no comparison with NaN finds a crossing.

        Args:
            values: Values of the function, shape ``(*ensemble,)``.
            t: Time.
            state: The state.

        Raises:
            InvalidSystemError: naming the event, the time, the member and its position.
        """
        bad = np.isnan(values)
        if not bad.any():
            return
        bad &= np.isfinite(to_numpy(state.w)).all(-1) & np.isfinite(to_numpy(state.m)).all(-1)
        if bad.any():
            member = _indices(bad)[0]
            where = np.array2string(to_numpy(state.w)[member][:4], precision=6, separator=", ")
            raise InvalidSystemError(
                f"event {self.name!r} is NaN at t = {t:.12g}{f' for member {member}' if member else ''}, where w = "
                f"{where}; give it a number at every finite state."
            )


class EventWatch:
    """Watches the steps of one run.

    Each step is searched at several places, so that a pair of crossings inside a large step is not missed. The search
    follows the cubic through both ends' states and slopes, or the scheme's own path if the scheme is adaptive. Each
    crossing is then located with a partial step of the scheme. A sign change between the two ends is never missed.

    Args:
        events: What to watch for.
        system: The dynamics.
        scheme: The integrator.
    """

    def __init__(self, events: Sequence[Event], system: RISHD, scheme: Integrator) -> None:
        self.events, self.system, self.scheme = tuple(events), system, scheme

    def search(self, t: float, before: PhaseState, after: PhaseState, h: float) -> list[EventRecord]:
        """Events between the states at t and t + h, in order; a single trajectory's list ends with a terminal event.

        Args:
            t: Time of ``before``.
            before: State at t.
            after: State at t + h.
            h: Step.
        """
        if not self.events:
            return []
        places = np.linspace(0.0, 1.0, _LOOKS + 1)
        states = list(self._between(t, before, after, h, places))
        found: list[tuple[float, Event, tuple[int, ...]]] = []
        for event in self.events:
            values = [
                self._value(event, t, before, place, state, h) for place, state in zip(places, states, strict=True)
            ]
            located: set[tuple[int, ...]] = set()
            for i in range(_LOOKS):
                for member in _indices(event.crossed(values[i], values[i + 1])):
                    near = float(places[i]), float(places[i + 1])
                    place = self._locate(event, member, t, before, h, near, _wider(*near))
                    if place is not None:
                        found.append((place, event, member))
                        located.add(member)
            for member in _indices(event.crossed(values[0], values[-1])):
                if member not in located:  # the cubic may stray from a stiff path
                    place = self._locate(event, member, t, before, h, (0.0, 1.0))
                    if place is not None:
                        found.append((place, event, member))
        records = []
        for place, event, member in sorted(found, key=lambda row: row[0]):
            w, m = (to_numpy(part)[member] for part in self._partial(t, before, place, h))
            records.append(EventRecord(event.name, member, t + place * h, w.copy(), m.copy(), event.terminal))
            if event.terminal and before.w.ndim == 1:
                break  # the trajectory ends here
        return records

    def ending(self, records: Sequence[EventRecord], ensemble: tuple[int, ...]) -> EventRecord | None:
        """The terminal event that ends a run (the last member's); ``None`` while some member is still running."""
        terminal = [record for record in records if record.terminal]
        ended = {record.member for record in terminal}
        return terminal[-1] if terminal and len(ended) == int(np.prod(ensemble)) else None

    def _between(
        self, t: float, before: PhaseState, after: PhaseState, h: float, places: np.ndarray
    ) -> Iterator[PhaseState]:
        """States at places within the step; at the ends they are the given states."""
        if self.scheme.adaptive:
            inside = self.scheme.states(self.system, before, t0=t, h=h / _LOOKS, steps=_LOOKS)
            yield from (before, *itertools.islice(inside, _LOOKS - 1), after)
            return
        slopes = [self.system.rates(t, *before), self.system.rates(t + h, *after)]
        for s in places:
            if s in (0.0, 1.0):
                yield after if s else before
                continue
            yield PhaseState(*hermite(before, after, slopes, h, s))

    def _value(
        self, event: Event, t: float, before: PhaseState, place: float, state: PhaseState, h: float
    ) -> np.ndarray:
        """Values at a place within the step; outside the function's domain the scheme's path replaces the cubic."""
        values = to_numpy(event.function(t + place * h, *state))
        if 0.0 < place < 1.0 and np.isnan(values).any():
            state = self._partial(t, before, place, h)
            values = to_numpy(event.function(t + place * h, *state))
        event.check_values(values, t + place * h, state)
        return values

    def _partial(self, t: float, before: PhaseState, place: float, h: float) -> PhaseState:
        if place <= 0.0:
            return before
        return self.scheme.partial_step(self.system, t, before, place * h)

    def _locate(
        self,
        event: Event,
        member: tuple[int, ...],
        t: float,
        before: PhaseState,
        h: float,
        *brackets: tuple[float, float],
    ) -> float | None:
        """Place of the crossing within the step, from the first bracket that contains one; ``None`` if none does."""

        def value(place: float) -> float:
            state = self._partial(t, before, place, h)
            values = to_numpy(event.function(t + place * h, *state))
            event.check_values(values, t + place * h, state)
            return float(np.nan_to_num(values[member]))  # an infinite value has a sign but no secant

        for a, b in brackets:
            start, end = value(a), value(b)
            if start == 0.0:
                return a
            if start * end <= 0.0:
                return float(brentq(value, a, b, xtol=_PRECISION, rtol=4 * np.finfo(np.float64).eps))
        return None


def _wider(low: float, high: float) -> tuple[float, float]:
    """A sub-interval widened by its neighbours."""
    return max(0.0, low - 1 / _LOOKS), min(1.0, high + 1 / _LOOKS)


def _indices(hits: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(int(x) for x in hit) for hit in np.argwhere(hits)]
