"""SRCNN: Dong, Loy, He, Tang, Image Super-Resolution Using Deep Convolutional Networks, TPAMI 2016 (9-5-5), and its first
version, ECCV 2014 (9-1-5), which the PSPL paper cites."""

from __future__ import annotations

from torch import Tensor, nn

from .bicubic import enlarge


class SRCNN(nn.Sequential):
    """Three convolutions on the bicubic enlargement, 64 and 32 features.

    Args:
        scale: enlargement.
        middle: width of the second convolution's window.
    """

    channels = 1

    def __init__(self, scale: int, middle: int = 5):
        super().__init__(
            nn.Conv2d(self.channels, 64, 9, padding=4),
            nn.ReLU(),
            nn.Conv2d(64, 32, middle, padding=middle // 2),
            nn.ReLU(),
            nn.Conv2d(32, self.channels, 5, padding=2),
        )
        self.scale = scale

    @classmethod
    def first_version(cls, scale: int) -> SRCNN:
        """9-1-5: a seventh of the weights."""
        return cls(scale, middle=1)

    def forward(self, lr: Tensor) -> Tensor:
        return super().forward(enlarge(lr, self.scale))
