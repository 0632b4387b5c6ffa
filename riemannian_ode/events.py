"""Events of a simulation: entering the river's tube, a loss below a level, a saddle left; located, not skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq

from riemannian_ode.arrays import to_numpy
from riemannian_ode.dynamics import RISHD
from riemannian_ode.errors import require_choice
from riemannian_ode.flow import Array
from riemannian_ode.integrators import Integrator, PhaseState
from riemannian_ode.trajectory import EventRecord

Direction = Literal["any", "falling", "rising"]
_LOOKS = 8  # sub-intervals of a step in which a sign change is looked for
_PRECISION = 1e-12  # of an event's place within its step, relative to the step


@dataclass(frozen=True)
class Event:
    """A sign change to watch for.

    Args:
        name: What it is called in the records.
        function: ``(t, w, m)`` ↦ values of shape ``(*ensemble,)``; the event is where they cross 0.
        direction: Which crossings count: values that fall through 0, rise through 0, or both.
        terminal: Whether a trajectory ends there (an ensemble ends when each of its members had a terminal event).

    Raises:
        ValueError: for an unknown direction.
    """

    name: str
    function: Callable[[float, Array, Array], Array]
    direction: Direction = "any"
    terminal: bool = False

    def __post_init__(self) -> None:
        require_choice("direction", self.direction, ("any", "falling", "rising"))

    def crossed(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Whether the values crossed 0 the way that counts; starting on 0 is no crossing."""
        falls, rises = (before > 0) & (after <= 0), (before < 0) & (after >= 0)
        return {"falling": falls, "rising": rises, "any": falls | rises}[self.direction]


class EventWatch:
    """Watches the steps of one run.

    A step is searched at 8 places between its ends, on the cubic through both ends' states and slopes, so that a pair
    of crossings inside a large step is not missed; each crossing is then located on the scheme's own partial step.

    Args:
        events: What to watch for.
        system: The dynamics.
        scheme: The integrator.
    """

    def __init__(self, events: Sequence[Event], system: RISHD, scheme: Integrator) -> None:
        self.events, self.system, self.scheme = tuple(events), system, scheme
        self.records: list[EventRecord] = []

    def search(self, t: float, before: PhaseState, after: PhaseState, h: float) -> None:
        """Record the events between the states at t and t + h.

        Args:
            t: Time of ``before``.
            before: State at t.
            after: State at t + h.
            h: Step.
        """
        if not self.events:
            return
        places = np.linspace(0.0, 1.0, _LOOKS + 1)
        states = list(self._between(t, before, after, h, places))
        found: list[tuple[float, Event, tuple[int, ...]]] = []
        for event in self.events:
            values = [
                to_numpy(event.function(t + place * h, *state)) for place, state in zip(places, states, strict=True)
            ]
            for i in range(_LOOKS):
                hits = np.argwhere(event.crossed(values[i], values[i + 1]))
                for member in (tuple(int(x) for x in hit) for hit in hits):
                    place = self._locate(event, member, t, before, h, float(places[i]), float(places[i + 1]))
                    if place is not None:
                        found.append((place, event, member))
        for place, event, member in sorted(found, key=lambda row: row[0]):
            w, m = (to_numpy(part)[member] for part in self._partial(t, before, place, h))
            self.records.append(EventRecord(event.name, member, t + place * h, w.copy(), m.copy(), event.terminal))

    def has_ended(self, ensemble: tuple[int, ...]) -> bool:
        """Whether each member had a terminal event."""
        if not self.records:
            return False
        ended = {record.member for record in self.records if record.terminal}
        return len(ended) == int(np.prod(ensemble))

    def _between(
        self, t: float, before: PhaseState, after: PhaseState, h: float, places: np.ndarray
    ) -> Iterator[PhaseState]:
        """Cubic Hermite interpolation; the ends are the states themselves."""
        slopes = [self.system.rates(t, *before), self.system.rates(t + h, *after)]
        for s in places:
            if s in (0.0, 1.0):
                yield after if s else before
                continue
            weights = (2 * s**3 - 3 * s**2 + 1, -2 * s**3 + 3 * s**2, s**3 - 2 * s**2 + s, s**3 - s**2)
            yield PhaseState(
                *(
                    weights[0] * x + weights[1] * y + h * (weights[2] * dx + weights[3] * dy)
                    for x, y, dx, dy in zip(before, after, *slopes, strict=True)
                )
            )

    def _partial(self, t: float, before: PhaseState, place: float, h: float) -> PhaseState:
        if place <= 0.0:
            return before
        return next(iter(self.scheme.states(self.system, before, t0=t, h=place * h, steps=1)))

    def _locate(
        self, event: Event, member: tuple[int, ...], t: float, before: PhaseState, h: float, low: float, high: float
    ) -> float | None:
        """Place of the crossing within the step; ``None`` where only the interpolation crossed."""

        def value(place: float) -> float:
            return float(to_numpy(event.function(t + place * h, *self._partial(t, before, place, h)))[member])

        for a, b in ((low, high), (max(0.0, low - 1 / _LOOKS), min(1.0, high + 1 / _LOOKS))):
            start, end = value(a), value(b)
            if start == 0.0:
                return a
            if start * end <= 0.0:
                return float(brentq(value, a, b, xtol=_PRECISION, rtol=4 * np.finfo(np.float64).eps))
        return None
