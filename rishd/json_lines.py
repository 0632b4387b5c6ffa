"""Files with one JSON object per line (``.jsonl``), which may be truncated by a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from riemannian_ode.checks import one_line


class JsonLinesError(ValueError):
    """A file with a line that is not a JSON object; the message names file, line and remedy."""


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a file; a truncated last line is skipped.

    Lines end only at newlines: JSON text may contain other characters at which :meth:`str.splitlines` splits.

    Raises:
        JsonLinesError: for a complete line that is not a JSON object.
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
    """Number of bytes up to the end of the last complete line, whose newline may be missing.

    Args:
        content: Content of the whole file.
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
        number: Line number, from 1.
        problem: The mistake, as one clause.
    """
    return JsonLinesError(f"{path}, line {number}: {problem}; restore the file, or remove the line.")
