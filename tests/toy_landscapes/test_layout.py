"""Position of parameters in w."""

import numpy as np
import pytest
import torch

from toy_landscapes import Layout

LAYOUT = Layout({"left": (2, 3), "gain": (4,), "right": (3, 2)})


def test_blocks_follow_one_another_row_by_row():
    assert [LAYOUT[name].coordinates for name in LAYOUT] == [slice(0, 6), slice(6, 10), slice(10, 16)]
    assert LAYOUT.dimension == 16
    blocks = LAYOUT.unpack(np.arange(16.0))
    np.testing.assert_array_equal(blocks["left"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(LAYOUT.mask("gain", "right"), np.arange(16) >= 6)


@pytest.mark.parametrize("ensemble", [(), (5,), (2, 3)])
def test_pack_inverts_unpack(ensemble, rng):
    w = rng.normal(size=(*ensemble, 16))
    np.testing.assert_array_equal(LAYOUT.pack(LAYOUT.unpack(w)), w)
    tensor = torch.as_tensor(w)
    blocks = LAYOUT.unpack(tensor)
    assert blocks["right"].shape == (*ensemble, 3, 2)
    assert torch.equal(LAYOUT.pack(blocks), tensor)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Layout({}), "at least one block"),
        (lambda: Layout({"a": (0, 2)}), "positive lengths"),
        (lambda: LAYOUT.unpack(np.zeros(15)), "must hold 16 coordinates"),
        (lambda: LAYOUT.pack({"left": np.zeros((2, 3))}), "the layout has"),
        (lambda: LAYOUT.pack(LAYOUT.unpack(np.zeros(16)) | {"gain": np.zeros(3)}), "its last axes must be"),
    ],
)
def test_bad_layouts_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
