"""Launches of the checks on several gloo ranks, one for each number of ranks; their results for all tests."""

import json
from pathlib import Path

import pytest

from tests.launches import torchrun


class Results:
    """What every rank of a launch found, by number of ranks and name of the check."""

    def __init__(self, folder):
        self.folder = folder
        self._found = {}

    def of(self, ranks, check):
        if ranks not in self._found:
            before = {1: [], 2: [1], 4: [2]}[ranks]  # each loads what an earlier one saved
            for earlier in before:
                self.of(earlier, None)
            torchrun(ranks, Path(__file__).with_name("checks.py"), self.folder)
            files = [self.folder / f"{ranks}-{rank}.json" for rank in range(ranks)]
            self._found[ranks] = [json.loads(file.read_text()) for file in files]
        if check is None:
            return None
        found = [each.get(check) for each in self._found[ranks]]
        for rank, result in enumerate(found):
            assert result is not None, f"rank {rank} of {ranks} did not get to {check}"
            assert "error" not in result, f"rank {rank} of {ranks}:\n{result['error']}"
        return [result["value"] for result in found]


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("ranks"))
