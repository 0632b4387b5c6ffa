import os

import numpy as np
import pytest
import torch
from hypothesis import settings

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables would be cut to it
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings
# Deadlines measure the machine, not the code; a fixed derandomised run gives every machine the same examples.
settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fixed")


@pytest.fixture
def needs_bfloat16_program() -> None:
    """Skip if the C++ program of bfloat16 products does not run, whether or not it would be faster."""
    from discretizations.matrices.bfloat16_products import HAS_VECTORS, program

    if not (HAS_VECTORS and program()):
        pytest.skip("needs AVX-512 bfloat16 and a C++ compiler")


@pytest.fixture(params=["program", "library"])
def bfloat16_products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Products in bfloat16 by the C++ program wherever it runs, and by the library."""
    if request.param == "program":
        request.getfixturevalue("needs_bfloat16_program")
    monkeypatch.setattr("discretizations.matrices.bfloat16_products._IS_FASTER_HERE", request.param == "program")
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260222)
