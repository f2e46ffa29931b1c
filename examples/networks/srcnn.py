"""SRCNN 9-5-5: Dong, Loy, He, Tang, Image Super-Resolution Using Deep Convolutional Networks, TPAMI 2016."""

from __future__ import annotations

from torch import Tensor, nn

from .bicubic import enlarge


class SRCNN(nn.Sequential):
    """Three convolutions on the bicubic enlargement, 64 and 32 features."""

    channels = 1

    def __init__(self, scale: int):
        super().__init__(
            nn.Conv2d(self.channels, 64, 9, padding=4),
            nn.ReLU(),
            nn.Conv2d(64, 32, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, self.channels, 5, padding=2),
        )
        self.scale = scale

    def forward(self, lr: Tensor) -> Tensor:
        return super().forward(enlarge(lr, self.scale))
