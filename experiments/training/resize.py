"""Bicubic resampling of 8-bit images, bit for bit as in the field's LR images, which MATLAB's imresize made.

a = -0.5 (Keys 1981), wider by the scale when shrinking, the outermost pixels repeated outside the image; first the rows, then
the columns, rounded to uint8 after each. Networks enlarge by :mod:`networks.bicubic`, which is differentiable and has other
borders.
"""

from __future__ import annotations

import functools

import numpy as np


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))


@functools.lru_cache(maxsize=64)
def _weights(size: int, new: int) -> np.ndarray:
    """``[new, size]``: what each old pixel gives to each new one."""
    scale = new / size
    sharpness = min(scale, 1.0)
    centres = (np.arange(new) + 0.5) / scale - 0.5
    reach = 2 / sharpness
    first = np.floor(centres - reach).astype(int)
    old = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 2)
    weights = _cubic(sharpness * (centres[:, None] - old))
    weights /= weights.sum(1, keepdims=True)
    matrix = np.zeros((new, size))
    np.add.at(matrix, (np.arange(new)[:, None], old.clip(0, size - 1)), weights)
    return matrix


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 ``[H, W, C]`` -> uint8 ``[height, width, C]``; both sides change by the same factor."""
    tall = _rounded(np.einsum("yi,ixc->yxc", _weights(image.shape[0], height), image, optimize=True))
    return _rounded(np.einsum("xi,yic->yxc", _weights(image.shape[1], width), tall, optimize=True))


def _rounded(values: np.ndarray) -> np.ndarray:
    """To uint8, halves up, as MATLAB does; NumPy rounds them to even numbers."""
    return np.floor(values + 0.5).clip(0, 255).astype(np.uint8)
