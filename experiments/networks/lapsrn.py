"""LapSRN: Lai, Huang, Ahuja, Yang, Deep Laplacian Pyramid Networks for Fast and Accurate Super-Resolution, CVPR 2017."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _convolutions(count: int, features: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(features, features, 3, padding=1), nn.LeakyReLU(0.2)]
    return layers


def _bilinear_enlargement(channels: int) -> nn.ConvTranspose2d:
    """x2 by a 4x4 transposed convolution, which starts as bilinear interpolation and is trained on."""
    layer = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(channels):
            layer.weight[channel, channel] = torch.outer(line, line)
    return layer


class _Level(nn.Module):
    """One x2 of the pyramid: features and image in, both twice as large out."""

    def __init__(self, channels: int, depth: int, features: int):
        super().__init__()
        self.features = nn.Sequential(
            *_convolutions(depth, features),
            nn.ConvTranspose2d(features, features, 3, stride=2, padding=1, output_padding=1),
            nn.LeakyReLU(0.2),
        )
        self.residual = nn.Conv2d(features, channels, 3, padding=1)
        self.image = _bilinear_enlargement(channels)

    def forward(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(features)
        return features, self.image(image) + self.residual(features)


class LapSRN(nn.Module):
    """A pyramid of x2 levels, 10 convolutions of 64 features each, every level's image supervised.

    ``forward`` returns the images of all levels, from coarse to fine; the last has the full size.

    Raises:
        ValueError: a scale that isn't a power of two.
    """

    channels = 1

    def __init__(self, scale: int, depth: int = 10, features: int = 64):
        if scale not in (2, 4, 8):
            raise ValueError(f"scale is {scale}; LapSRN doubles the size at each level: expected 2, 4 or 8.")
        super().__init__()
        self.scale = scale
        self.first = nn.Sequential(nn.Conv2d(self.channels, features, 3, padding=1), nn.LeakyReLU(0.2))
        self.levels = nn.ModuleList(_Level(self.channels, depth, features) for _ in range(scale.bit_length() - 1))
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)

    def forward(self, lr: Tensor) -> list[Tensor]:
        features, image, images = self.first(lr), lr, []
        for level in self.levels:
            features, image = level(features, image)
            images.append(image)
        return images
