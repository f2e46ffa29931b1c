"""One image at a time: read it, take its luma, super-resolve it, and measure the result as the field does."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from skimage.color import rgb2ycbcr, ycbcr2rgb
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from .files import atomic
from .losses import final
from .resize import resize

SSIM_WINDOW = 11
GREY_MODES = ("1", "L", "LA", "La")
RGB_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA")


class ImageError(Exception):
    """A sentence that names a file which is no image to use."""


def read(path: Path) -> np.ndarray:
    """The image as uint8 RGB ``[H, W, 3]``, or ``[H, W, 1]`` if it is grey; transparency is dropped.

    Raises:
        ImageError: the file isn't an 8-bit image in grey or RGB that can be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            # Pillow reads 16-bit RGB as 8-bit RGB and says so nowhere else.
            stored = "".join(str(tile[3]) for tile in image.tile)
            if ";16" in stored or image.mode.startswith(("I", "F")):
                raise ImageError(f"{path} has more than 8 bits per channel; expected 8-bit images.")
            if image.mode not in GREY_MODES + RGB_MODES:
                raise ImageError(f"{path} is in {image.mode}; expected grey or RGB. Convert it first.")
            if image.mode in GREY_MODES:
                return np.asarray(image.convert("L"))[..., None]
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ImageError(f"{path} can't be read as an image; remove it from the folder or replace it.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} can't be read as an image ({error}); remove it or replace it.") from None


def write(image: np.ndarray, path: Path) -> None:
    """uint8 ``[H, W, 3]`` as PNG, whole or not at all."""
    with atomic(path) as file:
        Image.fromarray(image).save(file, format="png")


def as_rgb(image: np.ndarray) -> np.ndarray:
    """uint8 ``[..., H, W, 3]`` of grey or RGB."""
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """``[H, W, C]``, 0..255 -> float32 ``[1, C, H, W]``, 0..1."""
    return torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """float ``[1, C, H, W]``, 0..1 -> uint8 ``[H, W, C]``, rounded."""
    return (image[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def shrink(image: np.ndarray, scale: int) -> np.ndarray:
    """LR of an uint8 image whose sides are multiples of ``scale``."""
    return resize(image, image.shape[0] // scale, image.shape[1] // scale)


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic enlargement of an uint8 image: the baseline of every table."""
    return resize(image, image.shape[0] * scale, image.shape[1] * scale)


def luma(image: np.ndarray) -> np.ndarray:
    """Y of BT.601, 16..235, of uint8 RGB; a grey image as it is, 0..255. ``[..., H, W, C]`` -> float64 ``[..., H, W, 1]``."""
    return image.astype(np.float64) if image.shape[-1] == 1 else rgb2ycbcr(image)[..., :1]


@dataclasses.dataclass
class Result:
    """A super-resolved image: ``y``, its luma, uint8 ``[H, W]``; ``rgb`` uint8 ``[H, W, 3]``, made when asked for."""

    y: np.ndarray
    make_rgb: Callable[[], np.ndarray]

    @property
    def rgb(self) -> np.ndarray:
        return self.make_rgb()


def as_result(image: np.ndarray) -> Result:
    """The luma of uint8 grey or RGB, rounded to uint8 as MATLAB's rgb2ycbcr does."""
    return Result(luma(image)[..., 0].round().astype(np.uint8), lambda: as_rgb(image))


def network_input(lr: np.ndarray, channels: int) -> torch.Tensor:
    """What a network of 1 (luma) or 3 (RGB) channels takes of uint8 grey or RGB."""
    return to_tensor(luma(lr) if channels == 1 else as_rgb(lr))


def enhanced(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The full-size output for ``image``, in eval mode and without gradient."""
    weight = next(network.parameters())
    channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    image = image.to(weight.device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    training = network.training
    network.eval()
    with torch.inference_mode():
        sr = final(network(image))
    network.train(training)
    return sr.float()


def super_resolve(network: nn.Module, lr: np.ndarray) -> Result:
    """Enlarge uint8 grey or RGB ``[h, w, C]``. A network for luma gets the colours by bicubic, as its paper does.

    Grey stays grey: of a network for RGB the channels are averaged.
    """
    sr = enhanced(network, network_input(lr, network.channels))
    if lr.shape[-1] == 1:
        return as_result(to_bytes(sr.mean(1, keepdim=True)))
    if network.channels == 3:
        return as_result(to_bytes(sr))
    y = to_bytes(sr)

    def coloured() -> np.ndarray:
        colours = rgb2ycbcr(enlarge(lr, network.scale))[..., 1:]
        rgb = ycbcr2rgb(np.concatenate([y.astype(np.float64), colours], axis=-1))
        return (rgb.clip(0, 1) * 255).round().astype(np.uint8)

    return Result(y[..., 0], coloured)


def most_detailed(image: np.ndarray, size: int) -> tuple[float, int, int]:
    """Of an uint8 image: how much its luma changes from pixel to pixel in the ``size`` square where it does most; top; left."""
    y = luma(image)[..., 0]
    edges = np.abs(np.diff(y, axis=0))[:, :-1] + np.abs(np.diff(y, axis=1))[:-1]
    return max(
        (edges[top : top + size, left : left + size].mean(), top, left)
        for top in range(0, max(1, y.shape[0] - size + 1), max(1, size // 4))
        for left in range(0, max(1, y.shape[1] - size + 1), max(1, size // 4))
    )


def psnr(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    """PSNR in dB of two uint8 images ``[H, W]`` or ``[H, W, 3]`` without ``border`` pixels at each side; inf for equal ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # identical images
        return float(peak_signal_noise_ratio(*_inside(hr, sr, border), data_range=255))


def ssim(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    """Mean SSIM of two uint8 images ``[H, W]`` or ``[H, W, 3]`` without ``border`` pixels at each side.

    With the settings of Wang et al.'s MATLAB code: Gaussian window 11, sigma 1.5, no sample covariance, only windows inside the
    image; of RGB, the mean of the channels.

    Raises:
        SystemExit: fewer than 11 pixels left.
    """
    hr, sr = _inside(hr, sr, border)
    if min(hr.shape[:2]) < SSIM_WINDOW:
        raise SystemExit(
            f"An image has {hr.shape[1]}x{hr.shape[0]} pixels left without its border of {border}; SSIM needs {SSIM_WINDOW}."
        )
    keywords = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return float(structural_similarity(hr, sr, channel_axis=2 if hr.ndim == 3 else None, **keywords))


def _inside(hr: np.ndarray, sr: np.ndarray, border: int) -> tuple[np.ndarray, np.ndarray]:
    if sr.shape != hr.shape:
        raise SystemExit(f"The output is {sr.shape} and its HR image {hr.shape}: expected the same size.")
    inside = slice(border, -border or None)
    return hr[inside, inside], sr[inside, inside]
