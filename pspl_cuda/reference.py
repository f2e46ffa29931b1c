"""PSPL in plain PyTorch, equation by equation (Lin, Gao, Wang, Li: "Pixel-level Self-Paced Learning for Super-Resolution",
ICASSP 2020): ``backend="reference"``, the fallback on devices without a fused kernel, and the kernels' independent cross-check.

It works on a checked :class:`~pspl_cuda.config.Config` and runs on any device. All operations are element-wise: there is no
convolution or matrix product whose precision TF32 or autocast could reduce. The variances come from the law of total variance
instead of E[x^2] - E[x]^2, which avoids cancellation: they are never negative, and float32 suffices for images of 0..255 as well.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from .config import Config, compute_dtype


def reference_loss(
    sr: Tensor,
    hr: Tensor,
    step: float | Tensor,
    config: Config,
    with_stats: bool = False,
    loss_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """``loss_weight`` times the reduced loss (per pixel for reduction ``"none"``), and the statistics: ``[4]`` in the order of
    PSPLStats, else empty.

    Gradients reach ``sr`` and ``hr`` in their own dtypes and can be differentiated again; the attention is a constant.
    """
    similarity = similarity_map(sr, hr, config)
    attention = _attention(similarity, step, config)
    value = weighted_distance(sr, hr, attention, config)
    if loss_weight != 1:
        value = loss_weight * value
    if not with_stats:
        return value, attention.new_empty(0)
    error = _difference(sr.detach(), hr.detach(), attention.dtype)
    return value, torch.stack([error.abs().mean(), error.square().mean(), similarity.mean(), attention.mean()])


def weighted_distance(sr: Tensor, hr: Tensor, attention: Tensor, config: Config) -> Tensor:
    """Eq. 10, ``L(M_a * I_sr, M_a * I_hr)``, reduced, in the dtype of the attention map ``[..., C, H, W]``."""
    difference = _difference(sr, hr, attention.dtype)
    if config.distance == "l1":
        loss = attention * difference.abs()
    elif config.distance == "l2":
        loss = (attention * difference).square()
    else:
        loss = ((attention * difference).square() + config.eps**2).sqrt()
    if config.reduction == "mean":
        return loss.mean()
    return loss.sum() if config.reduction == "sum" else loss


def distance_gradient(sr: Tensor, hr: Tensor, attention: Tensor, config: Config) -> Tensor:
    """The derivative of :func:`weighted_distance` with respect to ``sr``, differentiable; its negative is that to ``hr``."""
    difference = _difference(sr, hr, attention.dtype)
    if config.distance == "l1":
        gradient = attention * difference.sign()
    elif config.distance == "l2":
        gradient = 2 * attention.square() * difference
    else:
        root = ((attention * difference).square() + config.eps**2).sqrt()
        gradient = attention.square() * difference / root
    return gradient / gradient.numel() if config.reduction == "mean" else gradient


def _difference(sr: Tensor, hr: Tensor, dtype: torch.dtype) -> Tensor:
    return sr.to(dtype) - hr.to(dtype)


def similarity_map(sr: Tensor, hr: Tensor, config: Config) -> Tensor:
    """M_s of Eq. 3 to 5, ``[..., C, H, W]``, from -1 to 1; float64 if an image is, else float32; without gradient."""
    # With S and D the means of the sum and the difference of the images, 2 mu_s mu_h = (S^2 - D^2) / 2 and
    # mu_s^2 + mu_h^2 = (S^2 + D^2) / 2; the covariance and the variances follow from the variances of sum and difference.
    dtype = compute_dtype(sr, hr)
    # The map is a constant. no_grad would not stop forward-mode differentiation, and torch.export can't load a program that has
    # a block of it.
    sr, hr = sr.detach().to(dtype), hr.detach().to(dtype)
    mean, variance = _mean_and_variance(torch.stack((sr + hr, sr - hr)), config)
    mean_sum, mean_difference = mean
    variance_sum, variance_difference = variance

    c1, c2 = (config.k1 * config.data_range) ** 2, (config.k2 * config.data_range) ** 2
    # Eq. 5. A factor (a - b) / (a + b) is written 1 - 2 b / (a + b): exactly 1 for identical images, and in [-1, 1].
    b = mean_difference.square()
    luminance = 1 - 2 * (b / (mean_sum.square() + 2 * c1 + b))
    b = variance_difference
    structure = 1 - 2 * (b / (variance_sum + 2 * c2 + b))
    return luminance * structure


def attention_map(sr: Tensor, hr: Tensor, step: float | Tensor, config: Config) -> Tensor:
    """M_a of Eq. 6 to 8, ``[..., C, H, W]``, from 0 to gamma; dtype as :func:`similarity_map`; without gradient."""
    return _attention(similarity_map(sr, hr, config), step, config)


def _attention(similarity: Tensor, step: float | Tensor, config: Config) -> Tensor:
    # Eq. 8, as a tensor, so that 0 and infinity divide, and so that a step on the device stays there. alpha = 0
    # switches the schedule off, also when step is infinite.
    limits = torch.finfo(similarity.dtype)
    if isinstance(step, Tensor):
        step = step.to(similarity.device, torch.promote_types(step.dtype, similarity.dtype))
    else:
        step = step if step <= limits.max else math.inf
        step = torch.full((), step, dtype=similarity.dtype, device=similarity.device)
    delta = torch.full_like(step, config.beta) if config.alpha == 0 else config.alpha * step + config.beta

    # Eq. 7. 1 / delta is kept finite, because 0 times it must be 0: delta = 0 gives gamma at mu and 0 elsewhere.
    inverse = (1 / delta.abs()).to(similarity.dtype).clamp(max=limits.max)
    return config.gamma * torch.exp(-((similarity - config.mu) * inverse).square())


def _taps(window_size: int, sigma: float) -> list[float]:
    """Weights of a Gaussian window along one dimension; they add up to 1."""
    radius = window_size // 2
    z = [i / sigma for i in range(-radius, radius + 1)]
    weights = [math.exp(-0.5 * v * v) for v in z]
    total = math.fsum(weights)
    return [w / total for w in weights]


def _mean_and_variance(image: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Mean and variance, ``[..., H, W]``, of the Gaussian window around each pixel.

    First along the columns, then along the rows. The variance of a window is the mean of its columns' variances plus
    the variance of its columns' means.
    """
    taps = _taps(config.window_size, config.sigma)

    def along(dim: int, image: Tensor) -> tuple[Tensor, Tensor]:
        shifted = _shifted(image, dim, config)
        mean = _weighted_sum(taps, shifted)
        return mean, _weighted_sum(taps, [(x - mean).square() for x in shifted])

    column_mean, column_variance = along(-2, image)
    mean, variance_of_means = along(-1, column_mean)
    mean_of_variances = _weighted_sum(taps, _shifted(column_variance, -1, config))
    return mean, variance_of_means + mean_of_variances


def _weighted_sum(weights: Iterable[float], images: list[Tensor]) -> Tensor:
    return functools.reduce(operator.add, (w * x for w, x in zip(weights, images, strict=True)))


def _shifted(image: Tensor, dim: int, config: Config) -> list[Tensor]:
    """``image`` shifted to each position of the window along ``dim``, as views of one padded copy."""
    radius, n = config.window_size // 2, image.shape[dim]
    if config.padding == "zeros":
        pad = (0, 0, radius, radius) if dim == -2 else (radius, radius)
        padded = torch.nn.functional.pad(image, pad)
    else:
        index = torch.arange(-radius, n + radius, device=image.device)
        if config.padding == "replicate":
            index = index.clamp(0, n - 1)
        else:
            # Reflection without repeating the edge is periodic, in an image smaller than the window as well.
            period = max(2 * (n - 1), 1)
            index = index.remainder(period)
            index = torch.where(index < n, index, period - index)
        padded = image.index_select(dim, index)
    return [padded.narrow(dim, k, n) for k in range(config.window_size)]
