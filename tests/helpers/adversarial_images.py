"""Images on which SSIM in float32 is inaccurate, for test_numerics.py, test_known_failures.py and numerics_table.py.

Values are float64 in 0..1, give or take an overshoot; ``pair`` makes tensors of them.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from skimage import data
from torch.nn.functional import interpolate

SEED = 20200504
SIZE = 72


def _noise(rng):
    return rng.random((2, 3, SIZE, SIZE))


def _smooth(rng, height=SIZE, width=SIZE):
    rows, columns = np.ogrid[:height, :width]
    phase = rng.uniform(0, 6, (2, 3, 1, 1))
    return 0.5 + 0.4 * np.sin(rows / 9 + phase) * np.cos(columns / 13 + phase)


def _near(image, error, rng):
    return image + error * rng.standard_normal(image.shape)


def _flat(value):
    return np.full((1, 1, SIZE, SIZE), value)


def _halves(rng):
    """Black beside white, with a fine texture that is lost if a pivot is far away."""
    image = np.zeros((1, 3, SIZE, SIZE))
    image[..., SIZE // 2 + 3 :] = 1.0
    return image + 0.01 * rng.standard_normal(image.shape)


def _patches(rng, low=0.0, high=1.0):
    """Quarters of different values, with edges between all rows and columns of the window."""
    image = np.full((1, 1, SIZE, SIZE), low)
    image[..., 20:46, 9:41] = high
    image[..., 31:, 30:] = (low + high) / 2
    return image


def _far_patch(rng):
    """A patch whose values are far apart in both images, beside zeros."""
    noise = np.round(0.042 * 4096 * rng.standard_normal((20, 24))) / 4096
    sr, hr = np.zeros((2, 1, 1, SIZE, 64))
    sr[..., 26:46, 40:], hr[..., 26:46, 40:] = 0.8644 + noise / 2, 0.8644 - noise / 2
    return sr, hr


def _stripes(rng, period):
    """Lines of text: black and white rows, broken into words."""
    image = (np.arange(SIZE) // period % 2).astype(float)[:, None] + np.zeros((1, 1, SIZE, SIZE))
    return np.where(rng.random((1, 1, 1, SIZE // 9)).repeat(9, -1) < 0.2, 1.0, image)


def _frame(rng):
    """A bright image that ends at a border of zeros."""
    return 0.95 + 0.01 * rng.standard_normal((1, 3, SIZE, SIZE))


@functools.cache
def _photo():
    """A photo and its bicubic x4 version, rounded to 8 bits as files are; it has saturated and flat regions."""
    crop = torch.from_numpy(data.rocket()[: SIZE * 2, 250 : 250 + 2 * SIZE]).permute(2, 0, 1)[None] / 255.0
    small = interpolate(crop, scale_factor=0.25, mode="bicubic", antialias=True)
    large = interpolate(small, scale_factor=4, mode="bicubic")
    return tuple((255 * x).round().clamp(0, 255).double().numpy() / 255 for x in (large, crop))


IMAGES = {
    "photo": lambda rng: _photo(),
    "noise": lambda rng: (_noise(rng), _noise(rng)),
    "noise with small error": lambda rng: ((x := _noise(rng)), _near(x, 1e-3, rng)),
    "smooth, error 1e-2": lambda rng: ((x := _smooth(rng)), _near(x, 1e-2, rng)),
    "smooth, error 1e-3": lambda rng: ((x := _smooth(rng)), _near(x, 1e-3, rng)),
    "bright": lambda rng: ((x := 0.97 + 0.02 * _noise(rng)), _near(x, 5e-3, rng)),
    "flat, offset 1e-7": lambda rng: (_flat(0.7), _flat(0.7) + 1e-7),
    "flat, offset 1e-3": lambda rng: (_flat(0.7), _flat(0.7) + 1e-3),
    "flat, noise 1e-4": lambda rng: (_near(_flat(0.7), 1e-4, rng), _near(_flat(0.7), 1e-4, rng)),
    "saturated": lambda rng: (np.clip(_near(_flat(1.0), 0.02, rng), 0, 1), np.clip(_near(_flat(1.0), 0.02, rng), 0, 1)),
    "black": lambda rng: (np.clip(_near(_flat(0.0), 0.02, rng), 0, 1), _flat(0.0)),
    "black beside white": lambda rng: ((x := _halves(rng)), _near(x, 1e-2, rng)),
    "black beside white, error 1e-3": lambda rng: ((x := _halves(rng)), _near(x, 1e-3, rng)),
    "inverted": lambda rng: ((x := _noise(rng)), 1 - x),
    "bright border": lambda rng: ((x := _frame(rng)), _near(x, 1e-3, rng)),
    "overshoot": lambda rng: ((x := 3 * _noise(rng) - 1), _near(x, 0.3, rng)),
    "single bright pixel": lambda rng: ((x := np.pad(_flat(1.0)[..., :1, :1], [(0, 0)] * 2 + [(30, 41)] * 2)), 0.9 * x),
    "checkerboard": lambda rng: ((x := np.indices((1, 1, SIZE, SIZE)).sum(0) % 2.0), _near(x, 1e-2, rng)),
    "edge across": lambda rng: ((x := 1.0 * (np.indices((1, 1, SIZE, SIZE))[2] > 33)), np.roll(x, 1, 2)),
    "edge down": lambda rng: ((x := 1.0 * (np.indices((1, 1, SIZE, SIZE))[3] > 33)), np.roll(x, 1, 3)),
    "patches": lambda rng: (_near(x := _patches(rng), 1e-3, rng), x),
    "bright patch": lambda rng: (_near(x := _patches(rng, 0.0, 1.0), 1e-2, rng), x),
    "dark patch": lambda rng: (_near(x := _patches(rng, 1.0, 0.0), 1e-2, rng), x),
    "patches, nothing": lambda rng: (0.01 * rng.standard_normal((1, 1, SIZE, SIZE)), _patches(rng)),
    "patches, opposite": lambda rng: (1 - (x := _patches(rng)), x),
    "patches, others": lambda rng: (_patches(rng).swapaxes(2, 3), _patches(rng)),
    "far patch": lambda rng: _far_patch(rng),
    "flat, far apart": lambda rng: (_flat(0.913), _flat(0.277)),
    "ramp": lambda rng: (_near(x := np.indices((1, 1, SIZE, SIZE))[2] / SIZE, 1e-3, rng), x),
    "text": lambda rng: (_near(x := _stripes(rng, 3), 1e-2, rng), x),
    "coarse text": lambda rng: (_near(x := _stripes(rng, 13), 1e-2, rng), x),
    "coarse checkerboard": lambda rng: (
        (x := (np.indices((1, 1, SIZE, SIZE)) // 17).sum(0) % 2.0),
        _near(x, 1e-2, rng),
    ),
    "2x300": lambda rng: ((x := _smooth(rng, 2, 300)), _near(x, 1e-2, rng)),
    "1x1": lambda rng: (rng.random((4, 3, 1, 1)), rng.random((4, 3, 1, 1))),
    "1x1, error 1e-3": lambda rng: ((x := rng.random((4, 3, 1, 1))), _near(x, 1e-3, rng)),
}

# Where the formula of the official code, in float32 with the constants of 0..1 on images of 0..255, is bad enough to be compared
# with.
OFFICIAL = (
    "smooth, error 1e-2",
    "smooth, error 1e-3",
    "bright",
    "flat, offset 1e-3",
    "flat, noise 1e-4",
    "saturated",
    "black beside white",
    "black beside white, error 1e-3",
    "bright border",
    "photo",
)


def pair(name, scale=1.0, dtype=torch.float32, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """``sr, hr`` of that name, the same at every call, multiplied by ``scale`` before they are rounded to ``dtype``."""
    both = IMAGES[name](np.random.default_rng(SEED))
    return tuple(torch.from_numpy(np.ascontiguousarray(x * scale)).to(dtype).to(device) for x in both)
