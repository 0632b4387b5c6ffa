"""Plans of comparisons: variants of one run configuration over learning rates, seeds, lengths, sizes or budgets.

A YAML or TOML file::

    run:                               # a run configuration, or the path of its file
      model: {preset: 1M}
      training: {tokens: 6553600, batch_size: 64}
    seeds: [0, 1, 2]
    baseline: muon                     # what the others are compared with
    variants:
      muon:
        set: {optimizer.name: muon}    # settings of a run configuration by dotted key
        lr: [5e-3, 1e-2, 2e-2, 4e-2]   # searched with the first seed; the others run at the best one
      muon-lite:
        set: {optimizer.name: muon-lite}
        lr: [2.5e-3, 5e-3, 1e-2, 2e-2]
        lengths: [0.6, 0.75]           # further runs of that share of the steps, with their own schedules
      chi-only:
        like: muon-lite                # its settings and, unless lr is given, its best learning rate
        set: {optimizer.settings.beta_flat: 0.0, optimizer.settings.beta_sharp: 0.0}
    cells:                             # optional: sizes or budgets that every variant runs at
      1.6M tokens: {training.tokens: 1638400}
      6.6M tokens: {training.tokens: 6553600}
    rivals: true                       # optional: AdamW, NorMuon, SOAP, … as further variants, or a list of them

Rivals are those of :mod:`rishd.comparing.rivals`; they search from the baseline's learning rates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from riemannian_ode.checks import one_line, require_choice, shown
from rishd.comparing.rivals import with_rivals
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.config_files import ConfigError, checked, make_config, read_mapping, with_value
from rishd.pretraining.setting_types import Number, Switch, Whole

_STRICT = ConfigDict(extra="forbid")
_FREE = ("checkpoints", "logging")  # sections that do not affect any number


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class Variant:
    """One curve of the comparison.

    Args:
        set: Settings of the run configuration by dotted key.
        lr: Peak learning rates, one or a grid; ``None`` is the run's, or the best one of ``like``.
        like: Variant whose settings and learning rate this one inherits.
        seeds: Seeds; ``None`` uses the plan's.
        every_seed: Whether every learning rate runs with every seed, instead of a search with only the first seed.
        lengths: Shares of the steps, in (0, 1), of further runs at the best learning rate.
        baseline: Variant to compare with; ``None`` uses the plan's.
        cells: The plan's cells to run; ``None`` is all.
    """

    set: dict[str, Any] = field(default_factory=dict)
    lr: Number | tuple[Number, ...] | None = None
    like: str | None = None
    seeds: tuple[Whole, ...] | None = None
    every_seed: Switch = False
    lengths: tuple[Number, ...] = ()
    baseline: str | None = None
    cells: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, values in (("lr", self.lr), ("seeds", self.seeds)):
            if isinstance(values, tuple) and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name} = {shown(list(values))} must hold at least one value, and each once.")
        if not all(0 < length < 1 for length in self.lengths):
            raise ValueError(
                f"lengths = {shown(list(self.lengths))} must lie between 0 and 1: they are shares of the steps."
            )
        for key, other in (("optimizer.lr", "lr"), ("seed", "seeds")):
            if key in self.set:
                raise ValueError(
                    f"set has {key} = {shown(self.set[key])}, which {other} decides; give {other} instead."
                )


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class Plan:
    """A whole comparison; the module docstring shows the file.

    Args:
        run: The run configuration that all runs share.
        variants: Variants by name.
        seeds: Seeds of every variant.
        baseline: Variant that the others are compared with; ``None`` compares nothing.
        cells: Label ↦ settings by dotted key; one unnamed cell by default.
    """

    run: dict[str, Any]
    variants: dict[str, Variant]
    seeds: tuple[Whole, ...] = (0,)
    baseline: str | None = None
    cells: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError("variants is empty; name at least one.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {shown(list(self.seeds))} must hold at least one value, and each once.")
        if not self.cells:
            raise ValueError("cells is empty; leave it out for a single one.")
        if self.baseline is not None:
            require_choice("baseline", self.baseline, self.variants)
        for name, variant in self.variants.items():
            for key in ("like", "baseline"):
                if (other := getattr(variant, key)) is not None:
                    require_choice(f"variants.{name}.{key}", other, self.variants)
            for cell in variant.cells or ():
                require_choice(f"variants.{name}.cells", cell, self.cells)
            self._ancestors(name)
            for cell in self.cells_of(name):  # check every setting before the first run
                for length in (1.0, *variant.lengths):
                    self.config(name, cell, length=length)

    def _ancestors(self, name: str) -> list[str]:
        """The variant, the variant it inherits from, and so on."""
        chain = [name]
        while (other := self.variants[chain[-1]].like) is not None:
            if other in chain:
                raise ValueError(f"variants {one_line(' → '.join([*chain, other]))} are like each other in a circle.")
            chain.append(other)
        return chain

    def cells_of(self, name: str) -> tuple[str, ...]:
        """Cells at which a variant runs."""
        return self.variants[name].cells or tuple(self.cells)

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """Its seeds."""
        return self.variants[name].seeds or self.seeds

    def baseline_of(self, name: str) -> str | None:
        """The variant it is compared with; ``None`` for a baseline itself."""
        other = self.variants[name].baseline or self.baseline
        return None if other == name else other

    def grid(self, name: str, cell: str) -> tuple[float, ...] | None:
        """Its own learning rates at a cell; ``None`` if it uses another variant's best rate."""
        given = self.variants[name].lr
        if given is not None:
            return given if isinstance(given, tuple) else (given,)
        return None if self.variants[name].like else (self.config(name, cell).optimizer.lr,)

    def config(
        self, name: str, cell: str, *, lr: float | None = None, seed: int | None = None, length: float = 1.0
    ) -> PretrainConfig:
        """Configuration of one run.

        Args:
            name: Name of the variant.
            cell: Name of the cell.
            lr: Peak learning rate; ``None`` keeps the run's.
            seed: Seed; ``None`` keeps the run's.
            length: Share of the steps.

        Raises:
            ConfigError: for an unknown setting or a value out of range, naming the variant.
        """
        mapping: dict[str, Any] = dict(self.run)
        settings = dict(self.cells[cell])
        for ancestor in reversed(self._ancestors(name)):
            settings |= self.variants[ancestor].set
        if lr is not None:
            settings["optimizer.lr"] = lr
        if seed is not None:
            settings["seed"] = seed
        for key, value in settings.items():
            mapping = with_value(mapping, key, value)
        source = f"variant {name}" + (f" at {cell}" if cell else "")
        config = make_config(mapping, source=source)
        if length == 1.0:
            return config
        source += f" with {length:g} of the steps"
        steps = max(1, round(length * config.steps))
        for key, value in (("training.tokens", None), ("training.steps", steps)):
            mapping = with_value(mapping, key, value)
        return make_config(mapping, source=source)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan.

    Args:
        variant: Its variant.
        cell: Its cell.
        lr: Peak learning rate.
        seed: Seed.
        length: Share of the steps.
        config: The complete configuration.
    """

    variant: str
    cell: str
    lr: float
    seed: int
    length: float
    config: PretrainConfig

    @property
    def key(self) -> str:
        """Hash of everything that its numbers depend on; equal runs of different plans have equal keys."""
        return run_key(self.config.to_mapping())

    @property
    def label(self) -> str:
        """Label for display."""
        parts = [self.variant, self.cell, f"lr {self.lr:g}", f"seed {self.seed}"]
        if self.length != 1.0:
            parts.append(f"{self.length:g} of the steps")
        return ", ".join(part for part in parts if part)


def run_key(mapping: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that hash the non-default settings of a run configuration, given as plain data."""
    counted = _set_values({section: value for section, value in mapping.items() if section not in _FREE})
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:16]


def _set_values(mapping: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings that differ from the defaults, as plain data."""
    defaults = json.loads(json.dumps(PretrainConfig().to_mapping())) if defaults is None else defaults
    found: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(mapping)).items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            if inner := _set_values(value, default):
                found[key] = inner
        elif value != default:
            found[key] = value
    return found


def load_plan(path: Path) -> Plan:
    """Read a comparison's file.

    Raises:
        ConfigError: for a file that cannot be read, an unknown key or a value out of range.
    """
    mapping = read_mapping(path)
    if isinstance(mapping.get("run"), str):
        mapping["run"] = read_mapping(path.parent / mapping["run"])
    return make_plan(mapping, source=str(path))


def make_plan(mapping: Mapping[str, Any], *, source: str = "the plan") -> Plan:
    """A checked plan from plain data.

    Raises:
        ConfigError: naming the mistake.
    """
    mapping = dict(mapping)
    rivals = mapping.pop("rivals", False)
    if rivals is False:
        return checked(Plan, mapping, source=source)
    variants: Any = mapping.get("variants")
    name = mapping.get("baseline")
    given = variants.get(name, {}) if isinstance(variants, Mapping) and isinstance(name, str) else {}
    if not isinstance(given, Mapping) or given.get("lr") is None:
        raise ConfigError(
            f"{source}: rivals search from the baseline's learning rates; name a baseline with its own lr."
        )
    alone = {key: value for key, value in given.items() if key not in ("like", "baseline")}
    rates = checked(Plan, mapping | {"variants": {name: alone}}, source=source).grid(str(name), "") or ()
    try:
        variants = with_rivals(variants, rivals, rates)
    except ValueError as problem:
        raise ConfigError(f"{source}: {problem}") from None
    return checked(Plan, mapping | {"variants": variants}, source=source)
