"""Records of a simulation: saved states and observed quantities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from riemannian_ode.arrays import namespace, to_numpy
from riemannian_ode.flow import Array
from riemannian_ode.integrators import PhaseState

Observer: TypeAlias = Callable[[float, Array, Array], Array]
_NOTHING: Mapping[str, np.ndarray] = {}


class Save(NamedTuple):
    """One save: the state (``None`` if only observed values are kept) and the observers' values."""

    time: float
    state: PhaseState | None
    observed: Mapping[str, np.ndarray]


class Recorder:
    """Saves of a run, in time order.

    Every change is a single list operation, so that Ctrl-C never leaves an incomplete save.

    Args:
        t0: Start time.
        start: State at ``t0``.
        observers: Name to ``(t, w, m)`` ↦ array of a fixed shape.
        keep_states: Whether every save keeps the state; otherwise only the first and the last state are kept.
    """

    def __init__(self, t0: float, start: PhaseState, *, observers: Mapping[str, Observer], keep_states: bool) -> None:
        self.observers, self.keep_states = observers, keep_states
        self.saves: list[Save] = []
        self.save(t0, start)

    def save(self, t: float, state: PhaseState) -> None:
        """Observe the state and keep it, or replace the last state with it."""
        observed = {name: np.array(to_numpy(observe(t, state.w, state.m))) for name, observe in self.observers.items()}
        if not self.keep_states and len(self.saves) > 1:
            if self.observers:
                self.saves[-1] = self.saves[-1]._replace(state=None)
            else:
                self.saves.pop()
        self.saves.append(Save(t, state, observed))

    def rewind(self, t: float) -> None:
        """Drop saves after time t."""
        while self.saves[-1].time > t:
            self.saves.pop()

    def end(self, t: float, state: PhaseState) -> None:
        """Make the state at t the last save."""
        if self.saves[-1].time == t:
            self.saves[-1] = self.saves[-1]._replace(state=state)
        else:
            self.save(t, state)

    def stacked(self) -> tuple[np.ndarray, Array, Array, np.ndarray, dict[str, np.ndarray]]:
        """Times, w, m, observed times and observed values as arrays."""
        kept = [(save.time, save.state) for save in self.saves if save.state is not None]
        stack = namespace(kept[0][1].w).stack
        return (
            np.array([time for time, _ in kept]),
            stack([state.w for _, state in kept]),
            stack([state.m for _, state in kept]),
            np.array([save.time for save in self.saves] if self.observers else []),
            {name: np.stack([save.observed[name] for save in self.saves]) for name in self.observers},
        )
