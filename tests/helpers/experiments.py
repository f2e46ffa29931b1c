"""What the tests of experiments/ share: a tiny dataset, and runs on it."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import train_sr
from training.resize import resize
from training.settings import add_options, resolve

ROOT = Path(__file__).parents[2]
# Small enough that a run takes about a second.
TINY = [
    "--scale",
    "2",
    "--batch",
    "2",
    "--patch",
    "16",
    "--iterations",
    "2",
    "--validate-every",
    "2",
    "--log-every",
    "1",
]


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 RGB with smooth parts, edges and texture."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, height // 8 + 1, width // 8 + 1)))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].permute(1, 2, 0).numpy()
    y, x = np.mgrid[:height, :width]
    image = 0.7 * smooth + 0.2 * ((x // 5 + y // 7) % 2)[..., None] + 0.05 * rng.random((height, width, 3))
    return (image * 255).clip(0, 255).astype(np.uint8)


def save(image: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def dataset(folder: Path, count: int = 3, size: tuple[int, int] = (36, 41)) -> Path:
    """``count`` HR images in ``folder``; the last is held out."""
    for index in range(count):
        save(photograph(*size, seed=index), folder / f"{index:04}.png")
    return folder


def shrunken(image: np.ndarray, scale: int) -> np.ndarray:
    """LR, cropped to a multiple of the scale."""
    height, width = (size // scale for size in image.shape[:2])
    return resize(image[: height * scale, : width * scale], height, width)


def arguments(data: Path, out: Path, *options: str) -> list[str]:
    """Of train_sr.py."""
    return ["--data", str(data), "--out", str(out), "--device", "cpu", *TINY, *options]


def train(data: Path, out: Path, *options: str) -> int:
    """train_sr.py in this process."""
    return train_sr.main(arguments(data, out, *options))


def settings_of(*options):
    """The settings of train_sr.py for command-line options."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    return resolve(parser.parse_args(list(options)))
