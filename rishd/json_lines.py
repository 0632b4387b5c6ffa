"""Files of one JSON object a line (``.jsonl``), which a kill may cut short."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from riemannian_ode.checks import one_line


class JsonLinesError(ValueError):
    """A file with a line that is no JSON object; the message names file, line and remedy."""


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers, from 1, and objects of a file; a last line that was cut short is left out.

    Lines end at newlines only: text in JSON may hold the other characters at which :meth:`str.splitlines` cuts.

    Raises:
        JsonLinesError: for a whole line that is no JSON object.
    """
    content = path.read_bytes()
    *lines, last = content.split(b"\n")
    if whole_size(content) == len(content) and last:
        lines.append(last)
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise bad_line(path, number, f"it is not JSON: {one_line(problem, 80)}") from None
        if not isinstance(data, dict):
            raise bad_line(path, number, "it holds no JSON object")
        yield number, data


def whole_size(content: bytes) -> int:
    """Bytes of a file's content up to the end of its last whole line, which may lack its newline as after some editors.

    Args:
        content: Of the whole file.
    """
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:])
    except (ValueError, RecursionError):
        return start
    return len(content)


def bad_line(path: Path, number: int, problem: str) -> JsonLinesError:
    """The error for a line.

    Args:
        path: The file.
        number: Of the line, from 1.
        problem: What is wrong with it, one clause.
    """
    return JsonLinesError(f"{path}, line {number}: {problem}; restore the file, or take the line out.")
