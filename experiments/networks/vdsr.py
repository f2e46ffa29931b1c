"""VDSR: Kim, Lee, Lee, Accurate Image Super-Resolution Using Very Deep Convolutional Networks, CVPR 2016."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from .bicubic import enlarge


class VDSR(nn.Module):
    """20 convolutions of 3x3 with 64 features, which predict what the bicubic enlargement lacks."""

    channels = 1

    def __init__(self, scale: int, layers: int = 20, features: int = 64):
        super().__init__()
        self.scale = scale
        widths = [self.channels, *[features] * (layers - 1), self.channels]
        convolutions = [nn.Conv2d(*pair, 3, padding=1) for pair in itertools.pairwise(widths)]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)
        body = [layer for convolution in convolutions for layer in (convolution, nn.ReLU())]
        self.residual = nn.Sequential(*body[:-1])

    def forward(self, lr: Tensor) -> Tensor:
        image = enlarge(lr, self.scale)
        return image + self.residual(image)
