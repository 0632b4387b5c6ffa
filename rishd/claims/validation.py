"""Results of a validation and how they were made, saved to a file without loss of precision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from riemannian_ode.atomic import write_text
from riemannian_ode.checks import one_line, shown
from rishd.claims.claim import ClaimResult, claim_keys
from rishd.claims.evidence import (
    Attained,
    Bound,
    Constant,
    Curve,
    Hypothesis,
    Identity,
    Measurement,
    Panel,
    Proof,
    WorstCase,
)
from rishd.provenance import git_state, versions
from rishd.saved_types import require_types

_FORMAT = 1  # increased when a file of an earlier version could be misread
_PACKAGES = ("rishd", "numpy", "scipy", "sympy", "torch", "matplotlib")
_KINDS = {
    kind.__name__: kind
    for kind in (
        ClaimResult,
        Bound,
        Identity,
        Constant,
        Attained,
        Measurement,
        Proof,
        Hypothesis,
        WorstCase,
        Panel,
        Curve,
    )
}


class SavedResultsError(ValueError):
    """A file that cannot be read as results of a validation; the message says why and what to do."""


@dataclass(frozen=True)
class Validation:
    """Results of claims, and how they were made.

    Args:
        asked: Keys of the requested claims.
        seed: Random seed of the instances.
        instances: Random instances per numerical part.
        made_with: Versions of software, and the commit of the source if known.
        when: Time of the last result, UTC.
        results: Results of finished claims.
    """

    asked: tuple[str, ...]
    seed: int
    instances: int
    made_with: Mapping[str, str]
    when: str
    results: tuple[ClaimResult, ...] = ()

    @classmethod
    def begin(cls, asked: tuple[str, ...], *, seed: int, instances: int) -> Validation:
        """A validation without results yet, made with the installed software."""
        source = git_state(Path(__file__).parent)
        commit = {} if source is None else {"commit": source["commit"] + (", changed since" if source["dirty"] else "")}
        return cls(asked, seed, instances, {**versions(_PACKAGES), **commit}, _now())

    def with_result(self, result: ClaimResult) -> Validation:
        """Add a result; results are kept in the requested order."""
        return replace(self, when=_now())._holding((*self.results, result))

    def continuing(self, earlier: Validation) -> Validation:
        """Add the results of an earlier, interrupted validation.

        Raises:
            SavedResultsError: if it had a different seed, number of instances or software.
        """
        for name in ("seed", "instances", "made_with"):
            mine, others = getattr(self, name), getattr(earlier, name)
            if mine != others:
                raise SavedResultsError(
                    f"The saved results have {name} = {others!r}, this run {mine!r}: they cannot be continued. "
                    "Give the same settings, or another file."
                )
        return self._holding(earlier.results)

    def only(self, keys: Sequence[str]) -> Validation:
        """Some of the claims, in their order.

        Args:
            keys: Claims by key or number.

        Raises:
            SavedResultsError: for a claim that was not requested.
        """
        chosen = claim_keys(keys, self.asked)
        for key in chosen:
            if key not in self.asked:
                raise SavedResultsError(f"claim = {key!r} is not among the results: {', '.join(self.asked)}.")
        return replace(self, asked=chosen)._holding(self.results)

    def _holding(self, results: Sequence[ClaimResult]) -> Validation:
        """The results of the requested claims, in that order."""
        found = {result.key: result for result in results}
        return replace(self, results=tuple(found[key] for key in self.asked if key in found))

    @property
    def missing(self) -> tuple[str, ...]:
        """Claims without a result, if the validation was interrupted."""
        done = {result.key for result in self.results}
        return tuple(key for key in self.asked if key not in done)

    def save(self, path: Path) -> None:
        """Write everything that the report draws, including per-instance numbers, to one JSON file, atomically.

        A nonzero symbolic residual is stored as text.
        """
        settings = {"claims": list(self.asked), "seed": self.seed, "instances": self.instances}
        data = {
            "written_by": "rishd validate",
            "format": _FORMAT,
            "settings": settings,
            "made_with": dict(self.made_with),
            "when": self.when,
            "results": [_encode(result) for result in self.results],
        }
        write_text(path, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Validation:
        """Read a file written by :meth:`save`.

        Raises:
            SavedResultsError: for a file that holds something else.
        """
        remedy = "Write results with: rishd validate --save FILE."
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as problem:
            raise SavedResultsError(f"{path} is not JSON ({one_line(problem, 80)}). {remedy}") from None
        if isinstance(data, list):
            raise SavedResultsError(
                f"{path} holds the summary of `rishd validate --format json`, without the instances. {remedy}"
            )
        if not isinstance(data, dict) or data.get("written_by") != "rishd validate":
            raise SavedResultsError(f"{path} holds no results of claims. {remedy}")
        if data.get("format") != _FORMAT:
            raise SavedResultsError(
                f"{path} has format {shown(data.get('format'))}; this version reads {_FORMAT}. {remedy}"
            )
        try:
            settings = data["settings"]
            results = tuple(_decode(result) for result in data["results"])
            asked, seed, instances = tuple(settings["claims"]), settings["seed"], settings["instances"]
            loaded = cls(asked, seed, instances, data["made_with"], data["when"], results)
            require_types(loaded)
            for result in results:
                _require_shapes(result)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as problem:
            told = f"{type(problem).__name__}: {one_line(problem, 100)}"
            raise SavedResultsError(f"{path} is damaged ({told}). {remedy}") from None
        return loaded


def _require_shapes(result: ClaimResult) -> None:
    """Refuse arrays whose shapes do not match."""
    result.as_dict()  # checks every instance
    for curve in (curve for panel in result.panels for curve in panel.curves):
        if curve.x.shape != curve.y.shape:
            raise ValueError(
                f"the curve {shown(curve.label)} has {curve.x.size} abscissae and {curve.y.size} ordinates"
            )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _encode(value: Any) -> Any:
    """Plain data for JSON; the original type is stored under "is"."""
    if is_dataclass(value) and not isinstance(value, type):
        content = {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, Proof):
            content["residuals"] = [0 if residual == 0 else str(residual) for residual in value.residuals]
        return {"is": type(value).__name__, **content}
    if isinstance(value, np.ndarray):
        return {"is": "array", "dtype": str(value.dtype), "values": _finite(value.tolist())}
    if isinstance(value, tuple):
        return [_encode(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return {"is": "float", "value": str(value)}
    return dict(value) if isinstance(value, Mapping) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(part) for part in value)
    kind = value.get("is") if isinstance(value, dict) else None
    if kind is None:
        return value
    if kind == "array":
        return np.asarray(value["values"], dtype=value["dtype"])
    if kind == "float":
        return float(value["value"])
    made = _KINDS[kind](**{name: _decode(part) for name, part in value.items() if name != "is"})
    require_types(made)
    return made


def _finite(values: Any) -> Any:
    """Nested lists in which text stands for non-finite numbers; numpy reads it back."""
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return str(values) if isinstance(values, float) and not np.isfinite(values) else values
