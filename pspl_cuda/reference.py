"""PSPL in plain PyTorch, equation by equation (Lin, Gao, Wang, Li: "Pixel-level Self-Paced Learning for
Super-Resolution", ICASSP 2020). It is the fallback where there is no fused kernel, the second witness of the tests, and
documentation.

It runs on any device and traces under ``torch.compile(fullgraph=True)``. All operations are element-wise: there is no
convolution or matrix product that TF32 or autocast could shorten. The variances come from the law of total variance,
not from E[x^2] - E[x]^2, so that nothing cancels: they are never negative, and float32 is enough for 0..255 as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import Config, check_choice, check_config, check_flag, check_images, check_step
from .stats import PSPLStats

__all__ = ["attention_map", "pspl_loss", "similarity_map"]


def pspl_loss(
    sr: Tensor,
    hr: Tensor,
    step: float | Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    gamma: float = 2.0,
    mu: float = -1.0,
    distance: str = "l1",
    data_range: float = 1.0,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "zeros",
    eps: float = 1e-3,
    reduction: str = "mean",
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, PSPLStats]:
    """Distance of two images, each pixel weighted by the attention map (Eq. 10), which is a constant to the gradient.

    With ``d = sr - hr`` and the map ``M_a`` of :func:`attention_map`, a pixel's loss is ``M_a |d|`` (``"l1"``),
    ``M_a^2 d^2`` (``"l2"``) or ``sqrt(M_a^2 d^2 + eps^2)`` (``"charbonnier"``).

    Args:
        sr, hr: ``[..., C, H, W]``, 3 to 5 dimensions, float64, float32, float16 or bfloat16, also mixed.
        step: Eq. 8's step, a number or a 0-dim tensor, which is never read on the host.
        alpha, beta, gamma, mu: growth rate, initial width, peak and position of the attention map (Eq. 7, 8).
        data_range, window_size, sigma, k1, k2, padding: see :func:`similarity_map`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, which returns the loss of each pixel.
        return_stats: return ``(loss, PSPLStats)``.
        backend: ``"auto"`` or ``"reference"``, which mean the same here.

    Returns:
        A 0-dim tensor, or ``[..., C, H, W]`` for reduction ``"none"``; float64 if an input is, float32 otherwise.
        Gradients reach ``sr`` and ``hr`` in their own dtypes, and can be differentiated again.

    Raises:
        ValueError: for a shape or a value that is out of range.
        TypeError: for a dtype or a type.
    """
    check_choice("backend", backend, ("auto", "reference"))
    config = check_config(
        alpha, beta, gamma, mu, distance, data_range, window_size, sigma, k1, k2, padding, eps, reduction
    )
    check_images(sr, hr)
    step = check_step(step, sr.device)
    check_flag("return_stats", return_stats)

    with torch.no_grad():
        similarity = _similarity(sr, hr, config)
        attention = _attention(similarity, step, config)
    loss = weighted_distance(sr, hr, attention, config)
    if not return_stats:
        return loss

    with torch.no_grad():
        error = _difference(sr, hr, attention.dtype)
        return loss, PSPLStats(
            mean_abs_error=error.abs().mean(),
            mean_squared_error=error.square().mean(),
            mean_similarity=similarity.mean(),
            mean_attention=attention.mean(),
            data_range=config.data_range,
        )


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


@torch.no_grad()
def similarity_map(
    sr: Tensor,
    hr: Tensor,
    *,
    data_range: float = 1.0,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "zeros",
    backend: str = "auto",
) -> Tensor:
    """SSIM of the windows around each pixel of each channel (Eq. 3 to 5): ``M_s``, from -1 to 1, 1 if they are equal.

    Args:
        sr, hr: ``[..., C, H, W]``, 3 to 5 dimensions, float64, float32, float16 or bfloat16, also mixed.
        data_range: the range L of pixel values, in ``C1 = (k1 L)^2`` and ``C2 = (k2 L)^2``.
        window_size, sigma: width (odd) and standard deviation of the Gaussian window, in pixels.
        padding: what lies outside the image: ``"zeros"``, ``"reflect"`` (the edge is not repeated) or ``"replicate"``.
        backend: ``"auto"`` or ``"reference"``, which mean the same here.

    Returns:
        ``[..., C, H, W]`` without gradient, float64 if an input is, float32 otherwise.

    Raises:
        ValueError: for a shape or a value that is out of range.
        TypeError: for a dtype or a type.
    """
    check_choice("backend", backend, ("auto", "reference"))
    config = check_config(data_range=data_range, window_size=window_size, sigma=sigma, k1=k1, k2=k2, padding=padding)
    check_images(sr, hr)
    return _similarity(sr, hr, config)


@torch.no_grad()
def attention_map(
    sr: Tensor,
    hr: Tensor,
    step: float | Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    gamma: float = 2.0,
    mu: float = -1.0,
    data_range: float = 1.0,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "zeros",
    backend: str = "auto",
) -> Tensor:
    """Weight of each pixel, from 0 to gamma (Eq. 6 to 8): ``M_a = gamma exp(-(M_s - mu)^2 / delta^2)`` with the
    similarity map ``M_s`` and ``delta = alpha step + beta``. A delta of 0 or infinity means the limit: never NaN.

    Arguments, result and errors are those of :func:`pspl_loss` and :func:`similarity_map`.
    """
    check_choice("backend", backend, ("auto", "reference"))
    config = check_config(
        alpha,
        beta,
        gamma,
        mu,
        data_range=data_range,
        window_size=window_size,
        sigma=sigma,
        k1=k1,
        k2=k2,
        padding=padding,
    )
    check_images(sr, hr)
    step = check_step(step, sr.device)
    return _attention(_similarity(sr, hr, config), step, config)


def _difference(sr, hr, dtype):
    return sr.to(dtype) - hr.to(dtype)


def _similarity(sr, hr, config):
    # Eq. 4 weighs the pixels of a window by G. The sum and the difference of the images hold all that Eq. 5 asks for:
    # with (S, D) their means, 2 mu_s mu_h = (S^2 - D^2) / 2 and mu_s^2 + mu_h^2 = (S^2 + D^2) / 2; likewise the
    # covariance and the variances of the images from the variances of their sum and difference.
    dtype = torch.float64 if torch.float64 in (sr.dtype, hr.dtype) else torch.float32
    # The map is a constant; no_grad alone does not stop forward-mode differentiation.
    sr, hr = sr.detach().to(dtype), hr.detach().to(dtype)
    mean, variance = _mean_and_variance(torch.stack((sr + hr, sr - hr)), config)
    mean_sum, mean_difference = mean
    variance_sum, variance_difference = variance

    # Eq. 5. A factor (a - b) / (a + b) is written 1 - 2 b / (a + b): exactly 1 for identical images, and in [-1, 1].
    b = mean_difference.square()
    luminance = 1 - 2 * (b / (mean_sum.square() + 2 * config.c1 + b))
    b = variance_difference
    structure = 1 - 2 * (b / (variance_sum + 2 * config.c2 + b))
    return luminance * structure


def _attention(similarity, step, config):
    # Eq. 8, as a tensor, so that 0 and infinity divide, and so that a step on the device stays there. alpha = 0
    # switches the schedule off, also when step is infinite.
    limits = torch.finfo(similarity.dtype)
    if isinstance(step, Tensor):
        step = step.to(similarity.device)
    else:
        step = step if step <= limits.max else math.inf
        step = torch.full((), step, dtype=similarity.dtype, device=similarity.device)
    delta = torch.full_like(step, config.beta) if config.alpha == 0 else config.alpha * step + config.beta

    # Eq. 7. 1 / delta stays finite, for 0 times it must be 0: delta = 0 gives gamma at mu and 0 elsewhere.
    inverse = (1 / delta.abs()).to(similarity.dtype).clamp(max=limits.max)
    return config.gamma * torch.exp(-((similarity - config.mu) * inverse).square())


def _taps(window_size, sigma):
    """Weights of a Gaussian window along one dimension; they add up to 1."""
    radius = window_size // 2
    z = [i / sigma for i in range(-radius, radius + 1)]
    weights = [math.exp(-0.5 * v * v) for v in z]
    total = math.fsum(weights)
    return [w / total for w in weights]


def _mean_and_variance(image, config):
    """Mean and variance, ``[..., H, W]``, of the Gaussian window around each pixel.

    First along the columns, then along the rows. The variance of a window is the mean of its columns' variances plus
    the variance of its columns' means.
    """
    taps = _taps(config.window_size, config.sigma)
    mean, variance = image, None
    for dim in (-2, -1):
        seen = _shifted(mean, dim, config)
        mean = _weighted_sum(taps, seen)
        spread = _weighted_sum(taps, [(x - mean).square() for x in seen])
        variance = spread if variance is None else spread + _weighted_sum(taps, _shifted(variance, dim, config))
    return mean, variance


def _weighted_sum(weights, images):
    return sum(w * x for w, x in zip(weights, images, strict=True))


def _shifted(image, dim, config):
    """``image`` seen from each of the window's positions along ``dim``, as views on one padded copy."""
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
