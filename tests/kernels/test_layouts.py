"""Strides never change a number, and gradients have the layout of their image."""

from __future__ import annotations

import pytest
import torch

from helpers.cases import LAYOUTS, check_against_oracle, leaf, smooth_pair


@pytest.mark.parametrize("hr_layout", LAYOUTS)
@pytest.mark.parametrize("sr_layout", LAYOUTS)
def test_layouts(backend, sr_layout, hr_layout):
    """Strides never change a number: each pair of layouts against the same oracle."""
    sr, hr = smooth_pair((2, 3, 14, 37), device=backend.device)
    check_against_oracle(backend, LAYOUTS[sr_layout](sr), LAYOUTS[hr_layout](hr), padding="reflect", maps=True)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
@pytest.mark.parametrize(
    "shape", [(3, 15, 18), (2, 2, 3, 9, 10), (4, 1, 9, 33), (1, 5, 12, 16), (2, 16, 6, 7)], ids=str
)
def test_layouts_of_other_shapes(backend, shape, layout):
    """Also with channel counts that are not 3, and in half precision."""
    sr, hr = smooth_pair(shape, dtypes=(torch.float16, torch.float32), device=backend.device)
    check_against_oracle(backend, LAYOUTS[layout](sr), LAYOUTS[layout](hr), distance="charbonnier", reduction="none")


@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize("window_size", [3, 7, 11, 13])
def test_layouts_with_windows(backend, window_size, padding, layout):
    sr, hr = (LAYOUTS[layout](x) for x in smooth_pair((1, 3, 18, 35), device=backend.device))
    check_against_oracle(backend, sr, hr, window_size=window_size, padding=padding, reduction="sum")


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)], ids=str)
def test_expanded(backend, dims):
    """Strides of 0: one target for a batch, one channel for three, one row for all."""
    sr, hr = smooth_pair((2, 3, 12, 17), device=backend.device)
    small = hr[tuple(slice(0, 1) if dim in dims else slice(None) for dim in range(4))]
    check_against_oracle(backend, sr, small.expand_as(hr), maps=True)
    check_against_oracle(backend, small.expand_as(hr), sr)


def test_channels_last_flag_of_torch(backend):
    """memory_format=channels_last as users ask for it, where one channel or one pixel makes the strides ambiguous."""
    for shape in ((2, 3, 16, 20), (2, 1, 8, 9), (1, 3, 1, 1), (1, 4, 1, 7)):
        sr, hr = (x.to(memory_format=torch.channels_last) for x in smooth_pair(shape, device=backend.device))
        check_against_oracle(backend, sr, hr)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "batch_last"])
@pytest.mark.parametrize("other", ["contiguous", "channels_last"])
def test_gradients_have_the_layout_of_their_image(fused, layout, other):
    """A gradient in another layout would make the network's backward pass copy it."""
    sr, hr = smooth_pair((2, 3, 10, 12), dtypes=(torch.float16, torch.float32), device=fused.device)
    sr, hr = leaf(LAYOUTS[layout](sr)), leaf(LAYOUTS[other](hr))
    grads = torch.autograd.grad(fused.pspl_loss(sr, hr, 1.0), (sr, hr))
    assert grads[0].stride() == sr.stride()
    assert grads[1].stride() == hr.stride()


def test_inputs_are_not_written(backend):
    sr, hr = smooth_pair((2, 3, 14, 15), device=backend.device)
    before = sr.clone(), hr.clone()
    a, b = leaf(sr), leaf(hr)
    backend.pspl_loss(a, b, 1.0, return_stats=True)[0].backward()
    assert torch.equal(sr, before[0])
    assert torch.equal(hr, before[1])
