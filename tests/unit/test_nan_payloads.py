"""A NaN stays NaN whatever its payload.

The bits below the quiet bit are arbitrary: x.half().float() of a NaN sets them all, uninitialised memory sets any of them.
"""

from __future__ import annotations

import math

import pytest
import torch

# A quiet NaN, all bits set, the lowest bit alone (signalling), the lowest and the quiet bit, and a negative one.
PAYLOADS = {
    torch.float64: (torch.int64, [0x7FF8 << 48, (1 << 63) - 1, (0x7FF << 52) + 1, (0x7FF8 << 48) + 1, -1]),
    torch.float32: (torch.int32, [0x7FC00000, 0x7FFFFFFF, 0x7F800001, 0x7FC00001, -1]),
    torch.float16: (torch.int16, [0x7E00, 0x7FFF, 0x7C01, 0x7E01, -1]),
    torch.bfloat16: (torch.int16, [0x7FC0, 0x7FFF, 0x7F81, 0x7FC1, -1]),
}
CASES = [(dtype, payload) for dtype, (_, payloads) in PAYLOADS.items() for payload in payloads]


@pytest.mark.parametrize("bad_image", ["sr", "hr"])
@pytest.mark.parametrize(
    ("dtype", "payload"), CASES, ids=lambda value: hex(value) if isinstance(value, int) else str(value)
)
def test_every_nan_stays(backend, dtype, payload, bad_image):
    """121 NaN in the maps of an 11 x 11 window and in the gradient, and a NaN loss."""
    rng = torch.Generator().manual_seed(1)
    images = {
        "sr": (0.4 * torch.rand(1, 1, 30, 31, generator=rng)).to(dtype),
        "hr": (0.4 * torch.rand(1, 1, 30, 31, generator=rng) + 0.5).to(dtype),
    }
    images[bad_image].view(PAYLOADS[dtype][0])[0, 0, 14, 15] = payload
    sr, hr = (image.to(backend.device) for image in images.values())
    hit = torch.zeros(1, 1, 30, 31, dtype=torch.bool, device=backend.device)
    hit[..., 9:20, 10:21] = True

    assert backend.similarity_map(sr, hr).isnan().equal(hit)
    assert backend.attention_map(sr, hr, 1.0).isnan().equal(hit)
    for distance in ("l1", "l2", "charbonnier"):
        leaf = sr.clone().requires_grad_()
        loss = backend.pspl_loss(leaf, hr, 1.0, distance=distance)
        loss.backward()
        assert loss.isnan()
        assert leaf.grad.isnan().equal(hit), distance


@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
def test_nan_reaches_pixels_without_a_difference(backend, distance):
    """Equal images with one NaN: every pixel of its windows has the gradient 0 * NaN."""
    hr = torch.rand(1, 1, 30, 31, generator=torch.Generator().manual_seed(1)).to(backend.device)
    sr = hr.clone()
    sr[0, 0, 14, 15] = math.nan
    hit = torch.zeros_like(sr, dtype=torch.bool)
    hit[..., 9:20, 10:21] = True
    leaf = sr.requires_grad_()
    backend.pspl_loss(leaf, hr, 1.0, distance=distance).backward()
    assert leaf.grad.isnan().equal(hit)
    assert (leaf.grad[~hit] == 0).all()
