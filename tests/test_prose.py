"""Prose follows the table of phrases in CONTRIBUTING.md: docstrings, comments, messages and pages.

Phrases are in backquotes in its first column; slashes separate alternatives of a word.
"""

import ast
import re
from pathlib import Path

import pytest

from tests.test_public_api import PACKAGES

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = [path for name in (*PACKAGES, "examples", "benchmarks", "tests") for path in (ROOT / name).rglob("*.py")]
PAGES = [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]


def _pattern(phrase):
    """A phrase of the table as a regular expression; any white space separates its words."""
    words = ["|".join(map(re.escape, word.split("/"))) for word in phrase.split()]
    return re.compile(r"\b(?:" + r")\s+(?:".join(words) + r")(?!\w)", re.IGNORECASE)


ROWS = re.findall(r"^\| (`.*`) \| \"(.*)\" \| (.*) \|$", CONTRIBUTING, re.MULTILINE)
PHRASES = {phrase: _pattern(phrase) for cell, _, _ in ROWS for phrase in re.findall("`([^`]+)`", cell)}
ANY = re.compile("|".join(pattern.pattern for pattern in PHRASES.values()), re.IGNORECASE)


def awkward(text):
    """Phrases of the table that a text has."""
    return [" ".join(found[0].split()) for found in ANY.finditer(text)]


def _texts_of_code(source):
    """Docstrings and messages of a program, and its comments as one text; placeholders of f-strings are ``{}``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    comments = (re.search(r"(?:^ *|  )#:? (.*)", line) for line in source.splitlines())
    yield "\n".join(comment[1] if comment else ";" for comment in comments)  # no phrase continues beyond a block


def _prose(page):
    """A Markdown page without code, formulas and the table of phrases."""
    for left_out in (r"^```.*?^```", r"\$\$.*?\$\$", r"`[^`\n]*`", r"\$[^$]*\$", r"^\| not \|.*?\n\n"):
        page = re.sub(left_out, "`", page, flags=re.DOTALL | re.MULTILINE)
    return page


def test_the_table_is_found():
    assert len(ROWS) > 15


@pytest.mark.parametrize(("cell", "bad", "good"), ROWS)
def test_every_row_refuses_its_example_and_allows_the_better_form(cell, bad, good):
    assert any(PHRASES[phrase].search(bad) for phrase in re.findall("`([^`]+)`", cell))
    assert awkward(good) == []


def test_code_has_none_of_the_phrases():
    texts = ((path, text) for path in CODE for text in _texts_of_code(path.read_text(encoding="utf-8")))
    found = [f"{path.relative_to(ROOT)}: {phrases}" for path, text in texts if (phrases := awkward(text))]
    assert not found, "\n".join(["See the table in CONTRIBUTING.md.", *found])


def test_pages_have_none_of_the_phrases():
    pages = ((page, _prose(page.read_text(encoding="utf-8"))) for page in PAGES)
    found = [f"{page.relative_to(ROOT)}: {phrases}" for page, text in pages if (phrases := awkward(text))]
    assert not found, "\n".join(["See the table in CONTRIBUTING.md.", *found])


def test_all_kinds_of_text_are_read():
    source = '"""Doc."""\n# one\n# two\nraise ValueError(f"a {1} b")  # three\n\n# four\n'
    assert {"Doc.", "a {} b", ";\none\ntwo\nthree\n;\nfour"} <= set(_texts_of_code(source))
    assert _prose("a\n```\ncode\n```\n`code` $code$ b").split() == ["a", "`", "`", "`", "b"]
