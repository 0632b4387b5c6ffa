"""Launches of the checks on several gloo ranks, one for each number of ranks; their results for all tests."""

import json
import os
from pathlib import Path

import pytest

from tests.launches import torchrun
from tests.lite.distributed.checks import checkpoints_of_one_process

BEFORE = {1: [], 2: [0, 1], 4: [2]}  # each loads what these have saved; 0 is one process without torch.distributed


class Results:
    """What every rank of a launch found, by number of ranks and name of the check."""

    def __init__(self, folder):
        self.folder = folder
        self._found = {}

    def of(self, ranks, check):
        if ranks not in self._found:
            self._found[ranks] = self._made(ranks)
        if check is None:
            return None
        found = [each.get(check) for each in self._found[ranks]]
        for rank, result in enumerate(found):
            assert result is not None, f"rank {rank} of {ranks} did not get to {check}"
            assert "error" not in result, f"rank {rank} of {ranks}:\n{result['error']}"
        return [result["value"] for result in found]

    def _made(self, ranks):
        if ranks == 0:
            return [{"checkpoints": {"value": checkpoints_of_one_process(self.folder)}}]
        for earlier in BEFORE[ranks]:
            self.of(earlier, None)
        torchrun(ranks, Path(__file__).with_name("launch.py"), self.folder)
        files = [self.folder / f"{ranks}-{rank}.json" for rank in range(ranks)]
        return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="session")
def results(tmp_path_factory, request):
    if any("layouts" in item.keywords for item in request.session.items):
        os.environ["RISHD_TEST_LAYOUTS"] = "1"  # for the launches
    return Results(tmp_path_factory.mktemp("ranks"))
