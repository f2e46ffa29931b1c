"""Every backend against the float64 oracle: shapes, windows, keywords, dtypes, the schedule."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.cases import LAYOUTS, check_against_oracle, smooth_pair

INF = math.inf
heavy = pytest.mark.not_on("emulated")  # too slow


# ---------------------------------------------------------------- shapes and keywords

SHAPES = [
    (1, 1, 1),
    (1, 1, 2),
    (1, 2, 1),
    (2, 3, 3),
    (1, 2, 300),
    (1, 300, 2),
    (3, 1, 97),
    (2, 3, 5, 7),
    (1, 1, 11, 11),
    (2, 1, 17, 33),
    (1, 3, 64, 64),
    pytest.param((1, 2, 65, 129), marks=heavy),
    pytest.param((1, 1, 31, 257), marks=heavy),
    (2, 2, 1, 13, 19),
    (1, 1, 1, 1, 1),
]


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(backend, shape, padding):
    """From one pixel up, in 3 to 5 dimensions, smaller than the window, and tails of every tile size."""
    sr, hr = smooth_pair(shape, device=backend.device)
    check_against_oracle(backend, sr, hr, maps=True, padding=padding)


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize(
    ("window_size", "sigma", "shape"),
    [
        (1, 1.5, (1, 2, 9, 8)),
        (3, 0.8, (1, 2, 17, 33)),
        (5, 1.0, (1, 1, 17, 33)),
        (7, 1.5, (1, 1, 20, 37)),
        (9, 3.0, (1, 1, 20, 37)),
        (11, 0.4, (1, 1, 19, 40)),
        (11, 50.0, (1, 1, 19, 40)),
        (13, 2.0, (1, 1, 19, 40)),
        (21, 1.5, (2, 1, 9, 40)),
        pytest.param(31, 5.0, (1, 1, 40, 70), marks=heavy),
        (31, 5.0, (1, 1, 7, 5)),
        (101, 20.0, (1, 1, 3, 4)),
    ],
)
def test_windows(backend, window_size, sigma, shape, padding):
    """Windows with a kernel of their own and without, narrow, almost flat, and much bigger than the image."""
    sr, hr = smooth_pair(shape, seed=window_size, device=backend.device)
    check_against_oracle(backend, sr, hr, maps=True, window_size=window_size, sigma=sigma, padding=padding)


@pytest.mark.parametrize("window_size", [1, 3, 5, 7, 9, 11, 13])
@pytest.mark.parametrize("distance", ["l2", "charbonnier"])
def test_windows_with_other_distances(backend, window_size, distance):
    sr, hr = smooth_pair((1, 2, 14, 35), seed=window_size, device=backend.device)
    check_against_oracle(backend, sr, hr, 0.7, window_size=window_size, distance=distance, padding="reflect")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("distance", "eps"), [("l1", 1e-3), ("l2", 1e-3), ("charbonnier", 1e-3), ("charbonnier", 0.5)])
def test_distances_and_reductions(backend, distance, eps, reduction):
    """With a gradient from above that is not 1, and a different one for each pixel where the loss is a map."""
    shape = (2, 3, 12, 21)
    sr, hr = smooth_pair(shape, device=backend.device)
    upstream = -2.5
    if reduction == "none":
        upstream = torch.linspace(-3, 3, sr.numel(), dtype=torch.float32).reshape(shape).numpy()
    check_against_oracle(
        backend, sr, hr, 1.3, upstream=upstream, distance=distance, eps=eps, reduction=reduction, maps=True
    )


@pytest.mark.parametrize(
    "keywords",
    [
        {"gamma": 0.5, "mu": 0.25, "alpha": 0.3, "beta": 0.2},
        {"gamma": 1.0, "mu": 1.0, "alpha": 2.0},
        {"gamma": 0.0},
        {"k1": 0.1, "k2": 0.3, "data_range": 2.0},
        {"k1": 1e-3, "k2": 0.05, "data_range": 0.7},
        {"mu": -2.0, "beta": 3.0},
        {"gamma": 40.0, "distance": "l2"},
    ],
    ids=str,
)
def test_constants(backend, keywords):
    """Every constant of the paper is a keyword that does something."""
    sr, hr = smooth_pair((1, 2, 15, 22), seed=3, device=backend.device)
    check_against_oracle(backend, sr, hr, 0.9, maps=True, **keywords)


# ---------------------------------------------------------------- dtypes

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("hr_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sr_dtype", DTYPES, ids=str)
def test_dtypes(backend, sr_dtype, hr_dtype):
    """All 16 pairs: the oracle sees the rounded inputs, so nothing but the gradient's own rounding is forgiven."""
    sr, hr = smooth_pair((2, 2, 13, 34), dtypes=(sr_dtype, hr_dtype), device=backend.device)
    check_against_oracle(backend, sr, hr, maps=True)


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
def test_float64_is_float64_throughout(backend, distance, padding):
    """A float32 anywhere inside would cost seven digits."""
    sr, hr = smooth_pair((1, 2, 23, 37), dtypes=(torch.float64, torch.float64), device=backend.device)
    check_against_oracle(
        backend, sr, hr, 0.8, maps=True, distance=distance, padding=padding, window_size=9, sigma=2.0, beta=0.1
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distance", ["l2", "charbonnier"])
def test_half_with_other_distances(backend, distance, dtype):
    sr, hr = smooth_pair((2, 1, 16, 31), dtypes=(dtype, torch.float32), device=backend.device)
    check_against_oracle(backend, sr, hr, distance=distance, padding="replicate", reduction="sum", upstream=0.25)


def test_half_in_0_255(backend):
    """Squares of 0..255 overflow float16; the kernel must not form them there."""
    sr, hr = smooth_pair((1, 1, 20, 24), device=backend.device)
    check_against_oracle(backend, (255 * sr).half(), (255 * hr).half(), data_range=255.0, distance="l2", maps=True)


# ---------------------------------------------------------------- layouts


# ---------------------------------------------------------------- schedule


@pytest.mark.parametrize("step", [0, 0.0, 1e-3, 0.25, 1, 3, 1000.0, 1e30, INF])
@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
def test_steps(backend, step, distance):
    """From the first iteration, where the weights vanish, to the end, where they are gamma."""
    sr, hr = smooth_pair((1, 2, 12, 19), noise=0.4, device=backend.device)
    check_against_oracle(backend, sr, hr, step, maps=True, distance=distance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("value", [0, 1, 3, 1000])
def test_step_as_tensor(backend, value, dtype):
    """A 0-dim tensor, here or on the images' device, means the same as the number."""
    sr, hr = smooth_pair((1, 2, 12, 19), device=backend.device)
    number, _ = check_against_oracle(backend, sr, hr, value)
    for device in {"cpu", backend.device.type}:
        step = torch.tensor(value, dtype=dtype, device=device)
        loss, _ = check_against_oracle(backend, sr, hr, step, maps=True)
        assert torch.equal(loss, number)


def test_step_as_tensor_of_infinity(backend):
    sr, hr = smooth_pair((1, 2, 12, 19), device=backend.device)
    check_against_oracle(backend, sr, hr, torch.tensor(INF, device=backend.device), maps=True)


@pytest.mark.parametrize("step", [0, 5.0, INF, torch.tensor(INF)], ids=str)
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_no_growth(backend, step, beta):
    """alpha = 0 switches the schedule off: delta is beta, also when 0 * inf would be NaN."""
    sr, hr = smooth_pair((1, 2, 12, 19), device=backend.device)
    check_against_oracle(backend, sr, hr, step, alpha=0.0, beta=beta, maps=True)


def test_delta_zero_where_the_similarity_is_mu(backend):
    """The limit of Eq. 7 is gamma where M_s = mu: identical images, mu = 1. Elsewhere it is 0."""
    x, y = smooth_pair((1, 1, 30, 14), device=backend.device)
    assert torch.equal(backend.attention_map(x, x, 0.0, mu=1.0, gamma=3.0), torch.full_like(x, 3.0))
    half = y.clone()
    half[..., :15, :] = x[..., :15, :]
    m_a = backend.attention_map(x, half, 0.0, mu=1.0, gamma=3.0)
    assert torch.equal(m_a[..., :10, :], torch.full_like(m_a[..., :10, :], 3.0))
    assert torch.equal(m_a[..., 20:, :], torch.zeros_like(m_a[..., 20:, :]))


def test_negative_step_on_the_device_is_its_delta(backend):
    """A tensor's sign can't be checked without waiting for the device; Eq. 7 takes the square."""
    sr, hr = smooth_pair((1, 2, 12, 19), device=backend.device)
    minus = backend.pspl_loss(sr, hr, torch.tensor(-1.5, device=backend.device))
    assert torch.equal(minus, backend.pspl_loss(sr, hr, 1.5))


def test_nan_step_on_the_device_is_a_nan_loss(backend):
    sr, hr = smooth_pair((1, 2, 12, 19), device=backend.device)
    assert backend.pspl_loss(sr, hr, torch.tensor(math.nan, device=backend.device)).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0.0, 1e-45, 1e-38, 1e-20, 1e38, 1e300, INF])
def test_extreme_widths_are_not_nan(backend, step, dtype):
    """No finite image and no step, on the way from 0 to infinity through subnormal numbers, makes a NaN."""
    sr, hr = smooth_pair((1, 1, 8, 9), dtypes=(dtype, dtype), device=backend.device)
    hr[..., :4, :] = -sr[..., :4, :]
    for mu in (-1.0, 1.0, 0.0):
        loss, stats = backend.pspl_loss(sr, hr, step, mu=mu, return_stats=True)
        assert loss.isfinite()
        assert stats.mean_attention.isfinite()
        assert 0 <= stats.mean_attention <= 2 * (1 + 4 * torch.finfo(dtype).eps)  # gamma is scaled by 1/n inside


# ---------------------------------------------------------------- promises


@heavy
@pytest.mark.deep_on("reference")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
@pytest.mark.parametrize("padding", ["zeros", pytest.param("reflect", marks=pytest.mark.deep)])
def test_large(backend, padding, layout):
    """Many tiles, with prime sizes: sums over a million pixels keep the budget."""
    sr, hr = (LAYOUTS[layout](x) for x in smooth_pair((1, 3, 577, 613), device=backend.device))
    check_against_oracle(backend, sr, hr, padding=padding, maps=True)


def test_long_and_thin(backend):
    """A row and a column of many tiles, one pixel thick."""
    for shape in ((1, 1, 1, 2003), (1, 1, 2003, 1), (1, 1, 2, 1030)):
        sr, hr = smooth_pair(shape, device=backend.device)
        check_against_oracle(backend, sr, hr, padding="reflect", window_size=5)


def test_many_small_images(backend):
    """Far more planes than tiles in one of them."""
    sr, hr = smooth_pair((70, 30, 3, 4), device=backend.device)
    check_against_oracle(backend, sr, hr, window_size=7)
