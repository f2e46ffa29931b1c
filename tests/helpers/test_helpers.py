"""The oracle, the tolerances and the list of backends: each must accept what is right and reject what is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from helpers import backends, oracle, tolerances


def test_oracle_agrees_with_scikit_image(rng):
    """A third, unrelated SSIM, away from the border, where scikit-image pads differently."""
    x = rng.random((40, 50))
    y = x + 0.2 * rng.standard_normal(x.shape)
    _, expected = structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
    )
    actual = oracle.similarity_map(x, y)
    np.testing.assert_allclose(actual[5:-5, 5:-5], expected[5:-5, 5:-5], atol=1e-12)


def test_oracle_on_one_pixel():
    """1x1 with zeros: only the centre weight w counts, so that mu = w x, var = w (1 - w) x^2. All by hand."""
    x, y = 0.8, 0.5
    w = oracle.window(11, 1.5)[5, 5]
    c1, c2 = 1e-4, 9e-4
    v = w * (1 - w)
    m_s = (
        (2 * w * w * x * y + c1) * (2 * v * x * y + c2) / ((w * w * (x * x + y * y) + c1) * (v * (x * x + y * y) + c2))
    )
    result = oracle.pspl([[[x]]], [[[y]]], 2.0, alpha=0.5, beta=0.25, gamma=3.0)
    m_a = 3 * math.exp(-((m_s + 1) ** 2) / 1.25**2)
    assert result.similarity.item() == pytest.approx(m_s, rel=1e-13)
    assert result.attention.item() == pytest.approx(m_a, rel=1e-13)
    assert result.loss == pytest.approx(m_a * 0.3, rel=1e-13)
    assert result.grad_sr.item() == -result.grad_hr.item() == pytest.approx(m_a, rel=1e-13)


@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
def test_oracle_gradient_is_the_slope_of_its_loss(distance, rng):
    """With delta = inf the map is a constant, so finite differences see the whole gradient."""
    x, y = rng.random((2, 1, 4, 5))
    result = oracle.pspl(x, y, math.inf, distance=distance, upstream=1.7)
    h = 1e-6
    for index in np.ndindex(x.shape):
        bump = np.zeros_like(x)
        bump[index] = h
        slope = (
            oracle.pspl(x + bump, y, math.inf, distance=distance).loss
            - oracle.pspl(x - bump, y, math.inf, distance=distance).loss
        ) / (2 * h)
        assert result.grad_sr[index] == pytest.approx(1.7 * slope, rel=1e-6)


def test_oracle_limits_of_delta():
    m_s = np.array([-1.0, 0.0, 1.0, np.nan])
    np.testing.assert_array_equal(oracle.attention(m_s, 0.0), [2, 0, 0, np.nan])
    np.testing.assert_array_equal(oracle.attention(m_s, math.inf), [2, 2, 2, np.nan])


def _off(values, amount):
    return torch.from_numpy(np.asarray(values) + amount)


def test_similarity_tolerance(rng):
    expected = rng.random((3, 4, 5))
    tolerances.assert_similarity(_off(expected, 0.9e-12), expected)
    tolerances.assert_similarity(_off(expected, 1.8e-5).float(), expected)
    with pytest.raises(AssertionError, match="off by"):
        tolerances.assert_similarity(_off(expected, 1.1e-12), expected)
    one = expected.copy()
    one[0, 0, 0] += 2.2e-5
    with pytest.raises(AssertionError, match="off by"):
        tolerances.assert_similarity(torch.from_numpy(one).float(), expected)
    with pytest.raises(AssertionError):
        tolerances.assert_similarity(torch.from_numpy(expected)[:1], expected)


def test_nan_is_never_within_tolerance(rng):
    expected = rng.random((3, 4, 5))
    value = expected.copy()
    value[1, 2, 3] = np.nan
    for actual, wanted in ((value, expected), (expected, value)):
        with pytest.raises(AssertionError, match="NaN"):
            tolerances.assert_similarity(torch.from_numpy(actual), wanted)
        with pytest.raises(AssertionError, match="NaN"):
            tolerances.assert_vector(torch.from_numpy(actual), wanted, 1.0, 1.0, "gradient")
    tolerances.assert_similarity(torch.from_numpy(value), value)


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.3, 1.0, 100.0, math.inf])
def test_attention_tolerance(delta, rng):
    """The exact map of a similarity map within budget passes; what no such map can give fails."""
    similarity = rng.uniform(-0.95, 1, (3, 4, 5))
    within = oracle.attention(similarity + rng.uniform(-1.5e-5, 1.5e-5, similarity.shape), delta)
    tolerances.assert_attention(torch.from_numpy(within).float(), similarity, delta)
    wrong = within * (1 + 1e-3 * max(1, 1 / delta if delta else 1)) + 1e-6
    with pytest.raises(AssertionError, match="outside"):
        tolerances.assert_attention(torch.from_numpy(wrong).float(), similarity, delta)


def test_loss_tolerance(rng):
    result = oracle.pspl(rng.random((1, 4, 5)), rng.random((1, 4, 5)), 1.0)
    tolerances.assert_loss(torch.tensor(result.loss * (1 + 0.9e-6), dtype=torch.float32), result)
    with pytest.raises(AssertionError, match="the loss"):
        tolerances.assert_loss(torch.tensor(result.loss * (1 + 1.2e-6), dtype=torch.float32), result)
    with pytest.raises(AssertionError, match="the loss"):
        tolerances.assert_loss(torch.tensor(result.loss * (1 + 2e-13), dtype=torch.float64), result)
    with pytest.raises(AssertionError):
        tolerances.assert_loss(torch.tensor(math.nan), result)


def test_tolerance_of_a_single_pixel():
    """80 times the budget of the loss, 8 times that of the gradient; less for its share of more pixels, nothing for many."""
    alone = np.zeros((10, 20))
    alone[3, 4] = -0.7
    for value in (np.full(1, 0.3), np.full(1, 3e-225), alone):
        assert tolerances.single_pixel(value, tolerances.LOSS) == pytest.approx(80)
        assert tolerances.single_pixel(value, tolerances.GRADIENT, order=2) == pytest.approx(8)
    four = np.full((2, 2), 1e-9)
    assert tolerances.single_pixel(four, tolerances.LOSS) == pytest.approx(20)
    assert tolerances.single_pixel(four, tolerances.GRADIENT, order=2) == pytest.approx(4)
    for nothing in (np.ones((10, 10)), np.zeros(4), np.full(4, np.nan)):
        assert tolerances.single_pixel(nothing, tolerances.LOSS) == 1


def test_gradient_tolerance(rng):
    expected = rng.standard_normal((3, 40, 50))
    expected[0, 0, 0] = 0
    good = torch.from_numpy(expected * (1 + 0.9e-5)).float()
    tolerances.assert_gradient(good, expected, torch.float32)
    # Rounded once to 16 bits is fine, rounded twice or to the wrong type is not.
    tolerances.assert_gradient(torch.from_numpy(expected).half(), expected, torch.float32)
    tolerances.assert_gradient(torch.from_numpy(expected).bfloat16(), expected, torch.float32)
    for bad in (
        torch.from_numpy(expected * (1 + 1.2e-5)).float(),
        torch.from_numpy(expected).bfloat16().half(),
        torch.from_numpy(expected).float().double(),
        -good,
    ):
        compute = torch.float64 if bad.dtype == torch.float64 else torch.float32
        with pytest.raises(AssertionError, match="off by"):
            tolerances.assert_gradient(bad, expected, compute)


def test_gradient_beyond_float16_is_infinite():
    expected = np.array([7e4, -7e4, 1.0])
    infinite = torch.tensor([math.inf, -math.inf, 1.0], dtype=torch.float16)
    tolerances.assert_vector(infinite, expected, 1e-3, 0.0, "gradient")
    for wrong in (-infinite, infinite[[0, 0, 2]], infinite[[0, 1, 0]], torch.tensor([6e4, -6e4, 1]).half()):
        with pytest.raises(AssertionError, match="gradient is off"):
            tolerances.assert_vector(wrong, expected, 1e-3, 0.0, "gradient")


def test_gradient_tolerance_sees_single_elements(rng):
    """One wrong element among many vanishes in an L2 norm; it must fail all the same."""
    expected = np.sign(rng.standard_normal((3, 300, 300)))
    expected[0, 0, 0] = 0
    for index, value, message in (
        ((0, 0, 0), 1e-6, "tie"),
        ((1, 2, 3), 0.0, "off by|lost"),
        ((1, 2, 4), 1.1, "off by"),
    ):
        wrong = torch.from_numpy(expected).float()
        wrong[index] = value
        with pytest.raises(AssertionError, match=message):
            tolerances.assert_gradient(wrong, expected, torch.float32)


def test_growth():
    """The budget is the paper's at delta = 1, and never shrinks."""
    assert tolerances.growth(1.0) == tolerances.growth(5.0) == tolerances.growth(math.inf) == 1
    assert tolerances.growth(0.5) == pytest.approx(4)
    assert tolerances.growth(0.5, mu=1.0, distance="l2") == pytest.approx(8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("budget", [tolerances.LOSS, tolerances.GRADIENT], ids=["loss", "gradient"])
def test_growth_is_the_rounding_of_delta(budget, dtype, rng):
    """Eq. 8 and sqrt(log2 e) / delta in float32, as the kernels compute them: of a million widths, the worst error of the
    exponent is within what growth() adds for it, and more than half as large."""
    alpha, step, beta = rng.uniform(0.05, 0.2, 10**6), rng.uniform(0.5, 1, 10**6), rng.uniform(0, 0.02, 10**6)
    delta = alpha * step + beta
    constant = np.float32(1.2011224087864498)
    inverse = constant * (1 / (np.float32(1) * alpha.astype("f") * step.astype("f") + beta.astype("f")))
    assert inverse.dtype == np.float32
    error = np.abs((inverse.astype(float) / float(constant) * delta) ** 2 - 1)  # relative, of the exponent
    if dtype == torch.float64:
        error *= 2.0**-29
    worst = error.argmax()
    exponent = 4 / delta[worst] ** 2
    added = tolerances.growth(delta[worst], -1.0, "l1", budget, dtype) * budget[dtype] / exponent - budget[dtype] / 4
    assert error[worst] <= added < 2 * error[worst]
    # Exact at a power of two; the same for every mu, and twice for a square of the attention.
    assert tolerances.growth(0.25, -1.0, "l1", budget, dtype) == 16
    assert tolerances.growth(0.3, 1.0, "l2", budget, dtype) == 2 * tolerances.growth(0.3, -1.0, "l1", budget, dtype)


def test_selected_backends(monkeypatch):
    monkeypatch.setenv("PSPL_TEST_BACKENDS", "cuda, reference")
    assert backends.selected() == ["cuda", "reference"]
    monkeypatch.setenv("PSPL_TEST_BACKENDS", "")
    assert backends.selected() == list(backends.NAMES)
    monkeypatch.setenv("PSPL_TEST_BACKENDS", "gpu")
    with pytest.raises(ValueError, match="gpu"):
        backends.selected()


@pytest.mark.parametrize("gpu", [False, True])
def test_cuda_is_collected_where_there_is_a_gpu_or_it_is_named(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("PSPL_TEST_BACKENDS", raising=False)
    assert ("cuda" in backends.collected()) == gpu
    assert set(backends.collected()) | {"cuda"} == set(backends.NAMES)
    monkeypatch.setenv("PSPL_TEST_BACKENDS", "cuda")
    assert backends.collected() == ["cuda"]
