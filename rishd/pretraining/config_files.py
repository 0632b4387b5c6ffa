"""Run configurations from files: one YAML or TOML file, then overrides ``section.key=value``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from riemannian_ode.errors import require_choice
from rishd.pretraining.config import PretrainConfig


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, key and value."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML with YAML 1.2's floats: ``1e-3`` is a number, not a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def load_config(
    path: Path | None = None, overrides: Sequence[str] = (), *, changes: Mapping[str, Any] | None = None
) -> PretrainConfig:
    """The run that a file, overrides and changes describe together; later ones win, and only their sum is checked.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.toml`` file; ``None`` starts from the defaults.
        overrides: ``section.key=value`` with YAML values, e.g. ``optimizer.lr=1e-3`` or ``optimizer.settings.chi=4``.
        changes: Dotted key ↦ value, as of :func:`override`.

    Raises:
        ConfigError: for a file that cannot be read, an unknown key, or a value out of range.
    """
    mapping = read_mapping(path) if path is not None else {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"override {override!r} is not of the form section.key=value.")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as problem:
            raise ConfigError(f"override {override!r}: the value is not YAML ({_one_line(problem)}).") from None
        mapping = with_value(mapping, key.strip(), value)
    for key, value in (changes or {}).items():
        mapping = with_value(mapping, key, value)
    return make_config(mapping, source=str(path) if path is not None else "the overrides")


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or TOML file as plain data.

    Raises:
        ConfigError: for a file that is missing, malformed, or holds no mapping.
    """
    require_choice(f"ending of {path}", path.suffix, (".yaml", ".yml", ".toml"))
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else parse_yaml(text)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read ({problem.strerror}).") from None
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} is malformed: {_one_line(problem)}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold sections (model, data, optimizer, …), not {type(data).__name__}.")
    return data


def parse_yaml(text: str) -> Any:
    """Plain data of a YAML text.

    Raises:
        yaml.YAMLError: if it is malformed.
    """
    return yaml.load(text, _Loader)  # a SafeLoader: builds plain data only


def with_value(mapping: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a dotted key.

    Raises:
        ConfigError: if the key leads through something that is no section.
    """
    head, _, rest = key.partition(".")
    inner = mapping.get(head)
    if rest and not (inner is None or isinstance(inner, Mapping)):
        raise ConfigError(f"{key!r} leads through {head!r}, which is {inner!r} and no section.")
    return {**mapping, head: with_value(inner or {}, rest, value) if rest else value}


def override(config: PretrainConfig, changes: Mapping[str, Any]) -> PretrainConfig:
    """A run that differs in some values.

    Args:
        config: The run.
        changes: Dotted key ↦ value, e.g. ``{"optimizer.lr": 1e-3, "seed": 1}``.

    Raises:
        ConfigError: for an unknown key or a value out of range.
    """
    mapping: dict[str, Any] = config.to_mapping()
    for key, value in changes.items():
        mapping = with_value(mapping, key, value)
    return make_config(mapping, source="the changes")


def make_config(mapping: Mapping[str, Any], *, source: str = "the configuration") -> PretrainConfig:
    """A checked configuration from plain data.

    Args:
        mapping: Sections, as in a file.
        source: Where it came from, for messages.

    Raises:
        ConfigError: listing every unknown key and bad value.
    """
    try:
        return TypeAdapter(PretrainConfig).validate_python(dict(mapping))
    except ValidationError as problem:
        found = [_plain(error) for error in problem.errors(include_url=False)]
        raise ConfigError(f"{source}: {'; '.join(found)}") from None


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """YAML of plain data; tuples become lists."""
    return str(yaml.safe_dump(_plain_data(mapping), sort_keys=False, allow_unicode=True))


def _plain_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_data(inner) for key, inner in value.items()}
    return [_plain_data(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _plain(error: Any) -> str:
    """One of pydantic's findings as one clause that names key and value."""
    if error["type"] == "value_error":  # our own checks say everything themselves
        return str(error["ctx"]["error"])
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        return f"{where} is no known setting (its value is {error['input']!r})"
    return f"{where} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())
