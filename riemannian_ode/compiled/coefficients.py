"""A system's coefficients as inputs to compiled steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from riemannian_ode.coefficients import COEFFICIENTS, TimeDependent
from riemannian_ode.dynamics import RISHD


class CoefficientInputs:
    """Inputs of compiled steps: constants once, functions of time at every time that the steps need.

    The neutral numbers 0 and 1 stay constants in the trace, because the formulas omit their terms.

    Args:
        system: The dynamics.
    """

    def __init__(self, system: RISHD) -> None:
        self.system = system
        self.constants: dict[str, Any] = {}
        self.functions: dict[str, TimeDependent] = {}
        for name in COEFFICIENTS:
            value = getattr(system, name)
            if isinstance(value, TimeDependent):
                self.functions[name] = value
            elif not (isinstance(value, float) and value in (0.0, 1.0)):
                self.constants[name] = value
        self.times: dict[tuple[str, float], None] = {}

    def at_times(self, t: float) -> list[Any]:
        """Values that steps beginning at time t need from the functions of time."""
        return [self.functions[name](t + offset) for name, offset in self.times]

    def recording(self, t: float) -> RISHD:
        """The system in time since t; it records every time at which a coefficient is requested."""
        self.times = {}

        def record(name: str, offset: float) -> Any:
            self.times[name, offset] = None
            return self.functions[name](t + offset)

        changed: dict[str, Any] = {name: TimeDependent(partial(record, name)) for name in self.functions}
        return replace(self.system, **changed)

    def traced(self, inputs: list[Any]) -> RISHD:
        """The system in time since the steps began; ``inputs`` are the constants, then :meth:`at_times`."""
        given: dict[Any, Any] = dict(zip([*self.constants, *self.times], inputs, strict=True))

        def look_up(name: str, offset: float) -> Any:
            return given[name, offset]

        changed: dict[str, Any] = {name: given[name] for name in self.constants}
        changed |= {name: TimeDependent(partial(look_up, name)) for name in self.functions}
        return replace(self.system, **changed)
