"""The state of the page: what is simulated and how, checked, and written to and read from a URL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from riemannian_ode.checks import is_number, require_choice, require_count, shown
from rishd.exploring.choices import GEOMETRIES, RANGES, SCENES, Geometry, Scene, integrators

_WHOLE = ("sharp", "steps")
_COPIES = 4  # noisy paths of each method


@dataclass(frozen=True, kw_only=True)
class View:
    """One setting of the page.

    Args:
        landscape: Key of :data:`rishd.exploring.choices.SCENES`.
        metric: Key of :data:`rishd.exploring.choices.GEOMETRIES`.
        integrator: Name of an integrator of fixed steps.
        alpha: α.
        eta: η.
        beta_sharp: β♯, in the theory's units; of all directions in the base method.
        beta_flat: β♭ of LITE.
        chi: χ of LITE.
        sharp: r, the number of sharp directions.
        noise: σ, standard deviation of the gradient's noise, per root of time.
        h: Step of the integrator, in units of time; 1 is an optimizer's.
        steps: Number of steps.

    Raises:
        ValueError: for a name that is unknown, a number out of range, or settings that do not fit each other.
    """

    landscape: str = "river"
    metric: str = "euclidean"
    integrator: str = "semi-implicit-euler"
    chi: float = 3.0
    beta_flat: float = 2.0
    beta_sharp: float = 0.0
    eta: float = 0.05
    alpha: float = 0.5
    sharp: int = 1
    noise: float = 0.0
    h: float = 1.0
    steps: int = 120

    def __post_init__(self) -> None:
        require_choice("landscape", self.landscape, list(SCENES))
        require_choice("metric", self.metric, list(GEOMETRIES))
        for name in RANGES:
            _check_number(name, getattr(self, name))
        usable = integrators(geometry=self.geometry, noisy=self.noise > 0)
        if self.integrator not in usable:
            with_what = " with noise" if self.noise > 0 else ""
            require_choice(f"integrator (for {self.geometry.title}{with_what})", self.integrator, usable)
        if self.sharp > self.directions:
            raise ValueError(
                f"sharp = {self.sharp} exceeds the {self.directions} {self.geometry.counts} of {self.geometry.title} "
                f"on this landscape; give 0 to {self.directions}."
            )
        if self.beta_flat < self.beta_sharp:
            raise ValueError(
                f"beta_flat = {self.beta_flat:g} is below beta_sharp = {self.beta_sharp:g}; LITE damps flat directions "
                "at least as much as sharp ones: raise beta_flat or lower beta_sharp."
            )

    @property
    def scene(self) -> Scene:
        """The landscape's declaration."""
        return SCENES[self.landscape]

    @property
    def geometry(self) -> Geometry:
        """The metric's declaration."""
        return GEOMETRIES[self.metric]

    @property
    def directions(self) -> int:
        """How many directions can be sharp."""
        return self.geometry.directions(self.scene)

    @property
    def copies(self) -> int:
        """Paths of each method: several if they are random."""
        return _COPIES if self.noise > 0 else 1

    def query(self) -> dict[str, str]:
        """What differs from the defaults, as URL parameters; numbers to the last bit."""
        return {
            each.name: str(getattr(self, each.name))
            for each in fields(self)
            if getattr(self, each.name) != each.default
        }

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> tuple[View, list[str]]:
        """The view of a URL, and in plain words what of it is not usable and was replaced by defaults.

        Args:
            query: Parameters as text.
        """
        known = {each.name for each in fields(cls)}
        problems, good = [], {}
        for name, text in query.items():
            try:
                if name not in known:
                    raise ValueError(f"{shown(name)} is no setting of this page; there are {', '.join(sorted(known))}.")
                good[name] = _parsed(name, text)
            except ValueError as problem:
                problems.append(f"{problem} The default is shown.")
        try:
            return cls(**good), problems
        except ValueError as problem:
            return cls(), [*problems, f"{problem} The default view is shown."]


def _parsed(name: str, text: str) -> Any:
    if name not in RANGES:
        choices = {"landscape": list(SCENES), "metric": list(GEOMETRIES)}.get(name)
        if choices is not None:
            require_choice(name, text, choices)
        return text
    try:
        value: float | int = int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise ValueError(f"{name} = {shown(text)} is not {kind}.") from None
    _check_number(name, value)
    return value


def _check_number(name: str, value: Any) -> None:
    low, high = RANGES[name].low, RANGES[name].high
    if name in _WHOLE:
        require_count(name, value, int(low))
    if not (is_number(value) and math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} = {shown(value)} is out of range; give {low:g} to {high:g}.")
