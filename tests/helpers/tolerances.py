"""The allowed errors of a backend, derived from the error budget of the package. test_helpers.py tests this module.

The budget, for float32: the similarity map within 2e-5 of the exact one, the loss within 1e-6 relative, the gradient
within 1e-5 relative in the L2 norm. 16-bit inputs are computed in float32, so they get the same, against the oracle on
the rounded inputs, and one rounding of a 16-bit output. float64 rounds 2^29 times finer, which would make it 4e-14; the
oracle rounds there too, so it gets 1e-12: still too little for any float32 in between.

The budget of the loss holds for delta = 1 and mu = -1, where the exponent of Eq. 7, q = (M_s - mu)^2 / delta^2, reaches
4. An error in the exponent is a relative error of the attention, so the budget grows in proportion to the largest q,
and once more with the square of M_a that l2 and charbonnier take.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from helpers import oracle

SIMILARITY = {torch.float32: 2e-5, torch.float64: 1e-12}
# The CUDA strip kernel moves its pivots at an edge. A window of which the edge is the row next to the outermost has that row's
# weight of the square of the move in its variance, and an error of at most 6 roundings, 2^-24 of this square: of the product, of
# the mean twice, each two times in its square, and of the last sum.
EDGE = 6 * 2.0**-24
# A window that is narrow for its size has less than 0.005 of the weight there, which is little beside C2. At worst 8 roundings
# stay in a variance, of the two weighted sums of the squares and those of the means, twice in their square, and of the sum of the
# taps, 2^-25 off in both directions, one more. Eq. 5 divides by 4 C2, where the variance of x - y is small by C2. Per square of
# the move, which is at most the range of x + y, or of x - y: 2 L. A window of about one pixel averages none of these roundings.
NARROW_TAP = 0.005
NARROW_SIGMA = {3: 0.5, 5: 0.7}
NARROW_WINDOW = 9 * 2.0**-24 / (4 * 0.03**2)
# With constants of 0..1 on images of 0..255, C2 is 65025 times smaller beside the squares, and float32 can't hold the budget: the
# similarity map gets this share of the error that the formula of the official code makes in float32.
OFFICIAL_SHARE = 1 / 10
LOSS = {torch.float32: 1e-6, torch.float64: 1e-13}
GRADIENT = {torch.float32: 1e-5, torch.float64: 1e-12}

# One rounding to nearest: relative, and where the result is subnormal, absolute.
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
UNDERFLOW = {torch.float32: 2.0**-150, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-134}

# exp() may return 0 for what is smaller than the smallest normal number, a little more than which this is.
TINY = {torch.float32: 2e-38, torch.float64: 1e-307}


def compute_dtype(*images: torch.Tensor) -> torch.dtype:
    """float64 if any image is, float32 otherwise."""
    return torch.float64 if any(image.dtype == torch.float64 for image in images) else torch.float32


def largest_exponent(delta: float, mu: float = -1.0) -> float:
    """Of Eq. 7, over all M_s from -1 to 1."""
    return max(abs(1 - mu), abs(-1 - mu)) ** 2 / delta**2


def rounded_delta(delta: float, dtype: torch.dtype) -> float:
    """Relative error of the exponent by the roundings of delta, which are the same at every pixel."""
    # At a power of two, sqrt(log2 e) / delta has the rounding that it has at delta = 1. Elsewhere alpha, step, their product,
    # its sum with beta, the reciprocal and the product with the constant are rounded too; each counts twice in the exponent.
    power_of_two = math.frexp(delta)[0] == 0.5
    return 0.0 if power_of_two else 2 * 6 * ROUNDING[dtype]


def growth(
    delta: float,
    mu: float = -1.0,
    distance: str = "l1",
    budget: dict[torch.dtype, float] = LOSS,
    dtype: torch.dtype = torch.float32,
) -> float:
    """How many times its ``budget`` at delta = 1 an error may be; at least 1."""
    if math.isinf(delta) or delta == 0:
        return 1.0
    # The error of delta is the same at every pixel, so it is as large in an average and in an L2 norm.
    error = largest_exponent(delta, mu) * (budget[dtype] / 4 + rounded_delta(delta, dtype))
    return max(1.0, error / budget[dtype]) * (1 if distance == "l1" else 2)


def single_pixel(
    values: np.ndarray, budget: dict[torch.dtype, float], dtype: torch.dtype = torch.float32, order: int = 1
) -> float:
    """How many times its ``budget`` at delta = 1 the error of the sum of ``values``, or of their norm, may be; at least 1.

    An error of M_s is up to 4 times as large in the attention, relative to it. The pixel with the largest value may have the
    largest error, which counts as much as the value does.
    """
    largest = np.abs(values).max()
    if not 0 < largest < math.inf:
        return 1.0
    # The squares of values below 1e-162 are zero, even in float64.
    share = 1 / np.linalg.norm(values.ravel() / largest, order)
    return max(1.0, 4 * SIMILARITY[dtype] * share / budget[dtype])


def strip_budget(sr: torch.Tensor, hr: torch.Tensor, window_size=11, sigma=1.5, data_range=1.0) -> float:
    """Largest error of M_s of the CUDA kernel, which is more than the usual one where pivots move in small or narrow windows."""
    dtype, radius = compute_dtype(sr, hr), window_size // 2
    # Windows above 11 and float64 have a pivot per pixel.
    if dtype == torch.float64 or not 1 <= radius <= 5:
        return SIMILARITY[dtype]
    taps = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    taps /= 2 * taps.sum() - taps[0]
    if taps[radius - 1] >= NARROW_TAP and sigma >= NARROW_SIGMA.get(window_size, 0):
        return max(SIMILARITY[dtype], EDGE / taps[radius - 1])
    # Zeros are beside the image.
    total, difference = ((x.max().clamp(min=0) - x.min().clamp(max=0)).item() for x in (sr + hr, sr - hr))
    return max(SIMILARITY[dtype], NARROW_WINDOW * (total**2 + 4 * difference**2) / data_range**2)


def assert_similarity(actual: torch.Tensor, expected: np.ndarray, budget: float | None = None) -> None:
    """The similarity map is within its budget at every pixel, NaN exactly where the oracle has NaN."""
    error = np.abs(_same_nan(actual, expected) - expected)
    budget = SIMILARITY[actual.dtype] if budget is None else budget
    over = error > budget
    assert not over.any(), f"M_s is off by {_worst(error):.3g}, allowed {budget:.3g}, at {over.sum()} pixels"


def assert_attention(actual: torch.Tensor, similarity: np.ndarray, delta: float, gamma=2.0, mu=-1.0) -> None:
    """The attention map is one that a similarity map within its budget can have, at every pixel."""
    slack = SIMILARITY[actual.dtype]
    near = [oracle.attention(similarity + shift, delta, gamma, mu) for shift in (-slack, 0, slack)]
    low, high = np.minimum.reduce(near), np.maximum.reduce(near)
    high = np.where(np.abs(similarity - mu) <= slack, gamma, high)
    # 8 units in the last place of the exponent, and of the result.
    eps = torch.finfo(actual.dtype).eps
    exponent = np.zeros_like(similarity) if delta == 0 else ((similarity - mu) / delta) ** 2
    low = low * (1 - np.minimum(1, 8 * eps * (1 + exponent))) - gamma * TINY[actual.dtype]
    high = high * (1 + 8 * eps * (1 + exponent)) + gamma * TINY[actual.dtype]
    value = _same_nan(actual, similarity)
    outside = _worst(np.maximum(low - value, value - high))
    assert outside <= 0, f"M_a is {outside:.3g} outside of what the budget of M_s allows"


def assert_loss(actual: torch.Tensor, expected: oracle.Result, factor: float = 1.0, scale: float = 1.0) -> None:
    """A 0-dim loss, or the loss per pixel; ``factor`` is growth(), ``scale`` the magnitude of the terms."""
    if actual.dim() == 0:
        value, loss = actual.item(), float(expected.loss)
        if math.isnan(loss):
            assert math.isnan(value)
            return
        allowed = factor * LOSS[actual.dtype] * abs(loss) + scale * TINY[actual.dtype]
        assert abs(value - loss) <= allowed, f"the loss is {value!r}, expected {loss!r} within {allowed:.3g}"
    else:
        assert_vector(actual, expected.loss, factor * GRADIENT[actual.dtype], scale * TINY[actual.dtype], "loss map")


def assert_gradient(
    actual: torch.Tensor,
    expected: np.ndarray,
    compute: torch.dtype,
    factor: float = 1.0,
    scale: float = 1.0,
    roundings: int = 1,
) -> None:
    """A gradient as a vector, by its relative L2 error; no element may have a wrong sign or be lost.

    ``roundings``: how often it is rounded to its dtype, if that is not the compute type.
    """
    relative, tiny = factor * GRADIENT[compute], scale * TINY[compute]
    if actual.dtype != compute:
        relative += roundings * ROUNDING[actual.dtype]
        tiny += UNDERFLOW[actual.dtype]
    assert_vector(actual, expected, relative, tiny, "gradient")
    if compute == actual.dtype:
        value = _same_nan(actual, expected)
        zeros = (value == 0) & (np.abs(expected) > tiny) & (np.abs(expected) > 1e-6 * np.nanmax(np.abs(expected)))
        assert not zeros.any(), f"{zeros.sum()} elements of the gradient are lost"
        assert np.all(value[expected == 0] == 0), "the gradient at a tie is not zero"


def assert_vector(actual: torch.Tensor, expected: np.ndarray, relative: float, tiny: float, what: str) -> None:
    """L2 norm of the error against the norm of what is expected; ``tiny`` is allowed on top at every element."""
    value = _same_nan(actual, expected)
    # float16 has no such number. Its gradient is then infinite, which GradScaler looks for.
    if actual.dtype == torch.float16:
        beyond = np.abs(expected) >= (1 - relative) * torch.finfo(torch.float16).max
        value = np.where(beyond & (value == np.copysign(np.inf, expected)), expected, value)
    error = np.nan_to_num(value - expected)
    norm = np.linalg.norm(np.nan_to_num(expected))
    allowed = relative * norm + tiny * math.sqrt(expected.size)
    assert np.linalg.norm(error) <= allowed, (
        f"the {what} is off by {np.linalg.norm(error) / (norm or 1):.3g} (relative L2), allowed {relative:.3g}"
    )
    # The norm hides a single wrong element among many: none may be off by 100 times the allowed error of the largest one.
    worst, largest = _worst(np.abs(error)), _worst(np.abs(expected))
    assert worst <= 100 * relative * largest + tiny, f"one element of the {what} is off by {worst:.3g} of {largest:.3g}"


def _same_nan(actual: torch.Tensor, expected: np.ndarray) -> np.ndarray:
    assert tuple(actual.shape) == expected.shape
    value = actual.detach().cpu().double().numpy()
    assert np.array_equal(np.isnan(value), np.isnan(expected)), "NaN is not where it should be"
    return value


def _worst(values: np.ndarray) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.max()) if finite.size else 0.0
