"""Objectives: the methods a flow needs from a landscape, and checks of what a user passes."""

from __future__ import annotations

from typing import Any, Protocol

from riemannian_ode.checks import require_method
from riemannian_ode.flow import Array
from riemannian_ode.metric import Metric
from riemannian_ode.preconditioner import Preconditioner


class Objective(Protocol):
    """What a flow needs from a landscape; every landscape of ``toy_landscapes`` is an objective.

    Methods accept any leading axes; at the start ``simulate`` compares an ensemble with some of its members. An
    objective with a random gradient sets ``is_random = True``; its gradient is then called only once and not compared.
    """

    def value(self, w: Array) -> Array:
        """f(w), shape ``(*ensemble,)``."""
        ...

    def gradient(self, w: Array) -> Array:
        """∇f(w), shape ``(*ensemble, p)``."""
        ...


def is_random(objective: Any) -> bool:
    """Whether an objective's gradient draws noise, so that extra calls would change later results."""
    return bool(getattr(objective, "is_random", False))


def check_parts(objective: Any, metric: Any, flat: Any) -> None:
    """Refuse an objective, a metric or a split of the wrong kind.

    Raises:
        ValueError: naming the argument and what it is instead.
    """
    kind = f"the class {objective.__name__}" if isinstance(objective, type) else f"of type {type(objective).__name__}"
    if isinstance(objective, type) or not callable(getattr(objective, "gradient", None)):
        raise ValueError(
            f"objective is {kind}; give an object with the methods value(w) and gradient(w), such as a landscape (or "
            "toy_landscapes.TorchLandscape of a torch function)."
        )
    if metric is not None and not isinstance(metric, (Metric, Preconditioner)):
        raise ValueError(f"metric is of type {type(metric).__name__}; give a Metric, e.g. ConstantMetric(matrix).")
    if flat is not None and isinstance(metric, Preconditioner):
        raise ValueError("flat is given, but a preconditioner has its own sharp directions; give it a mask instead.")
    if flat is not None:
        require_method("flat", flat, "PhasePoint ↦ (x ↦ Qx), e.g. landscape.flat_split or ConstantSplit(basis)")
