"""The CUDA kernels without a GPU: the unmodified sources run on a CPU (tests/cuda/emulation).

The tests of all backends check their results, as backend "emulated". The tests here look for memory errors and races, and check
how the last block forms the sums. Each checker must find a planted bug.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers import adversarial_images, oracle, tolerances
from helpers.cases import numpy64, smooth_pair

try:
    import emulation
    from emulation import build
except ImportError as error:
    # A compiler's complaint about the kernels is no reason to skip.
    if type(error).__name__ != "UnavailableError":
        raise
    pytest.skip(f"no emulation: {error}", allow_module_level=True)


# ---------------------------------------------------------------- 16-bit numbers of the shim


def _doubles(dtype):
    """Numbers of all sizes, those of ``dtype``, and those beside the middle between two neighbours."""
    rng = np.random.default_rng(0)
    exact = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).double().numpy()
    exact = np.sort(exact[np.isfinite(exact)])
    middle = (exact[1:] + exact[:-1]) / 2
    largest = exact[-1] + (exact[-1] - exact[-2]) * np.array([0.49, 0.5, 0.51, 10])
    wild = rng.standard_normal(20000) * 10.0 ** rng.integers(-60, 60, 20000)
    special = [math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e308]
    return np.concatenate([exact, middle, np.nextafter(middle, 9), np.nextafter(middle, -9), largest, wild, special])


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat16", torch.bfloat16)])
def test_16_bit_values(name, dtype):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    value = getattr(emulation.kernels, f"{name}_value")
    actual = torch.tensor([value(int(b) & 0xFFFF) for b in bits], dtype=torch.float64)
    torch.testing.assert_close(actual, bits.view(dtype).double(), rtol=0, atol=0, equal_nan=True)
    number = ~actual.isnan()
    assert torch.equal(actual.signbit()[number], bits.view(dtype).signbit()[number])


def test_double_to_half_is_rounded_once():
    """numpy rounds float64 to float16 correctly, ties to even."""
    doubles = _doubles(torch.float16)
    actual = np.array([emulation.kernels.half_bits(x) for x in doubles], dtype=np.uint16).view(np.float16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(actual, doubles.astype(np.float16))
        np.testing.assert_array_equal(np.signbit(actual[:-7]), np.signbit(doubles[:-7]))


def test_double_to_bfloat16_is_rounded_once():
    """Between the two neighbours the nearer one, and the even one in the middle."""
    doubles = _doubles(torch.bfloat16)
    bits = np.array([emulation.kernels.bfloat16_bits(x) for x in doubles], dtype=np.uint16)
    actual = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).double().numpy()
    # Round to odd in float32 first: then the second rounding, by torch, sees on which side of a middle the number was.
    with np.errstate(over="ignore"):
        single = doubles.astype(np.float32)
    toward = np.where(np.abs(single.astype(np.float64)) > np.abs(doubles), np.nextafter(single, np.float32(0)), single)
    odd = np.where(toward.astype(np.float64) == doubles, toward.view(np.uint32), toward.view(np.uint32) | 1)
    expected = torch.from_numpy(odd.astype(np.uint32).view(np.float32)).bfloat16().double().numpy()
    finite = np.isfinite(doubles)
    np.testing.assert_array_equal(actual[finite], expected[finite])
    np.testing.assert_array_equal(actual[-7:-4], doubles[-7:-4])


# ---------------------------------------------------------------- the last block's sums

MANY_BLOCKS = (2, 3, 40, 150)


def _loss_and_gradient(sr, hr):
    sr = sr.detach().requires_grad_()
    loss = emulation.pspl_loss(sr, hr, 1.0)
    return loss.detach(), *torch.autograd.grad(loss, sr)


def _results(sr, hr, **keywords):
    loss, stats = emulation.pspl_loss(sr, hr, 1.0, return_stats=True, **keywords)
    return [loss, *stats[:4]]


@pytest.mark.parametrize("window_size", [11, 13])
def test_blocks_may_finish_in_any_order(window_size):
    """Each order of blocks, warps and lanes gives the same bits: first to last, last to first, and shuffled ones."""
    sr, hr = smooth_pair(MANY_BLOCKS)
    expected = None
    for seed in range(6):
        with emulation.device(seed=seed):
            results = _results(sr, hr, window_size=window_size)
        expected = expected or results
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_workspace_is_used_again_without_a_reset():
    """Launches of different sizes and kinds share partial sums and ticket, as they lie in torch's allocator."""
    calls = [
        (smooth_pair(shape, seed=i, dtypes=(dtype, dtype)), {"window_size": window_size})
        for i, (shape, dtype, window_size) in enumerate(
            [
                (MANY_BLOCKS, torch.float32, 11),
                ((1, 1, 9, 9), torch.float32, 11),
                (MANY_BLOCKS, torch.float64, 11),
                ((1, 3, 30, 70), torch.float16, 13),
                (MANY_BLOCKS, torch.float32, 5),
                ((1, 1, 1, 1), torch.float32, 11),
            ]
        )
    ]
    expected = [_results(*pair, **keywords) for pair, keywords in calls]
    with emulation.device(workspace=emulation.new_workspace(20000)):
        for _ in range(2):
            for (pair, keywords), fresh in zip(calls, expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(_results(*pair, **keywords), fresh, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 8, 64), MANY_BLOCKS], ids=str)
def test_loss_is_the_sum_of_its_pixels(shape, distance, dtype):
    """One block, several, and more blocks than a block has threads: against a plain sum in float64."""
    sr, hr = smooth_pair(shape, dtypes=(dtype, dtype))
    pixels = emulation.pspl_loss(sr, hr, 1.0, distance=distance, reduction="none")
    for reduction, count in (("sum", 1), ("mean", sr.numel())):
        loss = emulation.pspl_loss(sr, hr, 1.0, distance=distance, reduction=reduction).item()
        assert loss == pytest.approx(math.fsum(numpy64(pixels).ravel()) / count, rel=tolerances.LOSS[dtype], abs=0)


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_strips_of_any_height(padding):
    """Small and large devices cut the image differently, also into strips that do not divide it."""
    sr, hr = smooth_pair((1, 2, 53, 70))
    expected = oracle.similarity_map(numpy64(sr), numpy64(hr), padding=padding)
    for multiprocessors in (1, 2, 3, 8, 132, 100000):
        with emulation.device(multiprocessors=multiprocessors):
            tolerances.assert_similarity(emulation.similarity_map(sr, hr, padding=padding), expected)


@pytest.mark.parametrize("which", ["sr", "hr"])
def test_offsets_beyond_32_bits(which):
    """Planes that lie more than 2^31 elements apart in memory that is hardly touched: the common kernel counts in 32 bits, and
    must leave such images to the other one."""
    sr, hr = smooth_pair((2, 1, 12, 20))
    expected = oracle.pspl(numpy64(sr), numpy64(hr), 1.0)
    near = {"sr": sr, "hr": hr}[which]
    far = torch.empty(2**31 + 1000).as_strided(near.shape, (2**31 + 8, 240, 20, 1)).copy_(near)
    loss, gradient = _loss_and_gradient(far, hr) if which == "sr" else _loss_and_gradient(sr, far)
    tolerances.assert_loss(loss, expected, tolerances.growth(1.0))
    tolerances.assert_gradient(gradient, expected.grad_sr, sr.dtype, tolerances.growth(1.0, budget=tolerances.GRADIENT))


# ---------------------------------------------------------------- sanitizers


def _runner(sanitizer, folder):
    """What to put in front of a program so that the sanitizer works; skips if there is none."""
    source = folder / "nothing.cpp"
    source.write_text("int main() {}")
    flags = [flag for flag in build.SANITIZERS[sanitizer][1].split() if flag.startswith("-fsanitize")]
    program = folder / "nothing"
    compiled = subprocess.run(["g++", *flags, str(source), "-o", str(program)], capture_output=True, text=True)
    if compiled.returncode != 0:
        pytest.skip(f"g++ has no {' '.join(flags)} here")
    # ThreadSanitizer and a kernel that scatters addresses widely do not get along.
    without_scatter = [shutil.which("setarch"), "-R"]
    for prefix in [[], *([without_scatter] if without_scatter[0] else [])]:
        if subprocess.run([*prefix, str(program)], capture_output=True).returncode == 0:
            return prefix
    return pytest.skip(f"programs with {' '.join(flags)} do not run here")


def _run(prefix, program, cases):
    environment = {"TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run([*prefix, str(program), cases], env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.deep
@pytest.mark.parametrize(("sanitizer", "cases"), [("memory", "all"), ("races", "small")])
def test_sanitizers_find_nothing(sanitizer, cases, tmp_path):
    """AddressSanitizer and UBSan over every dtype, padding, window, layout and tail; ThreadSanitizer over a few small images."""
    prefix = _runner(sanitizer, tmp_path)
    program = build.driver(sanitizer, float32_only=sanitizer == "races")
    result = _run(prefix, program, cases)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(" cases\n")


# name: checker, file, what stands there, what the bug makes of it, what the checker says
PLANTS = {
    "halo one column too wide": (
        "memory",
        "strip_forward.cuh",
        "padded_index(first_column - R + position, width,",
        "padded_index(first_column - R + position, width + 1,",
        "heap-buffer-overflow",
    ),
    "halo one row too high": (
        "memory",
        "strip_forward.cuh",
        "max(row + rows - height, 0)",
        "max(row + rows - height - 1, 0)",
        "heap-buffer-overflow",
    ),
    "shared memory one block too small": (
        "memory",
        "strip_forward.cuh",
        "strip_blocks(plan), kBytes, stream",
        "strip_blocks(plan), kBytes - sizeof(ReduceShared), stream",
        "use-after-poison",
    ),
    "last column of the gradient not stored": (
        "memory",
        "strip_forward.cuh",
        "valid[c] = column + c < width;",
        "valid[c] = column + c < width - 1;",
        "gradient is not a number",
    ),
    "last row of a strip not walked": (
        "memory",
        "strip_forward.cuh",
        "for (int left = last_rows; left > 0; --left) {",
        "for (int left = last_rows - 1; left > 0; --left) {",
        "gradient is not a number",
    ),
    "a barrier that not all lanes reach": (
        "memory",
        "strip_forward.cuh",
        "__syncwarp();",
        "if (lane != 3) __syncwarp();",
        "a barrier that not all reach",
    ),
    "all blocks write one partial sum": (
        "memory",
        "reduction.cuh",
        "workspace.partials[static_cast<int64_t>(i) * blocks + blockIdx.x] = total;",
        "workspace.partials[static_cast<int64_t>(i) * blocks] = total;",
        "loss is not a number",
    ),
    "grad_output ignored": (
        "memory",
        "backward.cu",
        "const float factor = *p.grad_output * p.sign;",
        "const float factor = p.sign;",
        "gradient is not the product",
    ),
    "sign applied twice": (
        "memory",
        "backward.cu",
        "const float factor = *p.grad_output * p.sign;",
        "const float factor = *p.grad_output * p.sign * p.sign;",
        "gradient is not the product",
    ),
    "rounded before the factor": (
        "memory",
        "backward.cu",
        "out.element[i] = round_to<E>(read<float, S>(in.element, i) * factor);",
        "{ const E early = round_to<E>(read<float, S>(in.element, i)); "
        "out.element[i] = round_to<E>(read<float, E>(&early, 0) * factor); }",
        "gradient is not the product",
    ),
    "memory left alone although the factor is not 1": (
        "memory",
        "backward.cu",
        "p.gradient == p.saved_gradient && factor == 1.0f",
        "p.gradient == p.saved_gradient",
        "gradient is not the product",
    ),
    "no __syncwarp after a row was written": ("races", "strip_forward.cuh", "__syncwarp();", "", "data race"),
    "one row buffer instead of two": (
        "races",
        "strip_forward.cuh",
        "write_offset += to_other_row;\n    read_offset += to_other_row;",
        "",
        "data race",
    ),
    "no __syncthreads in the reduction": (
        "races",
        "reduction.cuh",
        "warp[threadIdx.x / kLanes] = value;\n  __syncthreads();",
        "warp[threadIdx.x / kLanes] = value;",
        "data race",
    ),
    "no __syncthreads before the last block knows": (
        "races",
        "reduction.cuh",
        "__syncthreads();\n  if (!shared.is_last) return;",
        "if (!shared.is_last) return;",
        "data race",
    ),
    "no fence between partial sum and ticket": (
        "races",
        "reduction.cuh",
        "__threadfence();\n    shared.is_last",
        "shared.is_last",
        "data race",
    ),
    "no fence between ticket and partial sums": (
        "races",
        "reduction.cuh",
        "if (shared.is_last) __threadfence();",
        "",
        "data race",
    ),
}


ERRORS = """
import emulation
from helpers import adversarial_images, oracle
from helpers.cases import numpy64
for name in ("bright patch", "dark patch", "far patch", "coarse text", "patches, others"):
    sr, hr = adversarial_images.pair(name)
    with emulation.device(multiprocessors=1):  # few strips
        print(abs(emulation.similarity_map(sr, hr).numpy() - oracle.similarity_map(numpy64(sr), numpy64(hr))).max())
"""


@pytest.mark.deep
def test_pivots_that_do_not_move_are_found(tmp_path):
    """One pivot for a whole strip exceeds the budget of the similarity map."""
    shutil.copytree(build.CSRC, tmp_path / "csrc")
    source = tmp_path / "csrc" / "cuda" / "strip_forward.cuh"
    text = source.read_text()
    assert text.count("if (far) move_pivots();") == 2
    source.write_text(text.replace("if (far) move_pivots();", ""))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PSPL_EMULATED_CSRC": str(tmp_path / "csrc")}
    command = [sys.executable, "-c", ERRORS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    exceeded = [float(error) > tolerances.SIMILARITY[torch.float32] for error in result.stdout.split()]
    assert len(exceeded) == 5
    assert sum(exceeded) >= 2


def _planted(plant, folder):
    """The driver with the bug in it."""
    sanitizer, file, before, after, _ = PLANTS[plant]
    shutil.copytree(build.CSRC, folder / "csrc")
    (source,) = (folder / "csrc").rglob(file)
    assert source.read_text().count(before) == 1, f"{file} has changed: plant this bug in another way"
    source.write_text(source.read_text().replace(before, after))
    return build.driver(sanitizer, csrc=folder / "csrc", float32_only=True)


@pytest.mark.deep
@pytest.mark.parametrize("plant", PLANTS)
def test_planted_bugs_are_found(plant, tmp_path):
    """Each checker, shown the bug that it is for."""
    sanitizer, *_, complaint = PLANTS[plant]
    prefix = _runner(sanitizer, tmp_path)
    result = _run(prefix, _planted(plant, tmp_path), "all" if sanitizer == "memory" else "small")
    assert result.returncode != 0, "the planted bug was not found"
    assert complaint in result.stderr


# ---------------------------------------------------------------- approximate instructions


@pytest.mark.parametrize("name", ["rcp", "ex2", "rsqrt"])
@pytest.mark.parametrize("approximation", emulation.APPROXIMATIONS)
def test_approximations_stay_within_the_documented_error(name, approximation):
    """Each mode moves the exact value by at most the bound that primitives.cuh states; largest and smallest reach it."""
    exact = {"rcp": lambda x: 1 / x, "ex2": np.exp2, "rsqrt": lambda x: 1 / np.sqrt(x)}[name]
    bound = {"rcp": 1, "ex2": 2, "rsqrt": 2}[name]
    rng = np.random.default_rng(0)
    x = np.float32(rng.uniform(-30, 0, 2000) if name == "ex2" else 2.0 ** rng.uniform(-60, 60, 2000))
    emulation.kernels.set_approximation(emulation.APPROXIMATIONS.index(approximation))
    found = np.array([getattr(emulation.kernels, f"{name}_approx")(float(value)) for value in x])
    true = exact(x.astype(np.float64))
    ulps = (found - true) / np.spacing(np.abs(true).astype(np.float32))
    assert np.abs(ulps).max() <= bound * (1 + 1e-6)
    if approximation == "largest":
        assert ulps.min() > bound - 1
    if approximation == "smallest":
        assert ulps.max() < 1 - bound
    assert np.isnan(emulation.kernels.rcp_approx(math.nan))


@pytest.mark.parametrize("approximation", emulation.APPROXIMATIONS[1:])
@pytest.mark.parametrize("name", adversarial_images.IMAGES)
def test_budget_holds_for_every_approximation(name, approximation):
    """What a GPU may return, not what a CPU does: the budget of test_numerics.py, and |M_s| <= 1."""
    sr, hr = adversarial_images.pair(name)
    expected = oracle.pspl(numpy64(sr), numpy64(hr), 1.0)
    with emulation.device(approximation=approximation):
        m_s = emulation.similarity_map(sr, hr)
        assert m_s.abs().max() <= 1
        tolerances.assert_similarity(m_s, expected.similarity)
        assert torch.equal(emulation.similarity_map(sr, sr), torch.ones_like(sr))
        sr.requires_grad_()
        loss = emulation.pspl_loss(sr, hr, 1.0)
        (gradient,) = torch.autograd.grad(loss, sr)
    tolerances.assert_loss(loss, expected)
    tolerances.assert_gradient(gradient, expected.grad_sr, torch.float32)


@pytest.mark.parametrize("approximation", emulation.APPROXIMATIONS)
def test_similarity_never_leaves_its_range(approximation):
    """Opposite images of any size, whose quotients are nearly 1."""
    rng = np.random.default_rng(1)
    for scale in (1.0, 30.0, 255.0, 1e4):
        hr = torch.from_numpy(rng.standard_normal((1, 3, 24, 70)).astype(np.float32)) * scale
        with emulation.device(approximation=approximation):
            for sr in (-hr, -hr * 1.001, 0.5 - hr, hr * 1e-3):
                assert emulation.similarity_map(sr, hr).abs().max() <= 1
