"""DRRN B1U25: Tai, Yang, Liu, Image Super-Resolution via Deep Recursive Residual Network, CVPR 2017."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from .bicubic import enlarge


class DRRN(nn.Module):
    """One recursive block of 25 residual units, 128 features, added to the bicubic enlargement.

    The units share their two convolutions. ReLU comes before each convolution. There is no batch normalisation, as in the
    code of the PSPL authors; the network's own paper has one before each ReLU.
    """

    channels = 1

    def __init__(self, scale: int, units: int = 25, features: int = 128):
        super().__init__()
        self.scale = scale
        self.units = units
        self.first = nn.Conv2d(self.channels, features, 3, padding=1, bias=False)
        self.unit = nn.ModuleList(nn.Conv2d(features, features, 3, padding=1, bias=False) for _ in range(2))
        self.last = nn.Conv2d(features, self.channels, 3, padding=1, bias=False)

    def forward(self, lr: Tensor) -> Tensor:
        image = enlarge(lr, self.scale)
        first = features = self.first(relu(image))
        for _ in range(self.units):
            features = first + self.unit[1](relu(self.unit[0](relu(features))))
        return image + self.last(relu(features))
