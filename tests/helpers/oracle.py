"""PSPL in float64 numpy, written as directly from the paper as possible. It is slow and meant to be obviously correct.

It shares no code with the package. Window sums are loops over the window's offsets, vectorised over pixels only; the weights are
exact; variances take two passes: first the mean, then the weighted squared distances from it. Pixels outside the image count with
their weight, as zeros or as what np.pad puts there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}


@dataclass
class Result:
    similarity: np.ndarray
    attention: np.ndarray
    loss_map: np.ndarray
    loss: float | np.ndarray
    grad_sr: np.ndarray
    grad_hr: np.ndarray
    mean_abs_error: float
    mean_squared_error: float
    mean_similarity: float
    mean_attention: float
    psnr: float


def window(window_size: int, sigma: float) -> np.ndarray:
    """G of Eq. 4: circular-symmetric, of unit sum."""
    radius = window_size // 2
    weights = np.empty((window_size, window_size))
    for i in range(window_size):
        for j in range(window_size):
            weights[i, j] = math.exp(-((i - radius) ** 2 + (j - radius) ** 2) / (2 * sigma**2))
    return weights / math.fsum(weights.ravel())


def similarity_map(
    sr, hr, *, data_range=1.0, window_size=11, sigma=1.5, k1=0.01, k2=0.03, padding="zeros"
) -> np.ndarray:
    """Eq. 3 to 5."""
    x, y = np.asarray(sr, np.float64), np.asarray(hr, np.float64)
    height, width = x.shape[-2:]
    radius = window_size // 2
    pad = [(0, 0)] * (x.ndim - 2) + [(radius, radius)] * 2
    x, y = (np.pad(image, pad, mode=PAD_MODES[padding]) for image in (x, y))
    g = window(window_size, sigma)
    offsets = [(i, j) for i in range(window_size) for j in range(window_size)]

    mu_x = mu_y = 0.0
    for i, j in offsets:
        mu_x = mu_x + g[i, j] * x[..., i : i + height, j : j + width]
        mu_y = mu_y + g[i, j] * y[..., i : i + height, j : j + width]
    var_x = var_y = covariance = 0.0
    for i, j in offsets:
        from_mean_x = x[..., i : i + height, j : j + width] - mu_x
        from_mean_y = y[..., i : i + height, j : j + width] - mu_y
        var_x = var_x + g[i, j] * from_mean_x**2
        var_y = var_y + g[i, j] * from_mean_y**2
        covariance = covariance + g[i, j] * from_mean_x * from_mean_y

    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    numerator = (2 * mu_x * mu_y + c1) * (2 * covariance + c2)
    return numerator / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))


def width(step, alpha=1.0, beta=0.0) -> float:
    """delta of Eq. 8. A growth rate of 0 means beta for every step."""
    return beta if alpha == 0 else alpha * step + beta


def attention(similarity, delta, gamma=2.0, mu=-1.0) -> np.ndarray:
    """Eq. 7 and its limits for delta = 0 and infinity."""
    similarity = np.asarray(similarity, np.float64)
    if delta == 0:
        return np.where(similarity == mu, gamma, np.where(np.isnan(similarity), np.nan, 0.0))
    if math.isinf(delta):
        return np.where(np.isnan(similarity), np.nan, gamma)
    return gamma * np.exp(-((similarity - mu) ** 2) / delta**2)


def attention_map(sr, hr, step, *, alpha=1.0, beta=0.0, gamma=2.0, mu=-1.0, **similarity) -> np.ndarray:
    """Eq. 6 to 8."""
    return attention(similarity_map(sr, hr, **similarity), width(step, alpha, beta), gamma, mu)


def pspl(
    sr,
    hr,
    step,
    *,
    alpha=1.0,
    beta=0.0,
    gamma=2.0,
    mu=-1.0,
    distance="l1",
    eps=1e-3,
    reduction="mean",
    upstream=1.0,
    data_range=1.0,
    **similarity,
) -> Result:
    """Eq. 10 with its statistics, and the gradient of ``sum(upstream * loss)``, the attention map being a constant."""
    sr, hr = np.asarray(sr, np.float64), np.asarray(hr, np.float64)
    m_s = similarity_map(sr, hr, data_range=data_range, **similarity)
    m_a = attention(m_s, width(step, alpha, beta), gamma, mu)
    d = sr - hr
    if distance == "l1":
        loss_map = m_a * np.abs(d)
        slope = m_a * np.sign(d)
    elif distance == "l2":
        loss_map = m_a**2 * d**2
        slope = 2 * m_a**2 * d
    else:
        loss_map = np.sqrt(m_a**2 * d**2 + eps**2)
        slope = m_a**2 * d / loss_map

    n = d.size
    loss = {"mean": mean(loss_map), "sum": mean(loss_map) * n, "none": loss_map}[reduction]
    gradient = slope * upstream / (n if reduction == "mean" else 1)
    squared_error = mean(d**2)
    return Result(
        similarity=m_s,
        attention=m_a,
        loss_map=loss_map,
        loss=loss,
        grad_sr=gradient,
        grad_hr=-gradient,
        mean_abs_error=mean(np.abs(d)),
        mean_squared_error=squared_error,
        mean_similarity=mean(m_s),
        mean_attention=mean(m_a),
        psnr=math.inf if squared_error == 0 else 10 * math.log10(data_range**2 / squared_error),
    )


def mean(values: np.ndarray) -> float:
    """The mean with a single rounding."""
    return math.fsum(values.ravel()) / values.size
