"""DRRN B1U25: Tai, Yang, Liu, Image Super-Resolution via Deep Recursive Residual Network, CVPR 2017."""

from __future__ import annotations

from torch import Tensor, nn

from .bicubic import enlarge


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return convolution


def _activation(features: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(features), nn.ReLU())


class DRRN(nn.Module):
    """One recursive block of 25 residual units, 128 features, added to the bicubic enlargement.

    Batch normalisation and ReLU come before each convolution. The units share their two convolutions; each use of them has
    a normalisation of its own, as in the authors' network files, since each sees other statistics.
    """

    channels = 1

    def __init__(self, scale: int, units: int = 25, features: int = 128):
        super().__init__()
        self.scale = scale
        self.first = nn.Sequential(_activation(self.channels), _convolution(self.channels, features))
        self.unit = nn.ModuleList(_convolution(features, features) for _ in range(2))
        self.activations = nn.ModuleList(_activation(features) for _ in range(2 * units))
        self.last = nn.Sequential(_activation(features), _convolution(features, self.channels))

    def forward(self, lr: Tensor) -> Tensor:
        image = enlarge(lr, self.scale)
        first = features = self.first(image)
        for a, b in zip(self.activations[::2], self.activations[1::2], strict=True):
            features = first + self.unit[1](b(self.unit[0](a(features))))
        return image + self.last(features)
