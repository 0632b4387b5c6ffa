"""Matrix views cover a parameter exactly and share its memory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lite.parameters.matrix_view import check_layout, matrix_views

SIDE = st.integers(1, 6)


@st.composite
def settings(draw):
    layout = draw(st.sampled_from(["matrix", "conv", "experts"]))
    dims = {"matrix": 2, "conv": draw(st.integers(3, 5)), "experts": 3}[layout]
    shape = tuple(draw(st.lists(SIDE, min_size=dims, max_size=dims)))
    axis = draw(st.sampled_from([-2, -1]))
    matrix = (shape[0], math.prod(shape[1:])) if layout == "conv" else shape
    blocks, left = [], matrix[axis]
    while left:
        blocks.append(draw(st.integers(1, left)))
        left -= blocks[-1]
    return shape, {
        "layout": layout,
        "blocks": draw(st.sampled_from([None, tuple(blocks)])),
        "block_axis": axis,
    }


@given(settings())
def test_views_partition_the_tensor(case):
    shape, options = case
    tensor = torch.zeros(shape)
    check_layout(shape, **options)
    views = matrix_views(tensor, **options)
    for view in views:
        assert view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        view.add_(1.0)
    assert (tensor == 1.0).all()
    assert sum(view.numel() for view in views) == tensor.numel()


@given(settings())
def test_views_are_matrices_in_order(case):
    shape, options = case
    tensor = torch.arange(math.prod(shape)).reshape(shape)
    views = matrix_views(tensor, **options)
    assert all(view.ndim == (3 if options["layout"] == "experts" else 2) for view in views)
    if options["blocks"] is not None:
        assert tuple(view.shape[options["block_axis"]] for view in views) == options["blocks"]
    whole = torch.cat(views, dim=options["block_axis"])
    assert torch.equal(whole.reshape(shape), tensor)


def test_a_convolution_without_a_matrix_view_is_refused():
    kernel = torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"no matrix view; take one of its contiguous\(\) copy"):
        matrix_views(kernel, layout="conv")


def test_empty_convolutions_have_empty_views():
    assert matrix_views(torch.zeros(0, 3, 2, 2), layout="conv")[0].shape == (0, 12)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 4), {"layout": "rows"}, "layout = 'rows' is unknown. Choose one of: matrix, conv, experts"),
        ((4,), {}, r"parameter of this group has shape \(4,\), but layout 'matrix' takes 2 dimensions"),
        ((4, 4), {"layout": "conv"}, "layout 'conv' takes 3 or more dimensions"),
        ((2, 2, 2, 2), {"layout": "experts", "name": "w"}, "parameter w has shape"),
        ((4, 4), {"block_axis": 0}, "block_axis = 0"),
        ((4, 4), {"blocks": 2}, "blocks = 2 must be a tuple"),
        ((4, 4), {"blocks": (4, 0)}, r"blocks = \(4, 0\) must be a tuple"),
        ((4, 6), {"blocks": (2, 3)}, r"add up to 5, but .* has 4 rows"),
        ((2, 4, 6), {"layout": "experts", "blocks": (2, 3), "block_axis": -1}, "has 6 columns"),
    ],
)
def test_settings_that_do_not_fit_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        check_layout(shape, **options)
