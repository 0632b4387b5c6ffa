"""A user's integrator and metric take few lines: the ones in the guides (which are tested) stay below 25."""

import ast
import re
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("integrators.md", "Heun"),
        ("theory_experiment.md", "DiagonalPlusRankOne"),
        ("theory_experiment.md", "metric_matrix"),
    ],
)
def test_what_a_user_writes_is_under_25_lines(page, name):
    blocks = re.findall(r"```python\n(.*?)```", (GUIDES / page).read_text(encoding="utf-8"), re.DOTALL)
    written = [node for block in blocks for node in ast.parse(block).body if getattr(node, "name", None) == name]
    assert len(written) == 1
    assert written[0].end_lineno - written[0].lineno + 1 < 25
