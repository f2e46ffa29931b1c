"""Compare with what is published: the LR images of the field's test sets, and the PSNR of their bicubic enlargement by image.

    python experiments/check_published.py --data DIR          DIR holds Set5, Set14 and BSD100 as SelfExSR has them

LR images made here must be those of the files, bit for bit, and the PSNR of each image must agree to 5e-5 dB with the table of
Huang, Singh, Ahuja (CVPR 2015, github.com/jbhuang0604/SelfExSR), of which results/published-bicubic.csv is a copy. SSIM agrees
to 5e-6. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training import data, images

PUBLISHED = Path(__file__).parent / "results" / "published-bicubic.csv"
TOLERANCE = {"psnr": 5e-5, "ssim": 5e-6}


class Image(NamedTuple):
    """A published image and its scores."""

    dataset: str
    scale: int
    name: str
    psnr: float
    ssim: float


def published() -> list[Image]:
    """The rows of PUBLISHED."""
    with PUBLISHED.open(newline="") as file:
        return [
            Image(row["dataset"], int(row["scale"]), row["image"], float(row["psnr"]), float(row["ssim"]))
            for row in csv.DictReader(file)
        ]


def differences(image: Image, folder: Path) -> list[str]:
    """What is not as published, a sentence each."""
    path = folder / image.dataset / f"image_SRF_{image.scale}" / f"{image.name}.png"
    pair = data.load(data.Source(path, path.with_name(path.name.replace("_HR", "_LR"))), image.scale)
    found = [] if np.array_equal(images.shrink(pair.hr, image.scale), pair.lr) else [f"{path}: LR differs."]
    enlarged = images.as_result(images.enlarge(pair.lr, image.scale)).y
    for measure in (images.psnr, images.ssim):
        score, expected = measure(enlarged, images.as_result(pair.hr).y, image.scale), getattr(image, measure.__name__)
        if abs(score - expected) > TOLERANCE[measure.__name__]:
            found.append(f"{path}: {measure.__name__} is {score:.6f}, published {expected:.6f}.")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if all is as published."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of Set5, Set14 and BSD100")
    options = parser.parse_args(arguments)
    table = [image for image in published() if (options.data / image.dataset).is_dir()]
    if not table:
        raise SystemExit(f"{options.data} has none of Set5, Set14, BSD100; expected folders with these names.")
    found = [sentence for image in table for sentence in differences(image, options.data)]
    print(*found, f"{len(table)} images compared, {len(found)} differences.", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
