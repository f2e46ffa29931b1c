"""EDSR and its baseline: Lim, Son, Kim, Nah, Lee, Enhanced Deep Residual Networks for Single Image Super-Resolution,
CVPRW 2017."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class _Block(nn.Sequential):
    """Residual block without normalisation; the residual is scaled, or training many wide ones would diverge."""

    def __init__(self, features: int, residual_scale: float):
        super().__init__(_convolution(features, features), nn.ReLU(), _convolution(features, features))
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_scale * super().forward(x)


class EDSR(nn.Module):
    """32 blocks of 256 features by default; :meth:`baseline` has 16 of 64. Both shift the colours to zero mean and back.

    Args:
        scale: 2, 3 or 4; 4 goes by two times 2.
        blocks: residual blocks.
        features: channels of each convolution.
        residual_scale: factor on what a block adds.
    """

    channels = 3

    def __init__(self, scale: int, blocks: int = 32, features: int = 256, residual_scale: float = 0.1):
        super().__init__()
        self.scale = scale
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.head = _convolution(self.channels, features)
        self.body = nn.Sequential(
            *[_Block(features, residual_scale) for _ in range(blocks)], _convolution(features, features)
        )
        tail: list[nn.Module] = []
        for factor in (2, 2) if scale == 4 else (scale,):
            tail += [_convolution(features, factor**2 * features), nn.PixelShuffle(factor)]
        self.tail = nn.Sequential(*tail, _convolution(features, self.channels))

    @classmethod
    def baseline(cls, scale: int) -> EDSR:
        """The light network of the paper's Fig. 4."""
        return cls(scale, blocks=16, features=64, residual_scale=1.0)

    def forward(self, lr: Tensor) -> Tensor:
        features = self.head(lr - self.mean)
        return self.tail(features + self.body(features)) + self.mean
