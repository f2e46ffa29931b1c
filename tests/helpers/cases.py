"""Pairs of images and their layouts, and the comparison of one call with the oracle, for the tests of all backends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers import oracle, tolerances

SIMILARITY_KEYWORDS = ("data_range", "window_size", "sigma", "k1", "k2", "padding")


def to_tensors(images, dtypes, device="cpu"):
    """Two NumPy images as contiguous tensors, first rounded to the narrower dtype, so that equal pixels stay equal."""
    narrow = min(dtypes, key=lambda dtype: torch.finfo(dtype).bits)
    return tuple(
        torch.from_numpy(np.ascontiguousarray(image)).to(narrow).to(dtype).to(device)
        for image, dtype in zip(images, dtypes, strict=True)
    )


def smooth_pair(shape, seed=0, noise=0.1, dtypes=(torch.float32, torch.float32), device="cpu"):
    """A smooth image in 0..1 and the same with noise, which overshoots; a tenth of the pixels are equal."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[: shape[-2], : shape[-1]]
    phase = rng.uniform(0, 6, (*shape[:-2], 1, 1))
    hr = 0.5 + 0.35 * np.sin(rows / 5 + phase) * np.cos(columns / 7 - phase) + 0.05 * rng.standard_normal(shape)
    sr = np.where(rng.random(shape) < 0.1, hr, hr + noise * rng.standard_normal(shape))
    return to_tensors((sr, hr), dtypes, device)


def numpy64(tensor):
    return tensor.detach().cpu().double().numpy()


def leaf(tensor):
    """A view of the same memory, with the same strides, that requires a gradient."""
    return tensor.detach().requires_grad_()


def distinct_pair(shape=(1, 2, 6, 7), dtype=torch.float64, device="cpu", seed=0):
    """Two images that differ by at least 0.05 everywhere, so that l1 is differentiable at them."""
    generator = torch.Generator().manual_seed(seed)
    hr = torch.rand(shape, generator=generator, dtype=torch.float64)
    error = 0.05 + 0.2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (hr + sign * error).to(dtype).to(device), hr.to(dtype).to(device)


def leaf_copy(tensor):
    return tensor.detach().clone().requires_grad_()


def check_against_oracle(backend, sr, hr, step=1.0, upstream=1.0, maps=False, with_stats=True, **keywords):
    """Loss, both gradients and, unless ``with_stats`` is False, statistics (and with ``maps`` both maps) against the oracle."""
    number = step.item() if isinstance(step, torch.Tensor) else step
    expected = oracle.pspl(numpy64(sr), numpy64(hr), number, upstream=numpy64(torch.as_tensor(upstream)), **keywords)
    delta = oracle.width(number, keywords.get("alpha", 1.0), keywords.get("beta", 0.0))
    gamma, mu = keywords.get("gamma", 2.0), keywords.get("mu", -1.0)
    distance = keywords.get("distance", "l1")
    compute = tolerances.compute_dtype(sr, hr)
    per_pixel = keywords.get("reduction") == "none"
    loss_growth = tolerances.growth(delta, mu, distance, tolerances.LOSS, compute)
    gradient_growth = tolerances.growth(delta, mu, distance, tolerances.GRADIENT, compute)
    attention_growth = tolerances.growth(delta, mu, "l1", tolerances.LOSS, compute)
    loss_map_growth = gradient_growth * tolerances.single_pixel(expected.loss_map, tolerances.GRADIENT, compute, 2)
    loss_growth *= tolerances.single_pixel(expected.loss_map, tolerances.LOSS, compute)
    gradient_growth *= tolerances.single_pixel(expected.grad_sr, tolerances.GRADIENT, compute, 2)
    attention_growth *= tolerances.single_pixel(expected.attention, tolerances.LOSS, compute)
    n = 1 if keywords.get("reduction", "mean") == "mean" else sr.numel()
    scale = max(gamma, gamma**2) * max(1.0, float(np.max(np.abs(numpy64(sr) - numpy64(hr)), initial=0)) ** 2)

    a, b = leaf(sr), leaf(hr)
    loss = backend.pspl_loss(a, b, step, return_stats=with_stats, **keywords)
    loss, stats = loss if with_stats else (loss, None)
    assert loss.dtype == compute
    assert loss.shape == (sr.shape if per_pixel else ())
    assert loss.device == sr.device
    tolerances.assert_loss(
        loss, expected, loss_map_growth if per_pixel else loss_growth, scale * (1 if per_pixel else n)
    )

    grads = torch.autograd.grad(
        loss, (a, b), torch.as_tensor(upstream, dtype=loss.dtype, device=loss.device).expand_as(loss)
    )
    slope = scale * max(1.0, float(np.max(np.abs(upstream)) if np.ndim(upstream) else abs(upstream)))
    # A bfloat16 gradient is saved in bfloat16, and rounded again where grad_output is not a power of two.
    scaled = np.any(np.abs(np.frexp(numpy64(torch.as_tensor(upstream)))[0]) != 0.5)
    roundings = 2 if scaled and sr.dtype == hr.dtype == torch.bfloat16 else 1
    for grad, image, exact in zip(grads, (a, b), (expected.grad_sr, expected.grad_hr), strict=True):
        assert grad.dtype == image.dtype
        assert grad.device == image.device
        tolerances.assert_gradient(grad, exact, compute, gradient_growth, slope, roundings)

    if with_stats:
        check_stats(stats, expected, attention_growth, gamma, compute, keywords.get("data_range", 1.0))
    if maps:
        similar = {name: keywords[name] for name in SIMILARITY_KEYWORDS if name in keywords}
        m_s = backend.similarity_map(sr, hr, **similar)
        assert m_s.dtype == compute
        assert m_s.shape == sr.shape
        assert not m_s.requires_grad
        assert not (m_s.abs() > 1).any()  # NaN is compared below
        tolerances.assert_similarity(m_s, expected.similarity)
        paced = {name: keywords[name] for name in ("alpha", "beta", "gamma", "mu") if name in keywords}
        m_a = backend.attention_map(leaf(sr), hr, step, **similar, **paced)
        assert m_a.dtype == compute
        assert m_a.shape == sr.shape
        assert not m_a.requires_grad
        tolerances.assert_attention(m_a, expected.similarity, delta, gamma, mu)
    return loss, grads


def check_stats(stats, expected, attention_growth, gamma, compute, data_range):
    relative = tolerances.LOSS[compute]
    for name in ("mean_abs_error", "mean_squared_error", "mean_similarity", "mean_attention"):
        value = getattr(stats, name)
        assert value.dim() == 0
        assert value.dtype == compute
        assert not value.requires_grad
    assert stats.mean_abs_error.item() == pytest.approx(expected.mean_abs_error, rel=relative, abs=0)
    assert stats.mean_squared_error.item() == pytest.approx(expected.mean_squared_error, rel=relative, abs=0)
    # A tenth of the allowed error of one pixel, because an average must be more accurate, unless it is of fewer pixels.
    share = max(0.1, 1 / expected.similarity.size)
    assert stats.mean_similarity.item() == pytest.approx(
        expected.mean_similarity, abs=share * tolerances.SIMILARITY[compute]
    )
    tiny = gamma * tolerances.TINY[compute]
    assert stats.mean_attention.item() == pytest.approx(
        expected.mean_attention, rel=relative * attention_growth, abs=tiny
    )
    assert stats.data_range == data_range
    # 1e-6 relative of the squared error is 4e-6 dB; log10 and the rounding of the result in float32 cost more.
    assert stats.psnr.item() == pytest.approx(expected.psnr, rel=1e-6, abs=1e-5)


def _channels_last(x):
    axes = {3: (1, 2, 0), 4: (0, 2, 3, 1), 5: (0, 1, 3, 4, 2)}[x.dim()]
    return x.permute(axes).contiguous().permute(np.argsort(axes).tolist())


def _sliced(x):
    """Every other pixel of a larger buffer that is NaN elsewhere, at an odd offset."""
    buffer = torch.full((*x.shape[:-2], 2 * x.shape[-2] + 3, 2 * x.shape[-1] + 5), math.nan, dtype=x.dtype)
    view = buffer.to(x.device)[..., 1 : 2 * x.shape[-2] : 2, 3 : 2 * x.shape[-1] + 2 : 2]
    view.copy_(x)
    return view


def _cropped(x):
    """A crop, as data augmentation makes it: dense rows that start anywhere."""
    buffer = torch.full((*x.shape[:-2], x.shape[-2] + 2, x.shape[-1] + 3), math.nan, dtype=x.dtype).to(x.device)
    view = buffer[..., 1:-1, 1:-2]
    view.copy_(x)
    return view


def _transposed(x):
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _batch_last(x):
    return x.permute(*range(1, x.dim()), 0).contiguous().permute(-1, *range(x.dim() - 1))


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": _channels_last,
    "sliced": _sliced,
    "cropped": _cropped,
    "transposed": _transposed,
    "batch_last": _batch_last,
}
