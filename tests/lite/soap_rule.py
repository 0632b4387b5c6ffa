"""SOAP-LITE's rule on bare tensors, as the optimizer runs it."""

from dataclasses import dataclass
from typing import Any

from lite import SOAPLITE

_OPTIMIZER = SOAPLITE.__new__(SOAPLITE)  # whose methods for groups need no parameters


class State(dict):
    """State with its tensors as attributes, ``None`` for missing ones."""

    def __getattr__(self, name):
        return self.get(name)

    def replace(self, **changes):
        return State(self | changes)


@dataclass(frozen=True, kw_only=True)
class SoapRule:
    lr: float = 0.01
    betas: tuple[float, float] = (0.95, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    chi: float = 1.0
    chi_sharp: float = 1.0
    adapts_chi: bool = False
    beta_sharp: float = 0.0
    beta_flat: float = 0.0
    sharp_fraction: float = 0.1
    precondition_frequency: int = 10
    max_precondition_dim: int = 10_000
    divergence: str = "frobenius"
    decay: str = "decoupled"
    norm: str = "free"

    @property
    def preconditioner(self) -> Any:
        return _OPTIMIZER.update_rule(vars(self), (1, 1)).preconditioner

    def initial(self, w):
        return State(_OPTIMIZER.matrix_state(vars(self), w))

    def step(self, w, g, state, *, step, numbers=None, is_phase=False):
        """New parameters and state; no argument is changed."""
        if numbers is None:
            numbers = range(w.size(0) if w.ndim == 3 else 1)
        group = vars(self) | ({"count": step} if is_phase else {})
        w, state = _OPTIMIZER.matrix_update(group, w, g, dict(state), step=step, numbers=numbers)
        return w, State(state)
