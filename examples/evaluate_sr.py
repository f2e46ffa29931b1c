"""PSNR and SSIM of trained networks, and of bicubic enlargement, on folders of images, as the field reports them.

    python examples/evaluate_sr.py --checkpoint runs/first/best.pt --data Set5 Set14 --out results
    python examples/evaluate_sr.py --checkpoint runs/first/best.pt --data demo --out results

On the luma (Y of BT.601, uint8), without a border as wide as the scale; --rgb: on RGB. A folder holds HR images itself, in HR/ or
in image_SRF_<scale>/; LR images are read from LR_bicubic/X<scale> beside HR, or from image_SRF_<scale>/*_LR.png, else made by
antialiased bicubic. --out gets results.md, the images, and pictures to compare.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn
from tqdm import tqdm

from networks import build
from training import checkpoint, data, images, pictures
from training.data import Pair
from training.files import atomic
from training.settings import DEMO

BICUBIC = "bicubic"
CLOSE_UP = 64  # HR pixels

Method = Callable[[np.ndarray], images.Result]


class Score(NamedTuple):
    """Of one image, one method."""

    dataset: str
    scale: int
    image: str
    method: str
    psnr: float
    ssim: float


def load_network(path: Path, device: torch.device) -> tuple[nn.Module, str]:
    """The network of a checkpoint.pt or best.pt, and what it is."""
    state = checkpoint.load(path)
    settings = state["settings"]
    network = build(settings["model"], settings["scale"])
    network.load_state_dict(state["network"])
    loss = f"PSPL {settings['distance']}" if settings["loss"] == "pspl" else settings["loss"]
    return network.to(device).eval(), f"{settings['model']}, {loss}, {state['iteration']} iterations"


class Dataset(NamedTuple):
    """A folder's pairs, read one by one. ``made_lr``: some LR image did not come with it."""

    name: str
    count: int
    made_lr: bool
    pairs: Iterable[Pair]


def dataset_of(folder: str, scale: int) -> Dataset:
    """The images of a folder; of the demonstration, those held out."""
    if folder == DEMO:
        pairs = data.demonstration(scale, held_out=True)
        return Dataset(DEMO, len(pairs), True, pairs)
    found = data.sources(Path(folder), scale)
    made_lr = any(source.lr is None for source in found)
    return Dataset(Path(folder).resolve().name, len(found), made_lr, (data.load(source, scale) for source in found))


def compared(pair: Pair, results: dict[str, images.Result], scale: int) -> Figure:
    """The HR image, and its most detailed part beside that of each result."""
    size = min(CLOSE_UP, *pair.hr.shape[:2])
    y = images.as_result(pair.hr).y.astype(np.float64)
    windows = [
        (y[top : top + size, left : left + size].std(), top, left)
        for top in range(0, y.shape[0] - size + 1, size // 2)
        for left in range(0, y.shape[1] - size + 1, size // 2)
    ]
    _, top, left = max(windows)
    shown = {"HR": pair.hr, **{method: result.rgb for method, result in results.items()}}
    figure = Figure(figsize=(3.2 * (len(shown) + 1), 3.9), layout="constrained")
    axes = figure.subplots(1, len(shown) + 1)
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(pair.hr)
    axes[0].add_patch(Rectangle((left, top), size, size, fill=False, edgecolor="red", linewidth=1.5))
    axes[0].set_title(f"{pair.name}, x{scale}", fontsize=9)
    for axis, (name, image) in zip(axes[1:], shown.items(), strict=True):
        axis.imshow(image[top : top + size, left : left + size], interpolation="nearest")
        axis.set_title(name, fontsize=9)
    return figure


def table(scores: list[Score], rgb: bool, made_lr: bool) -> str:
    """Markdown: the means of each dataset, then every image."""
    channels = "RGB" if rgb else "the luma (Y of BT.601)"
    lines = [
        "# PSNR in dB and SSIM",
        "",
        f"On {channels}, uint8, without a border as wide as the scale; means over the images.",
    ]
    if made_lr:
        lines.append(
            "LR images that did not come with the data were made by antialiased bicubic, not by MATLAB's imresize."
        )
    lines += ["", "| dataset | scale | images | method | PSNR | SSIM |", "|---|---|---|---|---|---|"]
    groups: dict[tuple[str, int, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.dataset, score.scale, score.method), []).append(score)
    for (dataset, scale, method), group in groups.items():
        psnr, ssim = (sum(getattr(score, name) for score in group) / len(group) for name in ("psnr", "ssim"))
        lines.append(f"| {dataset} | x{scale} | {len(group)} | {method} | {psnr:.2f} | {ssim:.4f} |")
    lines += ["", "| dataset | scale | image | method | PSNR | SSIM |", "|---|---|---|---|---|---|"]
    lines += [f"| {s.dataset} | x{s.scale} | {s.image} | {s.method} | {s.psnr:.2f} | {s.ssim:.4f} |" for s in scores]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        nargs="*",
        default=[],
        help="checkpoint.pt or best.pt of train_sr.py; none: bicubic only",
    )
    add(
        "--data", nargs="+", required=True, help="folders of images, or 'demo': the held-out photographs of train_sr.py"
    )
    add("--scale", type=int, choices=(2, 3, 4), help="only without a checkpoint, which knows its own")
    add("--rgb", action="store_true", help="measure on RGB")
    add("--pictures", type=int, default=5, help="how many images of each dataset to draw (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    add("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    if bool(options.checkpoint) == bool(options.scale):
        parser.error("give either --checkpoint or, for bicubic alone, --scale")

    networks = [load_network(path, torch.device(options.device)) for path in options.checkpoint]
    by_scale: dict[int, dict[str, Method]] = {}
    for scale in [network.scale for network, _ in networks] or [options.scale]:
        by_scale[scale] = {BICUBIC: lambda lr, scale=scale: images.as_result(images.enlarge(lr, scale))}
    for network, name in networks:
        methods = by_scale[network.scale]
        if name in methods:
            name = f"{name} ({sum(key.startswith(name) for key in methods) + 1})"
        methods[name] = lambda lr, network=network: images.super_resolve(network, lr)

    scores: list[Score] = []
    made_lr = False
    for folder in options.data:
        for scale, methods in by_scale.items():
            dataset = dataset_of(folder, scale)
            made_lr |= dataset.made_lr
            out = options.out / dataset.name / f"x{scale}"
            bar = tqdm(dataset.pairs, desc=f"{dataset.name} x{scale}", total=dataset.count, unit="image")
            for index, pair in enumerate(bar):
                results = {name: method(pair.lr) for name, method in methods.items()}
                hr = images.as_result(pair.hr)
                captions = {}
                for number, (name, result) in enumerate(results.items()):
                    measured = (result.rgb, hr.rgb) if options.rgb else (result.y, hr.y)
                    psnr, ssim = images.psnr_and_ssim(*measured, border=scale)
                    scores.append(Score(dataset.name, scale, pair.name, name, psnr, ssim))
                    captions[f"{name}\n{psnr:.2f} dB, {ssim:.4f}"] = result
                    method = BICUBIC if name == BICUBIC else f"network-{number}"
                    images.write(result.rgb, out / method / f"{pair.name}.png")
                if index < options.pictures:
                    pictures.save(compared(pair, captions, scale), out / f"compare-{pair.name}.png")
    text = table(scores, options.rgb, made_lr)
    with atomic(options.out / "results.md") as file:
        file.write(text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
