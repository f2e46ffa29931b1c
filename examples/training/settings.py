"""Every setting of a training run, its default and what it means. The paper's recipe is the default."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch

from networks import NETWORKS

LOSSES = ("l1", "l2", "charbonnier", "pspl")
DISTANCES = ("l1", "l2", "charbonnier")
DEMO = "demo"


class Recipe(NamedTuple):
    """``patch``: width of an HR patch, in pixels, or in LR pixels if ``lr_patch``. ``distance``: what the authors train on."""

    patch: int
    distance: str
    lr_patch: bool = False


# Patches: the PSPL authors' code, and for DRRN, whose 192 there needs tens of gigabytes, its own paper. Distances: the authors'
# code, and for LapSRN, whose intermediate output they don't supervise, its own paper.
RECIPES = {
    "srcnn": Recipe(128, "l2"),
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
    loss: str
    distance: str
    data: str
    iterations: int
    batch: int
    patch: int
    lr: float
    halve_every: int
    iterations_per_step: float
    validate_every: int
    validation_images: int
    checkpoint_every: int
    log_every: int
    seed: int
    amp: str | None
    compile: bool
    channels_last: bool
    device: str
    workers: int
    cache: str | None
    out: str

    def label(self) -> str:
        """For the titles of pictures."""
        loss = f"PSPL ({self.distance})" if self.loss == "pspl" else self.loss
        return f"{self.model} x{self.scale}, {loss}"


# What may change when a run is resumed: where and how it runs, not what it computes.
FREE_ON_RESUME = frozenset(
    {
        "iterations",
        "validate_every",
        "validation_images",
        "checkpoint_every",
        "log_every",
        "compile",
        "channels_last",
        "device",
        "workers",
        "cache",
        "data",
        "out",
    }
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run. All default to None, so that :func:`resolve` knows what the user asked for."""

    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{value} is not a number of at least 1")
        return value

    def positive_float(text: str) -> float:
        value = float(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    def count(text: str) -> int:
        value = int(text)
        if value < 0:
            raise argparse.ArgumentTypeError(f"{value} is not a number of at least 0")
        return value

    add = parser.add_argument
    add("--model", choices=tuple(NETWORKS), help="the network (default: srcnn)")
    add("--scale", type=int, choices=(2, 3, 4), help="enlargement; lapsrn knows 2 and 4 (default: 2)")
    add("--loss", choices=LOSSES, help="(default: pspl)")
    add(
        "--distance", choices=DISTANCES, help="PSPL's distance (default: l2 for srcnn, charbonnier for lapsrn, else l1)"
    )
    add(
        "--data",
        help="a folder of HR images, or one that holds DIV2K_train_HR and perhaps DIV2K_valid_HR; LR images are read from the "
        "LR folder beside it (DIV2K_train_LR_bicubic/X2) if there is one, else made by antialiased bicubic. Without a "
        "folder for validation the last tenth of the images is held out (of DIV2K: 0801 and up). 'demo': photographs bundled "
        "in scikit-image and scikit-learn, a demonstration (default: demo)",
    )
    add("--iterations", type=positive, help="(default: 300000, as 300 of the authors' epochs; 1500 for the demo)")
    add("--batch", type=positive, help="patches of an iteration, of all processes together (default: 16)")
    add(
        "--patch",
        type=positive,
        help="width of an HR patch, rounded down to a multiple of the scale (default: srcnn 128, vdsr 41, drrn 31, "
        "lapsrn 128, edsr 48 x scale; 48 for the demo)",
    )
    add(
        "--lr",
        type=positive_float,
        help="learning rate of Adam (default: 1e-4; 1e-3 for srcnn on the demo, whose few iterations are too few for 1e-4)",
    )
    add("--halve-every", type=positive, help="iterations after which it is halved (default: 2/3 of --iterations)")
    add(
        "--iterations-per-step",
        type=positive_float,
        help="iterations that make one unit of PSPL's step (default: 1000, the authors'; for the demo a 20th of --iterations, "
        "so that its short run sees the whole schedule)",
    )
    add("--validate-every", type=positive, help="iterations (default: 1000; 100 for the demo)")
    add("--validation-images", type=positive, help="how many of the held-out images to use (default: 10)")
    add("--checkpoint-every", type=positive, help="iterations (default: as --validate-every)")
    add("--log-every", type=positive, help="iterations between two rows of metrics.csv (default: 100; 10 for the demo)")
    add("--seed", type=count, help="of the initial weights and the order of the data (default: 0)")
    add("--amp", choices=("bf16", "fp16"), help="the network in this precision, by autocast; the loss stays in float32")
    add("--compile", action="store_true", default=None, help="torch.compile the network")
    add("--channels-last", action="store_true", default=None, help="network and images in channels_last")
    add("--device", help="cpu, cuda or cuda:1, ... (default: cuda if there is one)")
    add("--workers", type=count, help="processes that load the data (default: 4 with a GPU, else 0: none)")
    add("--cache", help="where decoded images of a folder are kept (default: the folder .decoded in it)")


def resolve(options: argparse.Namespace, saved: dict | None = None) -> Settings:
    """Fill in what the user left open: from the ``saved`` settings of a run to resume, else from the recipe.

    Raises:
        SystemExit: options that contradict each other, or the saved settings.
    """
    fields = {field.name for field in dataclasses.fields(Settings)}
    given = {name: value for name, value in vars(options).items() if name in fields and value is not None}
    if saved is not None:
        changed = [name for name in given if name not in FREE_ON_RESUME and given[name] != saved[name]]
        if changed:
            listed = ", ".join(
                f"--{name.replace('_', '-')} was {saved[name]} and is now {given[name]}" for name in changed
            )
            raise SystemExit(
                f"The run to resume is another one: {listed}. Leave these options out, or start in another --out."
            )
        return Settings(**{**saved, **given})
    model = given.get("model", "srcnn")
    scale = given.get("scale", 2)
    loss = given.get("loss", "pspl")
    if loss != "pspl" and "distance" in given:
        raise SystemExit(f"--distance {given['distance']} is an option of --loss pspl, but the loss is {loss}.")
    try:
        with torch.device("meta"):
            NETWORKS[model](scale)
    except ValueError as error:
        raise SystemExit(f"--model {model} --scale {scale}: {error}") from None
    data = given.get("data", DEMO)
    demo = data == DEMO
    recipe = RECIPES[model]
    iterations = given.get("iterations", 1500 if demo else 300_000)
    patch = given.get("patch", 48 if demo else recipe.patch * (scale if recipe.lr_patch else 1))
    if patch < scale:
        raise SystemExit(f"--patch {patch} is smaller than --scale {scale}: an LR patch would have no pixel.")
    has_gpu = torch.cuda.is_available()
    validate_every = given.get("validate_every", 100 if demo else 1000)
    defaults = {
        "model": model,
        "scale": scale,
        "loss": loss,
        "distance": recipe.distance,
        "data": data,
        "iterations": iterations,
        "batch": 16,
        "lr": 1e-3 if demo and model == "srcnn" else 1e-4,
        "halve_every": max(1, iterations * 2 // 3),
        "iterations_per_step": max(1.0, iterations / 20) if demo else 1000.0,
        "validate_every": validate_every,
        "validation_images": 10,
        "checkpoint_every": validate_every,
        "log_every": 10 if demo else 100,
        "seed": 0,
        "amp": None,
        "compile": False,
        "channels_last": False,
        "device": "cuda" if has_gpu else "cpu",
        "workers": 4 if has_gpu else 0,
        "cache": None,
    }
    return Settings(**{**defaults, **given, "patch": patch // scale * scale, "out": str(Path(given["out"]))})
