import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings
# Deadlines measure the machine, not the code; a fixed derandomised run gives every machine the same examples.
settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fixed")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260222)
