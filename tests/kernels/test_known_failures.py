"""Reported failures of other SSIM packages, one test each, named after the report. They must not happen here, on any backend.

The numbers are those of issues (``pr``: pull requests) of the repository in the name. Failures that need a GPU (streams, device
guards, captured graphs) are in tests/cuda/test_gpu.py, those of an installation in tests/build/test_install.py.
"""

from __future__ import annotations

import math

import pytest
import torch

import pspl_cuda
from helpers import adversarial_images, backends, oracle, tolerances
from helpers.cases import check_against_oracle, leaf, numpy64, smooth_pair


def noise(*shape, seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator).to(device, dtype)


def assert_exact(backend, sr, hr, **keywords):
    """The map is the oracle's within the budget, and in -1..1."""
    m_s = backend.similarity_map(sr, hr, **keywords)
    assert m_s.abs().max() <= 1
    tolerances.assert_similarity(m_s, oracle.similarity_map(numpy64(sr), numpy64(hr), **keywords))


def gradient_of(loss, image):
    return torch.autograd.grad(loss, image)[0]


# ---------------------------------------------------------------- layouts and shapes


def test_optimized_fused_ssim_issue_1_permuted_input(backend):
    """Images as a renderer gives them, NHWC memory seen as NCHW, read as if they were contiguous."""
    sr, hr = (noise(2, 20, 30, 3, seed=seed, device=backend.device).permute(0, 3, 1, 2) for seed in (0, 1))
    check_against_oracle(backend, sr, hr, maps=True)


def test_fused_ssim_issue_44_output_with_the_strides_of_the_input(backend):
    """A crop of a larger buffer: most of the map was never written."""
    sr, hr = (noise(1, 3, 64, 96, seed=seed, device=backend.device)[..., 5:53, 7:55] for seed in (0, 1))
    assert_exact(backend, sr, hr)
    a, b = leaf(sr), leaf(hr)
    packed = leaf(sr.contiguous())
    strided = gradient_of(backend.pspl_loss(a, b, 1.0), a)
    torch.testing.assert_close(strided, gradient_of(backend.pspl_loss(packed, hr.contiguous(), 1.0), packed))


def test_gsplat_issue_396_mixed_layouts(backend):
    """A permuted output against a contiguous target."""
    sr = noise(1, 17, 33, 3, device=backend.device).permute(0, 3, 1, 2)
    check_against_oracle(backend, sr, noise(1, 3, 17, 33, seed=1, device=backend.device))


def test_fvdb_core_issue_750_channels_in_order(backend):
    """Each channel's map depends on that channel of its own image."""
    sr, hr = noise(2, 3, 12, 13, device=backend.device), noise(2, 3, 12, 13, seed=1, device=backend.device)
    m_s = backend.similarity_map(sr, hr)
    for n in range(2):
        for c in range(3):
            alone = backend.similarity_map(sr[n, c][None], hr[n, c][None])[0]
            torch.testing.assert_close(m_s[n, c], alone, rtol=0, atol=2 * tolerances.SIMILARITY[torch.float32])


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (16, 17), (31, 33), (15, 65)], ids=str)
def test_fused_ssim_issue_6_halo_of_the_last_tile(backend, size):
    """A shared buffer was too small for the halo, at sizes that tiles do not divide."""
    assert_exact(backend, noise(1, 1, *size, device=backend.device), noise(1, 1, *size, seed=1, device=backend.device))


def test_pytorch_msssim_issue_6_volumes(backend):
    """Five dimensions: a batch of stacks of images."""
    sr, hr = noise(2, 2, 3, 9, 10, device=backend.device), noise(2, 2, 3, 9, 10, seed=1, device=backend.device)
    m_s = backend.similarity_map(sr, hr)
    flat = backend.similarity_map(sr.flatten(0, 1), hr.flatten(0, 1))
    assert torch.equal(m_s.flatten(0, 1), flat)


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
def test_scikit_image_issue_4636_smaller_than_the_window(backend, padding):
    """Refused by some, left unsmoothed by others."""
    sr, hr = noise(1, 1, 4, 7, device=backend.device), noise(1, 1, 4, 7, seed=1, device=backend.device)
    assert_exact(backend, sr, hr, padding=padding)


def test_pspl_official_code_broadcasts_a_batch(backend):
    """One target for two outputs was a warning."""
    with pytest.raises(ValueError, match="same shape"):
        backend.pspl_loss(noise(2, 3, 8, 8, device=backend.device), noise(1, 3, 8, 8, device=backend.device), 1.0)


def test_fused_ssim_mismatched_shapes_read_out_of_bounds(backend):
    """A target with fewer rows, or fewer channels, of the same width."""
    sr = noise(1, 3, 32, 32, device=backend.device)
    for hr in (sr[:, :, :8], sr[:, :1]):
        with pytest.raises(ValueError, match="same shape"):
            backend.similarity_map(sr, hr)


# ---------------------------------------------------------------- definition


@pytest.mark.parametrize("window_size", [3, 5, 7, 9, 11])
def test_fussim_windows_with_wrong_weights(backend, window_size):
    """The weights of window 9 added up to 0.54, those of 7 had another sigma: identical images do not show it."""
    sr, hr = noise(1, 1, 24, 40, device=backend.device), noise(1, 1, 24, 40, seed=1, device=backend.device)
    assert_exact(backend, sr, hr, window_size=window_size)
    mean_only = {"window_size": window_size, "padding": "replicate", "k2": 1e6}
    flat = torch.full_like(sr, 0.5), torch.full_like(sr, 0.25)
    # Flat images: with weights that add up to 1, luminance alone decides.
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert backend.similarity_map(*flat, **mean_only).sub(expected).abs().max() <= tolerances.SIMILARITY[torch.float32]


def test_fused_ssim_issue_1_border_is_zero_padded(backend):
    """Neither cropped nor renormalised, and said so: the border counts, and is what the oracle makes of zeros outside."""
    sr, hr = noise(1, 1, 30, 30, device=backend.device), noise(1, 1, 30, 30, seed=1, device=backend.device)
    expected = oracle.similarity_map(numpy64(sr), numpy64(hr), padding="zeros")
    m_s = backend.similarity_map(sr, hr)
    tolerances.assert_similarity(m_s, expected)
    reflected = backend.similarity_map(sr, hr, padding="reflect")
    assert (m_s - reflected)[..., 5:-5, 5:-5].abs().max() <= 2 * tolerances.SIMILARITY[torch.float32]
    assert (m_s - reflected)[..., 0, 0].abs().max() > 1e-3


def test_fused_ssim_pr_33_border_pixels_are_learned(backend):
    """A crop of the map made the weighted L1 ignore the border too."""
    sr, hr = smooth_pair((1, 1, 20, 21), noise=0.3, device=backend.device)
    sr = leaf(hr + 0.2)
    assert (gradient_of(backend.pspl_loss(sr, hr, 1.0), sr) > 0).all()


def test_fused_ssim_issue_12_the_map_itself(backend):
    """Asked for, and declined: the map, and the loss per pixel, whose mean is the loss."""
    sr, hr = smooth_pair((1, 3, 20, 21), device=backend.device)
    assert backend.similarity_map(sr, hr).shape == sr.shape
    pixels = backend.pspl_loss(sr, hr, 1.0, reduction="none")
    assert pixels.double().mean().item() == pytest.approx(backend.pspl_loss(sr, hr, 1.0).item(), rel=1e-6)


def test_piq_issue_37_sign(backend):
    """Taken for a loss, a similarity trains towards the worst image: the better image has the larger M_s and the smaller loss."""
    better, hr = smooth_pair((1, 3, 24, 24), noise=0.02, device=backend.device)
    worse = hr + 10 * (better - hr)
    assert (backend.similarity_map(better, hr) > backend.similarity_map(worse, hr)).float().mean() > 0.9
    assert backend.pspl_loss(better, hr, 1.0) < backend.pspl_loss(worse, hr, 1.0)


def test_vmafx_adr_189_another_ssim_under_the_same_name():
    """A faster path silently computed another SSIM: all backends agree where paddings, windows and constants differ."""
    sr, hr = noise(1, 2, 19, 23), noise(1, 2, 19, 23, seed=1)
    for keywords in ({}, {"window_size": 9, "sigma": 2.0}, {"padding": "reflect"}, {"data_range": 255.0}):
        maps = [
            backend.similarity_map(sr.to(backend.device), hr.to(backend.device), **keywords).cpu()
            for backend in map(backends.Backend, backends.selected())
            if backends.why_not(backend.name) is None
        ]
        for other in maps[1:]:
            torch.testing.assert_close(maps[0], other, rtol=0, atol=2 * tolerances.SIMILARITY[torch.float32])


# ---------------------------------------------------------------- out of range, not a number


def test_fused_ssim_issue_37_above_one(backend):
    """Flat 0.6 against 0.6 + 1e-7: variances below 0, SSIM above 1."""
    sr = torch.full((1, 1, 32, 32), 0.6, device=backend.device)
    assert_exact(backend, sr, sr + 1e-7)


def test_fused_ssim_pr_37_identical_flat_images(backend):
    """Clamping the variances and not the covariance made identical images 0.9997."""
    for value in (0.6, 0.9, 1.0, 1 / 3):
        image = torch.full((1, 1, 32, 32), value, device=backend.device)
        assert torch.equal(backend.similarity_map(image, image.clone()), torch.ones_like(image))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_fused_ssim_pr_37_nan_becomes_one(backend, bad):
    """min and max return the number beside a NaN: a clamp makes a perfect score of it."""
    sr, hr = noise(1, 1, 16, 16, device=backend.device), noise(1, 1, 16, 16, seed=1, device=backend.device)
    sr[0, 0, 8, 8] = bad
    assert backend.similarity_map(sr, hr)[0, 0, 8, 8].isnan()
    assert backend.attention_map(sr, hr, 1.0)[0, 0, 8, 8].isnan()
    assert backend.pspl_loss(sr, hr, 1.0).isnan()


def test_pytorch_ssim_issue_33_constants_of_another_range(backend):
    """0..255 with the constants of 0..1: negative variances, values like -100 (also jorge-pessoa/pytorch-msssim 12)."""
    for name in ("flat, noise 1e-4", "saturated", "photo"):
        sr, hr = adversarial_images.pair(name, 255.0, device=backend.device)
        assert backend.similarity_map(sr, hr, data_range=1.0).abs().max() <= 1


def test_torchmetrics_issue_2281_negative_variance(backend):
    """Nearly constant images."""
    sr = 0.5 + 1e-4 * noise(1, 1, 24, 24, device=backend.device)
    assert_exact(backend, sr, sr + 1e-5 * noise(1, 1, 24, 24, seed=1, device=backend.device))


def test_torchmetrics_issue_2327_above_one(backend):
    """Bright images with little texture."""
    sr, hr = adversarial_images.pair("bright", device=backend.device)
    assert_exact(backend, sr, hr)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_torchmetrics_issue_1290_black_images_under_autocast(backend, dtype):
    """1.3245 for two images of zeros: autocast shortened what the window was applied to."""
    black = torch.zeros(1, 1, 24, 24, device=backend.device)
    sr, hr = smooth_pair((1, 1, 24, 24), device=backend.device)
    outside = backend.similarity_map(sr, hr)
    with torch.autocast(backend.device.type, dtype=dtype):
        assert torch.equal(backend.similarity_map(sr, hr), outside)
        assert torch.equal(backend.similarity_map(black, black.clone()), torch.ones_like(black))
        assert torch.equal(backend.similarity_map(black.to(dtype), black), torch.ones_like(black))


def test_pyiqa_pr_125_float32_is_enough(backend):
    """Cast to float64 by others: smooth and bright images with small errors."""
    for name in ("smooth, error 1e-2", "smooth, error 1e-3", "bright border"):
        assert_exact(backend, *adversarial_images.pair(name, device=backend.device))


def test_pytorch_msssim_issue_7_negative_contrast(backend):
    """Structure turned upside down: a negative contrast term, whose power was NaN."""
    hr = noise(1, 1, 24, 24, device=backend.device)
    sr = leaf(1 - hr)
    loss = backend.pspl_loss(sr, hr, 1.0)
    assert backend.similarity_map(sr, hr).min() < -0.5
    assert loss.isfinite()
    assert gradient_of(loss, sr).isfinite().all()


def test_kornia_issue_473_division_by_zero(backend):
    """Black images and equal images: nothing to divide by but the constants."""
    black = torch.zeros(1, 1, 16, 16, device=backend.device)
    for hr in (black, black + 1):
        sr = leaf(black.clone())
        loss = backend.pspl_loss(sr, hr, 1.0)
        assert loss.isfinite()
        assert gradient_of(loss, sr).isfinite().all()


def test_pytorch_issue_40497_nan_late_in_training(backend):
    """Output and target almost equal, under autocast: loss and gradient are finite, and those without autocast."""
    hr = noise(1, 3, 24, 24, device=backend.device)
    for error in (1e-2, 1e-4, 1e-7, 0.0):
        sr = leaf(hr + error * noise(1, 3, 24, 24, seed=1, device=backend.device))
        outside = backend.pspl_loss(sr, hr, 10.0)
        with torch.autocast(backend.device.type, dtype=torch.bfloat16):
            loss = backend.pspl_loss(sr, hr, 10.0)
        assert loss.isfinite()
        assert torch.equal(loss, outside)
        assert torch.equal(gradient_of(loss, sr), gradient_of(outside, sr))


def test_neosr_issue_87_who_made_the_nan(backend):
    """The statistics tell broken images from a broken weight."""
    sr, hr = noise(1, 1, 16, 16, device=backend.device), noise(1, 1, 16, 16, seed=1, device=backend.device)
    _, stats = backend.pspl_loss(sr, hr, torch.tensor(math.nan, device=backend.device), return_stats=True)
    assert stats.mean_abs_error.isfinite()
    assert stats.mean_similarity.isfinite()
    assert stats.mean_attention.isnan()
    sr[0, 0, 0, 0] = math.nan
    _, stats = backend.pspl_loss(sr, hr, 1.0, return_stats=True)
    assert stats.mean_abs_error.isnan()


def test_pspl_official_code_at_age_zero(backend):
    """beta = 0 and step = 0 divide by 0: NaN where SSIM is exactly mu."""
    x = noise(1, 1, 16, 16, device=backend.device)
    assert torch.equal(backend.attention_map(x, x.clone(), 0.0, mu=1.0), torch.full_like(x, 2.0))
    assert backend.pspl_loss(x, 1 - x, 0).isfinite()


# ---------------------------------------------------------------- range of the values


def test_piqa_issue_19_overshoot(backend):
    """An assertion on 0..1 ended trainings: outputs of a network overshoot."""
    hr = noise(1, 3, 16, 16, device=backend.device)
    check_against_oracle(backend, 1.5 * hr - 0.2, hr)


def test_piqa_issue_30_negative_values(backend):
    """Images of -1..1 with data_range 2."""
    sr, hr = (2 * x - 1 for x in smooth_pair((1, 3, 16, 16), device=backend.device))
    check_against_oracle(backend, sr, hr, data_range=2.0, maps=True)


def test_pyiqa_issue_105_clamped_inputs_have_no_gradient(backend):
    """Pixels outside of 0..1 are the ones that must learn (also kornia 473)."""
    hr = noise(1, 1, 16, 16, device=backend.device)
    sr = leaf(torch.where(hr > 0.5, 1.3, -0.3).to(hr))
    assert torch.equal(gradient_of(backend.pspl_loss(sr, hr, 1.0), sr).sign(), (sr.detach() - hr).sign())


def test_pytorch_msssim_issue_8_same_image_in_another_range(backend):
    """0..1 and 0..255 with their data_range give the same map."""
    sr, hr = adversarial_images.pair("photo", device=backend.device)
    small = backend.similarity_map(sr, hr, data_range=1.0)
    large = backend.similarity_map(255 * sr, 255 * hr, data_range=255.0)
    assert (small - large).abs().max() <= 2 * tolerances.SIMILARITY[torch.float32]


def test_redux_pr_31_from_scratch(backend):
    """What an untrained network gives: nothing, or values far off. The loss is finite and every wrong pixel learns."""
    hr = noise(1, 3, 16, 16, device=backend.device)
    for sr in (torch.zeros_like(hr), 100 * (noise(1, 3, 16, 16, seed=1, device=backend.device) - 0.5)):
        sr = leaf(sr)
        loss = backend.pspl_loss(sr, hr, 1.0)
        assert loss.isfinite()
        assert (gradient_of(loss, sr) != 0).all()


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_pytorch_msssim_issue_17_half_precision_training(backend, dtype):
    """White images from float16 training: squares and variances in 16 bits are garbage."""
    hr = noise(1, 3, 32, 32, dtype=dtype, device=backend.device)
    sr = leaf((0.9 * hr.float() + 0.05).to(dtype))
    expected = oracle.pspl(numpy64(sr), numpy64(hr), 1.0)
    loss = backend.pspl_loss(sr, hr, 1.0)
    tolerances.assert_loss(loss, expected)
    assert_exact(backend, sr, hr)
    # As a GradScaler does, so that 1 / n does not underflow.
    scaled = gradient_of(2.0**12 * loss, sr)
    tolerances.assert_gradient(scaled, 2.0**12 * expected.grad_sr, torch.float32)


def test_pytorch_lightning_issue_6383_mixed_dtypes(backend):
    """float32 against float16 raised (also pytorch-msssim 45)."""
    sr, hr = smooth_pair((1, 3, 16, 17), dtypes=(torch.float16, torch.float32), device=backend.device)
    check_against_oracle(backend, sr, hr, maps=True)
    check_against_oracle(backend, hr, sr, maps=True)


def test_ignite_issue_3034_half_on_the_cpu(backend):
    """No convolution of float16 was needed."""
    sr, hr = smooth_pair((1, 3, 16, 17), dtypes=(torch.float16, torch.float16), device=backend.device)
    check_against_oracle(backend, sr, hr, distance="l2", maps=True)


def test_pspl_official_code_on_uint8(backend):
    """The window became 0, and SSIM 1 everywhere, without an error."""
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8, device=backend.device)
    with pytest.raises(TypeError, match="uint8"):
        backend.pspl_loss(image, image, 1.0)


# ---------------------------------------------------------------- gradients and graphs


def test_fused_ssim_second_image_gets_no_gradient(backend):
    """Asked for by gsplat: the target's gradient is there, and the negative."""
    sr, hr = (leaf(x) for x in smooth_pair((1, 1, 16, 17), device=backend.device))
    grads = torch.autograd.grad(backend.pspl_loss(sr, hr, 1.0), (sr, hr))
    assert grads[0].any()
    assert torch.equal(grads[1], -grads[0])


def test_nerfstudio_issue_81_metrics_keep_the_graph(backend):
    """Logged every step, a metric with a graph holds all its images: what is logged has none."""
    sr, hr = smooth_pair((1, 1, 16, 17), device=backend.device)
    sr = leaf(sr)
    _, stats = backend.pspl_loss(sr, hr, 1.0, return_stats=True)
    logged = [*stats[:4], stats.psnr, backend.similarity_map(sr, hr), backend.attention_map(sr, hr, 1.0)]
    assert all(value.grad_fn is None and not value.requires_grad for value in logged)


def test_pspl_official_code_resumes_at_age_zero():
    """The age was neither saved nor restored: a resumed training began with weights near 0 again."""
    loss = pspl_cuda.PSPLLoss()
    x, y = noise(1, 1, 8, 8), noise(1, 1, 8, 8, seed=1)
    for _ in range(3):
        loss(x, y)
    resumed = pspl_cuda.PSPLLoss()
    resumed.load_state_dict(loss.state_dict())
    assert resumed.iteration == 3
    assert torch.equal(resumed(x, y), loss(x, y))


# ---------------------------------------------------------------- beyond 32 bits


@pytest.mark.large
@pytest.mark.not_on("reference", "emulated")  # too slow, or many times the memory
def test_fused_ssim_index_overflow(backend):
    """More than 2^31 elements in bfloat16: 32-bit offsets read and wrote somewhere else.

    hr is one image, expanded, so that 13 GB are enough: 4 for sr and 9 for the float32 map. The last image of sr differs from it:
    the loss must be what that image gives alone, and the map too; elsewhere the map is 1.
    """
    shape = (43, 1, 7072, 7072)
    last = noise(*shape[1:], dtype=torch.bfloat16, device=backend.device)
    hr = noise(*shape[1:], seed=1, dtype=torch.bfloat16, device=backend.device)
    part = backend.pspl_loss(last, hr, 1.0, reduction="sum")
    part_map = backend.similarity_map(last, hr)
    sr = hr.expand(shape).contiguous()
    assert sr.numel() > 2**31
    sr[-1] = last
    whole = backend.pspl_loss(sr, hr.expand(shape), 1.0, reduction="sum")
    assert whole.item() == pytest.approx(part.item(), rel=1e-6)
    m_s = backend.similarity_map(sr, hr.expand(shape))
    assert torch.equal(m_s[-1], part_map)
    assert all((image == 1).all() for image in m_s[:-1])
