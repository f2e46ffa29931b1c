"""A NaN stays NaN, in the pixels whose window holds it, whatever its payload.

The bits below the quiet bit are arbitrary: x.half().float() of a NaN sets them all, uninitialised memory sets any of them.
"""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from helpers import oracle, tolerances
from helpers.cases import leaf, numpy64, smooth_pair
from pspl_cuda.config import DISTANCES

INF = math.inf

# A quiet NaN, all bits set, the lowest bit alone (signalling), the lowest and the quiet bit, and a negative one.
PAYLOADS = {
    torch.float64: (torch.int64, [0x7FF8 << 48, (1 << 63) - 1, (0x7FF << 52) + 1, (0x7FF8 << 48) + 1, -1]),
    torch.float32: (torch.int32, [0x7FC00000, 0x7FFFFFFF, 0x7F800001, 0x7FC00001, -1]),
    torch.float16: (torch.int16, [0x7E00, 0x7FFF, 0x7C01, 0x7E01, -1]),
    torch.bfloat16: (torch.int16, [0x7FC0, 0x7FFF, 0x7F81, 0x7FC1, -1]),
}
CASES = [(dtype, payload) for dtype, (_, payloads) in PAYLOADS.items() for payload in payloads]


@pytest.mark.parametrize(
    ("dtype", "payload"), CASES, ids=lambda value: hex(value) if isinstance(value, int) else str(value)
)
@settings(max_examples=max(1, settings().max_examples // 8))
@given(
    other=st.sampled_from([*PAYLOADS]),
    bad_image=st.sampled_from(["sr", "hr"]),
    at=st.tuples(st.integers(5, 24), st.integers(5, 25)),
    distance=st.sampled_from(DISTANCES),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    equal=st.booleans(),
)
def test_every_nan_stays(backend, dtype, payload, other, bad_image, at, distance, reduction, equal):
    """121 NaN in the maps of an 11 x 11 window and in the gradients, also where images are equal (0 * NaN), and a NaN loss."""
    hr = 0.4 * torch.rand(1, 1, 30, 31, generator=torch.Generator().manual_seed(1))
    images = {"sr": hr if equal else hr + 0.5, "hr": hr}
    images = {name: image.to(dtype if name == bad_image else other) for name, image in images.items()}
    # Through integers: a floating-point copy may change the payload.
    images[bad_image].view(PAYLOADS[dtype][0])[0, 0, at[0], at[1]] = payload
    sr, hr = (image.to(backend.device) for image in images.values())
    hit = torch.zeros(1, 1, 30, 31, dtype=torch.bool, device=backend.device)
    hit[..., at[0] - 5 : at[0] + 6, at[1] - 5 : at[1] + 6] = True

    assert backend.similarity_map(sr, hr).isnan().equal(hit)
    assert backend.attention_map(sr, hr, 1.0).isnan().equal(hit)
    a, b = leaf(sr.clone()), leaf(hr.clone())
    loss = backend.pspl_loss(a, b, 1.0, distance=distance, reduction=reduction)
    assert loss.isnan().equal(hit if reduction == "none" else torch.tensor(True, device=backend.device))
    for gradient in torch.autograd.grad(loss.sum(), (a, b)):
        assert gradient.isnan().equal(hit)


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
