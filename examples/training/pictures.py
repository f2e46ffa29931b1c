"""curves.png, and attention.png: the paper's Fig. 3 for this run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pspl_cuda import attention_map
from pspl_cuda.config import Config

from .files import atomic

BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#d9730d", "#2e8b57", "0.6"


def save(figure: Figure, path: Path) -> None:
    """As PNG, whole or not at all."""
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the curve."""
    width = max(1, len(values) // 20)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _curve(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, colour: str, smooth: bool = True) -> None:
    there = np.isfinite(y)
    x, y = x[there], y[there]
    if not len(y):
        return
    if smooth:
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        y = _smooth(y)
    axes.plot(x, y, color=colour, label=label, marker=None if smooth else ".")


def curves(metrics: dict[str, np.ndarray], title: str, bicubic: float, path: Path) -> None:
    """What :func:`records.read` gave: losses, PSNR and SSIM, PSPL's schedule. ``bicubic``: its PSNR on the held-out images."""
    x = metrics["iteration"]
    scheduled = np.isfinite(metrics["attention"]).any()
    figure = Figure(figsize=(15 if scheduled else 10, 4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 3 if scheduled else 2)
    _curve(axes[0], x, metrics["loss"], "loss, as trained", BLUE)
    _curve(axes[0], x, metrics["l1"], "unweighted L1", ORANGE)
    if (metrics["loss"] > 0).any():
        axes[0].set_yscale("log")
        # PSPL's first losses are zero but for rounding, and would flatten all the rest.
        both = np.concatenate([metrics["loss"], metrics["l1"]])
        axes[0].set_ylim(max(both.min(), 1e-4 * metrics["l1"].min()) / 2, 2 * both.max())
    axes[0].set_title("Training batch")
    _curve(axes[1], x, metrics["validation_psnr"], "network", BLUE, smooth=False)
    axes[1].axhline(bicubic, color=GREY, linestyle="--", label="bicubic")
    axes[1].set_title("Held-out images, PSNR in dB (luma)")
    if scheduled:
        _curve(axes[2], x, metrics["attention"], "mean attention", BLUE)
        _curve(axes[2], x, metrics["similarity"], "mean similarity", ORANGE)
        axes[2].set_title("Training batch, PSPL's maps")
        steps = axes[2].twinx()
        steps.plot(x, metrics["step"], color=GREY, linestyle=":")
        axes[2].plot([], [], color=GREY, linestyle=":", label="step (right)")  # one legend for both scales
    for axis in axes:
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


def attention(
    snapshots: list[dict], hr: torch.Tensor, constants: Config, title: str, path: Path, columns: int = 7
) -> None:
    """How the attention changes: its curve at each step (Fig. 3, left), and its map on one held-out image as it was trained.

    Args:
        snapshots: ``{"iteration", "step", "sr"}`` each, ``sr`` like ``hr``.
        hr: the image, float32 ``[1, C, H, W]``, 0..1.
        constants: of the loss.
        columns: at most so many snapshots are drawn, the earliest.
    """
    shown = snapshots[:columns]
    figure = Figure(figsize=(3.4 + 2.1 * (len(shown) + 1), 4.8), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subfigures(1, 2, width_ratios=(1.6, len(shown) + 1))
    axes = left.subplots()
    similarity = np.linspace(-1, 1, 201)
    for index, snapshot in enumerate(shown):
        delta = constants.alpha * snapshot["step"] + constants.beta
        weight = constants.gamma * np.exp(-(((similarity - constants.mu) / delta) ** 2))
        colour = (0.12, 0.37, 0.66, 0.25 + 0.75 * (index + 1) / len(shown))
        axes.plot(similarity, weight, color=colour, label=f"{snapshot['step']:.3g}")
    axes.set_xlabel("similarity")
    axes.set_ylabel("attention")
    axes.legend(title="step", fontsize=8)
    grid = right.subplots(2, len(shown) + 1, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    _show(grid[0, 0], hr)
    grid[0, 0].set_title("held-out image", fontsize=9)
    for column, snapshot in zip(grid.T[1:], shown, strict=True):
        keywords = constants._asdict()
        for name in ("distance", "eps", "reduction"):
            del keywords[name]
        weight = attention_map(snapshot["sr"].float(), hr, snapshot["step"], **keywords)
        _show(column[0], snapshot["sr"])
        column[0].set_title(f"output at {snapshot['iteration']}", fontsize=9)
        drawn = column[1].imshow(weight[0].mean(0).numpy(), cmap="inferno", vmin=0, vmax=constants.gamma)
        column[1].set_title(f"step {snapshot['step']:.3g}, mean {weight.mean():.2f}", fontsize=9)
    right.colorbar(drawn, ax=grid[1, 0], location="left", label="attention", fraction=0.5)
    save(figure, path)


def _show(axis: Axes, image: torch.Tensor) -> None:
    pixels = image[0].float().clamp(0, 1).permute(1, 2, 0).numpy()
    axis.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
