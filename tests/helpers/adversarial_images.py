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
    "2x300": lambda rng: ((x := _smooth(rng, 2, 300)), _near(x, 1e-2, rng)),
    "1x1": lambda rng: (rng.random((4, 3, 1, 1)), rng.random((4, 3, 1, 1))),
    "1x1, error 1e-3": lambda rng: ((x := rng.random((4, 3, 1, 1))), _near(x, 1e-3, rng)),
}

# A window differs from others of its strip by the whole range of values, or consists of one large difference.
FAR = ("black beside white", "1x1")

# Where the formula of the official code, in float32 with the constants of 0..1 on images of 0..255, is bad enough to be compared
# with; and which of them are far as above.
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
FAR_OFFICIAL = ("black beside white", "black beside white, error 1e-3")


def pair(name, scale=1.0, dtype=torch.float32, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """``sr, hr`` of that name, the same at every call, multiplied by ``scale`` before they are rounded to ``dtype``."""
    both = IMAGES[name](np.random.default_rng(SEED))
    return tuple(torch.from_numpy(np.ascontiguousarray(x * scale)).to(dtype).to(device) for x in both)
