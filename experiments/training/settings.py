"""Every setting of a training run, its default and what it means."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import torch

from networks import NETWORKS

from .losses import PLAIN, Arm

DEMO = "demo"
LARGEST_SEED = 2**64 - 1  # of torch.manual_seed
# How a network runs: the dtype of autocast, or None.
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Recipe(NamedTuple):
    """``patch``: width of an HR patch in HR pixels, or in LR pixels if ``lr_patch``. ``distance``: what the authors train on."""

    patch: int
    distance: str
    lr_patch: bool = False


# Patches are those of the networks' own papers; distances those of the PSPL authors' code, and of its own paper for LapSRN.
RECIPES = {
    "srcnn": Recipe(33, "l2"),
    "srcnn-915": Recipe(33, "l2"),
    "vdsr": Recipe(41, "l1"),
    "drrn": Recipe(31, "l1"),
    "lapsrn": Recipe(128, "charbonnier"),
    "edsr-baseline": Recipe(48, "l1", lr_patch=True),
    "edsr": Recipe(48, "l1", lr_patch=True),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A training run. The help texts of :func:`add_options` say what each field means."""

    model: str
    scale: int
    arms: tuple[str, ...]
    distance: str
    iterations: int
    batch: int
    patch: int
    optimizer: str
    lr: float
    halve_every: int
    clip: float | None
    pretrained: tuple[str, str] | None
    seed: int
    precision: str
    data: str
    validate: str | None
    validate_every: int
    validation_images: int
    log_every: int
    compile: bool
    channels_last: bool
    workers: int
    cache: str | None


# What decides the weights that come out. A run continues only with the same values; the rest may change.
DECISIVE = (
    "model",
    "scale",
    "arms",
    "distance",
    "iterations",
    "batch",
    "patch",
    "optimizer",
    "lr",
    "halve_every",
    "clip",
    "pretrained",
    "seed",
    "precision",
    "data",
    "validate",
    "validation_images",
)


def number(kind: type, least: float, most: float = math.inf, strictly: bool = False):
    """A parser of argparse for a finite number of ``kind`` from ``least`` (``strictly``: above it) to ``most``."""
    what = f"{'an integer' if kind is int else 'a number'} {'above' if strictly else 'of at least'} {least:g}"
    if most < math.inf:
        what += f" and at most {most}"

    def parse(text: str):
        try:
            value = kind(text)
            if (value > least if strictly else value >= least) and value <= most and value != math.inf:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text} is not {what}")

    return parse


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run; what a recipe decides has no default here."""
    positive, count = number(int, 1), number(int, 0)
    add = parser.add_argument
    add("--model", choices=tuple(NETWORKS), default="srcnn", help="the network (default: %(default)s)")
    add("--scale", type=int, choices=(2, 3, 4), default=4, help="enlargement; lapsrn: 2 or 4 (default: %(default)s)")
    add(
        "--arms",
        nargs="+",
        default=["pspl"],
        help="losses to train with, side by side: the same initial weights, the same batches. 'plain'; 'warmup:1/3', plain "
        "with a learning rate that rises over the first third of the run; 'pspl:1/3', PSPL with its schedule over a third of it; "
        "'pspl', with the paper's 300 steps; 'pspl:1/3:0.8', with the beta 0.8; 'pspl:1/3:similarity', whose delta is at least "
        "what gives a pixel of the batch's mean similarity half the peak; 'scale:1/3' and 'scale:1/3:0.8', as pspl but with the "
        "mean weight at every pixel; 'attention:1/3', as pspl:1/3 but with its weights divided by their mean (default: pspl)",
    )
    add("--distance", choices=tuple(PLAIN), help="(default: l2 for srcnn, charbonnier for lapsrn, else l1)")
    add(
        "--data",
        default=DEMO,
        help="a folder of HR images, or one that holds DIV2K_train_HR and perhaps DIV2K_valid_HR; LR images are read from the "
        "LR folder beside it (DIV2K_train_LR_bicubic/X4) if there is one, else made as MATLAB makes them. 'demo': six "
        "photographs bundled in scikit-image and scikit-learn (default: demo)",
    )
    add(
        "--validate",
        metavar="DIR",
        help="a folder of images to validate on during the run, such as Set5 (default: those of --data that are held out: its "
        "last tenth, of DIV2K 0801 and up)",
    )
    add("--cache", metavar="DIR", help="where decoded images are kept (default: pspl_cuda in the user's cache folder)")
    add("--iterations", type=positive, default=300_000, help="(default: %(default)s, the PSPL authors')")
    add("--batch", type=positive, default=16, help="patches of an iteration, of all processes together (default: 16)")
    add(
        "--patch",
        type=positive,
        help="width of an HR patch, rounded down to a multiple of the scale (default: the network's own paper's; "
        + ", ".join(f"{name} {r.patch}{' x scale' if r.lr_patch else ''}" for name, r in RECIPES.items())
        + ")",
    )
    add("--optimizer", choices=("adam", "sgd"), default="adam", help="sgd: with momentum 0.9 (default: adam)")
    add("--lr", type=number(float, 0, strictly=True), default=1e-4, help="learning rate (default: %(default)s)")
    add("--halve-every", type=positive, help="iterations after which it is halved (default: 2/3 of --iterations)")
    add(
        "--clip",
        type=number(float, 0, strictly=True),
        metavar="NORM",
        help="longest gradient; a longer one is shortened to it",
    )
    add(
        "--pretrained",
        nargs=2,
        metavar=("RUN", "ARM"),
        help="begin with the weights of this arm of another run, not with random ones",
    )
    add(
        "--seed",
        type=number(int, 0, LARGEST_SEED),
        default=0,
        help="of the initial weights and the batches (default: 0)",
    )
    add("--validate-every", type=positive, default=1000, help="iterations; the run is saved then, too (default: 1000)")
    add("--validation-images", type=positive, default=10, help="how many images to validate on (default: 10)")
    add("--log-every", type=positive, default=100, help="iterations between two rows of metrics.csv (default: 100)")
    add("--precision", choices=PRECISIONS, default="32-true", help="of the network; the loss stays in float32")
    add("--compile", action="store_true", help="torch.compile the network")
    add("--channels-last", action="store_true", help="network and images in channels_last")
    add("--workers", type=count, default=4 * torch.cuda.is_available(), help="processes that load data (CPU: 0)")


def resolve(options: argparse.Namespace) -> Settings:
    """Fill in what the network's recipe decides.

    Raises:
        SystemExit: options that do not go together.
    """
    recipe = RECIPES[options.model]
    try:
        with torch.device("meta"):
            NETWORKS[options.model](options.scale)
        arms = [Arm.parse(text) for text in options.arms]
    except ValueError as error:
        raise SystemExit(
            f"--model {options.model} --scale {options.scale} --arms {' '.join(options.arms)}: {error}"
        ) from None
    if len(set(arms)) < len(arms):
        raise SystemExit(f"--arms {' '.join(options.arms)}: expected different ones.")
    patch = options.patch or recipe.patch * (options.scale if recipe.lr_patch else 1)
    if patch < options.scale:
        raise SystemExit(f"--patch {patch} is smaller than --scale {options.scale}: an LR patch would have no pixel.")
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)}
    values |= {
        "arms": tuple(options.arms),
        "data": options.data if options.data == DEMO else str(Path(options.data).resolve()),
        "validate": options.validate and str(Path(options.validate).resolve()),
        "pretrained": options.pretrained and (str(Path(options.pretrained[0]).resolve()), options.pretrained[1]),
        "distance": options.distance or recipe.distance,
        "patch": patch // options.scale * options.scale,
        "halve_every": options.halve_every or max(1, options.iterations * 2 // 3),
    }
    return Settings(**values)
