"""Properties that hold for all images and parameters, which hypothesis draws, on every backend.

The examples are few and the same in every run; ``PSPL_EXAMPLES=1000 pytest -m hypothesis`` draws as many, others in each run.
"""

from __future__ import annotations

import dataclasses
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given

from helpers import oracle, tolerances
from helpers.cases import LAYOUTS, check_against_oracle, leaf, numpy64, smooth_pair
from helpers.drawn import PACES, STEPS, WINDOWS, PairRecipe, pair_recipes
from pspl_cuda.config import DISTANCES


def strip_budget(sr, hr, window) -> float:
    return tolerances.strip_budget(sr, hr, window["window_size"], window["sigma"], window["data_range"])


# ---------------------------------------------------------------- against the oracle


def seen(*image, dtypes=(torch.float32,) * 2, window_size=1, window_sigma=1.0, alpha=1.0, mu=0.0, **keywords):
    """An example that has failed: what a PairRecipe begins with, and what is not as in most of them."""
    usual = {"sigma": None, "step": 1.0, "distance": "l1", "eps": 1e-4, "reduction": "mean", "upstream": 1.0}
    return example(
        recipe=PairRecipe(*image, dtypes, ("contiguous",) * 2),
        window={"window_size": window_size, "sigma": window_sigma, "padding": "zeros", "data_range": 1.0},
        pace={"alpha": alpha, "beta": 0.0, "gamma": 2.0, "mu": mu},
        **usual | {"with_stats": False} | keywords,
    )


@given(
    recipe=pair_recipes(),
    window=WINDOWS,
    pace=PACES,
    sigma=st.floats(0.15, 0.5) | st.none(),
    step=STEPS | st.sampled_from([math.inf, torch.tensor(1.5)]),
    distance=st.sampled_from(DISTANCES),
    eps=st.sampled_from([1e-4, 1e-3, 0.1]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    upstream=st.sampled_from([1.0, -0.375, 1000.0]),
    with_stats=st.booleans(),
)
# A window of three pixels that sees one.
@seen((1, 20, 1), "noise", "near", 0, 0.3, window_size=3, sigma=0.25, step=2.0)
# One pixel, whose error nothing averages.
@seen((1, 1, 1), "noise", "near", 14, 1.0)
# One pixel in a large window, whose loss, loss per pixel and mean attention have its error.
@seen(
    *((1, 1, 1), "noise", "near", 59, 0.3),
    dtypes=(torch.float32, torch.float16),
    window_size=11,
    window_sigma=3.0,
    alpha=0.5,
    reduction="none",
    with_stats=True,
)
# A window of about one pixel, whose outermost row has hardly any weight.
@seen((2, 12, 28), "blocks", "opposite", 2, 0.001, window_size=5, sigma=0.5)
# Few pixels with a gradient, each rounded to bfloat16 twice.
@seen((3, 1, 5), "noise", "near", 0, 0.001, dtypes=(torch.bfloat16,) * 2, mu=1.0, upstream=-0.375)
def test_kernel_is_the_oracle(
    backend, recipe, window, pace, sigma, step, distance, eps, reduction, upstream, with_stats
):
    """Loss, both gradients, statistics and maps are within the budget; also with windows that are hardly wider than a pixel,
    where the CUDA kernel has a bound of its own."""
    if sigma is not None:
        window = window | {"sigma": sigma}
    sr, hr = recipe.make(backend.device)
    budget = strip_budget(sr, hr, window) if backend.moving_pivot else 0
    if budget > tolerances.SIMILARITY[torch.float32]:
        expected = oracle.similarity_map(numpy64(sr), numpy64(hr), **window)
        tolerances.assert_similarity(backend.similarity_map(sr, hr, **window), expected, budget)
        return
    keywords = {"distance": distance, "eps": eps, "reduction": reduction, **window, **pace}
    check_against_oracle(backend, sr, hr, step, upstream, maps=True, with_stats=with_stats, **keywords)


@given(recipe=pair_recipes(), window=WINDOWS, step=STEPS, scale=st.sampled_from([1.0, 255.0, 1e-4]))
def test_identical_images(backend, recipe, window, step, scale):
    """M_s is exactly 1, the l1 and l2 loss, their gradient and the error statistics exactly 0, whatever values and layouts."""
    image = leaf(recipe.make(backend.device, scale)[0])
    same = LAYOUTS.get(recipe.layouts[1], LAYOUTS["sliced"])(image.detach().clone())
    ones = torch.ones_like(image, dtype=tolerances.compute_dtype(image))
    assert torch.equal(backend.similarity_map(image, same, **window), ones)
    for distance in ("l1", "l2"):
        loss, stats = backend.pspl_loss(image, same, step, distance=distance, return_stats=True, **window)
        (gradient,) = torch.autograd.grad(loss, image)
        assert loss == stats.mean_abs_error == stats.mean_squared_error == 0
        assert stats.mean_similarity == 1
        assert stats.psnr == math.inf
        assert not gradient.any()


# ---------------------------------------------------------------- symmetries


@given(recipe=pair_recipes(), window=WINDOWS, step=STEPS, distance=st.sampled_from(DISTANCES))
# NumPy makes these two images with different strides, and an expanded image keeps the strides that it had.
@example(
    recipe=PairRecipe((1, 2, 2, 2), "blocks", "near", 0, 0.03, (torch.float32,) * 2, ("expanded batch",) * 2),
    window={"window_size": 1, "sigma": 1.0, "padding": "zeros", "data_range": 1.0},
    step=1.0,
    distance="l2",
)
def test_symmetric_in_the_images(backend, recipe, window, step, distance):
    """Bit for bit: sr - hr only changes its sign, and sr + hr is the same sum. The gradients change places.

    Of images of one dtype and layout: exchanged, others may run in another kernel, in which the compiler fuses other
    multiply-adds, and the reference adds up the loss in another order.
    """
    recipe = dataclasses.replace(recipe, dtypes=(recipe.dtypes[0],) * 2, layouts=(recipe.layouts[0],) * 2)
    sr, hr = (leaf(x) for x in recipe.make(backend.device))
    assert torch.equal(backend.similarity_map(sr, hr, **window), backend.similarity_map(hr, sr, **window))
    there = backend.pspl_loss(sr, hr, step, distance=distance, **window)
    back = backend.pspl_loss(hr, sr, step, distance=distance, **window)
    assert torch.equal(there, back)
    for a, b in zip(torch.autograd.grad(there, (sr, hr)), torch.autograd.grad(back, (sr, hr)), strict=True):
        assert torch.equal(a, b)


MOVES = {
    "transposed": lambda x: x.transpose(-1, -2),
    "flipped left to right": lambda x: x.flip(-1),
    "flipped upside down": lambda x: x.flip(-2),
    "turned": lambda x: x.rot90(1, (-2, -1)),
}


@pytest.mark.parametrize("move", MOVES)
@given(recipe=pair_recipes(), window=WINDOWS)
def test_moves_with_the_image(backend, move, recipe, window):
    """The window is symmetric, so a transposed or flipped image has the transposed or flipped map; not bit for bit, since the
    sums run in another order: each is within the budget of the exact map."""
    sr, hr = recipe.make(backend.device)
    m_s = MOVES[move](backend.similarity_map(sr, hr, **window))
    moved = backend.similarity_map(MOVES[move](sr), MOVES[move](hr), **window)
    allowed = 2 * max(
        tolerances.SIMILARITY[m_s.dtype],
        strip_budget(sr, hr, window) if backend.moving_pivot else 0,
    )
    assert (m_s - moved).abs().max() <= allowed


@given(recipe=pair_recipes(), window=WINDOWS, order=st.randoms(use_true_random=False))
def test_order_of_the_batch(backend, recipe, window, order):
    """Planes do not see each other: shuffled, they have the shuffled maps, bit for bit.

    Shuffled images are contiguous. Others may run in another kernel, in which the compiler fuses other multiply-adds.
    """
    assume(recipe.shape[0] > 1)
    recipe = dataclasses.replace(recipe, layouts=("contiguous", "contiguous"))
    sr, hr = recipe.make(backend.device)
    index = list(range(recipe.shape[0]))
    order.shuffle(index)
    assert torch.equal(
        backend.similarity_map(sr, hr, **window)[index], backend.similarity_map(sr[index], hr[index], **window)
    )


# ---------------------------------------------------------------- the schedule


@given(recipe=pair_recipes(), window=WINDOWS, step=STEPS)
def test_attention_falls_with_similarity(backend, recipe, window, step):
    """For mu = -1 the more similar of two pixels never gets more attention, beyond a rounding of the exponential."""
    sr, hr = recipe.make(backend.device)
    m_s = backend.similarity_map(sr, hr, **window).flatten()
    m_a = backend.attention_map(sr, hr, step, **window).flatten()
    assert m_a.min() >= 0
    assert m_a.max() <= 2
    falling = m_a[m_s.argsort()]
    # M_s comes from another launch, and the exponential's polynomial wiggles within 4 units in the last place.
    slack = 8 * torch.finfo(m_a.dtype).eps
    assert (falling[1:] <= falling.cummin(0).values[:-1] * (1 + slack)).all()


@given(recipe=pair_recipes(), window=WINDOWS, steps=st.tuples(STEPS, STEPS), distance=st.sampled_from(DISTANCES))
def test_loss_grows_with_the_step(backend, recipe, window, steps, distance):
    """For mu = -1 every weight grows with delta, and so does the loss, beyond a rounding."""
    sr, hr = recipe.make(backend.device)
    early, late = (backend.pspl_loss(sr, hr, step, distance=distance, **window) for step in sorted(steps))
    assert early <= late * (1 + 2 * tolerances.LOSS[early.dtype])


@given(
    recipe=pair_recipes(), window=WINDOWS, gamma=st.sampled_from([2.0, 1.0, 0.25]), distance=st.sampled_from(DISTANCES)
)
def test_in_the_end_it_is_the_plain_loss(backend, recipe, window, gamma, distance):
    """delta = inf: every weight is gamma, whatever the window; the loss is the plain one of gamma sr and gamma hr."""
    sr, hr = recipe.make(backend.device)
    d = numpy64(sr) - numpy64(hr)
    plain = {
        "l1": lambda: gamma * np.abs(d),
        "l2": lambda: gamma**2 * d**2,
        "charbonnier": lambda: np.sqrt(gamma**2 * d**2 + 1e-6),
    }[distance]()
    assert torch.equal(
        backend.attention_map(sr, hr, math.inf, gamma=gamma, **window),
        torch.full_like(sr, gamma, dtype=tolerances.compute_dtype(sr, hr)),
    )
    loss = backend.pspl_loss(sr, hr, math.inf, gamma=gamma, distance=distance, **window)
    assert loss.item() == pytest.approx(plain.mean(), rel=tolerances.LOSS[loss.dtype], abs=1e-37)


# ---------------------------------------------------------------- derivative


@given(
    recipe=pair_recipes(dtypes=(torch.float64,), largest=(2, 2, 6, 7)),
    window=WINDOWS,
    step=STEPS,
    distance=st.sampled_from(DISTANCES),
    reduction=st.sampled_from(["mean", "sum"]),
    direction=st.integers(0, 10**6),
)
def test_gradient_is_the_slope(backend, recipe, window, step, distance, reduction, direction):
    """float64: the gradient along a drawn direction is the central difference of the loss, the attention held where it is."""
    sr, hr = recipe.make(backend.device)
    assume(recipe.error >= 1e-3)
    keywords = {"distance": distance, "reduction": reduction, **window}
    m_a = numpy64(backend.attention_map(sr, hr, step, **window))
    along = np.random.default_rng(direction).standard_normal(sr.shape)
    d = numpy64(sr) - numpy64(hr)
    along[d == 0] = 0  # l1 has a corner there

    def loss(shift: float) -> float:
        moved = m_a * (d + shift * along)
        value = {
            "l1": lambda: np.abs(moved),
            "l2": lambda: moved**2,
            "charbonnier": lambda: np.sqrt(moved**2 + 1e-6),
        }[distance]()
        return math.fsum(value.ravel()) / (d.size if reduction == "mean" else 1)

    # No pixel crosses its corner.
    nonzero = np.abs(d[d != 0])
    assume(nonzero.size)
    h = min(1e-6, float(nonzero.min()) / (10 * max(1.0, float(np.abs(along).max()))))
    leaves = leaf(sr), leaf(hr)
    gradients = torch.autograd.grad(backend.pspl_loss(*leaves, step, **keywords), leaves)
    slope = (loss(h) - loss(-h)) / (2 * h)
    size = np.linalg.norm(numpy64(gradients[0])) * np.linalg.norm(along)
    # Of the two losses, 1e-16 each is lost. The third derivative of charbonnier is at most 0.86 / eps^2.
    third = 0.86 / 1e-6 * float((np.abs(m_a * along) ** 3).sum()) / (d.size if reduction == "mean" else 1)
    allowed = 1e-6 * size + 4e-16 * abs(loss(0)) / h + third * h**2 / 6 * (distance == "charbonnier")
    assert abs(float((numpy64(gradients[0]) * along).sum()) - slope) <= allowed
    assert abs(float((numpy64(gradients[1]) * along).sum()) + slope) <= allowed


# ---------------------------------------------------------------- on fixed images


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


@pytest.mark.parametrize(
    "shape", [(3, 5, 7), (2, 3, 40, 70), pytest.param((4, 3, 150, 201), marks=pytest.mark.not_on("emulated"))], ids=str
)
def test_bitwise_repeatable(backend, shape):
    """The same call gives the same bits: no sum depends on the order in which blocks or threads finish."""
    sr, hr = (leaf(x) for x in smooth_pair(shape, device=backend.device))
    first = None
    for _ in range(5):
        loss, stats = backend.pspl_loss(sr, hr, 1.0, return_stats=True)
        result = (loss.detach(), *stats[:4], *torch.autograd.grad(loss, (sr, hr)), backend.similarity_map(sr, hr))
        first = first or result
        assert all(torch.equal(a, b) for a, b in zip(first, result, strict=True))


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
