"""The statistics of a call; the tests of all kernels compare their values with the oracle (helpers/cases.py)."""

from __future__ import annotations

import math

import pytest
import torch

import pspl_cuda
from pspl_cuda import PSPLLoss, PSPLStats


def test_stats(pair):
    """The statistics are those of the images: a weight on the loss changes none of them."""
    loss = PSPLLoss(return_stats=True, loss_weight=3.0, start_iteration=999, data_range=2.0)
    value, stats = loss(*pair)
    expected, expected_stats = pspl_cuda.pspl_loss(*pair, 1.0, data_range=2.0, return_stats=True)
    assert torch.equal(value, 3 * expected)
    assert isinstance(stats, PSPLStats)
    assert all(torch.equal(a, b) for a, b in zip(stats[:4], expected_stats[:4], strict=True))
    mse = (pair[0] - pair[1]).square().mean().item()
    assert stats.psnr.item() == pytest.approx(10 * math.log10(4 / mse), rel=1e-5)
