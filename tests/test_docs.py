"""Every Python snippet of README and docs runs, and ``docs/figures.py`` finds where conclusions end."""

import re
from pathlib import Path

import matplotlib as mpl
import pytest
from mktestdocs import check_md_file

from tests.machines import needs_compiler

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts)]


def _page(path):
    compiles = "compile=" in path.read_text(encoding="utf-8")
    return pytest.param(path, id=str(path.relative_to(ROOT)), marks=[needs_compiler] if compiles else [])


@pytest.mark.parametrize("page", map(_page, PAGES))
def test_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    check_md_file(page, memory=True)


def test_every_conclusion_has_an_end():
    """Without it ``docs/figures.py`` would replace the sections that follow, too."""
    guide = (ROOT / "docs" / "guides" / "studies.md").read_text(encoding="utf-8")
    marks = re.findall(r"^<!-- (conclusion|end)\b", guide, re.MULTILINE)
    assert len(marks) > 2
    assert marks == ["conclusion", "end"] * (len(marks) // 2)
