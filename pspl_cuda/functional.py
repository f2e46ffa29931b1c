"""The public functions: check the arguments, choose a backend, call it."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from . import _library, _ops, _torch, reference
from .config import (
    BACKENDS,
    DEFAULTS,
    Config,
    check_choice,
    check_config,
    check_flag,
    check_images,
    check_step,
    warn_of_iterations,
)
from .stats import PSPLStats


def pspl_loss(
    sr: Tensor,
    hr: Tensor,
    step: float | Tensor,
    *,
    alpha: float = DEFAULTS.alpha,
    beta: float = DEFAULTS.beta,
    gamma: float = DEFAULTS.gamma,
    mu: float = DEFAULTS.mu,
    distance: str = DEFAULTS.distance,
    data_range: float = DEFAULTS.data_range,
    window_size: int = DEFAULTS.window_size,
    sigma: float = DEFAULTS.sigma,
    k1: float = DEFAULTS.k1,
    k2: float = DEFAULTS.k2,
    padding: str = DEFAULTS.padding,
    eps: float = DEFAULTS.eps,
    reduction: str = DEFAULTS.reduction,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, PSPLStats]:
    """Pixel-level self-paced learning loss (Lin, Gao, Wang, Li, ICASSP 2020, Eq. 3 to 10).

    Each pixel is weighted by an attention map made from the SSIM of the two images; the map is a constant in backprop.

    Args:
        sr: the network's output, ``[..., C, H, W]`` with 3 to 5 dimensions, in float32, float16, bfloat16 or float64, any
            strides. It gets a gradient in its own dtype.
        hr: the target, of the same shape and device; its dtype and strides may differ. It gets a gradient if it requires one.
        step: training progress in Eq. 8, ``delta = alpha * step + beta``: a number of at least 0, or a 0-dim tensor, which is
            read on the device without synchronisation. The authors' unit is 1000 iterations; :class:`PSPLLoss` counts them.
        alpha: growth rate of delta per step (Eq. 8).
        beta: initial delta (Eq. 8). With 0, the first steps have weights near zero wherever the images agree.
        gamma: the largest attention (Eq. 7), reached as delta grows.
        mu: similarity that gets the largest attention (Eq. 7); -1 is the least similar.
        distance: ``"l1"``: mean of ``M_a |d|``; ``"l2"``: mean of ``M_a^2 d^2``; ``"charbonnier"``: mean of
            ``sqrt(M_a^2 d^2 + eps^2)``, with ``d = sr - hr`` (Eq. 10).
        data_range: L, the range of the pixel values: 1.0 for 0..1, 255 for 0..255. It sets only ``C1 = (k1 L)^2``,
            ``C2 = (k2 L)^2`` and the peak of :attr:`PSPLStats.psnr`. The official code keeps L = 1 on images of 0..255.
        window_size: odd width K of the Gaussian window, 1 to 511. 3, 5, 7, 9 and 11 have specialised kernels.
        sigma: standard deviation of the window in pixels.
        k1: constant of the luminance term of Eq. 5.
        k2: constant of the contrast term of Eq. 5.
        padding: values outside the image: ``"zeros"`` (as the official code), ``"reflect"`` (the edge pixel is not repeated)
            or ``"replicate"``.
        eps: the charbonnier distance's eps, in pixel units.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (the loss per pixel).
        return_stats: also return :class:`PSPLStats`, summed in the same pass.
        backend: ``"auto"``: the fused kernel of the images' device, or the reference, with one warning, if there is none.
            ``"cuda"``, ``"cpu"``, ``"reference"``: that backend, or an error if it is unavailable. The environment variable
            PSPL_BACKEND replaces ``"auto"``.

    Returns:
        The loss, 0-dim (``sr``'s shape for reduction ``"none"``), float32, or float64 if an image is float64; with
        ``return_stats`` the pair ``(loss, PSPLStats)``.

    Raises:
        TypeError: an argument of the wrong type, or images that are not floating point.
        ValueError: shapes that differ, an empty batch, a keyword out of range.
        RuntimeError: an explicit ``backend`` that is unavailable; forward-mode differentiation or a transform of
            ``torch.func``, which only ``backend="reference"`` supports.
    """
    config = check_config(
        Config(
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            mu=mu,
            distance=distance,
            data_range=data_range,
            window_size=window_size,
            sigma=sigma,
            k1=k1,
            k2=k2,
            padding=padding,
            eps=eps,
            reduction=reduction,
        )
    )
    warn_of_iterations(step)
    return weighted_loss(sr, hr, step, config, check_flag("return_stats", return_stats), backend)


def weighted_loss(
    sr: Tensor,
    hr: Tensor,
    step: float | Tensor,
    config: Config,
    return_stats: bool,
    backend: str,
    loss_weight: float = 1.0,
) -> Tensor | tuple[Tensor, PSPLStats]:
    """``loss_weight`` times :func:`pspl_loss`, on a checked ``config``, so that :class:`PSPLLoss` checks its keywords once."""
    check_images(sr, hr)
    step = check_step(step, sr.device)
    if use_kernels(backend, sr.device):
        value, stats = _ops.call_loss(sr, hr, step, config, return_stats, loss_weight)
    else:
        value, stats = reference.reference_loss(sr, hr, step, config, return_stats, loss_weight)
    if not return_stats:
        return value
    # The programs of AOTInductor can return tensors only.
    data_range = stats.new_full((), config.data_range) if _torch.is_exporting() else config.data_range
    fields: tuple[Any, ...] = (*stats.unbind(), data_range)
    return value, PSPLStats(*fields)


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
        Config(data_range=data_range, window_size=window_size, sigma=sigma, k1=k1, k2=k2, padding=padding)
    )
    check_images(sr, hr)
    if use_kernels(backend, sr.device):
        return _ops.call_map(sr, hr, None, config)
    return reference.similarity_map(sr, hr, config)


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
        Config(
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
    if use_kernels(backend, sr.device):
        return _ops.call_map(sr, hr, step, config)
    return reference.attention_map(sr, hr, step, config)


@_torch.constant_in_graphs
def _backend_of_environment() -> str | None:
    return os.environ.get("PSPL_BACKEND")


def use_kernels(backend: str, device: torch.device) -> bool:
    """Whether the fused kernels run a call for tensors on ``device``; the reference does otherwise."""
    check_choice("backend", backend, BACKENDS)
    name, remedy = "backend", 'pass backend="auto"'
    override = _backend_of_environment() if backend == "auto" else None
    if override is not None:
        name, remedy = "the environment variable PSPL_BACKEND", "unset it"
        backend = check_choice(name, override, BACKENDS)
    if backend == "reference":
        return False
    kernel = device.type if backend == "auto" else backend
    reason = unavailable_reason(kernel, device)
    if reason is None and kernel != device.type:
        raise ValueError(
            f"{name} is {backend!r}, but sr and hr are on {device}; expected {backend} tensors. Move the images, or {remedy}."
        )
    if reason is None:
        return True
    if backend != "auto":
        raise RuntimeError(f"{name} is {backend!r}, but {reason}")
    if reason not in _warned and not torch.compiler.is_compiling():
        _warned.add(reason)
        warnings.warn(
            f"pspl_cuda uses its PyTorch reference, which is correct but slow: {reason} "
            'torch.compile of the loss with backend="reference" is 2 to 5 times faster on a CPU. '
            'Pass backend="reference" to silence this warning.',
            stacklevel=4,
        )
    return False


_warned: set[str] = set()


def unavailable_reason(kernel: str, device: torch.device | None = None) -> str | None:
    """Why the fused kernel of a device type is not available, or does not run on ``device``; None if it does."""
    if kernel not in _library.reasons:
        return f"there is no fused kernel for {kernel} tensors."
    reason = _library.reasons[kernel]
    # A query of the GPU would break a compiled graph. The kernel reports the same error itself.
    if reason is None and device is not None and kernel == device.type == "cuda" and not torch.compiler.is_compiling():
        reason = _library.gpu_reason(device.index)
    return reason and f"the {kernel} kernel is not available: {reason}"
