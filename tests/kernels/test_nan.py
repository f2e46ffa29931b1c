"""A NaN stays NaN whatever its payload.

The bits below the quiet bit are arbitrary: x.half().float() of a NaN sets them all, uninitialised memory sets any of them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers import oracle, tolerances
from helpers.cases import leaf, numpy64, smooth_pair

INF = math.inf

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


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize("where", ["sr", "hr", "both"])
@pytest.mark.parametrize("at", [(0, 0), (0, 39), (16, 20), (31, 32), (39, 0), (32, 31), (39, 39)], ids=str)
def test_nan_stays_in_its_window(backend, at, where, bad):
    """Each pixel whose window holds a NaN or an infinity is NaN in both maps, and no other pixel is touched. The places
    cover corners and the usual tile borders, where a shared pivot or running sum could carry it further."""
    shape, radius = (1, 2, 40, 40), 5
    sr, hr = smooth_pair(shape, device=backend.device)
    clean = backend.similarity_map(sr, hr)
    for name, image in (("sr", sr), ("hr", hr)):
        if where in (name, "both"):
            image[0, 1, at[0], at[1]] = bad
    hit = torch.zeros(shape, dtype=torch.bool, device=backend.device)
    rows = slice(max(at[0] - radius, 0), at[0] + radius + 1)
    columns = slice(max(at[1] - radius, 0), at[1] + radius + 1)
    hit[0, 1, rows, columns] = True

    m_s = backend.similarity_map(sr, hr)
    m_a = backend.attention_map(sr, hr, 1.0)
    assert torch.equal(m_s.isnan(), hit)
    assert torch.equal(m_a.isnan(), hit)
    # A kernel may subtract another pivot nearby, but it may not be less accurate for it.
    assert (m_s - clean)[~hit].abs().max() <= 2 * tolerances.SIMILARITY[torch.float32]
    assert backend.attention_map(sr, hr, INF).isnan().equal(hit)


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_nan_reaches_the_loss(backend, dtype, distance, bad):
    """A NaN that a clamp turned into a number would let a broken training run go on."""
    sr, hr = smooth_pair((1, 2, 20, 20), dtypes=(dtype, dtype), device=backend.device)
    sr[0, 1, 7, 9] = bad
    for step in (0.0, 1.0, INF):
        a = leaf(sr)
        loss, stats = backend.pspl_loss(a, hr, step, distance=distance, return_stats=True)
        (grad,) = torch.autograd.grad(loss, a)
        assert loss.isnan()
        assert grad[0, 1, 7, 9].isnan()
        assert grad[0, 0].isfinite().all()
        assert stats.mean_similarity.isnan()
        assert stats.mean_attention.isnan()
        assert not stats.mean_abs_error.isfinite()
        assert not stats.mean_squared_error.isfinite()


@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_nan_stays_in_its_window_with_padding(backend, padding):
    """A padded border shows a NaN to the windows that see its mirror image, and to no others."""
    sr, hr = smooth_pair((1, 1, 6, 24), device=backend.device)
    sr[0, 0, 1, 1] = math.nan
    expected = np.isnan(oracle.similarity_map(numpy64(sr), numpy64(hr), padding=padding))
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(backend.similarity_map(sr, hr, padding=padding).isnan().cpu().numpy(), expected)
