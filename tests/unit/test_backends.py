"""Every backend against the float64 oracle, and the properties that all backends share."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from helpers import oracle, tolerances
from helpers.cases import LAYOUTS, check_against_oracle, leaf, numpy64, smooth_pair

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
    # A narrow window on noise averages nothing, so its variance is small wherever its mean is.
    far = backend.one_pivot and sigma < 0.5
    check_against_oracle(
        backend, sr, hr, maps=True, far_from_pivot=far, window_size=window_size, sigma=sigma, padding=padding
    )


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


@given(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 3, 40, 40))),
    window_size=st.sampled_from([1, 3, 5, 7, 9, 11, 15]),
    sigma=st.floats(0.5, 6),
    padding=st.sampled_from(["zeros", "reflect", "replicate"]),
    distance=st.sampled_from(["l1", "l2", "charbonnier"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    step=st.floats(0.5, 20),
    mu=st.floats(-1, 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_drawn(backend, shape, window_size, sigma, padding, distance, reduction, step, mu, dtype, seed):
    """Combinations that nobody thought of."""
    sr, hr = smooth_pair(shape, seed, dtypes=(dtype, dtype), device=backend.device)
    check_against_oracle(
        backend,
        sr,
        hr,
        step,
        mu=mu,
        window_size=window_size,
        sigma=sigma,
        padding=padding,
        distance=distance,
        reduction=reduction,
    )


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


@pytest.mark.parametrize("hr_layout", LAYOUTS)
@pytest.mark.parametrize("sr_layout", LAYOUTS)
def test_layouts(backend, sr_layout, hr_layout):
    """Strides never change a number: each pair of layouts against the same oracle."""
    sr, hr = smooth_pair((2, 3, 14, 37), device=backend.device)
    check_against_oracle(backend, LAYOUTS[sr_layout](sr), LAYOUTS[hr_layout](hr), padding="reflect", maps=True)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
@pytest.mark.parametrize(
    "shape", [(3, 15, 18), (2, 2, 3, 9, 10), (4, 1, 9, 33), (1, 5, 12, 16), (2, 16, 6, 7)], ids=str
)
def test_layouts_of_other_shapes(backend, shape, layout):
    """Also with channel counts that are not 3, and in half precision."""
    sr, hr = smooth_pair(shape, dtypes=(torch.float16, torch.float32), device=backend.device)
    check_against_oracle(backend, LAYOUTS[layout](sr), LAYOUTS[layout](hr), distance="charbonnier", reduction="none")


@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize("window_size", [3, 7, 11, 13])
def test_layouts_with_windows(backend, window_size, padding, layout):
    sr, hr = (LAYOUTS[layout](x) for x in smooth_pair((1, 3, 18, 35), device=backend.device))
    check_against_oracle(backend, sr, hr, window_size=window_size, padding=padding, reduction="sum")


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)], ids=str)
def test_expanded(backend, dims):
    """Strides of 0: one target for a batch, one channel for three, one row for all."""
    sr, hr = smooth_pair((2, 3, 12, 17), device=backend.device)
    small = hr[tuple(slice(0, 1) if dim in dims else slice(None) for dim in range(4))]
    check_against_oracle(backend, sr, small.expand_as(hr), maps=True)
    check_against_oracle(backend, small.expand_as(hr), sr)


def test_channels_last_flag_of_torch(backend):
    """memory_format=channels_last as users ask for it, where one channel or one pixel makes the strides ambiguous."""
    for shape in ((2, 3, 16, 20), (2, 1, 8, 9), (1, 3, 1, 1), (1, 4, 1, 7)):
        sr, hr = (x.to(memory_format=torch.channels_last) for x in smooth_pair(shape, device=backend.device))
        check_against_oracle(backend, sr, hr)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "batch_last"])
@pytest.mark.parametrize("other", ["contiguous", "channels_last"])
def test_gradients_have_the_layout_of_their_image(fused, layout, other):
    """A gradient in another layout would make the network's backward pass copy it."""
    sr, hr = smooth_pair((2, 3, 10, 12), dtypes=(torch.float16, torch.float32), device=fused.device)
    sr, hr = leaf(LAYOUTS[layout](sr)), leaf(LAYOUTS[other](hr))
    grads = torch.autograd.grad(fused.pspl_loss(sr, hr, 1.0), (sr, hr))
    assert grads[0].stride() == sr.stride()
    assert grads[1].stride() == hr.stride()


def test_inputs_are_not_written(backend):
    sr, hr = smooth_pair((2, 3, 14, 15), device=backend.device)
    before = sr.clone(), hr.clone()
    a, b = leaf(sr), leaf(hr)
    backend.pspl_loss(a, b, 1.0, return_stats=True)[0].backward()
    assert torch.equal(sr, before[0])
    assert torch.equal(hr, before[1])


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
def test_identical_images_have_similarity_one(backend, padding, dtype):
    """Exactly 1, whatever the values and layouts; the loss, its gradient and the error statistics are exactly 0."""
    for shape, scale in (((1, 3, 1, 1), 1), ((2, 3, 17, 35), 1), ((1, 1, 9, 70), 255), ((1, 1, 13, 13), 1e-4)):
        sr, _ = smooth_pair(shape, dtypes=(dtype, dtype), device=backend.device)
        sr = leaf(sr * scale)
        hr = LAYOUTS["channels_last"](sr.detach())
        assert torch.equal(
            backend.similarity_map(sr, hr, padding=padding).cpu(), torch.ones(shape, dtype=tolerances.compute_dtype(sr))
        )
        loss, stats = backend.pspl_loss(sr, hr, 1.0, padding=padding, return_stats=True)
        (grad,) = torch.autograd.grad(loss, sr)
        assert loss == 0
        assert stats.mean_abs_error == 0
        assert stats.mean_squared_error == 0
        assert stats.mean_similarity == 1
        assert stats.psnr == INF
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 255.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_similarity_is_bounded(backend, scale, dtype):
    """|M_s| <= 1, where rounding is worst."""
    shape = (1, 1, 24, 40)
    sr, hr = smooth_pair(shape, dtypes=(dtype, dtype), device=backend.device)
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(40), indexing="ij")
    checker = ((rows + columns) % 2).to(sr)[None, None]
    flat = torch.full(shape, 0.7).to(sr)
    for a, b in ((sr, hr), (sr, -sr), (checker, 1 - checker), (flat, flat + 1e-7), (flat, -flat), (checker, -checker)):
        for data_range in (1.0, 255.0):
            m_s = backend.similarity_map(a * scale, b * scale, data_range=data_range)
            assert m_s.abs().max() <= 1


@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
def test_ties_have_no_gradient(backend, distance):
    """sign(0) = 0, as in PyTorch: equal pixels get exactly 0, also inside a region that gets a gradient."""
    sr, hr = smooth_pair((2, 2, 13, 17), device=backend.device)
    ties = sr == hr
    assert 0 < ties.sum() < ties.numel() / 2
    sr = leaf(sr)
    (grad,) = torch.autograd.grad(backend.pspl_loss(sr, hr, 1.0, distance=distance), sr)
    assert torch.equal(grad[ties], torch.zeros_like(grad[ties]))
    assert (grad[~ties] != 0).all()
    assert torch.equal(grad[~ties].sign(), (sr.detach() - hr)[~ties].sign())


def test_negative_zero_is_a_tie(backend):
    """0 and -0 are equal."""
    sr, hr = torch.zeros(1, 1, 6, 6, device=backend.device), -torch.zeros(1, 1, 6, 6, device=backend.device)
    hr[..., 0, 0] = 1
    sr = leaf(sr)
    (grad,) = torch.autograd.grad(backend.pspl_loss(sr, hr, 1.0), sr)
    assert grad[..., 0, 0] < 0
    assert (grad != 0).sum() == 1


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize("where", ["sr", "hr", "both"])
@pytest.mark.parametrize("at", [(0, 0), (0, 39), (16, 20), (31, 32), (39, 0), (32, 31), (39, 39)], ids=str)
def test_nan_stays_in_its_window(backend, at, where, bad):
    """Each pixel whose window holds a NaN or an infinity is NaN in both maps, and no other pixel is touched. The places
    cover corners and the usual tile borders, where a shared pivot or running sum could carry it further."""
    shape, radius = (1, 2, 40, 40), 5
    sr, hr = smooth_pair(shape, device=backend.device)
    clean = backend.similarity_map(sr, hr)
    for name, image in (("sr", sr), ("hr", hr)):
        if where in (name, "both"):
            image[0, 1, at[0], at[1]] = bad
    hit = torch.zeros(shape, dtype=torch.bool, device=backend.device)
    rows = slice(max(at[0] - radius, 0), at[0] + radius + 1)
    columns = slice(max(at[1] - radius, 0), at[1] + radius + 1)
    hit[0, 1, rows, columns] = True

    m_s = backend.similarity_map(sr, hr)
    m_a = backend.attention_map(sr, hr, 1.0)
    assert torch.equal(m_s.isnan(), hit)
    assert torch.equal(m_a.isnan(), hit)
    # A kernel may subtract another pivot nearby, but it may not be less accurate for it.
    assert (m_s - clean)[~hit].abs().max() <= 2 * tolerances.SIMILARITY[torch.float32]
    assert backend.attention_map(sr, hr, INF).isnan().equal(hit)


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_nan_reaches_the_loss(backend, dtype, distance, bad):
    """A NaN that a clamp turned into a number would let a broken training run go on."""
    sr, hr = smooth_pair((1, 2, 20, 20), dtypes=(dtype, dtype), device=backend.device)
    sr[0, 1, 7, 9] = bad
    for step in (0.0, 1.0, INF):
        a = leaf(sr)
        loss, stats = backend.pspl_loss(a, hr, step, distance=distance, return_stats=True)
        (grad,) = torch.autograd.grad(loss, a)
        assert loss.isnan()
        assert grad[0, 1, 7, 9].isnan()
        assert grad[0, 0].isfinite().all()
        assert stats.mean_similarity.isnan()
        assert stats.mean_attention.isnan()
        assert not stats.mean_abs_error.isfinite()
        assert not stats.mean_squared_error.isfinite()


@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_nan_stays_in_its_window_with_padding(backend, padding):
    """A padded border shows a NaN to the windows that see its mirror image, and to no others."""
    sr, hr = smooth_pair((1, 1, 6, 24), device=backend.device)
    sr[0, 0, 1, 1] = math.nan
    expected = np.isnan(oracle.similarity_map(numpy64(sr), numpy64(hr), padding=padding))
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(backend.similarity_map(sr, hr, padding=padding).isnan().cpu().numpy(), expected)


@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
def test_symmetric_in_the_two_images(backend, distance):
    sr, hr = (leaf(x) for x in smooth_pair((2, 2, 15, 37), device=backend.device))
    there = backend.pspl_loss(sr, hr, 1.0, distance=distance)
    back = backend.pspl_loss(hr, sr, 1.0, distance=distance)
    assert torch.equal(there, back)
    assert torch.equal(backend.similarity_map(sr, hr), backend.similarity_map(hr, sr))
    for a, b in zip(torch.autograd.grad(there, (sr, hr)), torch.autograd.grad(back, (sr, hr)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 40, 70), pytest.param((4, 3, 150, 201), marks=heavy)], ids=str)
def test_bitwise_repeatable(backend, shape):
    """The same call gives the same bits: no sum depends on the order in which blocks or threads finish."""
    sr, hr = (leaf(x) for x in smooth_pair(shape, device=backend.device))
    first = None
    for _ in range(5):
        loss, stats = backend.pspl_loss(sr, hr, 1.0, return_stats=True)
        result = (loss.detach(), *stats[:4], *torch.autograd.grad(loss, (sr, hr)), backend.similarity_map(sr, hr))
        first = first or result
        assert all(torch.equal(a, b) for a, b in zip(first, result, strict=True))


@heavy
def test_thread_count_does_not_change_the_result(fused):
    """Jobs are fixed pieces of the image, whoever computes them."""
    sr, hr = (leaf(x) for x in smooth_pair((3, 3, 120, 131), device=fused.device))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        loss = fused.pspl_loss(sr, hr, 1.0)
        results.append((loss.detach(), *torch.autograd.grad(loss, sr)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_result_does_not_depend_on_what_else_is_asked(backend):
    """Statistics, gradients and maps are by-products: the loss has the same bits with and without them."""
    sr, hr = smooth_pair((2, 3, 21, 34), device=backend.device)
    plain = backend.pspl_loss(sr, hr, 1.0)
    both = backend.pspl_loss(leaf(sr), leaf(hr), 1.0, return_stats=True)[0].detach()
    assert torch.equal(plain, both)
    a, b = leaf(sr), leaf(hr)
    one = torch.autograd.grad(backend.pspl_loss(a, hr, 1.0), a)[0]
    other = torch.autograd.grad(backend.pspl_loss(sr, b, 1.0), b)[0]
    two = torch.autograd.grad(backend.pspl_loss(a, b, 1.0), (a, b))
    assert torch.equal(one, two[0])
    assert torch.equal(other, two[1])


def test_images_of_a_batch_do_not_see_each_other(backend):
    """The maps of a batch are the maps of its images: no window crosses from one plane to the next."""
    sr, hr = smooth_pair((3, 2, 9, 13), device=backend.device)
    batch = backend.similarity_map(sr, hr)
    for n in range(3):
        for c in range(2):
            alone = backend.similarity_map(sr[n, c : c + 1], hr[n, c : c + 1])[0]
            assert (batch[n, c] - alone).abs().max() <= 1e-6


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
