"""Plain data from YAML and TOML text, with bounds on the size to which a text may expand.

Plain data is ``None``, a boolean, a finite number, text, a list, or a mapping with text keys. Numbers follow YAML 1.2:
``1e-3`` is a float, ``010`` is ten, and ``1:30`` is text, not ninety.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import yaml

from riemannian_ode.checks import one_line, shown

LARGEST = 2**53  # largest magnitude; beyond it not every integer has a float64
_DEEPEST, _MOST_NODES, _LONGEST = 50, 100_000, 2**20
_NUMBERS = {
    "int": r"^[-+]?[0-9][0-9_]*$",
    "float": r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$",
}
_TAG = "tag:yaml.org,2002:"
_SCALARS = ("null", "bool", "int", "float", "str", "merge")


def _with_numbers(resolvers: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """PyYAML's table of patterns by first character, with YAML 1.2's numbers and without dates."""
    changed = ("int", "float", "timestamp")
    found = {
        first: [(tag, pattern) for tag, pattern in row if tag.removeprefix(_TAG) not in changed]
        for first, row in resolvers.items()
    }
    for name, pattern in _NUMBERS.items():
        for first in "-+.0123456789":
            found.setdefault(first, []).append((_TAG + name, re.compile(pattern)))
    return found


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """A SafeLoader that checks the graph of nodes before it builds anything from it."""

    yaml_implicit_resolvers = _with_numbers(yaml.SafeLoader.yaml_implicit_resolvers)

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        if self.flow_level >= _DEEPEST:  # before thousands of brackets are parsed
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token_class)

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            self._size(node, 0, {}, set())
        return node

    def _size(self, node: Any, depth: int, sizes: dict[int, int], open_nodes: set[int]) -> int:
        """Number of values that a node expands to through its aliases.

        Args:
            node: The node.
            depth: Its nesting depth.
            sizes: Sizes of finished nodes, by identity.
            open_nodes: Nodes that contain this one.

        Raises:
            yaml.MarkedYAMLError: if the graph is cyclic, too deep or too large, has a duplicate key, or is not plain
                data.
        """
        if id(node) in open_nodes:
            raise _refused(node, "an anchor holds itself")
        if id(node) not in sizes:
            if depth > _DEEPEST:
                raise _refused(node, _TOO_DEEP)
            open_nodes.add(id(node))
            if isinstance(node, yaml.ScalarNode):
                self._require_plain(node)
            elif node.tag not in (_TAG + "seq", _TAG + "map"):
                raise _refused(node, f"{shown(node.tag)} is not plain data")
            elif isinstance(node, yaml.MappingNode):
                _require_keys(node)
            inner = [] if isinstance(node, yaml.ScalarNode) else node.value
            flat = [part for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(self._size(part, depth + 1, sizes, open_nodes) for part in flat)
            open_nodes.remove(id(node))
        if sizes[id(node)] > _MOST_NODES:
            raise _refused(node, f"its aliases expand to more than {_MOST_NODES:,} values")
        return sizes[id(node)]

    def _require_plain(self, node: Any) -> None:
        meant = self.resolve(yaml.ScalarNode, node.value, (True, False))  # treated as untagged
        if node.tag != _TAG + "str" and (node.tag != meant or node.tag.removeprefix(_TAG) not in _SCALARS):
            raise _refused(node, f"{shown(node.value)} is not a plain {one_line(node.tag.removeprefix(_TAG), 30)}")
        if node.tag == _TAG + "int" and len(node.value) > 20:
            raise _refused(node, f"the integer {shown(node.value)} is too large")

    def construct_yaml_int(self, node: Any) -> int:
        return int(self.construct_scalar(node))


_Loader.add_constructor(_TAG + "int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """A SafeDumper that quotes text which :class:`_Loader` would read as a number."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def parse_yaml(text: str) -> Any:
    """Parse a YAML text to plain data.

    Raises:
        ValueError: if it is malformed, has a duplicate key, is not plain data, or expands to too much; the message is
            one short clause with the line.
    """
    _require_short(text)
    try:
        return yaml.load(text, _Loader)  # based on SafeLoader
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"{one_line(problem.problem or problem.context)}{place}") from None
    except yaml.YAMLError as problem:  # a character that YAML does not allow
        raise ValueError(one_line(problem)) from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML text to plain data.

    Raises:
        ValueError: if it is malformed or expands to too much; the message is one short clause.
    """
    _require_short(text)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as problem:  # also raised for an integer with too many digits for Python
        raise ValueError(one_line(problem)) from None


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """Write plain data as YAML; tuples become lists."""
    return str(yaml.dump(_lists(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def require_plain(value: Any, where: str = "", *, depth: int = _DEEPEST) -> None:
    """Refuse data that a run's records cannot hold: dates, NaN, huge integers, keys that are not text, deep nesting.

    Args:
        value: Configuration data; tuples count as lists.
        where: Its dotted key, for the message.
        depth: Largest allowed nesting depth.

    Raises:
        ValueError: naming the key.
    """
    if isinstance(value, Mapping):
        parts = [(f"{where}.{key}" if where else key, inner) for key, inner in value.items() if _is_key(key, where)]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{where}[{i}]", inner) for i, inner in enumerate(value)]
    else:
        _require_plain_scalar(value, where)
        return
    if depth == 0:
        raise ValueError(f"{one_line(where, 60)}: {_TOO_DEEP}.")
    for name, inner in parts:
        require_plain(inner, name, depth=depth - 1)


_TOO_DEEP = f"it is nested more than {_DEEPEST} levels deep"


def _require_plain_scalar(value: Any, where: str) -> None:
    where = one_line(where, 60)
    if isinstance(value, str):
        _require_text(value, where)
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{where} = {shown(value)} is too large; integers go to 2⁵³ in magnitude.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} = {value!r} must be finite.")
    elif not isinstance(value, (int, float)):
        raise ValueError(
            f"{where} = {shown(value)} is {one_line(type(value).__name__, 30)}; give a number, text, a boolean, a list "
            "or a mapping."
        )


def _is_key(key: Any, where: str) -> bool:
    if not isinstance(key, str):
        raise ValueError(f"{one_line(where, 60) or 'the configuration'} has the key {shown(key)}; keys are text.")
    _require_text(key, f"a key of {one_line(where, 60) or 'the configuration'}")
    return True


def _require_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} = {shown(text)} holds half of a character (a surrogate); write it whole.") from None
    if "\0" in text:
        raise ValueError(f"{where} = {shown(text)} holds a NUL character; leave it out.")


def _require_short(text: str) -> None:
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text):,} characters; a configuration has at most {_LONGEST:,}")


def _require_keys(node: Any) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            what = "list" if isinstance(key, yaml.SequenceNode) else "mapping"
            raise _refused(key, f"a key is a {what}; keys must be text")
        if key.tag not in (_TAG + "str", _TAG + "merge"):
            raise _refused(key, f"the key {shown(key.value)} is not text; write it in quotes")
        if key.value in seen:
            raise _refused(key, f"the key {shown(key.value)} is there twice")
        seen.add(key.value)


def _refused(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists(inner) for key, inner in value.items()}
    return [_lists(inner) for inner in value] if isinstance(value, (list, tuple)) else value
