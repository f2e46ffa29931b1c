"""PSNR and SSIM of trained networks, and of bicubic enlargement, on folders of images, as the field reports them.

    python experiments/evaluate_sr.py --run runs/first --data demo --out results
    python experiments/evaluate_sr.py --run runs/srcnn-seed* --data Set5 Set14 BSD100 --out results
    python experiments/evaluate_sr.py --scale 2 4 --data Set5 Set14 --out results                  bicubic alone

On the luma (Y of BT.601, uint8; a grey image as it is), without a border as wide as the scale; --rgb: on RGB. A folder holds HR
images itself, in HR/ or in image_SRF_<scale>/; LR images are read from LR_bicubic/X<scale> beside HR, or from
image_SRF_<scale>/*_LR.png, else made as MATLAB makes them. --out gets results.csv (every image), means.csv, results.md, and on
demand images and pictures to compare.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from networks import build
from training import data, figures, images
from training.data import Pair
from training.files import atomic, writable_folder
from training.loop import CHECKPOINT, load_checkpoint, write_csv
from training.settings import DEMO, PRECISIONS, number

BICUBIC = "bicubic"
# What tells the rows of one image apart. Runs of different settings may agree in all but their folders.
METHOD = ("run", "model", "arm", "seed", "iterations")

Upscale = Callable[[np.ndarray], images.Result]


class Method(NamedTuple):
    """How images are enlarged: a network with the loss (``arm``) and seed of the ``run`` that trained it, or bicubic."""

    run: str
    model: str
    arm: str
    seed: int | str
    iterations: int | str
    upscale: Upscale

    @property
    def label(self) -> str:
        """For titles."""
        return self.model if self.model == BICUBIC else f"{self.model}, {self.arm}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """For the images that it makes."""
        name = BICUBIC if self.model == BICUBIC else f"{self.run}-{self.arm}"
        return name.strip("/.").replace("/", "_").replace(":", "-")


def methods_of(run: Path, arms: list[str] | None, device: torch.device) -> tuple[int, list[Method]]:
    """The scale of a run, and its networks, one per arm, in the precision that they were trained and validated in.

    Raises:
        SystemExit: the run has not all of ``arms``.
    """
    state = load_checkpoint(run / CHECKPOINT)
    settings = state["settings"]
    missing = set(arms or []) - set(settings["arms"])
    if missing:
        raise SystemExit(f"--arms {' '.join(sorted(missing))}: {run} has {', '.join(settings['arms'])}.")
    dtype = PRECISIONS[settings["precision"]]

    def super_resolve(network: torch.nn.Module, lr: np.ndarray) -> images.Result:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return images.super_resolve(network, lr)

    methods = []
    for arm in arms or settings["arms"]:
        weights = state["networks"][arm]
        network = build(settings["model"], settings["scale"])
        network.load_state_dict(weights)
        network.to(device, memory_format=torch.channels_last).eval()
        upscale = functools.partial(super_resolve, network)
        methods.append(Method(str(run), settings["model"], arm, settings["seed"], state["iteration"], upscale))
    return settings["scale"], methods


def bicubic(scale: int) -> Method:
    """The baseline of every table."""
    return Method("", BICUBIC, "", "", "", lambda lr: images.as_result(images.enlarge(lr, scale)))


class Dataset(NamedTuple):
    """A folder's pairs, read one by one. ``made_lr``: some LR image did not come with it."""

    name: str
    count: int
    made_lr: bool
    pairs: Iterable[Pair]


def dataset_of(folder: str, scale: int, grey_as_rgb: bool) -> Dataset:
    """The images of a folder; of the demonstration, those held out."""

    def pair_of(source: data.Source) -> Pair:
        pair = data.load(source, scale)
        return Pair(pair.name, images.as_rgb(pair.hr), images.as_rgb(pair.lr)) if grey_as_rgb else pair

    if folder == DEMO:
        pairs = data.demonstration(scale, held_out=True)
        return Dataset(DEMO, len(pairs), True, pairs)
    found = data.sources(Path(folder), scale)
    made_lr = any(source.lr is None for source in found)
    return Dataset(Path(folder).resolve().name, len(found), made_lr, map(pair_of, found))


def evaluate(
    dataset: Dataset, scale: int, methods: list[Method], rgb: bool, out: Path, write: bool, pictures: int
) -> list[dict]:
    """One row per image and method."""
    rows = []
    bar = tqdm(dataset.pairs, desc=f"{dataset.name} x{scale}", total=dataset.count, unit="image")
    for index, pair in enumerate(bar):
        expected = images.as_result(pair.hr)
        shown = {}
        for method in methods:
            result = method.upscale(pair.lr)
            measured = (result.rgb, expected.rgb) if rgb else (result.y, expected.y)
            psnr, ssim = images.psnr(*measured, border=scale), images.ssim(*measured, border=scale)
            described = {name: getattr(method, name) for name in METHOD}
            rows.append(
                {"dataset": dataset.name, "scale": scale, "image": pair.name, **described, "psnr": psnr, "ssim": ssim}
            )
            shown[f"{method.label}\n{psnr:.2f} dB, {ssim:.4f}"] = result
            if write:
                images.write(result.rgb, out / dataset.name / f"x{scale}" / method.folder / f"{pair.name}.png")
        if index < pictures:
            picture = out / dataset.name / f"x{scale}" / f"compare-{pair.name}.png"
            pixels = {label: result.rgb for label, result in shown.items()}
            figures.save(figures.close_up(pair, pixels, scale), picture)
    return rows


def means_of(rows: list[dict]) -> list[dict]:
    """The mean over the images of each dataset."""
    keys = ("dataset", "scale", *METHOD)
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        {
            **dict(zip(keys, key, strict=True)),
            "images": len(group),
            **{name: sum(row[name] for row in group) / len(group) for name in ("psnr", "ssim")},
        }
        for key, group in groups.items()
    ]


def table(rows: list[dict], means: list[dict], rgb: bool, grey_as_rgb: bool, made_lr: bool) -> str:
    """Markdown: every image, and last the means; the scales side by side."""
    channels = "RGB" if rgb else "the luma (Y of BT.601)"
    lines = ["# PSNR in dB and SSIM", "", f"On {channels}, uint8, without a border as wide as the scale."]
    lines.append(f"Grey images {'are made RGB first' if grey_as_rgb else 'are measured as they are'}.")
    if made_lr:
        lines.append("LR images that did not come with the data were made as MATLAB's imresize makes them.")
    method = ("run", "model", "arm", "seed")
    lines += ["", *_side_by_side(rows, ("dataset", "image", *method))]
    lines += ["", "Means over the images:", "", *_side_by_side(means, ("dataset", "images", *method))]
    return "\n".join(lines) + "\n"


def _side_by_side(rows: list[dict], keys: tuple[str, ...]) -> list[str]:
    scales = sorted({row["scale"] for row in rows})
    cells: dict[tuple, dict[int, str]] = {}
    for row in rows:
        # SelfExSR's files have the scale in their names.
        key = tuple(str(row[key]).replace(f"_SRF_{row['scale']}_HR", "") for key in keys)
        cells.setdefault(key, {})[row["scale"]] = f"{row['psnr']:.2f} / {row['ssim']:.4f}"
    header = [*keys, *(f"x{scale}" for scale in scales)]
    body = [[*key, *(scores.get(scale, "") for scale in scales)] for key, scores in cells.items()]
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]


def main(arguments: list[str] | None = None) -> int:
    """Return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, nargs="+", default=[], help="folders of train_sr.py; none: bicubic only")
    add("--arms", nargs="+", help="only these losses of the runs (default: all)")
    add(
        "--data", nargs="+", required=True, help="folders of images, or 'demo': the held-out photographs of train_sr.py"
    )
    add("--scale", type=int, nargs="+", choices=(2, 3, 4), help="bicubic alone at these; runs know their own scale")
    add("--rgb", action="store_true", help="measure on RGB")
    add(
        "--grey-as-rgb",
        action="store_true",
        help="make RGB of grey images first, whose luma is then 16..235: LapSRN's numbers on Set14, where VDSR's, DRRN's and "
        "EDSR's keep them as they are",
    )
    add(
        "--pictures",
        type=number(int, 0),
        default=0,
        help="how many images of each dataset to draw close-ups of (default: 0)",
    )
    add("--write", action="store_true", help="write the enlarged images")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    add("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    if bool(options.run) == bool(options.scale):
        parser.error("give either --run or, for bicubic alone, --scale")
    for option, folders in (("--run", options.run), ("--data", [Path(folder) for folder in options.data])):
        # Rows are told apart by the run's folder and the dataset's name.
        names = [folder.resolve() if option == "--run" else folder.resolve().name for folder in folders]
        if len(set(names)) < len(names):
            parser.error(
                f"{option} has {' '.join(map(str, folders))}; expected different ones, with names of their own"
            )
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device} can't be used: {str(error).partition(chr(10))[0]}")
    writable_folder(options.out)

    by_scale: dict[int, list[Method]] = {scale: [bicubic(scale)] for scale in options.scale or []}
    for run in options.run:
        scale, methods = methods_of(run, options.arms, torch.device(options.device))
        by_scale.setdefault(scale, [bicubic(scale)]).extend(methods)

    rows: list[dict] = []
    made_lr = False
    for folder in options.data:
        for scale, methods in by_scale.items():
            dataset = dataset_of(folder, scale, options.grey_as_rgb)
            made_lr |= dataset.made_lr
            try:
                rows += evaluate(dataset, scale, methods, options.rgb, options.out, options.write, options.pictures)
            except images.ImageError as error:
                raise SystemExit(f"{error} A mean without it would be another number.") from None
    means = means_of(rows)
    write_csv(rows, options.out / "results.csv")
    write_csv(means, options.out / "means.csv")
    text = table(rows, means, options.rgb, options.grey_as_rgb, made_lr)
    with atomic(options.out / "results.md") as file:
        file.write(text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
