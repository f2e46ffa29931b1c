"""The maps of a call, for inspection: the similarity M_s and the attention M_a."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import DEFAULTS, check_config, check_images, check_step
from .functional import choose_backend


@torch.no_grad()
def similarity_map(
    sr: Tensor,
    hr: Tensor,
    *,
    data_range: float = DEFAULTS.data_range,
    window_size: int = DEFAULTS.window_size,
    sigma: float = DEFAULTS.sigma,
    k1: float = DEFAULTS.k1,
    k2: float = DEFAULTS.k2,
    padding: str = DEFAULTS.padding,
    backend: str = "auto",
) -> Tensor:
    """The similarity map M_s: SSIM per pixel and channel, of the images' size (Eq. 3 to 5).

    Images, keywords and errors are as in :func:`pspl_loss`.

    Returns:
        A tensor of ``sr``'s shape with values from -1 to 1, exactly 1 where the windows are identical; float32, or float64 if
        an image is float64; without gradient.
    """
    config = check_config(
        DEFAULTS._replace(data_range=data_range, window_size=window_size, sigma=sigma, k1=k1, k2=k2, padding=padding)
    )
    check_images(sr, hr)
    return choose_backend(backend, sr.device).similarity_map(sr, hr, config)


@torch.no_grad()
def attention_map(
    sr: Tensor,
    hr: Tensor,
    step: float | Tensor,
    *,
    alpha: float = DEFAULTS.alpha,
    beta: float = DEFAULTS.beta,
    gamma: float = DEFAULTS.gamma,
    mu: float = DEFAULTS.mu,
    data_range: float = DEFAULTS.data_range,
    window_size: int = DEFAULTS.window_size,
    sigma: float = DEFAULTS.sigma,
    k1: float = DEFAULTS.k1,
    k2: float = DEFAULTS.k2,
    padding: str = DEFAULTS.padding,
    backend: str = "auto",
) -> Tensor:
    """The attention map M_a: the weight that :func:`pspl_loss` gives to each pixel and channel (Eq. 6 to 8).

    Images, keywords and errors are as in :func:`pspl_loss`.

    Returns:
        A tensor of ``sr``'s shape with values from 0 to gamma; float32, or float64 if an image is float64; without gradient.
    """
    config = check_config(
        DEFAULTS._replace(
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            mu=mu,
            data_range=data_range,
            window_size=window_size,
            sigma=sigma,
            k1=k1,
            k2=k2,
            padding=padding,
        )
    )
    check_images(sr, hr)
    step = check_step(step, sr.device)
    return choose_backend(backend, sr.device).attention_map(sr, hr, step, config)
