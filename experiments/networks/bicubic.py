"""Bicubic resampling with antialiasing (a = -0.5, as Pillow and MATLAB): what makes LR images, and what networks start from.

Borders are renormalised, where MATLAB's imresize mirrors the image: the outermost pixels differ from the field's LR files.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor


def enlarge(image: Tensor, scale: int) -> Tensor:
    """``[N, C, h, w]`` -> ``[N, C, scale h, scale w]``. Antialiasing does nothing here, but chooses a = -0.5."""
    height, width = image.shape[-2:]
    return F.interpolate(image, size=(height * scale, width * scale), mode="bicubic", antialias=True)


def shrink(image: Tensor, scale: int) -> Tensor:
    """``[N, C, H, W]`` -> ``[N, C, H / scale, W / scale]``; H and W are multiples of the scale."""
    height, width = image.shape[-2:]
    return F.interpolate(image, size=(height // scale, width // scale), mode="bicubic", antialias=True)
