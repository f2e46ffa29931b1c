from __future__ import annotations

import pytest
import torch


@pytest.fixture
def pair():
    """A small batch of images, sr and hr."""
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand((2, 3, 9, 10), generator=generator)
    return hr + 0.1 * torch.randn(hr.shape, generator=generator), hr
