"""Convergence, attention over the run, and close-ups: the paper's Fig. 4, 3 and 5 for our runs."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pspl_cuda import attention_map

from .data import Pair
from .files import atomic
from .images import as_rgb, most_detailed, network_input
from .losses import PAPER_SPAN, SIMILARITY, Arm

LOOKS = {
    "plain": ("-", "o"),
    "warmup": ("--", "D"),
    "pspl": ("-", "o"),
    "scale": ("--", "s"),
    "attention": (":", "^"),
}
# The schedules of the experiment, by span and start; others take a place between them in a colour map.
THIRD = Fraction(1, 3)
COLOURS = {
    (PAPER_SPAN, 0.0): "#d9730d",
    (Fraction(1, 10), 0.0): "#8c6d1f",
    (THIRD, 0.0): "#1f5fa8",
    (Fraction(1), 0.0): "#a02c2c",
    (THIRD, 0.8): "#6fb1e4",
    (THIRD, 1.0): "#2c9c72",
    (THIRD, 2.0): "#7a3fb0",
    (THIRD, SIMILARITY): "#d2478f",
}
GREY = "0.6"
CLOSE_UP = 48  # HR pixels
FEW = 30  # so many points of a curve are shown as points


def save(figure: Figure, path: Path) -> None:
    """As PNG, whole or not at all."""
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=110)


def style(arm: str) -> dict:
    """Colour, line and marker of an arm, the same in every figure: the colour tells its schedule, the rest its kind."""
    kind, span, start = Arm.parse(arm)
    if kind in ("plain", "warmup"):
        colour = "black"
    else:
        colour = COLOURS.get((span, start)) or colormaps["viridis"](1 + math.log(span, 20))
    return {"color": colour, "linestyle": LOOKS[kind][0], "marker": LOOKS[kind][1]}


def _band(axis: Axes, x: np.ndarray, lines: np.ndarray, label: str, arm: str | None = None) -> None:
    """The mean of ``lines [seeds, points]``, and their range, in the look of ``arm`` (default: what the label names)."""
    look = style(arm or label)
    axis.fill_between(x, lines.min(0), lines.max(0), color=look["color"], alpha=0.12, linewidth=0)
    look["marker"] = look["marker"] if len(x) <= FEW else None
    axis.plot(x, lines.mean(0), **look, linewidth=1.8, markersize=4, label=label)


def convergence(iterations: np.ndarray, psnr: dict[str, np.ndarray], baseline: float, title: str, path: Path) -> None:
    """PSNR against iterations, and its difference from the first arm: mean over the seeds, their range shaded.

    Args:
        iterations: ``[points]``, the same for all.
        psnr: ``[seeds, points]`` of each arm; the first is compared with.
        baseline: PSNR of bicubic on the same images.
        title: of the figure.
        path: of the PNG.
    """
    figure = Figure(figsize=(14, 4.8) if len(psnr) > 1 else (7.2, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, 2 if len(psnr) > 1 else 1, squeeze=False)[0]
    curves = {arm: (iterations, lines) for arm, lines in psnr.items()}
    _convergence(axes[0], curves, baseline)
    if len(psnr) > 1:
        _difference(axes[1], curves)
    for axis in axes:
        axis.legend(fontsize=8, handlelength=3.5)
    save(figure, path)


def networks(experiments: dict[str, tuple[dict[str, tuple[np.ndarray, np.ndarray]], float]], path: Path) -> None:
    """As :func:`convergence`, a column for each network.

    Args:
        experiments: title -> the curves of each arm, ``(iterations [points], PSNR [seeds, points])``, and PSNR of bicubic.
        path: of the PNG.
    """
    figure = Figure(figsize=(4.2 * len(experiments), 8), layout="constrained")
    grid = figure.subplots(2, len(experiments), squeeze=False)
    shown = {}
    for (title, (curves, baseline)), (above, below) in zip(experiments.items(), grid.T, strict=True):
        above.set_title(title, fontsize=11)
        _convergence(above, curves, baseline)
        _difference(below, curves)
        handles, labels = above.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(
        shown.values(), shown, loc="outside lower center", ncols=min(len(shown), 3 * len(experiments)), handlelength=3.5
    )
    save(figure, path)


def _convergence(axis: Axes, curves: dict[str, tuple[np.ndarray, np.ndarray]], baseline: float) -> None:
    for arm, (iterations, lines) in curves.items():
        _band(axis, iterations, lines, arm)
    axis.axhline(baseline, color=GREY, linestyle="--", label="bicubic")
    axis.set_ylabel("PSNR in dB, on the luma")
    axis.set_xlabel("iteration")
    axis.grid(alpha=0.3)
    # The first points of all arms lie far below what matters.
    ends = [lines[:, -1].mean() for _, lines in curves.values()]
    highest = max(lines.max() for _, lines in curves.values())
    axis.set_ylim(min(*ends, baseline) - 1.5, max(highest, baseline) + 0.15)


def _difference(axis: Axes, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    plain, (_, compared) = next(iter(curves.items()))
    for arm, (iterations, lines) in curves.items():
        if arm != plain:
            _band(axis, iterations, lines - compared, f"{arm} - {plain}", arm)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_ylabel(f"difference from {plain} in dB, linear within ±0.2")
    axis.set_xlabel("iteration")
    axis.grid(alpha=0.3)
    axis.set_yscale("symlog", linthresh=0.2)
    ticks = [-5, -2, -1, -0.5, -0.2, -0.1, 0, 0.1, 0.2, 0.5, 1, 2, 5]
    low, high = axis.get_ylim()
    axis.set_yticks([t for t in ticks if low <= t <= high], labels=[f"{t:+g}" for t in ticks if low <= t <= high])


def attention(snapshots: list[dict], probe: dict, title: str, path: Path) -> None:
    """How attention changes: its curve at each delta, and its map on a validation image as it was trained (Fig. 3).

    Each map has a colour scale of its own, from its 1st to its 99th percentile, which its title names.

    Args:
        snapshots: ``{"iteration", "delta", "sr"}`` each, of one arm.
        probe: ``{"image", "hr"}``, the name and the uint8 ``[H, W, C]`` of what ``sr`` belongs to.
        title: of the figure.
        path: of the PNG.
    """
    columns = len(snapshots) + 1
    hr = network_input(probe["hr"].numpy(), snapshots[0]["sr"].shape[1])
    figure = Figure(figsize=(4.2 + 1.9 * columns, 4.3), layout="constrained")
    figure.suptitle(f"{title}: a part of {probe['image']}", fontsize=11)
    left, right = figure.subfigures(1, 2, width_ratios=(4.2, 1.9 * columns))
    axes = left.subplots()
    grid = right.subplots(2, columns, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    _show(grid[0, 0], hr)
    grid[0, 0].set_title("HR", fontsize=9)
    grid[1, 0].text(0.5, 0.5, "attention,\nbright: more,\nscales differ", ha="center", va="center", fontsize=9)
    similarity = torch.linspace(-1, 1, 201)
    for index, (snapshot, column) in enumerate(zip(snapshots, grid.T[1:], strict=True)):
        delta = snapshot["delta"]
        curve = 2 * torch.exp(-(((similarity + 1) / delta) ** 2))
        shade = (0.12, 0.37, 0.66, 0.25 + 0.75 * (index + 1) / len(snapshots))
        axes.plot(similarity, curve, color=shade, label=f"{delta:.3g}")
        sr = snapshot["sr"].float()
        weight = attention_map(sr, hr, delta)[0].mean(0).numpy()
        _show(column[0], sr)
        column[0].set_title(f"iteration {snapshot['iteration']}", fontsize=9)
        low, high = np.percentile(weight, (1, 99))
        column[1].imshow(weight, cmap="inferno", vmin=low, vmax=high)
        column[1].set_title(f"delta {delta:.3g}: {low:.4g} to {high:.4g}", fontsize=9)
    axes.set_xlabel("similarity")
    axes.set_ylabel("attention")
    axes.grid(alpha=0.3)
    axes.legend(title="delta", fontsize=8)
    save(figure, path)


def _show(axis: Axes, image: torch.Tensor) -> None:
    pixels = image[0].float().clamp(0, 1).permute(1, 2, 0).numpy()
    axis.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)


def close_up(pair: Pair, results: dict[str, np.ndarray], scale: int) -> Figure:
    """The most detailed part of the HR image, beside that of each result (Fig. 5), and below it where each is wrong."""
    size = min(CLOSE_UP, *pair.hr.shape[:2])
    _, top, left = most_detailed(pair.hr, size)
    inside = slice(top, top + size), slice(left, left + size)
    hr = as_rgb(pair.hr)[inside]
    shown = {name: image[inside] for name, image in results.items()}
    errors = {name: np.abs(image.astype(float) - hr).mean(-1) for name, image in shown.items()}
    most = max(np.percentile(error, 99) for error in errors.values())
    columns = min(6, len(shown) + 1)
    rows = -(-(len(shown) + 1) // columns)
    figure = Figure(figsize=(2.3 * columns, 4.9 * rows + 0.3), layout="constrained")
    figure.suptitle(
        f"{pair.name}, x{scale}: {size} x {size} pixels; below, the error from 0 to {most:.0f} of 255", fontsize=10
    )
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for index, (name, image) in enumerate({"HR": hr, **shown}.items()):
        row, column = 2 * (index // columns), index % columns
        grid[row, column].imshow(image, interpolation="nearest")
        grid[row, column].set_title(name, fontsize=8)
        if name in errors:
            grid[row + 1, column].imshow(errors[name], cmap="gray", vmin=0, vmax=most, interpolation="nearest")
            grid[row + 1, column].set_title(f"mean {errors[name].mean():.2f}", fontsize=8)
    return figure
