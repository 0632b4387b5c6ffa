"""The protocol of saved states that functions of whole trajectories read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from riemannian_ode.flow import Array


class SavedStates(Protocol):
    """Saved states of one trajectory or of an ensemble, such as :class:`riemannian_ode.Trajectory`."""

    @property
    def times(self) -> np.ndarray:
        """Save times, shape ``(saves,)``."""

    @property
    def w(self) -> Array:
        """Positions, shape ``(saves, *ensemble, p)``."""

    @property
    def m(self) -> Array:
        """Momenta, the same shape."""

    @property
    def memory(self) -> Mapping[str, Array]:
        """A preconditioner's memory by key, each of shape ``(saves, *ensemble, …)``."""

    @property
    def message(self) -> str:
        """Why the run stopped early; empty if it finished."""
