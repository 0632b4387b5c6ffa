"""Run configurations from one YAML or TOML file and overrides ``section.key=value``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from riemannian_ode.checks import one_line, require_choice, shown
from rishd.pretraining.config import PretrainConfig
from rishd.pretraining.plain_data import dump_yaml, parse_toml, parse_yaml, require_plain

__all__ = [
    "ConfigError",
    "checked",
    "dump_yaml",
    "load_config",
    "make_config",
    "override",
    "read_mapping",
]

_Made = TypeVar("_Made")
_MOST_BYTES = 2**22  # largest file in bytes; plain_data refuses such a text
_MOST_FINDINGS = 3  # most findings in a message
_DEEPEST_KEY = 20  # most parts of a dotted key


class ConfigError(ValueError):
    """An invalid configuration; the message is one short line that names file, key and value."""


def load_config(
    path: Path | None = None, overrides: Sequence[str] = (), *, changes: Mapping[str, Any] | None = None
) -> PretrainConfig:
    """The run described by a file, overrides and changes together; later ones win, and only the result is checked.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.toml`` file; ``None`` starts from the defaults.
        overrides: ``section.key=value`` with YAML values, e.g. ``optimizer.lr=1e-3`` or ``optimizer.settings.chi=4``.
        changes: Dotted key ↦ value, as for :func:`override`.

    Raises:
        ConfigError: for a file that cannot be read, an unknown key, or a value out of range.
    """
    mapping = read_mapping(path) if path is not None else {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"override {shown(override)} is not of the form section.key=value.")
        try:
            value = parse_yaml(text)
        except ValueError as problem:
            raise ConfigError(f"override {shown(override)}: the value is not YAML ({problem}).") from None
        mapping = with_value(mapping, key.strip(), value)
    for key, value in (changes or {}).items():
        mapping = with_value(mapping, key, value)
    return make_config(mapping, source=str(path) if path is not None else "the overrides")


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or TOML file as plain data.

    Raises:
        ConfigError: for a file that is missing, malformed, or not a mapping.
    """
    try:
        require_choice(f"ending of {path}", path.suffix, (".yaml", ".yml", ".toml"))
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read ({problem.strerror}).") from None
    try:
        text = content.decode()
        data = parse_toml(text) if path.suffix == ".toml" else parse_yaml(text)
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{path} is malformed: it is not UTF-8 ({problem.reason} at byte {problem.start}).") from None
    except ValueError as problem:
        raise ConfigError(f"{path} is malformed: {problem}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold sections (model, data, optimizer, …), not {type(data).__name__}.")
    return data


def with_value(mapping: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a dotted key.

    Raises:
        ConfigError: if the key leads through something that is not a section, or has an empty part.
    """
    head, dot, rest = key.partition(".")
    if not head or (dot and not rest) or key.count(".") >= _DEEPEST_KEY:
        raise ConfigError(f"{shown(key)} is not the dotted key of a setting, such as optimizer.lr.")
    inner = mapping.get(head)
    if rest and not (inner is None or isinstance(inner, Mapping)):
        raise ConfigError(f"{shown(key)} leads through {shown(head)}, which is {shown(inner)} and no section.")
    return {**mapping, head: with_value(inner or {}, rest, value) if rest else value}


def override(config: PretrainConfig, changes: Mapping[str, Any]) -> PretrainConfig:
    """A copy of a run with some values changed.

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
        source: Origin of the data, for messages.

    Raises:
        ConfigError: listing every unknown key and bad value.
    """
    return checked(PretrainConfig, mapping, source=source)


def checked(kind: type[_Made], mapping: Mapping[str, Any], *, source: str) -> _Made:
    """A pydantic dataclass from plain data.

    Args:
        kind: The class.
        mapping: Its arguments.
        source: Origin of the data, for messages.

    Raises:
        ConfigError: naming unknown keys and bad values, the first three of them.
    """
    try:
        require_plain(mapping)
    except ValueError as problem:
        raise ConfigError(f"{one_line(source, 100)}: {problem}") from None
    try:
        return TypeAdapter(kind).validate_python(dict(mapping))
    except ValidationError as problem:
        found = [_finding(error) for error in problem.errors(include_url=False)]
        more = [f"and {len(found) - _MOST_FINDINGS} more"] if len(found) > _MOST_FINDINGS else []
        raise ConfigError(f"{one_line(source, 100)}: {'; '.join([*found[:_MOST_FINDINGS], *more])}") from None


def _finding(error: Any) -> str:
    """One of pydantic's errors as one clause that names key and value."""
    where = one_line(".".join(str(part) for part in error["loc"]), 60)
    match error["type"]:
        case "value_error":  # our own checks' messages are complete, except for their place in a plan
            own = str(error["ctx"]["error"])
            return own if own.startswith(where) else f"{where}: {own}"
        case "refused":  # raised by config.Count
            return f"{where} = {shown(error['input'])} {error['msg']}"
        case "unexpected_keyword_argument":
            return f"{where} is not a known setting (its value is {shown(error['input'])})"
        case "missing":
            return f"{where} is missing"
        case _:
            message = one_line(error["msg"], 100)
            return f"{where} = {shown(error['input'])}: {message[:1].lower()}{message[1:]}"
