"""Every Python snippet of README and docs runs, and ``docs/figures.py`` finds where conclusions end."""

import re
import sys
from pathlib import Path
from urllib.parse import parse_qsl

import matplotlib as mpl
import pytest
import torch
from mktestdocs import check_md_file

from lite import MuonLITE
from tests.machines import needs_compiler
from tests.test_public_api import PACKAGES

ROOT = Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
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


def test_the_architecture_page_names_files_that_exist():
    """Paths from the root, and names of modules of the folder that the sentence is about."""
    named = set(re.findall(r"`([\w./]+/[\w.]*|\w+\.py)`", ARCHITECTURE))
    paths = {name for name in named if "NAME" not in name}
    assert len(paths) > 30
    own = {path.name for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert not sorted(name for name in paths if not (ROOT / name).exists() and name not in own)


def test_the_walk_of_a_gradient_is_that_of_the_architecture_page():
    """Every row's functions are called, in this order, from the files that the page names."""
    walk = re.search(r"^## A gradient's way.*?(?=^## )", ARCHITECTURE, re.MULTILINE | re.DOTALL)[0]
    rows = re.findall(r"^\| (`.*?) \| `(\S+)` \|$", walk, re.MULTILINE)
    named = [(name.split(".")[-1], file) for text, file in rows for name in re.findall(r"`([\w.]+)`", text)]
    assert len(rows) > 10
    weight = torch.nn.Parameter(torch.eye(6, dtype=torch.float64))  # no fused stages in float64
    optimizer = MuonLITE([weight])
    called = []

    def note(frame, event, _):
        if event == "call":
            called.append((frame.f_code.co_name, frame.f_code.co_filename))

    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        called.clear()
        sys.setprofile(note)
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
    ahead = iter(
        [(name, Path(file).relative_to(ROOT).as_posix()) for name, file in called if file.startswith(str(ROOT))]
    )
    missing = [each for each in named if each not in ahead]  # `in` moves the iterator on
    assert not missing


def test_the_pictures_of_the_pages_exist_and_the_explorer_takes_its_queries():
    from rishd.exploring.view import View

    for page in PAGES:
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / picture).stat().st_size > 1000, f"{picture} of {page}"
    explorer = (ROOT / "docs" / "explore.md").read_text(encoding="utf-8")
    queries = re.findall(r"`\?(\S+=\S+)`", explorer)
    assert len(queries) == 2
    for query in queries:
        assert View.from_query(dict(parse_qsl(query)))[1] == []
        assert f'"?{query}"' in (ROOT / "docs" / "figures.py").read_text(encoding="utf-8")
    assert sum(picture.stat().st_size for picture in (ROOT / "docs" / "images").glob("explore_*.png")) < 1e6
