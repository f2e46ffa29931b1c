"""Training statistics, computed in the same pass as the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _torch


class PSPLStats(NamedTuple):
    """Statistics of one call of the loss: means over all elements.

    The fields are 0-dim tensors on the images' device, float32 (float64 for float64 images), without gradient. Reading a value,
    with ``.item()`` or by printing it, synchronises with the device.
    """

    mean_abs_error: Tensor
    """Mean of ``|sr - hr|``, the unweighted L1 loss, in pixel units."""
    mean_squared_error: Tensor
    """Mean of ``(sr - hr)^2``, the unweighted L2 loss."""
    mean_similarity: Tensor
    """Mean of the similarity map M_s (Eq. 3), from -1 to 1."""
    mean_attention: Tensor
    """Mean of the attention map M_a (Eq. 6), from 0 to gamma."""
    data_range: float | Tensor
    """L of the constants C1 and C2, and the peak of :attr:`psnr`: a number, in a program of ``torch.export`` a 0-dim tensor."""

    @property
    def psnr(self) -> Tensor:
        """10 log10(data_range^2 / mean_squared_error) in dB over the whole batch, a 0-dim tensor; inf for equal images."""
        return 10 * torch.log10(self.data_range**2 / self.mean_squared_error)


_torch.register_namedtuple(PSPLStats)
